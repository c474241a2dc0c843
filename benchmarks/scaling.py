"""Weak and strong scaling over simulated devices, their communication, and a projection.

    python benchmarks/scaling.py                     # some five minutes on two idle cores

Measured, the median of three processes a row: PPO on CartPole over D = 1, 2, 4, 8 devices that XLA
makes of one CPU. They share its cores, so that more devices than cores aren't faster; the figure is
the overhead of splitting the same work: the time of an update over that of one device with all of
the environments, which uses all cores too. 1 is no overhead.

Counted: the collectives of one update and their bytes, in the program that XLA compiled. Neither
depends on D.

Projected, from the time of one device here at several numbers of environments, a line a + b N, and
from the links below, which are assumptions: updates per second of 8 to 4,096 devices, the largest
part of their time, and the size from which they communicate for longer than they compute. Weak
scaling makes batches D times as large; how that changes learning isn't measured here.
"""

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time

from hlo import operations

DEVICES = (1, 2, 4, 8)
PROJECTED = (8, 16, 64, 256, 1024, 4096)
# Assumed, in the order of an H100 node and its network: devices of a node; bytes per second and
# direction between them, and of each one's adapter to other nodes; seconds of an all-reduce of few
# bytes within a node, and of a hop between nodes, of which a tree has 2 log2(nodes).
NODE, INSIDE, BETWEEN, START, HOP = 8, 450e9, 50e9, 12e-6, 4e-6
SPEEDUPS = (1, 20)  # the projected device, next to this machine as one device

SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "f64": 8}
COLLECTIVES = r"(all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)"


def collectives(text):
    """Bytes of each collective in one call of a compiled program, repeated ones included."""
    found = []
    for times, kind, line in operations(text):
        if not re.fullmatch(rf"{COLLECTIVES}(?:-start)?", kind):
            continue
        if times is None:
            raise ValueError(f"a collective in a loop of unknown length: {line[:200]}")
        result = line.split(" = ", 1)[1].split(f" {kind}(")[0]
        shapes = re.findall(r"(\w+)\[([\d,]*)\]", result)
        sizes = (SIZES[t] * math.prod(map(int, filter(None, n.split(",")))) for t, n in shapes)
        found += [sum(sizes)] * times
    return found


