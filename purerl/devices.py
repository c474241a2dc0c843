"""What the machine needs to be told."""

import os
import warnings

import jax

SCHEDULER_FLAG = "--xla_cpu_enable_concurrency_optimized_scheduler"


def configure_cpu() -> None:
    """Switches off the XLA:CPU scheduler that deadlocks under vmapped training loops.

    XLA reads the flag when its first backend comes up, so `import purerl` calls this. What the user
    has set stands. Where a backend is up already and JAX is of a version that hangs, it warns.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if SCHEDULER_FLAG in flags:
        return
    if _backend_is_up():
        if jax.__version_info__ < (0, 11):
            warnings.warn(
                "purerl was imported after JAX had started: on a CPU, vmapped training may hang. "
                f"Import purerl first, or set XLA_FLAGS={SCHEDULER_FLAG}=false",
                stacklevel=3,
            )
        return
    os.environ["XLA_FLAGS"] = f"{flags} {SCHEDULER_FLAG}=false".strip()


def _backend_is_up() -> bool:
    try:
        from jax._src import xla_bridge

        return bool(xla_bridge.backends_are_initialized())
    except (ImportError, AttributeError):  # no public function tells
        return False
