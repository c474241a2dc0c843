"""`purerl evolve`."""

import argparse
from collections.abc import Sequence

import jax
from rich.console import Console

from purerl.accelerator.machine import use_cores_for_members
from purerl.cli import Parser
from purerl.cli.flags import MOST_SEEDS, add_config_flags, check_integer, check_key, config_from
from purerl.cli.sweeping import check_names, read_distribution, split
from purerl.cli.training import chosen_folder, interrupted
from purerl.records.errors import ConfigError
from purerl.sweeps.evolve import evolve

# Selections in a run, unless --interval says otherwise.
INTERVALS = 20
EPILOG = """\
Population-based training (Jaderberg et al. 2017): after each interval the worst members go on with
copies of the best, whose float hyperparameters are perturbed. Fields of noise, rewarder, buffer and
environment are named by path, such as noise.sigma or env.gravity. The same command with --run-dir
resumes a population that was killed.

Examples:
  purerl evolve Pendulum-v1 --range 'lr=log_uniform(1e-5, 1e-2)' --range 'lam=uniform(0.8, 1)'
  purerl evolve CartPole-v1 --agent dqn --range 'agent.lr=log_uniform(1e-5,1e-2)' --population 32
"""


def add_evolve(parser: Parser, argv: Sequence[str]) -> None:
    """The arguments of `evolve`."""
    parser.epilog = EPILOG
    parser.usage = "purerl evolve ENV --range FIELD=DIST [--population P] [--FIELD VALUE ...]"
    add = parser.add_argument
    add("env", metavar="ENV", nargs="?", help="see purerl envs, or module:name")
    add(
        "--range",
        action="append",
        default=[],
        metavar="FIELD=DIST",
        help="uniform(a, b) or log_uniform(a, b); may be repeated",
    )
    add("--population", type=int, default=16, metavar="P", help="how many members (16)")
    add("--interval", type=float, metavar="N", help="steps between selections (a 20th of the run)")
    add("--warmup", type=float, default=0, metavar="N", help="steps before the first selection")
    add("--fraction", type=float, default=0.25, metavar="X", help="of them replaced (0.25)")
    add("--resample", type=float, default=0.25, metavar="X", help="share drawn anew (0.25)")
    add("--key", type=int, default=0, metavar="N", help="decides everything random (0)")
    add("--run-dir", metavar="DIR", help="by default a new one in runs/")
    add_config_flags(parser, argv)


def run_evolve(args: argparse.Namespace, console: Console) -> int:
    """Evolves a population, and prints the best member's schedule."""
    flag = "--range"
    if not args.range:
        raise ConfigError(
            f"{flag}: missing, expected what evolves, such as {flag} 'lr=log_uniform(1e-5, 1e-2)'"
        )
    space = {n: read_distribution(flag, n, text) for n, text in split(flag, args.range).items()}
    check_names(list(space), args, "evolve")
    check_integer("--population", args.population, 2, MOST_SEEDS)
    check_key(args.key)
    use_cores_for_members()
    config, _ = config_from(args)
    loop = config.make_loop()
    interval = args.interval
    if interval is None:
        interval = -(-loop.num_updates // INTERVALS) * loop.steps_per_update
    with chosen_folder(args, config, "evolve") as folder:
        try:
            result = evolve(
                config,
                space,
                population=args.population,
                interval=interval,
                warmup=args.warmup,
                fraction=args.fraction,
                resample=args.resample,
                key=jax.random.key(args.key),
                run_dir=folder,
            )
        except KeyboardInterrupt:
            return interrupted(console, args, folder, "intervals up to the last checkpoint")
    console.print(result)
    if result.has_fitness:
        from purerl.plots.evolution import plot_evolution

        plot_evolution(result, folder / "evolution.png")
    console.print(f"all of it is in {folder}/", soft_wrap=True)
    return 0