def measure(num_devices, num_envs, num_steps, repeats):
    """Measures one row, in this process: seconds of an update, and bytes of its collectives."""
    import jax

    import purerl
    from purerl.accelerator.compiling import jit

    loop = purerl.TrainConfig(
        env="CartPole-v1",
        agent=purerl.PPO(batch_size=num_envs * num_steps // 4),
        num_envs=num_envs,
        update_every=num_steps,
        num_devices=num_devices,
        normalize_obs=True,
    ).make_loop()
    step = jit(loop.spread(loop.step, 1), donate_argnums=0)
    state = jax.jit(loop.start)(jax.random.key(0))
    compiled = step.lower(state, jax.numpy.int32(0)).compile()
    state, _ = jax.block_until_ready(compiled(state, jax.numpy.int32(0)))
    seconds, index = [], 1
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(5):
            state, metrics = compiled(state, jax.numpy.int32(index))
            index += 1
        jax.block_until_ready((state, metrics))
        seconds.append((time.perf_counter() - start) / 5)
    return {
        "seconds": statistics.median(seconds),
        "spread": (max(seconds) - min(seconds)) / statistics.median(seconds),
        "bytes": collectives(compiled.as_text()),
        "jax": jax.__version__,
    }


def middle_of_three(*row):
    """The median row of three processes, since some are slow from end to end."""
    return sorted((in_a_process(*row) for _ in range(3)), key=lambda row: row["seconds"])[1]


def in_a_process(*row):
    flags = f"--xla_force_host_platform_device_count={row[0]}"
    done = subprocess.run(
        [sys.executable, __file__, "--row", *map(str, row)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def communication_seconds(sizes, num_devices):
    """Seconds of an update's collectives: latency, and transfer."""
    inside = min(num_devices, NODE)
    nodes = num_devices // inside
    wait = len(sizes) * (START + 2 * math.ceil(math.log2(nodes)) * HOP)
    near = 2 * (inside - 1) / inside * sum(sizes) / INSIDE
    far = 2 * (nodes - 1) / nodes * sum(sizes) / inside / BETWEEN
    return wait, near + far


def project(sizes, line, num_envs, num_devices, speedup):
    """Seconds of an update, by part."""
    wait, stream = communication_seconds(sizes, num_devices)
    a, b = line
    return {
        "steps one after the other": a / speedup,
        "work on environments": b * num_envs / speedup,
        "latency of collectives": wait,
        "bytes of collectives": stream,
    }


def fit(points):
    """Fits a + b N by least squares of relative errors."""
    import numpy as np

    n, t = np.array(points).T
    a, b = np.linalg.lstsq(np.stack([1 / t, n / t], 1), np.ones_like(t), rcond=None)[0]
    return max(float(a), 0.0), float(b)


def show_projection(rows, sizes, line, total, num_steps):
    print("\nprojected (see the assumptions at the top of this file)")
    shares = {"weak": lambda d: total // DEVICES[-1], "strong": lambda d: PROJECTED[-1] * 4 // d}
    for speedup in SPEEDUPS:
        for kind, share in shares.items():
            print(
                f"\n{kind}, a device {speedup} x this machine, {share(8)} environments on each of 8"
            )
            turned = None
            for d in PROJECTED:
                parts = project(sizes, line, share(d), d, speedup)
                seconds = sum(parts.values())
                largest = max(parts, key=parts.get)
                communication = parts["latency of collectives"] + parts["bytes of collectives"]
                if turned is None and communication > seconds / 2:
                    turned = d
                rate = share(d) * d * num_steps / seconds
                print(
                    f"{d:6,} devices {1 / seconds:10,.1f} updates/s {rate:18,.0f} steps/s"
                    f"   communication {communication / seconds:4.0%}   largest: {largest}"
                )
                rows.append({"kind": kind, "speedup": speedup, "devices": d, **parts})
            print(f"communication takes more than half from {turned or 'beyond 4,096'} devices on")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--envs", type=int, default=64, help="of each device in weak scaling (64)")
    parser.add_argument("--steps", type=int, default=32, help="of a rollout (32)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="write all numbers there too")
    parser.add_argument("--row", type=int, nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(measure(*args.row)))
        return

    total, rest = args.envs * DEVICES[-1], (args.steps, args.repeats)
    alone = {
        n: middle_of_three(1, n, *rest) for n in (8, args.envs, 2 * args.envs, 4 * args.envs, total)
    }
    print(f"one device, JAX {alone[total]['jax']}, {args.steps} steps of N environments an update")
    for n, row in alone.items():
        print(f"{n:6} environments {1e3 * row['seconds']:8.1f} ms  spread {row['spread']:.0%}")
    line = fit([(n, row["seconds"]) for n, row in alone.items()])
    print(f"about {1e3 * line[0]:.1f} ms + {1e6 * line[1]:.0f} us an environment")

    print("\nsplit over D devices that share one CPU: time over that of one device with all")
    over = []
    for d in DEVICES[1:]:
        for kind, n in (("weak", d * args.envs), ("strong", total)):
            row = middle_of_three(d, n, *rest)
            cost = row["seconds"] / alone[n]["seconds"]
            over.append({"kind": kind, "devices": d, "envs": n, "cost": cost, **row})
            print(
                f"{kind:6} {d} devices {n:6} environments "
                f"{1e3 * row['seconds']:8.1f} ms  {cost:.2f}"
            )
    counts = {len(row["bytes"]) for row in over}, {sum(row["bytes"]) for row in over}
    assert counts == ({len(over[0]["bytes"])}, {sum(over[0]["bytes"])}), counts
    sizes = over[0]["bytes"]
    print(
        f"\n{len(sizes)} collectives an update, {sum(sizes):,} bytes, the largest {max(sizes):,}; "
        f"{sum(n < 1024 for n in sizes)} of them below 1 KiB"
    )
    rows = []
    show_projection(rows, sizes, line, total, args.steps)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(
                {"alone": alone, "over": over, "line": line, "projected": rows}, file, indent=2
            )


if __name__ == "__main__":
    main()
