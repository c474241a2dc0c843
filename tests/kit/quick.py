"""What keeps the default suite short."""

import functools

import jax
import pytest

from purerl.envs.check import QUICK_COMPILE

# For programs so small that compiling them takes the time.
quick_jit = functools.partial(jax.jit, compiler_options=QUICK_COMPILE)


def mostly_slow(names, quick):
    """Parameters of a test of which only the quick ones are in the default suite."""

    def slow(x):
        return pytest.param(*(x if isinstance(x, tuple) else (x,)), marks=pytest.mark.slow)

    return [x if x in quick else slow(x) for x in names]
