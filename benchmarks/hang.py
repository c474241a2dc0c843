"""Whether vmapped training ends: 30 processes, 16 seeds each, while the cores are kept busy.

    python benchmarks/hang.py                       # as purerl sets things
    python benchmarks/hang.py --scheduler on        # with XLA's own choice, which hangs on JAX 0.10

A process that doesn't end within --limit seconds counts as hung and is killed.
"""

import argparse
import os
import subprocess
import sys
import time

from purerl.devices import SCHEDULER_FLAG

TRAIN = """
import jax, purerl
config = purerl.TrainConfig("CartPole-v1", total_timesteps={steps}, num_envs=4)
out = jax.jit(jax.vmap(purerl.make_train(config)))(jax.random.split(jax.random.key({seed}), 16))
jax.block_until_ready(out)
print("done", out.num_timesteps)
"""
BUSY = "while True: pass"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--limit", type=float, default=180.0, help="seconds")
    parser.add_argument("--scheduler", choices=["off", "on"], default="off")
    args = parser.parse_args()

    flags = f"{SCHEDULER_FLAG}=true" if args.scheduler == "on" else ""
    env = {**os.environ, "XLA_FLAGS": flags}
    busy = subprocess.Popen([sys.executable, "-c", BUSY])
    hung = failed = 0
    try:
        for run in range(args.runs):
            code = TRAIN.format(steps=args.steps, seed=run)
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
    finally:
        busy.kill()
    print(f"{hung} of {args.runs} hung, {failed} failed")
    return 1 if hung or failed else 0


if __name__ == "__main__":
    sys.exit(main())
