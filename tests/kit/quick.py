"""What keeps the default suite short."""

import contextlib
import functools

import jax
import jaxlib
import pytest

from purerl.accelerator.compiling import LEVEL, QUICK_COMPILE
from purerl.runs.chunks import Program

# A CPU's code of fused operations by MLIR takes four fifths of the compile time of a small program
# with JAX 0.10, which can do without; later ones don't know the flag, and none survives one that
# it doesn't know.
_EMITTERS = "xla_cpu_use_fusion_emitters"
_HAS_EMITTERS = jaxlib.version.__version_info__ < (0, 11)
# Flags of XLA for all that the tests compile.
QUICK_FLAGS = {LEVEL: 0} | ({_EMITTERS: "false"} if _HAS_EMITTERS else {})
# As users compile: for programs that train for real, which take longer to run than to compile, and
# for two programs that do the same to the bit, as those of MLIR's code do.
full_jit = functools.partial(
    jax.jit, compiler_options={LEVEL: 1} | ({_EMITTERS: True} if _HAS_EMITTERS else {})
)
# For programs so small that compiling them takes the time.
quick_jit = functools.partial(jax.jit, compiler_options=QUICK_COMPILE)


@contextlib.contextmanager
def quick_programs(jit=quick_jit):
    """What `fit` compiles, it compiles quickly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Program, "jit", staticmethod(jit))
        yield


def mostly_slow(names, quick):
    """Parameters of a test of which only the quick ones are in the default suite."""

    def slow(x):
        return pytest.param(*(x if isinstance(x, tuple) else (x,)), marks=pytest.mark.slow)

    return [x if x in quick else slow(x) for x in names]
