"""Trains in a folder, as a process that a test kills.

    python -m kit.killed RUN FOLDER NUM_UPDATES [COORDINATOR NUM_PROCESSES PROCESS_ID]

With the last three it is one of several, which train over two devices together. Prints each update
that was reached, and at the end what tells states apart.
"""

import hashlib
import sys
import time

import jax
import numpy as np

import purerl
from purerl.accelerator import devices, members


def digest(out):
    """Of what is the same on all devices."""
    state = out.state._replace(buffer=None, rollout=None, rewarder=None)
    keys = jax.random.key_data(state.key), jax.random.key_data(state.eval_key)
    leaves = jax.tree.leaves((state._replace(key=None, eval_key=None), keys, out.metrics))
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()


def main(name, folder, num_updates, coordinator=None, num_processes="1", process_id="0"):
    if int(num_processes) > 1:
        devices.start_hosts(coordinator, int(num_processes), int(process_id), heartbeat_seconds=10)
    from .quick import quick_jit  # these start JAX
    from .runs import small

    members.jit = quick_jit
    config = small(name, int(num_updates))
    out = purerl.fit(
        config if coordinator is None else config.replace(num_devices=2),
        folder,
        seeds=2,
        callback=lambda report: (print(report.stop, flush=True), time.sleep(0.03)),
        report_every=0.0,
        checkpoint_every=0.0,
    )
    print("end", digest(out), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
