"""Presets: tuned hyperparameters for environments and agents, from `presets.toml` or a file.

A preset file has a table for each environment and agent, `["CartPole-v1".ppo]`, with the fields
that differ from the defaults; parameters of the environment are in its `env`.
"""

import copy
import functools
import os
from collections.abc import Mapping
from importlib.resources import as_file, files

from purerl.agents import AGENTS
from purerl.records.errors import ConfigError, shown, suggest
from purerl.records.fields import field_options, read_names
from purerl.records.files import reason
from purerl.records.toml import from_toml, to_toml
from purerl.records.types import Plain
from purerl.training.config import TrainConfig, to_plain
from purerl.training.effective import with_file_defaults
from purerl.training.named import env_name, is_code

Presets = dict[str, dict[str, dict[str, Plain]]]


def preset(env: str | os.PathLike[str], agent: str | None = None, **changes: object) -> TrainConfig:
    """A config with tuned hyperparameters.

    Args:
        env: an environment's name; or a preset file, such as the `best.toml` of `tune`: a path, or
            a name that ends in `.toml`.
        agent: an agent's name; None for "ppo", or for the only one in the file.
        **changes: further fields of the config.

    Raises:
        ConfigError: there is none for this environment and agent; the message says which there are.
            Or the file can't be read, or has several.
    """
    more = read_names(TrainConfig, changes)
    if isinstance(env, os.PathLike) or (isinstance(env, str) and env.endswith(".toml")):
        name, _, found = choose_preset(env, None, agent)
        named = {"env": {**found.pop("env", {}), "name": name}, **found}
        for field in ("env", "eval_env"):
            code = env_name(named.get(field))
            if is_code(code) and field not in more:
                raise ConfigError(
                    f"preset: {os.fspath(env)} names {code} as its {field}, which is code; give it "
                    f"too, as preset(..., {field}={code!r})"
                )
        return TrainConfig.from_mapping({**named, **more})
    agent = "ppo" if agent is None else agent
    found = find_preset(env, agent)
    if not found:
        known = list_presets()
        if isinstance(env, str) and env in known:
            hint = f"there are those of {', '.join(known[env])}"
        else:
            near = suggest(env, known)
            hint = near if near.startswith("did") else "purerl presets lists them"
        raise ConfigError(f"preset: none for {shown(env)} with {shown(agent)}; {hint}")
    return TrainConfig.from_mapping({**found, "env": env, **more})


def find_preset(env: object, agent: str | None) -> dict[str, Plain]:
    """A preset as a mapping for `TrainConfig.from_mapping`; {} where there is none."""
    agent = "ppo" if agent is None else str(agent).lower()
    found = list_presets().get(env, {}).get(agent) if isinstance(env, str) else None
    if found is None:
        return {}
    found["agent"] = {"name": agent, **found.get("agent", {})}
    return found


def list_presets() -> Presets:
    """All presets, as differences from the defaults, by environment and agent."""
    return copy.deepcopy(_read())


@functools.cache
def _read() -> Presets:
    with as_file(files("purerl") / "presets.toml") as path:
        return read_presets(path)


def read_presets(path: str | os.PathLike[str]) -> Presets:
    """The presets of a file, by environment and agent. Raises ConfigError where it has none, or
    can't be read."""
    try:
        found = from_toml(path)
    except (OSError, ValueError) as error:
        about = "" if isinstance(error, ValueError) else f"can't read {os.fspath(path)}: "
        raise ConfigError(f"preset: {about}{reason(error)}") from None
    for env, agents in found.items():
        if not isinstance(agents, dict) or not all(isinstance(x, dict) for x in agents.values()):
            raise ConfigError(
                f"preset: {os.fspath(path)} is no preset file: expected tables of environments "
                f'and agents, such as ["CartPole-v1".ppo], got {env!r}'
            )
        for agent in agents:
            if agent not in AGENTS:
                raise ConfigError(
                    f"preset: {os.fspath(path)}: no agent {agent!r}; {suggest(agent, AGENTS)}"
                )
    if not found:
        raise ConfigError(f"preset: {os.fspath(path)} has no presets")
    return found


def choose_preset(
    path: str | os.PathLike[str], env: str | None, agent: str | None
) -> tuple[str, str, dict[str, Plain]]:
    """The preset of a file for an environment and an agent, each of which may be left open where
    the file has one only.

    Returns:
        The names of both, and the fields, as of `find_preset`, without aliases; with the
        environment's parameters under "env", if there are any.

    Raises:
        ConfigError: there is none, or more than one; the message lists them. As `read_presets`.
    """
    presets = read_presets(path)
    agent = None if agent is None else str(agent).lower()
    fitting = [
        (x, y)
        for x, agents in presets.items()
        for y in agents
        if env in (None, x) and agent in (None, y)
    ]
    if len(fitting) != 1:
        known = ", ".join(f"{x} with {y}" for x, agents in presets.items() for y in agents)
        got = f"{env or 'any environment'} with {agent or 'any agent'}"
        count = "none" if not fitting else f"{len(fitting)} presets"
        raise ConfigError(f"preset: {os.fspath(path)} has {count} for {got}; it has {known}")
    name, chosen = fitting[0]
    found = with_file_defaults(read_names(TrainConfig, presets[name][chosen]), chosen)
    for field in ("env", "agent"):
        if not isinstance(there := found.get(field, {}), Mapping):
            raise ConfigError(
                f"preset: {os.fspath(path)}: {field} is {shown(there)}, expected a table of fields"
            )
    fields = found.get("agent", {})
    return name, chosen, {**found, "agent": {**fields, "name": chosen}}


def preset_text(config: TrainConfig, note: str) -> str:
    """A config as the text of a preset file: what differs from the defaults.

    Args:
        config: of the preset. What has no form in a file is left out, with a comment.
        note: a comment, in one line.
    """
    left: list[str] = []
    plain = to_plain(config, left)
    env = plain.pop("env", config.env.spec.name)
    name = env["name"] if isinstance(env, Mapping) else env
    agent = plain.pop("agent", {})
    kind = agent.pop("name", type(config.agent).__name__.lower())
    fields = {n: x for n, x in plain.items() if not _is_default(config, n)}
    if isinstance(env, Mapping):
        fields["env"] = {n: x for n, x in env.items() if n != "name"}
    fields["agent"] = {n: x for n, x in agent.items() if not _is_default(config.agent, n)}
    lines = [f"# {note}\n"]
    if left:
        lines.append(f"# Not in this file, since it has no form there: {', '.join(left)}\n")
    return "".join([*lines, to_toml({name: {kind: fields}})])


def _is_default(record: object, name: str) -> bool:
    """Whether a field has its default."""
    default, value = field_options(type(record))[name].default, getattr(record, name)
    return type(value) is type(default) and bool(value == default)
