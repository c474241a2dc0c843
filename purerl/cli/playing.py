"""`purerl eval`, `purerl render` and `purerl export`: uses of a run's policies."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from purerl.accelerator.compiling import jit
from purerl.accelerator.machine import check_memory, program_memory
from purerl.cli import Parser
from purerl.cli.flags import add_env_flags, check_integer, check_key, env_values
from purerl.cli.members import MEMBER_BEST, add_member_flag, member_label, read_members
from purerl.cli.training import newest_run
from purerl.deploy.policy_file import load_policy
from purerl.envs import Env, EnvSource, make, vectorize
from purerl.envs.last_action import as_remembered
from purerl.records.errors import ConfigError
from purerl.records.types import PyTree
from purerl.runs.view import KINDS, RunView, marker_of
from purerl.training.episodes import play_episodes
from purerl.training.named import is_code
from purerl.training.policy import Policy
from purerl.training.run import limit_env

# Time limit of an evaluation's episodes, where the environment has none.
MAX_STEPS = 10_000


def _add_target(parser: Parser, seed_help: str) -> None:
    add = parser.add_argument
    add("target", metavar="RUN", nargs="?", help="a run's folder (the newest), or a .policy file")
    add("--of", metavar="SEED", help=seed_help)
    add("--best", action="store_true", help="of the best evaluation, instead of the last policy")
    add_member_flag(parser)
    add("--env", metavar="ENV", help="another environment, or module:name where it is yours")


def add_eval(parser: Parser, argv: Sequence[str]) -> None:
    """The arguments of `eval`."""
    parser.epilog = "Example:\n  purerl eval runs/CartPole-v1-ppo-1 --episodes 1000 --json"
    _add_target(parser, "only the policy of this seed of the run")
    add_env_flags(parser, argv)
    add = parser.add_argument
    add("--episodes", type=int, default=100, metavar="N", help="of each policy (100)")
    add("--max-steps", type=int, metavar="N", help="where an episode is cut off")
    add("--sample", action="store_true", help="draw actions instead of taking the mode")
    add("--key", type=int, default=0, metavar="K", help="for the episodes' randomness (0)")
    add("--json", action="store_true", help="for programs")


def run_eval(args: argparse.Namespace, console: Console) -> int:
    """Evaluates policies."""
    check_integer("--episodes", args.episodes, 1)
    check_integer("--max-steps", args.max_steps, 1)
    check_key(args.key)
    if not args.json:
        _print_choice(args, console)
    rows = []
    for name, (policy, limits) in _policies(args).items():
        env = environment(policy, args, limits)
        limit = args.max_steps or env.spec.max_episode_steps or MAX_STEPS
        returns, lengths, info = _play(env, policy, args, limit)
        rows.append(
            {
                "policy": name,
                "env": env.spec.name,
                "env_params": _params(env),
                "episodes": args.episodes,
                "sampled": args.sample,
                "return_mean": float(returns.mean()),
                "return_std": float(returns.std(ddof=1)) if len(returns) > 1 else 0.0,
                "return_min": float(returns.min()),
                "return_max": float(returns.max()),
                "length_mean": float(lengths.mean()),
                **{f"info/{name}": float(x.mean()) for name, x in info.items()},
            }
        )
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    params = ["".join(f", {n}={x}" for n, x in row["env_params"].items()) for row in rows]
    same = len(set(params)) == 1
    console.print(
        f"{rows[0]['env']}{params[0] if same else ''}: {args.episodes} episodes each, "
        f"{'sampled' if args.sample else 'greedy'} actions"
    )
    extra = [name for name in rows[0] if name.startswith("info/")]
    heads = [name.removeprefix("info/") for name in extra]
    heads = ["policy", "return", "std", "min", "max", "length", *heads]
    table = Table(*heads, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for row, own in zip(rows, params, strict=True):
        names = ("return_mean", "return_std", "return_min", "return_max", "length_mean")
        cells = [*(f"{row[name]:.1f}" for name in names), *(f"{row[name]:.4g}" for name in extra)]
        table.add_row(row["policy"] + ("" if same else own), *cells)
    console.print(table)
    if len(rows) > 1:
        means = np.array([row["return_mean"] for row in rows])
        spread = f"{means.std(ddof=1):.1f} over {len(rows)} seeds"
        console.print(f"mean {means.mean():.1f}, standard deviation {spread}")
    return 0


def _play(
    env: Env, policy: Policy, args: argparse.Namespace, limit: int
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    def play(key: jax.Array, policy: Policy) -> PyTree:
        acting = policy.acting(sample=args.sample)
        return play_episodes(vectorize(env), acting, key, args.episodes, limit)

    compiled = jit(play).lower(jax.random.key(args.key), policy).compile()
    check_memory(program_memory(compiled), f"--episodes: {args.episodes:,} side by side")
    returns, lengths, info = compiled(jax.random.key(args.key), policy)
    info = {name: np.asarray(x, np.float64) for name, x in info.items()}
    return np.asarray(returns, np.float64), np.asarray(lengths), info


def add_render(parser: Parser, argv: Sequence[str]) -> None:
    """The arguments of `render`."""
    parser.epilog = "Example:\n  purerl render runs/CartPole-v1-ppo-1 --out cartpole.gif"
    _add_target(parser, "the policy of this seed of the run (the best)")
    add_env_flags(parser, argv)
    add = parser.add_argument
    add("--out", metavar="FILE", help="a .gif, or .mp4 (RUN/episode.gif)")
    add("--max-steps", type=int, metavar="N", help="where the episode is cut off")
    add("--key", type=int, default=0, metavar="K", help="for the episode's randomness (0)")


def run_render(args: argparse.Namespace, console: Console) -> int:
    """Renders an episode."""
    from purerl.deploy.render import render

    check_integer("--max-steps", args.max_steps, 1)
    check_key(args.key)
    policy, limits = _best(args, console)
    out = Path(args.out or _beside(args, "episode.gif"))
    env = environment(policy, args, limits)
    total, length = render(policy, env, out, seed=args.key, max_steps=args.max_steps)
    console.print(f"{out}: an episode of {length} steps, return {total:.1f}", soft_wrap=True)
    return 0


def add_export(parser: Parser, argv: Sequence[str]) -> None:
    """The arguments of `export`."""
    del argv
    parser.epilog = (
        "The file needs JAX alone:\n"
        "  exported = jax.export.deserialize(bytearray(open('policy.stablehlo', 'rb').read()))\n"
        "  actions = exported.call(obs)  # [B, *obs_shape] -> [B, *action_shape]"
    )
    _add_target(parser, "the policy of this seed of the run (the best)")
    parser.add_argument("--out", metavar="FILE", help="(RUN/policy.stablehlo)")


def run_export(args: argparse.Namespace, console: Console) -> int:
    """Writes StableHLO."""
    from purerl.deploy.export import export_policy

    out = Path(args.out or _beside(args, "policy.stablehlo"))
    export_policy(_best(args, console)[0], out)
    console.print(f"{out}", soft_wrap=True)
    return 0


def _target(args: argparse.Namespace) -> Path:
    return Path(args.target) if args.target else newest_run()


def _is_policy(target: Path) -> bool:
    """Whether a path is read as a policy's file; a missing one is read as a run's folder."""
    return target.exists() and not target.is_dir()


def _beside(args: argparse.Namespace, name: str) -> Path:
    """A file in the run's folder, or where the policy's file is."""
    target = _target(args)
    return target / name if target.is_dir() else target.parent / name


class Chosen(NamedTuple):
    """A policy, and the time limit and the frame skip of its run; None where its file doesn't have
    them."""

    policy: Policy
    limits: tuple[int | None, int] | None


def _policies(args: argparse.Namespace) -> dict[str, Chosen]:
    """The chosen policies, by name; those of a sweep the best first. Raises RunError,
    ConfigError."""
    target = _target(args)
    if args.member != MEMBER_BEST:
        return _members(target, args)
    if _is_policy(target):
        for flag, given in (("--best", args.best), ("--of", args.of is not None)):
            if given:
                raise ConfigError(f"{flag}: is for a run's folder, and {target} is a policy's file")
        policy = load_policy(target, env=args.env)
        return {target.name: Chosen(policy, policy.interface.limits)}
    view = RunView(target)
    seeds, limits = view.seeds, view.playing_limits()
    if args.of is not None and args.of not in map(str, seeds):
        known = ", ".join(map(str, seeds))
        raise ConfigError(f"--of: got {args.of}, expected one of the run's seeds: {known}")
    chosen = [x for x in seeds if args.of in (None, str(x))]
    found = view.policies(chosen, args.env, best=args.best)
    before = "best-" if args.best else ""
    return {f"{before}seed-{x}": Chosen(policy, limits) for x, policy in found.items()}


def _members(target: Path, args: argparse.Namespace) -> dict[str, Chosen]:
    """The policies of members of a sweep."""
    if args.of is not None:
        raise ConfigError("--of: expected without --member, which takes the seed: lr=1e-3,seed=0")
    result, members = read_members(target, args.member, args.env)
    found = {}
    for i in members:
        config, out = result.config(i), result.member(i)
        policy = out.best_policy if args.best else out.policy
        found[member_label(result, i)] = Chosen(policy, config.limits)
    return found


def _best(args: argparse.Namespace, console: Console) -> Chosen:
    """The chosen policy; of several seeds, the one with the highest final return, or with the best
    evaluation."""
    target = _target(args)
    if args.member == MEMBER_BEST and args.of is None and not _is_policy(target):
        args.of = str(RunView(target).best_seed(best=args.best, env=args.env))
    _print_choice(args, console)
    name, chosen = next(iter(_policies(args).items()))
    if args.member != MEMBER_BEST:
        console.print(f"{target}: {name}", soft_wrap=True)
    return chosen


def _print_choice(args: argparse.Namespace, console: Console) -> None:
    """Prints which agents are used of a folder that has several runs, where they are its best."""
    target = _target(args)
    marker = marker_of(target)
    if marker is not None and args.member == MEMBER_BEST:
        seed, label = "" if args.of is None else f", seed {args.of}", RunView(target).label
        what = f"the best of the {KINDS[marker].noun}, {label}{seed}"
        console.print(f"{target}: {what}", soft_wrap=True)


def _params(env: Env) -> dict[str, str]:
    """The parameters of an environment that differ from its defaults, in words."""
    source = env.spec.source
    return {} if source is None else {name: str(x) for name, x in source.params}


def environment(
    policy: Policy, args: argparse.Namespace, limits: tuple[int | None, int] | None = None
) -> Env:
    """The environment to play in: that of training, with its parameters, unless the arguments have
    others; with the time limit and the frame skip of the run, or a line on standard error that they
    aren't known.

    Raises:
        ConfigError: no name makes the environment of the training run, or its code is the user's,
            and the arguments don't name it by --env.
    """
    spec, given = policy.spec, env_values(args)
    source = spec.source if args.env is None else EnvSource(args.env)
    if source is None:
        raise ConfigError(
            f"--env: the policy was trained in a {spec.name} that no name makes (a wrapper, or "
            "your own): name one by --env, such as --env module:name"
        )
    if args.env is None and is_code(source.name):
        raise ConfigError(f"--env: expected --env {source.name}, whose code is yours")
    if spec.source is not None and spec.source.name == source.name:
        source = spec.source
    try:
        env = make(source.name, **{**dict(source.params), **given})
    except ConfigError as error:
        if args.env is not None or given:
            raise
        raise ConfigError(f"{error}; name yours by --env module:name") from None
    if env.spec.action_space != spec.action_space:
        raise ConfigError(
            f"--env: {env.spec.name} has actions {env.spec.action_space}, the policy "
            f"{spec.action_space}"
        )
    if limits is None:
        print(
            f"purerl: {_target(args)} doesn't have the time limit and the frame skip of its run, "
            f"as files of earlier versions: {env.spec.name} is played without",
            file=sys.stderr,
        )
    else:
        env = limit_env(env, *limits)
    return as_remembered(spec, env)
