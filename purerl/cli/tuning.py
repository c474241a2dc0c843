"""`purerl tune`."""

import argparse
from collections.abc import Sequence

from rich.console import Console

from purerl.accelerator.machine import use_cores_for_members
from purerl.cli import Parser
from purerl.cli.flags import (
    MOST_SEEDS,
    add_config_flags,
    check_integer,
    config_from,
    integers,
)
from purerl.cli.sweeping import check_names, read_distribution, read_values, split
from purerl.cli.training import chosen_folder, interrupted
from purerl.runs.chunks import check_size
from purerl.sweeps.study import check_optuna
from purerl.sweeps.tune import PRESET, tune

EPILOG = """\
Without --space an agent's usual fields are searched. Trials are trained in batches, each in one
program, and by successive halving most of them leave before their end. The winner is trained again
with fresh seeds, which took no part in the choice: what it ends at is that. Needs Optuna: pip
install 'purerl[tune]'. The same command with --run-dir continues a search that was killed.

Examples:
  purerl tune Acrobot-v1 --agent ppo
  purerl tune CartPole-v1 --space 'lr=log_uniform(1e-4, 1e-2)' --space num_envs=8,16,32
  purerl tune Pendulum-v1 --agent ddpg --space 'noise.sigma=uniform(0, 0.5)' --trials 32 --rungs 1
  purerl train --preset runs/Acrobot-v1-ppo-tune-1/best.toml --seeds 8
"""


def add_tune(parser: Parser, argv: Sequence[str]) -> None:
    """The arguments of `tune`."""
    parser.epilog = EPILOG
    parser.usage = "purerl tune ENV [--space FIELD=DRAW ...] [--trials N] [--FIELD VALUE ...]"
    add = parser.add_argument
    add("env", metavar="ENV", nargs="?", help="see purerl envs, or module:name")
    add(
        "--space",
        action="append",
        default=[],
        metavar="FIELD=DRAW",
        help="uniform(a, b), log_uniform(a, b), or values: V,V,...; may be repeated",
    )
    add("--trials", type=int, default=48, metavar="N", help="how many (48)")
    add("--seeds", default="2", metavar="N", help="of each trial, how many, or which: 3,7 (2)")
    add("--fresh-seeds", default="16", metavar="N", help="that measure the winner (16)")
    add("--batch", type=int, default=16, metavar="N", help="trials at once (16)")
    add("--rungs", type=int, metavar="N", help="of successive halving; 1: no trial leaves (3)")
    add("--reduction", type=int, default=3, metavar="N", help="one in N stays on a rung (3)")
    add("--sampler", default="tpe", metavar="NAME", help="tpe (default) or random")
    add("--seed", type=int, default=0, metavar="N", help="of the sampler (0)")
    add("--run-dir", metavar="DIR", help="by default a new one in runs/")
    add_config_flags(parser, argv)


def run_tune(args: argparse.Namespace, console: Console) -> int:
    """Searches, and prints the best trials and what the winner ends at."""
    space = {name: _draw(name, text) for name, text in split("--space", args.space).items()}
    check_names(list(space), args)
    check_optuna()
    for name in ("trials", "batch", "rungs"):
        check_integer(f"--{name}", getattr(args, name), 1, MOST_SEEDS)
    use_cores_for_members()
    config, _ = config_from(args)
    check_size(config.make_loop(), 1)
    with chosen_folder(args, config, "tune") as folder:
        try:
            result = tune(
                config,
                space or None,
                trials=args.trials,
                seeds=integers("--seeds", args.seeds),
                fresh_seeds=integers("--fresh-seeds", args.fresh_seeds),
                batch=args.batch,
                rungs=args.rungs,
                reduction=args.reduction,
                sampler=args.sampler,
                seed=args.seed,
                run_dir=folder,
            )
        except KeyboardInterrupt:
            return interrupted(console, args, folder, "finished batches")
    console.print(result)
    if result.best is not None:
        from purerl.plots.tuning import plot_tune

        plot_tune(result, folder / "tune.png")
        preset = folder / PRESET
        console.print(f"train it by\n  purerl train --preset {preset}", soft_wrap=True)
    console.print(f"all of it is in {folder}/", soft_wrap=True)
    return 0


def _draw(name: str, text: str) -> object:
    """A draw from its text: a distribution, or values."""
    return read_distribution("--space", name, text) if "(" in text else read_values(text)
