"""Training for real: thresholds that a broken agent misses, several seeds each."""

import pytest
from kit.learning import LEARNING
from kit.trials import params


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("trial", params(LEARNING))
def test_returns(trial):
    trial.check()
