"""Environment steps per second of a sweep (CartPole PPO, seeds x learning rates), by layout.

    python benchmarks/sweep.py    # 64 seeds x 4 rates, 100k steps each
    python benchmarks/sweep.py --seeds 16 --steps 10000         # a quick look
    python benchmarks/sweep.py --seeds 16 --steps 10000 --slices 4 8 16 32 64
    python benchmarks/sweep.py --variants vmap cores devices processes

Variants:
    loop        the jitted train, called for one member after the other (--loop of them)
    vmap        one vmap of all members
    cores       as sweep: slices over the cores (all its time, with results on the host)
    devices     as sweep after use_all_cores: slices over one device a core
    processes   one process a core, each with its part of the members in slices like sweep's

Each variant has separate processes; all are alive at the same time, and the variants take turns.
Medians; compile time excluded. Besides wall-clock time the table has processor time over all
threads, on which other work on the machine has less influence.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

LRS = [3e-4, 1e-3, 3e-3, 1e-2]
SLICES = ("cores", "devices", "processes")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--loop", type=int, default=16, help="members that the loop trains")
    parser.add_argument("--variants", nargs="+", default=["loop", "vmap", "cores"])
    parser.add_argument("--slices", nargs="+", type=int, help="cores, with slices of these sizes")
    parser.add_argument("--json", help="where to write the figures")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args)
    if args.slices:
        args.variants = [f"cores:{size}" for size in args.slices]
    workers = {variant: start(variant, args) for variant in args.variants}
    seconds = {variant: [] for variant in workers}
    processor = {variant: [] for variant in workers}
    for _ in range(args.repeats):
        for variant, processes in workers.items():
            start_time = time.perf_counter()
            for process in processes:
                print("go", file=process.stdin, flush=True)
            done = [json.loads(process.stdout.readline()) for process in processes]
            steps = sum(one["steps"] for one in done)
            seconds[variant].append((time.perf_counter() - start_time) / steps)
            processor[variant].append(sum(one["processor"] for one in done) / steps)
            print(f"{variant}: {1 / seconds[variant][-1]:,.0f} steps/s", flush=True)
    print("medians:")
    rates = {variant: 1 / statistics.median(x) for variant, x in seconds.items()}
    for variant, rate in rates.items():
        spent = 1e6 * statistics.median(processor[variant])
        ratio = rate / next(iter(rates.values()))
        print(f"{variant:12} {rate:9,.0f} steps/s {ratio:5.2f} {spent:6.2f} core us a step")
        for process in workers[variant]:
            process.stdin.close()
            process.wait()
    if args.json:
        with open(args.json, "w") as file:
            json.dump(rates, file, indent=2)
    return None


def start(variant, args):
    """The processes of a variant, compiled and warm."""
    cores = len(os.sched_getaffinity(0)) if variant.startswith("processes") else 1
    command = [sys.executable, __file__, "--steps", str(args.steps), "--loop", str(args.loop)]
    processes = [
        subprocess.Popen(
            [*command, "--seeds", str(args.seeds // cores), "--worker", f"{variant}:{core}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for core in range(cores)
    ]
    for process in processes:
        print(f"{variant}: {process.stdout.readline().strip()}", flush=True)
    return processes


def work(args):
    """Runs a process of a variant: it trains all its members for each line of standard input."""
    variant, *rest = args.worker.split(":")
    if variant == "processes":
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[int(rest[-1])]})

    import jax
    import numpy as np

    import purerl
    from purerl.accelerator.compiling import jit
    from purerl.sweeps.plan import make_plan
    from purerl.sweeps.slices import compile_group, one_member, run_slices

    if variant == "devices":
        purerl.use_all_cores()
    config = purerl.TrainConfig("CartPole-v1", total_timesteps=args.steps)
    (group,) = make_plan(config, args.seeds, {"lr": LRS}, None, None, None).groups
    loop, num_members = config.make_loop(), len(group.members)
    begin = time.perf_counter()
    if variant in SLICES:
        size = int(rest[0]) if len(rest) > 1 else None
        program = compile_group(group, num_members, size, keep_buffer=False)

        def train():
            list(run_slices(group, program, np.arange(num_members)))

    else:
        member = one_member(group, keep_buffer=False)
        inputs = group.keys, group.hyperparams
        if variant == "vmap":
            compiled = jit(jax.vmap(member)).lower(*inputs).compile()

            def train():
                jax.block_until_ready(compiled(*inputs))

        else:
            num_members = min(args.loop, num_members)
            alone = [jax.tree.map(lambda x, i=i: x[i], inputs) for i in range(num_members)]
            compiled = jit(member).lower(*alone[0]).compile()

            def train():
                for one in alone:
                    jax.block_until_ready(compiled(*one))

    seconds = time.perf_counter() - begin
    train()
    slices = f"slices of {program.slice_size}, " if variant in SLICES else ""
    print(f"JAX {jax.__version__}, {num_members} members, {slices}compiled in {seconds:.1f} s")
    sys.stdout.flush()
    steps = num_members * loop.num_updates * loop.steps_per_update
    for _ in sys.stdin:
        begin = time.process_time()
        train()
        spent = time.process_time() - begin
        print(json.dumps({"steps": steps, "processor": spent}), flush=True)


if __name__ == "__main__":
    main()
