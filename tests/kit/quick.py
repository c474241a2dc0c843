"""What keeps the default suite short."""

import contextlib

import jax
import pytest

from purerl.accelerator import members
from purerl.accelerator.compiling import ONE_CORE, QUICK_COMPILE


def quick_jit(function, *, one_core=False, **options):
    """For programs so small that compiling them takes the time."""
    compiler_options = QUICK_COMPILE | (ONE_CORE if one_core else {})
    return jax.jit(function, compiler_options=compiler_options, **options)


@contextlib.contextmanager
def quick_programs():
    """What `fit` and `sweep` compile, they compile quickly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(members, "jit", quick_jit)
        yield


def mostly_slow(names, quick):
    """Parameters of a test of which only the quick ones are in the default suite."""

    def slow(x):
        return pytest.param(*(x if isinstance(x, tuple) else (x,)), marks=pytest.mark.slow)

    return [x if x in quick else slow(x) for x in names]
