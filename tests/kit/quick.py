"""What keeps the default suite short."""

import contextlib

import jax
import jaxlib
import pytest

from purerl.accelerator import members
from purerl.accelerator.compiling import LEVEL, ONE_CORE, QUICK_COMPILE

# A CPU's code of fused operations by MLIR takes four fifths of the compile time of a small program
# with JAX 0.10, which can do without; later ones don't know the flag, and none survives one that
# it doesn't know.
_EMITTERS = "xla_cpu_use_fusion_emitters"
_HAS_EMITTERS = jaxlib.version.__version_info__ < (0, 11)
# The threads that share a module's compilation cost a tenth where two workers share two cores.
_PARTS = "xla_cpu_parallel_codegen_split_count"
# Flags of XLA for all that the tests compile.
QUICK_FLAGS = {LEVEL: 0} | ({_EMITTERS: "false", _PARTS: 1} if _HAS_EMITTERS else {})


def _jit_with(compiler_options):
    def jit(function, *, one_core=False, **options):
        chosen = compiler_options | (ONE_CORE if one_core else {})
        return jax.jit(function, compiler_options=chosen, **options)

    return jit


# For programs so small that compiling them takes the time.
quick_jit = _jit_with(QUICK_COMPILE)
# As users compile: for programs that train for real, which take longer to run than to compile, and
# for two programs that do the same to the bit, as those of MLIR's code do.
full_jit = _jit_with({LEVEL: 1} | ({_EMITTERS: True} if _HAS_EMITTERS else {}))


@contextlib.contextmanager
def quick_programs(jit=quick_jit):
    """What `fit` and `sweep` compile, they compile quickly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(members, "jit", jit)
        yield


def mostly_slow(names, quick, slow=None):
    """Parameters of a test: of the default suite only the quick ones, of `.ci/run` the slow ones,
    by default all others, and the rest for a release."""

    def marked(x):
        mark = pytest.mark.slow if slow is None or x in slow else pytest.mark.release
        return pytest.param(*(x if isinstance(x, tuple) else (x,)), marks=mark)

    return [x if x in quick else marked(x) for x in names]
