"""Every agent learns each probe that its kind can, to the value known in closed form."""

import pytest
from kit.probes import PROBE_TRIALS
from kit.trials import params


@pytest.mark.parametrize("trial", params(PROBE_TRIALS))
def test_values(trial):
    trial.check()
