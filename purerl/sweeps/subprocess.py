"""A sweep in a separate process, where each core of the CPU is a device.

JAX takes the number of CPU devices before it starts and not later; this way a sweep uses all cores
also where JAX has started with one device.
"""

import os
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import jax

from purerl.accelerator.machine import COUNT_FLAG, all_cores_environment, num_cores
from purerl.records.errors import ConfigError, RunError

CODE = "from purerl.sweeps.subprocess import main; main()"
ANSWER = "answer"
# JAX's options that change results, and that may have been set by other means than the environment.
SETTINGS = (
    "jax_enable_x64",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_default_matmul_precision",
    "jax_debug_nans",
)


class SweepProcessError(RuntimeError):
    """A failure of the sweep's process."""


def cores_lie_idle() -> bool:
    """Whether JAX has a CPU of several cores as one device, and the user asked for no number."""
    settings: Any = jax.config  # JAX 0.10 doesn't declare what it adds at run time
    asked = COUNT_FLAG in os.environ.get("XLA_FLAGS", "") or settings.jax_num_cpu_devices > 0
    alone = jax.default_backend() == "cpu" and jax.local_device_count() == 1
    return alone and not asked and num_cores() > 1 and jax.process_count() == 1


def pickled(work: Callable[[], object]) -> bytes | None:
    """The work and JAX's options, pickled; None where something in it can't be."""
    settings = {name: getattr(jax.config, name) for name in SETTINGS}
    try:
        return cloudpickle.dumps((settings, cloudpickle.dumps(work)))
    except Exception:  # an object's reduction may raise anything
        return None


def run_apart(payload: bytes) -> Any:
    """Calls a pickled function without arguments in a new process, and returns its result.

    Raises:
        ConfigError, RunError: raised by the function.
        SweepProcessError: it raised anything else, or the process ended early.
    """
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    environment = {**all_cores_environment(), "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    with tempfile.TemporaryDirectory(prefix="purerl-sweep-") as folder:
        command = [sys.executable, "-c", CODE, folder]
        environment = {**os.environ, **environment}
        with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as process:
            assert process.stdin is not None
            try:
                # The process ends when its input closes, so it stays open until then.
                process.stdin.write(len(payload).to_bytes(8, "little") + payload)
                process.stdin.flush()
                process.wait()
            except BrokenPipeError:
                pass
            finally:
                process.kill()
        answer = Path(folder, ANSWER)
        if not answer.exists():
            raise SweepProcessError(
                f"the sweep's process ended with code {process.returncode} and no result"
            )
        result, error, text = cloudpickle.loads(answer.read_bytes())
    if error is not None:
        raise error
    if text:
        raise SweepProcessError(f"in the sweep's process:\n{text}")
    return result


def main() -> None:
    """Runs the new process: reads the work from stdin, and writes its result into a file."""
    stdin = sys.stdin.buffer
    settings, pickle = cloudpickle.loads(stdin.read(int.from_bytes(stdin.read(8), "little")))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    result, error, text = None, None, ""
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        result = cloudpickle.loads(pickle)()
    except KeyboardInterrupt:
        os._exit(130)
    except Exception as caught:
        text = traceback.format_exc()
        error = caught if isinstance(caught, (ConfigError, RunError)) else None
    partial = Path(sys.argv[1], "partial")
    partial.write_bytes(cloudpickle.dumps((result, error, text)))
    partial.rename(Path(sys.argv[1], ANSWER))
    os._exit(0)


def _end_with_parent() -> None:
    """Ends this process once its parent is gone, which closes stdin; never returns."""
    sys.stdin.buffer.read()
    os._exit(1)
