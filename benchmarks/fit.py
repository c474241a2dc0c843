"""The overhead of `fit`: training in chunks with reports, files and checkpoints, next to one jitted
`train`.

    python benchmarks/fit.py                         # about ten minutes on two CPU cores
    python benchmarks/fit.py --steps 2_000_000 --checkpoint-every 5 --repeats 3

The same training, A B A B in one process; the first pair warms up. Compile time is excluded:
`train` is compiled before its clock starts, and `fit` is timed from the start of training until it
returns, with every report and the last checkpoint written. Medians.
"""

import argparse
import statistics
import tempfile
import time

import jax
import numpy as np
from rich.console import Console

import purerl


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--agent", default="ppo", choices=purerl.AGENTS)
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=16_000_000, help="of each seed")
    parser.add_argument("--report-every", type=float, default=2.0)
    parser.add_argument("--checkpoint-every", type=float, default=30.0)
    parser.add_argument("--tensorboard", action="store_true", help="events too, as the command")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    config = purerl.TrainConfig.from_mapping(
        {
            "env": args.env,
            "agent": args.agent,
            "num_envs": args.num_envs,
            "total_timesteps": args.steps,
        }
    )
    console = Console()
    keys = jax.vmap(jax.random.key)(np.arange(args.seeds, dtype=np.uint32))
    train = jax.vmap(purerl.make_train(config))
    train = jax.jit(train, compiler_options=purerl.compiler_options()).lower(keys).compile()

    def whole():
        start = time.perf_counter()
        jax.block_until_ready(train(keys))
        return time.perf_counter() - start

    def chunked():
        reports = []

        def callback(report):
            reports.append((time.perf_counter() - report.seconds, report))

        with tempfile.TemporaryDirectory() as folder:
            events = [purerl.tensorboard_sink(f"{folder}/events")] if args.tensorboard else []
            purerl.fit(
                config,
                folder,
                seeds=args.seeds,
                callback=[callback, *events],
                report_every=args.report_every,
                checkpoint_every=args.checkpoint_every,
            )
            end = time.perf_counter()
        return end - reports[0][0], len(reports), reports[0][1].compile_seconds

    ratios = []
    for repeat in range(args.repeats + 1):
        alone = whole()
        with_fit, num_reports, compiling = chunked()
        if repeat > 0:
            ratios.append(with_fit / alone)
        console.print(
            f"train {alone:.2f} s, fit {with_fit:.2f} s with {num_reports} reports and about "
            f"{with_fit // args.checkpoint_every + 1:.0f} checkpoints: {with_fit / alone:.3f} "
            f"(fit compiled in {compiling:.1f} s)" + (", warming up" if repeat == 0 else "")
        )
    console.print(
        f"fit over train: {statistics.median(ratios):.3f}, median of {len(ratios)} "
        f"({min(ratios):.3f} to {max(ratios):.3f}); JAX {jax.__version__}, "
        f"{jax.devices()[0].device_kind}"
    )


if __name__ == "__main__":
    main()
