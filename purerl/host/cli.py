"""The `purerl` command."""

import argparse
import contextlib
import math
import sys
import time
import tomllib
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from purerl.agents import AGENTS
from purerl.config import TrainConfig
from purerl.envs import env_names, make
from purerl.fields import ConfigError, field_names, suggest
from purerl.loop import Loop
from purerl.metrics import Metrics

USAGE_ERROR, INTERRUPTED = 2, 130
COMMANDS = ("train", "envs")


class _Parser(argparse.ArgumentParser):
    """Errors in one line, with the nearest right spelling of a command."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"purerl: {message} (see {self.prog} --help)\n")


def main(argv: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: arguments; None for those of the process.

    Returns:
        The exit code: 0, 2 for a mistake in the arguments, 130 after Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        print(f"purerl: no command {argv[0]!r}; {suggest(argv[0], COMMANDS)}", file=sys.stderr)
        return USAGE_ERROR
    args = _parser().parse_args(argv)
    try:
        return args.command(args, Console(highlight=False))
    except ConfigError as error:
        print(f"purerl: {error}", file=sys.stderr)
        return USAGE_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="purerl", description="Reinforcement learning, whole on the accelerator.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    train = commands.add_parser(
        "train",
        help="train an agent",
        description="Train an agent, with several seeds at once, and show how it learned.",
        epilog="Example: purerl train CartPole-v1 --seeds 8 --set lr=1e-3 --set num_envs=8",
    )
    train.add_argument("env", metavar="ENV", help="an environment: see purerl envs")
    train.add_argument("--agent", default="ppo", help=f"one of {', '.join(AGENTS)}")
    train.add_argument("--seeds", type=int, default=1, metavar="N", help="how many agents (1)")
    train.add_argument("--seed", type=int, default=0, help="where the seeds start (0)")
    train.add_argument(
        "--total-timesteps", metavar="N", help="environment steps of each agent (500000)"
    )
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        dest="assignments",
        help="any field of the config or of the agent, such as num_envs=64 or gamma=0.98; "
        "may be repeated",
    )
    train.set_defaults(command=_train)

    envs = commands.add_parser("envs", help="list the environments", description="List them.")
    envs.set_defaults(command=_envs)
    return parser


def _envs(args: argparse.Namespace, console: Console) -> int:
    table = Table("name", "observation", "action", "time limit", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for name in env_names():
        try:
            spec = make(name).spec
        except ConfigError as error:
            table.add_row(name, str(error).rpartition(": ")[2])
            continue
        limit = spec.max_episode_steps
        space = spec.observation_space
        table.add_row(name, str(space.shape), str(spec.action_space), str(limit or "none"))
    console.print(table)
    return 0


def config_from_args(args: argparse.Namespace) -> TrainConfig:
    """The config that a command line describes. Raises ConfigError."""
    mapping: dict[str, Any] = {"env": args.env}
    agent: dict[str, Any] = {"name": args.agent}
    if args.agent.lower() not in AGENTS:
        raise ConfigError(f"--agent: no agent {args.agent!r}; {suggest(args.agent, AGENTS)}")
    if args.seeds < 1:
        raise ConfigError(f"--seeds: got {args.seeds}, expected an integer >= 1")
    if args.total_timesteps is not None:
        mapping["total_timesteps"] = _literal(args.total_timesteps)
    agent_fields = field_names(AGENTS[args.agent.lower()])
    fields = [name for name in field_names(TrainConfig) if name not in ("env", "agent")]
    for assignment in args.assignments:
        name, sign, text = assignment.partition("=")
        if not sign:
            raise ConfigError(f"--set: got {assignment!r}, expected FIELD=VALUE")
        if name in fields:
            mapping[name] = _literal(text)
        elif name.removeprefix("agent.") in agent_fields:
            agent[name.removeprefix("agent.")] = _literal(text)
        else:
            raise ConfigError(f"--set: no field {name!r}; {suggest(name, fields + agent_fields)}")
    return TrainConfig.from_mapping({**mapping, "agent": agent})


def _literal(text: str) -> Any:
    """A value as TOML reads it; a bare word is a string."""
    if text.lower() == "none":
        return None
    try:
        return tomllib.loads(f"value = {text.lower() if text in ('True', 'False') else text}")[
            "value"
        ]
    except tomllib.TOMLDecodeError:
        return text


def _train(args: argparse.Namespace, console: Console) -> int:
    config = config_from_args(args)
    loop = config.make_loop()
    total = loop.num_updates * loop.steps_per_update
    console.print(
        f"[bold]{config.env.spec.name}[/], {type(loop.agent).__name__}, "
        f"{_count(args.seeds, 'seed')}: {loop.num_updates} updates of "
        f"{loop.num_envs} environments x {loop.update_every} steps, "
        f"{total:,} steps each"
    )
    keys = jax.random.split(jax.random.key(args.seed), args.seeds)
    chunks: list[Metrics] = []
    start = time.perf_counter()
    compiled = 0.0
    interrupted = False
    with _progress(console, loop.num_updates) as report:
        try:
            for metrics in train_in_chunks(loop, keys):
                # The first thing to come is no metrics but the word that all is compiled.
                if metrics is None:
                    compiled = time.perf_counter() - start
                    continue
                chunks.append(metrics)
                report(metrics)
        except KeyboardInterrupt:
            interrupted = True
    if chunks:
        metrics = jax.tree.map(lambda *xs: np.concatenate(xs, axis=1), *chunks)
        _show(console, loop, metrics)
        seconds = time.perf_counter() - start - compiled
        steps = metrics.num_episodes.size * loop.steps_per_update
        console.print(
            f"compiled in {compiled:.1f} s, trained in {seconds:.1f} s: "
            f"{steps / seconds:,.0f} steps/s over all seeds"
        )
    if interrupted:
        console.print("interrupted: what you see is what was trained so far")
        return INTERRUPTED
    return 0


def train_in_chunks(loop: Loop, keys: jax.Array, num_chunks: int = 50) -> Iterator[Metrics | None]:
    """Trains one agent a key, and comes back for air some 50 times.

    Args:
        loop: the run.
        keys: `[S]`, one a seed.
        num_chunks: how often, about; where its length can divide the run, one program serves all,
            else the last chunk is shorter and has its own.

    Yields:
        None once everything is compiled, then metrics `[S, updates in the chunk]` as numpy arrays.
    """
    length = math.ceil(loop.num_updates / num_chunks)
    divisors = [n for n in range(length // 2 + 1, length + 1) if loop.num_updates % n == 0]
    length = max(divisors, default=length)

    def chunk(states: Any, indices: jax.Array) -> Any:
        scan = loop.spread(lambda state, indices: jax.lax.scan(loop.step, state, indices), 1)
        return jax.vmap(scan, (0, None))(states, indices)

    states = jax.jit(jax.vmap(loop.start))(keys)
    train = jax.jit(chunk, donate_argnums=0)
    compiled = train.lower(states, jnp.arange(length)).compile()
    yield None
    for start in range(0, loop.num_updates, length):
        indices = jnp.arange(start, min(start + length, loop.num_updates))
        run = compiled if len(indices) == length else train
        states, metrics = run(states, indices)
        yield jax.tree.map(np.asarray, metrics)


@contextlib.contextmanager
def _progress(console: Console, num_updates: int) -> Iterator[Any]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("compiling", total=num_updates, note="")

        def report(metrics: Metrics) -> None:
            returns = _mean(np.asarray(metrics.episode_return))
            note = "" if math.isnan(returns) else f"return {returns:.1f}"
            bar.update(task, description="training", note=note)
            bar.advance(task, metrics.num_episodes.shape[1])

        yield report


def _mean(x: np.ndarray) -> float:
    """Mean of what isn't NaN, and NaN of nothing, without numpy's warning."""
    seen = x[np.isfinite(x)]
    return float(seen.mean()) if seen.size else math.nan


def _show(console: Console, loop: Loop, metrics: Metrics, rows: int = 20) -> None:
    """The learning curve, a row a stretch of training, and the end of each seed."""
    updates = np.arange(1, metrics.num_episodes.shape[1] + 1)
    stretches = np.array_split(updates, min(rows, len(updates)))
    means = [
        np.array([_mean(seed[stretch - 1]) for seed in metrics.episode_return])
        for stretch in stretches
    ]
    seen = np.concatenate(means)
    seen = seen[np.isfinite(seen)]
    if not seen.size:
        console.print("no episode ended: the return is not known; train for longer")
        return
    low, high = min(0.0, float(seen.min())), max(0.0, float(seen.max()))
    curve = Table("steps", "return", "min", "max", "", box=None, pad_edge=False)
    for column in curve.columns[:4]:
        column.justify = "right"
    for stretch, mean in zip(stretches, means, strict=True):
        known = mean[np.isfinite(mean)]
        steps = f"{int(stretch[-1]) * loop.steps_per_update:,}"
        if not known.size:
            curve.add_row(steps, "-", "-", "-", "")
            continue
        filled = round(40 * (known.mean() - low) / (high - low or 1.0))
        cells = (f"{x:.1f}" for x in (known.mean(), known.min(), known.max()))
        curve.add_row(steps, *cells, "█" * filled)
    console.print(curve)
    table = Table("at the end", "mean over seeds", "min", "max", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    lengths = np.asarray(metrics.episode_length)
    shown: dict[str, Any] = {"episode length": lengths, **metrics.losses}
    end = stretches[-1] - 1
    ends: dict[str, Any] = {"return": means[-1]}
    ends |= {n: np.array([_mean(seed[end]) for seed in x]) for n, x in shown.items()}
    if metrics.eval is not None:
        evaluated = [seed[np.isfinite(seed)][-1:] for seed in metrics.eval.episode_return]
        ends["evaluation's return"] = np.concatenate(evaluated)
    for name, values in ends.items():
        values = values[np.isfinite(values)]
        if values.size:
            numbers = (f"{x:.4g}" for x in (values.mean(), values.min(), values.max()))
            table.add_row(name.replace("_", " "), *numbers)
    console.print(table)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


if __name__ == "__main__":
    sys.exit(main())
