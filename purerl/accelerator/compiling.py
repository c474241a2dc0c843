"""The compiler's options, for the programs that purerl compiles and no others."""

import collections
import os
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax

from purerl.accelerator.machine import ISA_FLAG, vector_bits
from purerl.records.types import PyTree

LEVEL = "xla_backend_optimization_level"
WIDTH = "xla_cpu_prefer_vector_width"
GRAPHS = "xla_gpu_graph_min_graph_size"
# For programs so small that compiling them takes the time, not running them.
QUICK_COMPILE = {LEVEL: 0}
ONE_CORE = {"xla_cpu_multi_thread_eigen": False}
# Programs kept for a call that needs the same ones.
MOST_REMEMBERED = 8
_remembered: "collections.OrderedDict[Hashable, jax.stages.Wrapped]" = collections.OrderedDict()


def compiler_options() -> dict[str, int]:
    """The compiler's options that `fit`, `sweep` and the command compile with, for a `jit` of
    yours:

        train = jax.jit(purerl.make_train(config), compiler_options=purerl.compiler_options())

    On a CPU they leave out passes of LLVM that take a fifth to a third of the compile time:
    compiling PPO takes 0.69 of the time, DQN 0.77, DDPG 0.80, at 1.06, 0.99 and 1.02 times the
    speed, with the same results, bit for bit. Where the processor has vectors of 512 bits they are
    used, of which XLA's default is half: PPO is 1.09 to 1.10 times as fast, A2C 1.08, DDPG 1.05,
    SAC 1.03, DQN 1.02; sums are then rounded otherwise (one core, JAX 0.11.2, November 2026).

    On a GPU the shortest runs of kernels are CUDA graphs too, not only those of five and more: PPO
    is 1.11 to 1.15 times as fast, SAC and DQN 1.00 (one H200, JAX 0.11.2, November 2026,
    benchmarks/README.md).

    Empty for other devices, where nothing was measured. What `XLA_FLAGS` names is left alone, and
    the width where they limit the instructions.

    JAX takes options at the outermost `jit` only. The first call starts JAX.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if jax.default_backend() == "gpu":
        return {} if GRAPHS in flags else {GRAPHS: 1}
    if jax.default_backend() != "cpu":
        return {}
    options = {} if LEVEL in flags else {LEVEL: 1}
    if not (WIDTH in flags or ISA_FLAG in flags) and vector_bits() >= 512:
        options[WIDTH] = 512
    return options


def jit(
    fn: Callable[..., PyTree],
    *,
    static_argnums: int | None = None,
    donate_argnums: int | Sequence[int] = (),
    quick: bool = False,
    one_core: bool = False,
) -> jax.stages.Wrapped:
    """`jax.jit` with `compiler_options()`, for every program that purerl runs. Starts JAX.

    Args:
        fn: the program; not to be called under another `jit`.
        static_argnums, donate_argnums: as of `jax.jit`.
        quick: `QUICK_COMPILE` on a CPU.
        one_core: on a CPU, products aren't split over several cores.
    """
    options: dict[str, int | bool] = dict(compiler_options())
    if jax.default_backend() == "cpu":
        options |= QUICK_COMPILE if quick else {}
        options |= ONE_CORE if one_core else {}
    return jax.jit(
        fn,
        static_argnums=static_argnums,
        donate_argnums=donate_argnums,
        compiler_options=options or None,
    )


def remembered(key: Hashable, make: Callable[[], jax.stages.Wrapped]) -> jax.stages.Wrapped:
    """The jitted function of an earlier call with an equal key, so that JAX neither traces nor
    compiles it again.

    Args:
        key: all that the function depends on except its arguments and JAX's settings; None, or a
            key that can't be hashed, to remember nothing.
        make: makes it.
    """
    if key is None:
        return make()
    config: Any = jax.config  # JAX 0.10 doesn't declare what it adds at run time
    # Settings that our functions read while they are traced, which JAX doesn't know.
    key = key, config.jax_enable_x64, config.jax_debug_nans
    try:
        found = _remembered.pop(key, None)
    except (TypeError, ValueError):  # no hash, or arrays that can't be compared
        return make()
    _remembered[key] = made = make() if found is None else found
    if len(_remembered) > MOST_REMEMBERED:
        _remembered.popitem(last=False)
    return made
