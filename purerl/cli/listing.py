"""`purerl envs`, `agents`, `presets`, `check-env` and `bench`."""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

import jax
from rich.console import Console
from rich.table import Table

from purerl.accelerator.machine import check_memory
from purerl.accelerator.members import Layout
from purerl.agents import AGENTS
from purerl.cli import FAILED, Parser
from purerl.cli.flags import (
    UNSPOKEN,
    Flag,
    add_config_flags,
    check_integer,
    config_from,
    default_word,
    integers,
    spelled_out,
    values_in_force,
)
from purerl.envs import check_env, env_names, env_params, make, suites
from purerl.envs.base import EnvSpec
from purerl.envs.check import EnvError
from purerl.envs.params import frozen, is_idle, is_traceable
from purerl.envs.spaces import short
from purerl.experience.buffer import Buffer
from purerl.records.docs import documented
from purerl.records.errors import ConfigError, shown, suggest
from purerl.records.fields import field_options
from purerl.records.files import counted
from purerl.runs.chunks import check_size, seed_keys
from purerl.training.config import TrainConfig
from purerl.training.presets import find_preset, list_presets
from purerl.training.train import train_on


def add_envs(parser: Parser, argv: Sequence[str]) -> None:
    """The arguments of `envs`."""
    del argv
    what = "one: its spaces and parameters; or a suite: its environments"
    parser.add_argument("env", nargs="?", metavar="ENV", help=what)


