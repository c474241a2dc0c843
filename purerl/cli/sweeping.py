"""`purerl sweep`."""

import argparse
from collections.abc import Sequence

from rich.console import Console

from purerl.accelerator.machine import use_cores_for_members
from purerl.cli import Parser
from purerl.cli.flags import (
    MOST_SEEDS,
    PARTS,
    add_config_flags,
    check_integer,
    config_from,
    integers,
    list_flags,
    literal,
)
from purerl.cli.training import chosen_folder, interrupted
from purerl.envs import env_params, make
from purerl.records.draws import Choice, Uniform, distribution
from purerl.records.errors import ConfigError, RunError
from purerl.records.files import reason
from purerl.runs.chunks import check_size
from purerl.sweeps.plan import read_name
from purerl.sweeps.result import check_table_path
from purerl.sweeps.sweep import TABLE, sweep

EPILOG = """\
Any field can be swept; those of noise, rewarder, buffer and environment by path, such as
noise.sigma or env.gravity. Float hyperparameters share one program; each value of another field
(num_envs, network, ...) has a separate one. The same command with --run-dir continues a sweep that
was killed.

Examples:
  purerl sweep CartPole-v1 --seeds 16 --grid lr=1e-4,3e-4,1e-3 --grid gamma=0.98,0.99
  purerl sweep Pendulum-v1 --agent ddpg --grid noise.sigma=0.05,0.1,0.2
  purerl sweep CartPole-v1 --grid env.gravity=4.9,9.8,19.6
  purerl sweep CartPole-v1 --samples 'lr=log_uniform(1e-5, 1e-2)' --num-samples 20 --seeds 4
"""


def add_sweep(parser: Parser, argv: Sequence[str]) -> None:
    """The arguments of `sweep`."""
    parser.epilog = EPILOG
    parser.usage = "purerl sweep ENV --grid FIELD=V,V,... [--seeds N] [--FIELD VALUE ...]"
    add = parser.add_argument
    add("env", metavar="ENV", nargs="?", help="see purerl envs, or module:name")
    add("--grid", action="append", default=[], metavar="FIELD=V,V,...", help="may be repeated")
    add(
        "--samples",
        action="append",
        default=[],
        metavar="FIELD=DIST",
        help="uniform(a, b), log_uniform(a, b) or choice(x, y, ...)",
    )
    add("--num-samples", type=int, metavar="N", help="how many draws")
    add("--seeds", default="4", metavar="N", help="how many, or which: 3,7,12 (4)")
    add("--run-dir", metavar="DIR", help="by default a new one in runs/")
    add("--metrics", metavar="FILE", help="curves of all agents as one table: .csv or .parquet")
    add_config_flags(parser, argv)


def run_sweep(args: argparse.Namespace, console: Console) -> int:
    """Sweeps, and prints the best combinations."""
    if not (args.grid or args.samples):
        raise ConfigError("--grid: missing, expected what to sweep, such as --grid lr=1e-4,1e-3")
    grid = {name: read_values(text) for name, text in split("--grid", args.grid).items()}
    samples = {
        name: read_distribution("--samples", name, text)
        for name, text in split("--samples", args.samples).items()
    }
    check_names([*grid, *samples], args)
    if args.metrics is not None:
        check_table_path(args.metrics)
    use_cores_for_members()
    config, _ = config_from(args)
    check_integer("--num-samples", args.num_samples, 1, MOST_SEEDS)
    check_size(config.make_loop(), 1)
    with chosen_folder(args, config, "sweep") as folder:
        try:
            result = sweep(
                config,
                seeds=integers("--seeds", args.seeds),
                grid=grid or None,
                samples=samples or None,
                num_samples=args.num_samples,
                run_dir=folder,
            )
            result.to_csv(folder / TABLE)
            if args.metrics is not None:
                result.write_metrics(args.metrics)
        except KeyboardInterrupt:
            return interrupted(console, args, folder, "finished slices")
        except OSError as error:
            raise RunError(f"run_dir: can't write into {folder}: {reason(error)}") from None
    console.print(result)
    if result.has_returns:
        from purerl.plots.sweeps import plot_sweep

        plot_sweep(result, path=folder / "sweep.png")
    console.print(f"all of it is in {folder}/", soft_wrap=True)
    return 0


def check_names(names: Sequence[str], args: argparse.Namespace, argument: str = "sweep") -> None:
    """Raises ConfigError for a name that is no field; at once, where the config takes seconds."""
    agent = PARTS["agent"][args.chosen["agent"]]
    paths = [f"{flag.part}.{flag.name}" for flag in list_flags(args.chosen)]
    try:
        for name in names:
            read_name(agent, name, paths, argument)
    except ConfigError:
        if args.env is None:
            raise
        paths += [f"env.{param}" for param in env_params(make(args.env))]
        for name in names:
            read_name(agent, name, paths, argument)


def split(flag: str, texts: Sequence[str]) -> dict[str, str]:
    """The rest of each FIELD=REST by the field's name. Raises ConfigError, also for a name that is
    there twice; two names of one field are told where names are resolved."""
    found: dict[str, str] = {}
    for text in texts:
        name, sign, rest = text.partition("=")
        if not sign or not rest:
            raise ConfigError(f"{flag}: got {text!r}, expected FIELD=...")
        name = name.strip().replace("-", "_")
        if name in found:
            raise ConfigError(
                f"{flag}: {name} is there twice, with {found[name]} and {rest.strip()}; expected "
                "once, with all of its values"
            )
        found[name] = rest.strip()
    return found


def read_values(text: str) -> list[object]:
    """Values from V,V,..."""
    values = literal(text)
    return values if isinstance(values, list) else [values]


def read_distribution(flag: str, name: str, text: str) -> Uniform | Choice:
    """A field's distribution, from its text. Raises ConfigError."""
    try:
        return distribution(text)
    except ConfigError as error:
        raise ConfigError(f"{flag}: {name}: {error}") from None
