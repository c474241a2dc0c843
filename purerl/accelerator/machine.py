"""Settings of XLA that have to precede JAX's start, and the cores and memory of the machine."""

import functools
import math
import os
import warnings
from pathlib import Path

import jax

from purerl.records.errors import ConfigError

SCHEDULER_FLAG = "--xla_cpu_enable_concurrency_optimized_scheduler"
COUNT_FLAG = "--xla_force_host_platform_device_count"
ISA_FLAG = "--xla_cpu_max_isa"
FUSION_FLAG = "--xla_cpu_experimental_ynn_fusion_type"


def avoid_faults() -> None:
    """Sets XLA flags against faults of its CPU backend.

    Before JAX 0.11 these are deadlocks, in vmapped training loops and with several host devices. On
    JAX 0.11 it is a leak, of a process in which XLA has one thread, as on one core: every batched
    matrix product that YNNPACK computes loses 2.5 KB, so that DQN with two seeds under `vmap` takes
    100 MB a second. Without YNNPACK it loses nothing, and takes 1.03 to 1.2 times as long (JAX
    0.11.2, November 2026). With more threads nothing is set there: the deadlocks are gone, and
    without the scheduler PPO is up to 5 % slower and compiles 4 to 10 % longer.

    XLA reads the flags when its first backend starts, so `import purerl` calls this. The user's
    settings are kept. Before JAX 0.11 it warns if a backend has started already.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    up = _backend_is_up()
    if jax.__version_info__ >= (0, 11):
        if os.environ.get("NPROC", str(num_cores())) == "1" and FUSION_FLAG not in flags and not up:
            os.environ["XLA_FLAGS"] = f"{flags} {FUSION_FLAG}=".strip()
        return
    count = flags.rpartition(f"{COUNT_FLAG}=")[2].split(" ")[0]
    if count.isdigit() and int(count) > 1 and not up:
        os.environ.setdefault("NPROC", str(_threads(int(count))))
    if SCHEDULER_FLAG in flags:
        return
    if up:
        warnings.warn(
            "purerl was imported after JAX had started: on a CPU, vmapped training may hang. "
            f"Import purerl first, or set XLA_FLAGS={SCHEDULER_FLAG}=false",
            stacklevel=3,
        )
        return
    os.environ["XLA_FLAGS"] = f"{flags} {SCHEDULER_FLAG}=false".strip()


def use_all_cores() -> None:
    """Makes each core of a CPU a device of JAX: for `num_devices`, and before JAX 0.11 for members
    of `fit` and `sweep`, which need no such devices since.

    Has to be called before JAX starts, which reads the setting then. The user's setting is kept.

    Raises:
        ConfigError: JAX has started already (creating a config starts it).
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if COUNT_FLAG in flags:
        return
    if _backend_is_up():
        raise ConfigError(
            "use_all_cores: JAX has started already, expected a call before anything else of it, "
            "configs included"
        )
    cores = num_cores()
    os.environ["XLA_FLAGS"] = f"{flags} {COUNT_FLAG}={cores}".strip()
    os.environ.setdefault("NPROC", str(_threads(cores)))


def use_cores_for_members() -> None:
    """`use_all_cores` before JAX 0.11, for a process that trains several members, unless JAX has
    started."""
    if jax.__version_info__ < (0, 11) and not _backend_is_up() and num_cores() > 1:
        use_all_cores()


def _threads(num_devices: int) -> int:
    """XLA's number of threads for a number of host devices, each with a core.

    With more than one for each device, XLA splits each operation over all of them, which costs 1.5
    times what it saves. But before JAX 0.11 devices with one thread each deadlock.
    """
    return num_devices if jax.__version_info__ >= (0, 11) else 4 * num_devices


def num_cores() -> int:
    """The number of cores that this process may use: those of its affinity, and no more than a
    container's share of processor time makes up."""
    known = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return max(1, math.ceil(min(_cgroup_cores(), cores)))


@functools.cache
def vector_bits() -> int:
    """Bits of this processor's widest vectors, 512 or, as far as is known here, 256."""
    try:
        words = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return 256
    return 512 if "avx512f" in words else 256


def free_memory() -> float:
    """Bytes that a program may use on each device of this process; infinity if unknown.

    On a CPU, half of the machine's free memory, shared by its devices; on other devices, 90 % of
    the free memory.
    """
    device = jax.local_devices()[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return 0.9 * float(stats["bytes_limit"] - stats["bytes_in_use"])
    if device.platform != "cpu":
        return math.inf
    free = min(_meminfo_free(), _cgroup_free())
    return 0.5 * free / jax.local_device_count()


def check_memory(needed: float, what: str) -> None:
    """Checks that a device's whole memory is large enough.

    Args:
        needed: bytes on each device.
        what: the data that need them, for the message, which begins with it.

    Raises:
        ConfigError: a device has less memory, used and free together.
    """
    there = _all_memory()
    if needed > there:
        raise ConfigError(
            f"{what} take {needed / 2**30:,.0f} GiB at least, and a device here has "
            f"{there / 2**30:,.0f} GiB"
        )


def _all_memory() -> float:
    """Bytes of each device, used and free together; infinity if unknown."""
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
    except (OSError, ValueError):  # "max" if there is no limit
        return math.inf


def _cgroup_free() -> float:
    """Bytes left under a container's memory limit; infinity if it has none."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = int((folder / "memory.max").read_text())  # "max" if there is no limit
        return float(limit - int((folder / "memory.current").read_text()))
    except (OSError, ValueError):
        return math.inf


def _cgroup_cores() -> float:
    """A container's limit of processor time, in cores; infinity if it has none."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return int(quota) / int(period)  # "max" if there is no limit
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def _backend_is_up() -> bool:
    try:
        from jax._src import xla_bridge

        return bool(xla_bridge.backends_are_initialized())
    except (ImportError, AttributeError):  # there is no public function for it
        return False


def program_memory(compiled: jax.stages.Compiled) -> int:
    """Bytes on each device for arguments, results and temporaries; 0 if unknown."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 0
    sizes = (analysis.argument_size_in_bytes, analysis.output_size_in_bytes)
    return int(sum(sizes) + analysis.temp_size_in_bytes - analysis.alias_size_in_bytes)