def run_envs(args: argparse.Namespace, console: Console) -> int:
    """Lists environments, those of a suite, or the parameters of one."""
    if args.env in suites.SUITES:
        return _list_suite(args.env, console)
    if args.env is not None:
        return _list_params(args.env, console)
    table = Table("name", "observation", "action", "time limit", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for name in env_names():
        try:
            spec = make(name).spec
        except ConfigError as error:
            table.add_row(name, str(error).rpartition(": ")[2])
            continue
        limit = spec.max_episode_steps
        shapes = short(spec.observation_space).removeprefix("Box")
        table.add_row(name, shapes, str(spec.action_space), str(limit or "none"))
    console.print(table)
    console.print("\nSuites of other packages, whose environments are SUITE/ENV:\n")
    table = Table("suite", "environments", "resets", "installed", "", box=None, pad_edge=False)
    for suite, facts in suites.SUITES.items():
        there = "yes" if suites.installed(suite) else "no"
        table.add_row(suite, str(len(suites.names(suite))), facts.resets, there, facts.about)
    for column in table.columns[:-1]:
        column.no_wrap = True
    console.print(table)
    console.print(
        "\nOne that isn't installed: pip install 'purerl[SUITE]'; all: 'purerl[suites]'.\n"
        "purerl envs SUITE lists those of a suite, purerl envs ENV the parameters of one.\n"
        "gymnasium/ID and envpool/ID are those of Gymnasium and EnvPool, simulated on the host.",
        soft_wrap=True,
    )
    return 0


def _list_suite(suite: str, console: Console) -> int:
    facts = suites.SUITES[suite]
    for name in suites.names(suite):
        console.print(name)
    others = "" if facts.resets == "fresh" else "; --resets fresh draws one for each episode"
    console.print(
        f"\n{suite}: {facts.about}. Initial states: {facts.resets} by default{others}.",
        soft_wrap=True,
    )
    if not suites.installed(suite):
        console.print(f"It isn't installed: {suites.pip_line(suite)}", soft_wrap=True)
    console.print(f"purerl envs {suite}/ENV lists the spaces and parameters of one.")
    return 0


def _list_params(name: str, console: Console) -> int:
    env = make(name)
    console.print(f"{name}: {_spec_words(env.spec)}", soft_wrap=True)
    params = env_params(env)
    if not params:
        console.print("It has no parameters.")
        return 0
    console.print()
    table = Table("flag", "default", "", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for word, value in params.items():
        note = "hyperparameter" if is_traceable(env, word) else ""
        note = "without effect" if is_idle(env, word) else note
        table.add_row(f"--env.{word}", shown(frozen(value), 60), note)
    console.print(table)
    console.print(
        "\nHyperparameters of a sweep share one program: --grid env.NAME=X,X,...; or are drawn for "
        "each episode: --env.NAME 'uniform(A, B)'."
    )
    return 0


def add_agents(parser: Parser, argv: Sequence[str]) -> None:
    """The arguments of `agents`."""
    del argv
    parser.add_argument("agent", nargs="?", metavar="AGENT", help="its hyperparameters only")
    parser.add_argument("--env", metavar="ENV", help="the values in force there, its preset's too")
    parser.add_argument("--no-preset", action="store_true", help="the agent's defaults only")


def run_agents(args: argparse.Namespace, console: Console) -> int:
    """Lists agents, or the hyperparameters of one."""
    if args.agent is None:
        for name, cls in AGENTS.items():
            console.print(f"  {name:<13}", style="bold", end=" ")
            console.print((cls.__doc__ or "").splitlines()[0])
        console.print("\npurerl agents AGENT lists the hyperparameters of one.")
        return 0
    name = args.agent.lower()
    if name not in AGENTS:
        raise ConfigError(f"AGENT: no agent {args.agent!r}; {suggest(args.agent, AGENTS)}")
    env = None if args.env is None else make(args.env)
    preset = {} if args.no_preset or env is None else find_preset(args.env, name)
    words = values_in_force(name, preset, env)
    records = {"agent": AGENTS[name]} | ({} if env is None else {"": TrainConfig, "buffer": Buffer})
    table = Table("flag", "in force" if env else "default", "", box=None, pad_edge=False)
    for part, record in records.items():
        texts = documented(record)
        for field, option in field_options(record).items():
            if field not in UNSPOKEN:
                word = words.get((part, field)) or default_word(option)
                table.add_row(Flag(part, field, record).word, word, texts.get(field, ""))
    console.print(table)
    return 0


def add_presets(parser: Parser, argv: Sequence[str]) -> None:
    """The arguments of `presets`."""
    del argv
    parser.add_argument("env", nargs="?", metavar="ENV", help="those of one environment")


def run_presets(args: argparse.Namespace, console: Console) -> int:
    """Lists presets by their differences from the defaults."""
    presets = list_presets()
    if args.env is not None and args.env not in presets:
        raise ConfigError(f"ENV: no preset for {args.env!r}; {suggest(args.env, presets)}")
    table = Table("environment", "agent", "differences from the defaults", box=None, pad_edge=False)
    for env, agents in presets.items():
        if args.env in (None, env):
            for agent, fields in agents.items():
                table.add_row(env, agent, ", ".join(spelled_out(fields)))
    console.print(table)
    console.print("\npurerl train ENV --agent AGENT uses them.")
    return 0


def add_check_env(parser: Parser, argv: Sequence[str]) -> None:
    """The arguments of `check-env`."""
    del argv
    parser.add_argument("env", metavar="ENV", help="module:name, or a name")
    parser.add_argument("--quick", action="store_true", help="by tracing alone, nothing is played")


def run_check_env(args: argparse.Namespace, console: Console) -> int:
    """Checks an environment."""
    env = make(args.env)
    try:
        check_env(env, quick=args.quick)
    except EnvError as error:
        print(f"purerl: {args.env}: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
    console.print(f"{env.spec.name} is right: {_spec_words(env.spec)}", soft_wrap=True)
    return 0


def _spec_words(spec: EnvSpec) -> str:
    return (
        f"observations {short(spec.observation_space)}, actions {short(spec.action_space)}, "
        f"time limit {spec.max_episode_steps or 'none'}"
    )


def add_bench(parser: Parser, argv: Sequence[str]) -> None:
    """The arguments of `bench`."""
    parser.usage = "purerl bench ENV [--agent NAME] [--seeds N] [--FIELD VALUE ...]"
    parser.add_argument("env", metavar="ENV", nargs="?", help="(CartPole-v1)")
    parser.add_argument("--seeds", default="1", metavar="N", help="trained at once (1)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="measurements (5)")
    add_config_flags(parser, argv)


def run_bench(args: argparse.Namespace, console: Console) -> int:
    """Measures the time of a whole training, and of compiling it."""
    check_integer("--repeats", args.repeats, 1)
    if args.env is None and not args.config:
        args.env = "CartPole-v1"
    config, _ = config_from(args)
    keys, _ = seed_keys(integers("--seeds", args.seeds))
    layout = Layout.of(len(keys), config.num_devices)
    check_size(config.make_loop(), layout.on_a_device)
    train = train_on(config, one_core=layout.on_cores)
    lowered = layout.lower(train, (0,), (keys,))
    began = time.perf_counter()
    program = lowered.compile()
    check_memory(program.memory, f"{len(keys):,} agents at once")
    compiling = time.perf_counter() - began
    parts = layout.split(keys)
    out = jax.block_until_ready(program(parts))
    seconds = []
    for _ in range(args.repeats):
        began = time.perf_counter()
        jax.block_until_ready(program(parts))
        seconds.append(time.perf_counter() - began)
    steps = len(keys) * int(out[0].timesteps[-1])
    median = statistics.median(seconds)
    console.print(
        f"{config.env.spec.name}, {type(config.agent).__name__}, {counted(len(keys), 'seed')}: "
        f"{steps / median:,.0f} steps/s over all seeds (median of {args.repeats}: "
        f"{steps / max(seconds):,.0f} to {steps / min(seconds):,.0f}); {steps:,} steps in "
        f"{median:.2f} s; compiled in {compiling:.1f} s\n"
        f"JAX {jax.__version__}, {len(jax.devices())} x {jax.devices()[0].device_kind}",
        soft_wrap=True,
    )
    return 0
