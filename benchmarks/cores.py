"""Members over the cores of a CPU, as `fit` lays them, next to one program of all of them.

    python benchmarks/cores.py                       # eight members of each case, some ten minutes
    python benchmarks/cores.py --busy                # with another process on every core
    python benchmarks/cores.py --only dqn --members 16

One process for each case; the two programs take turns. Environment steps of all members a second,
medians of the repeats, compile time excluded, and the median of the ratios of consecutive runs with
its range.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

from hang import busy
from revisions import cases


def measure(name, num_members, repeats):
    """The row of a case."""
    import jax

    import purerl
    from purerl.accelerator import members
    from purerl.runs.chunks import Program, seed_keys

    env, agent, steps, options = cases(purerl)[name]
    config = purerl.TrainConfig(env, agent, steps // 4, **options)
    keys, _ = seed_keys(num_members)
    usual, programs = members.programs_at_once, {}
    for layout, number in (("one program", lambda: 1), ("over the cores", usual)):
        members.programs_at_once = number
        programs[layout] = program = Program(config, keys, {})
        program.compile()
        members.programs_at_once = usual
    seconds = {layout: [] for layout in programs}
    for _ in range(repeats + 1):
        for layout, program in programs.items():
            state = jax.block_until_ready(program.start())
            began = time.perf_counter()
            jax.block_until_ready(program.run(state, 0, program.loop.num_updates))
            seconds[layout].append(time.perf_counter() - began)
    loop = program.loop
    total = num_members * loop.num_updates * loop.steps_per_update
    # The first of each warms up.
    one, spread = (times[1:] for times in seconds.values())
    ratios = [x / y for x, y in zip(one, spread, strict=True)]
    rates = " | ".join(f"{total / statistics.median(x):,.0f}" for x in (one, spread))
    between = f"({min(ratios):.2f} to {max(ratios):.2f})"
    print(f"| {name} | {rates} | {statistics.median(ratios):.2f} {between} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = ["ppo-4x128", "ppo-64x128", "ppo-breakout", "dqn", "ddpg"]
    parser.add_argument("--only", nargs="+", default=names, metavar="CASE", help=", ".join(names))
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--busy", action="store_true", help="keep every core busy with a process")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        measure(args.case, args.members, args.repeats)
        return
    cores = len(os.sched_getaffinity(0)) if args.busy else 0
    options = ["--members", str(args.members), "--repeats", str(args.repeats)]
    print(f"| {args.members} members | one program | over the cores | ratio |", flush=True)
    with busy(cores):
        for name in args.only:
            subprocess.run([sys.executable, __file__, "--case", name, *options], check=True)


if __name__ == "__main__":
    main()
