"""What the machine needs to be told before JAX starts, and what it tells."""

import importlib.util
import math
import os
import warnings
from pathlib import Path
from typing import Any

import jax

from purerl.records.errors import ConfigError

SCHEDULER_FLAG = "--xla_cpu_enable_concurrency_optimized_scheduler"
EFFORT_FLAG = "--xla_backend_optimization_level"
COUNT_FLAG = "--xla_force_host_platform_device_count"


def configure_cpu() -> None:
    """Keeps XLA:CPU from deadlocks: under vmapped training loops, and of several host devices; and
    has it compile faster.

    XLA reads these settings when its first backend comes up, so `import purerl` calls this. What
    the user has set stands. Where a backend is up already and JAX is of a version that hangs, it
    warns.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    up = _backend_is_up()
    # Of LLVM's passes, those that this leaves out take a third of the time that compiling takes,
    # and programs run as fast without them. What they are worth elsewhere was not measured.
    if EFFORT_FLAG not in flags and not up and not _has_accelerator():
        flags = os.environ["XLA_FLAGS"] = f"{flags} {EFFORT_FLAG}=1".strip()
    count = flags.rpartition(f"{COUNT_FLAG}=")[2].split(" ")[0]
    if count.isdigit() and int(count) > 1 and not up:
        os.environ.setdefault("NPROC", str(_threads(int(count))))
    if SCHEDULER_FLAG in flags:
        return
    if up:
        if jax.__version_info__ < (0, 11):
            warnings.warn(
                "purerl was imported after JAX had started: on a CPU, vmapped training may hang. "
                f"Import purerl first, or set XLA_FLAGS={SCHEDULER_FLAG}=false",
                stacklevel=3,
            )
        return
    os.environ["XLA_FLAGS"] = f"{flags} {SCHEDULER_FLAG}=false".strip()


def use_all_cores() -> None:
    """Makes each core of a CPU a device of JAX, for `sweep` to lay its members over.

    Call it first of all: JAX reads the setting when it starts. What the user has set stands.

    Raises:
        ConfigError: JAX has started already (making a config starts it).
    """
    if COUNT_FLAG in os.environ.get("XLA_FLAGS", ""):
        return
    if _backend_is_up():
        raise ConfigError(
            "use_all_cores: JAX has started already, expected a call before anything else of it, "
            "configs included"
        )
    os.environ.update(all_cores_environment())


def all_cores_environment() -> dict[str, str]:
    """Environment variables of a process whose CPU is to be one device a core."""
    cores = num_cores()
    flags = f"{os.environ.get('XLA_FLAGS', '')} {COUNT_FLAG}={cores}".strip()
    return {"XLA_FLAGS": flags, "NPROC": os.environ.get("NPROC", str(_threads(cores)))}


def _threads(num_devices: int) -> int:
    """How many threads XLA is to have for so many host devices, each of which is to have a core.

    More than one a device, and each operation is cut up for all of them, which costs half as much
    again as it saves. But before JAX 0.11 devices wait for ever for each other's threads.
    """
    return num_devices if jax.__version_info__ >= (0, 11) else 4 * num_devices


def num_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory() -> float:
    """Bytes that a program may take on each device of this process; infinity where nothing tells.

    Of a CPU half of what the machine has free, shared by its devices; of another device nine tenths
    of what nobody holds.
    """
    device = jax.local_devices()[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return 0.9 * (stats["bytes_limit"] - stats["bytes_in_use"])
    if device.platform != "cpu":
        return math.inf
    free = min(_meminfo_free(), _cgroup_free())
    return 0.5 * free / jax.local_device_count()


def check_memory(needed: float, what: str) -> None:
    """Refuses what can never fit a device of this process.

    Args:
        needed: bytes on each device.
        what: takes them; the error begins with it.

    Raises:
        ConfigError: a device has fewer in all, used or free.
    """
    there = _all_memory()
    if needed > there:
        raise ConfigError(
            f"{what} take {needed / 2**30:,.0f} GiB at least, and a device here has "
            f"{there / 2**30:,.0f} GiB"
        )


def _all_memory() -> float:
    """Bytes of each device, used or free; infinity where nothing tells."""
    device = jax.local_devices()[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return float(stats["bytes_limit"])
    if device.platform != "cpu":
        return math.inf
    return min(_meminfo("MemTotal") + _meminfo("SwapTotal"), _cgroup_limit())


def _meminfo_free() -> float:
    return _meminfo("MemAvailable")


def _meminfo(name: str) -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024.0 * int(x.split()[1]) for x in lines if x.startswith(f"{name}:"))
    except (OSError, StopIteration):
        return math.inf


def _cgroup_limit() -> float:
    try:
        return float(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # "max" where there is none
        return math.inf


def _cgroup_free() -> float:
    """What a container's limit leaves."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = int((folder / "memory.max").read_text())  # "max" where there is none
        return float(limit - int((folder / "memory.current").read_text()))
    except (OSError, ValueError):
        return math.inf


def _has_accelerator() -> bool:
    """Whether JAX is installed for anything else than the CPU."""
    return any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))


def _backend_is_up() -> bool:
    try:
        from jax._src import xla_bridge

        return bool(xla_bridge.backends_are_initialized())
    except (ImportError, AttributeError):  # no public function tells
        return False


def program_memory(compiled: Any) -> int:
    """Bytes on each device for arguments, results and what is in between; 0 if nothing tells."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 0
    sizes = (analysis.argument_size_in_bytes, analysis.output_size_in_bytes)
    return sum(sizes) + analysis.temp_size_in_bytes - analysis.alias_size_in_bytes
