"""Tests that train: what each measures of a seed, and which figures pass.

A test trains with a few seeds and `python tests/kit/robustness.py` with many, from the same trial,
so that a threshold is known to hold by a margin and not by luck.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purerl


@dataclasses.dataclass(frozen=True)
class Trial:
    """A test that trains.

    Attributes:
        measure: from keys `[S]` to figures `[S, ...]`, each seed's from its key alone.
        passes: whether figures `[k, ...]` of any k seeds are good enough.
        num_seeds: k, with how many the test trains.
        suite: the one that has it: "default", "slow" or "release", as the marks of the tests.
    """

    measure: Callable[[jax.Array], np.ndarray]
    passes: Callable[[np.ndarray], bool]
    num_seeds: int
    suite: str = "default"

    def check(self) -> None:
        """Trains and fails with the figures where they are not good enough."""
        figures = self.measure(keys(range(self.num_seeds)))
        print("figures of each seed:", figures.round(2).tolist())
        assert self.passes(figures), figures


def keys(seeds) -> jax.Array:
    """`[S]`, a seed's key is the same whichever others are trained beside it."""
    return jax.vmap(jax.random.key)(jnp.asarray(list(seeds), jnp.uint32))


def final_returns(outs: purerl.TrainOutput, num_updates: int) -> np.ndarray:
    """`[S]`, each seed's mean over the episodes that ended in the last updates."""
    rows = -(-num_updates // outs.log_every)
    count = np.asarray(outs.metrics.num_episodes)[:, -rows:]
    mean = np.asarray(outs.metrics.episode_return)[:, -rows:]
    return np.where(count > 0, mean * count, 0.0).sum(1) / count.sum(1)


def params(trials: dict[str, Trial]) -> list:
    """A test's parameters, with their marks."""
    marks = {"default": [], "slow": [pytest.mark.slow], "release": [pytest.mark.release]}
    return [
        pytest.param(trial, id=name, marks=marks[trial.suite]) for name, trial in trials.items()
    ]
