"""Whether vmapped training ends: 30 processes, 16 seeds each, while the cores are kept busy.

    python benchmarks/hang.py                       # with purerl's settings
    python benchmarks/hang.py --scheduler on        # with XLA's default, which hangs on JAX 0.10
    python benchmarks/hang.py --layout cores        # sweep, members over the cores (JAX 0.11 on)
    python benchmarks/hang.py --layout devices --runs 50 --steps 30000     # sweep, a device a core
    python benchmarks/hang.py --layout devices --threads 2          # with as few threads as devices

All runs compile the same program, which is kept on disk between them (not with --no-cache).

A process that doesn't end within --limit seconds counts as hung and is killed.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version

from purerl.accelerator.machine import SCHEDULER_FLAG

TRAIN = """
import jax, purerl
config = purerl.TrainConfig("CartPole-v1", total_timesteps={steps}, num_envs=4)
out = jax.jit(jax.vmap(purerl.make_train(config)))(jax.random.split(jax.random.key({seed}), 16))
jax.block_until_ready(out)
print("done", out.num_timesteps)
"""
SWEEP = """
import purerl
if {devices}:
    purerl.use_all_cores()
config = purerl.TrainConfig("CartPole-v1", total_timesteps={steps}, num_envs=4)
result = purerl.sweep(config, seeds=range({seed}, {seed} + 16))
assert result.effort.parts > 1
print("done", result.table["num_timesteps"].sum())
"""


@contextlib.contextmanager
def busy(number):
    """Keeps processes busy on that many cores."""
    code = "while True: pass"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--limit", type=float, default=180.0, help="seconds")
    parser.add_argument("--scheduler", choices=["off", "on"], default="off")
    parser.add_argument("--layout", choices=["vmap", "cores", "devices"], default="vmap")
    parser.add_argument("--threads", type=int, help="XLA's, in place of purerl's choice")
    parser.add_argument("--no-cache", action="store_true", help="compile in each run")
    args = parser.parse_args()

    flags = f"{SCHEDULER_FLAG}=true" if args.scheduler == "on" else ""
    env = {**os.environ, "XLA_FLAGS": flags}
    if args.threads:
        env["NPROC"] = str(args.threads)
    cache = tempfile.TemporaryDirectory()
    if not args.no_cache:
        env["JAX_COMPILATION_CACHE_DIR"] = cache.name
        env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    train = TRAIN if args.layout == "vmap" else SWEEP
    hung = failed = 0
    with cache, busy(1):
        for run in range(args.runs):
            code = train.format(steps=args.steps, seed=run, devices=args.layout == "devices")
            start = time.perf_counter()
            try:
                done = subprocess.run(
                    [sys.executable, "-c", code], env=env, capture_output=True, timeout=args.limit
                )
                failed += done.returncode != 0
                word = "ended" if done.returncode == 0 else f"failed: {done.stderr[-300:]!r}"
            except subprocess.TimeoutExpired:
                hung += 1
                word = "hung"
            print(f"run {run + 1}: {word} after {time.perf_counter() - start:.0f} s", flush=True)
    print(f"JAX {version('jax')}: {hung} of {args.runs} hung, {failed} failed")
    return 1 if hung or failed else 0


if __name__ == "__main__":
    sys.exit(main())
