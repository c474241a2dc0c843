"""What keeps the default suite short."""

import contextlib
import functools

import jax
import pytest

from purerl.accelerator.compiling import QUICK_COMPILE
from purerl.runs.chunks import Program

# For programs so small that compiling them takes the time.
quick_jit = functools.partial(jax.jit, compiler_options=QUICK_COMPILE)


@contextlib.contextmanager
def quick_programs():
    """What `fit` compiles, it compiles quickly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Program, "jit", staticmethod(quick_jit))
        yield


def mostly_slow(names, quick):
    """Parameters of a test of which only the quick ones are in the default suite."""

    def slow(x):
        return pytest.param(*(x if isinstance(x, tuple) else (x,)), marks=pytest.mark.slow)

    return [x if x in quick else slow(x) for x in names]
