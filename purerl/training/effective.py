"""The values in force of a run: what its agent and environment take in place of None.

A run's folder has them, so that it is the same run under another version's defaults. What follows
from other fields alone (the discounts of a buffer, the size of one rollout, `log_every`) is left
open. A file keeps them apart from what was given, in its table `defaults`:

    [defaults.agent]
    name = "ppo"
    hidden = [64, 64]

They hold for the agent that is named there: with another one, that one's defaults are taken.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, TypeVar, cast

from purerl.agents import AGENTS, Agent
from purerl.envs.base import Env
from purerl.experience.buffer import Buffer
from purerl.records.errors import ConfigError, shown, suggest
from purerl.records.fields import field_names, field_options, read_names, unchecked
from purerl.records.types import Plain
from purerl.training.describe import describe
from purerl.training.options import Options

O = TypeVar("O", bound=Options)  # noqa: E741
DEFAULTS = "defaults"
OF_RUN = ("num_envs", "update_every", "update_after", "wait_end_path", "noise", "resets", "buffer")
OF_AGENT = ("hidden", "activation", "batch_size")
# What is in proportion to the rollout, of which a file's value fits no other one.
SIZES = ("num_envs", "update_every", "n_episodes", "episode_length")


def in_force(options: O) -> O:
    """The options with the values in force in place of None. The run is the same."""
    whole, agent = options.with_defaults(), options.agent
    num_envs, update_every = cast(int, whole.num_envs), cast(int, whole.update_every)
    values: dict[str, Any] = {name: getattr(whole, name) for name in OF_RUN[:4]}
    values["noise"] = agent.run_defaults.noise if options.noise is None else options.noise
    if options.resets is None and isinstance(options.env, Env):
        values["resets"] = options.env.spec.resets
    usual = agent.make_buffer(num_envs, update_every)
    if usual.maxlen != num_envs * update_every:  # a replay, whose size is a default
        buffer: Buffer = options.buffer or usual
        full = buffer if buffer.maxlen is not None else unchecked(buffer, maxlen=usual.maxlen)
        values["buffer"] = full
    values["agent"] = agent.in_force(num_envs, update_every)
    return unchecked(options, **values)


def describe_in_force(options: Options) -> dict[str, Plain]:
    """The description of a run, which identifies it; sizes first, since others follow them."""
    plain: dict[str, Plain] = describe(in_force(options))
    return {name: plain[name] for name in OF_RUN[:4]} | plain


def filled(there: Mapping[str, Plain], options: Options) -> dict[str, Plain]:
    """A description from a folder, which may be of an earlier version: where it leaves open what is
    a default, the value that these options would take there; where a field wasn't there yet, its
    default, which is what happened before.

    Args:
        there: of a config.
        options: of the run that is compared with it.
    """
    plain = {name: there.get(name) for name in OF_RUN[:4]} | dict(there)
    agent, buffer = options.agent, options.buffer
    left = [name for name in OF_RUN if there.get(name) is None]
    opened: dict[str, Any] = dict.fromkeys(left)
    parts: dict[str, Any] = {name: there.get(name) for name in ("agent", "buffer")}
    of_agent: list[str] = []
    if isinstance(parts["agent"], dict) and parts["agent"].get("class") == type(agent).__name__:
        known = field_names(type(agent))
        of_agent = [n for n in OF_AGENT if n in known and parts["agent"].get(n) is None]
        opened["agent"] = unchecked(agent, **dict.fromkeys(of_agent))
    if isinstance(parts["buffer"], dict) and parts["buffer"].get("maxlen") is None and buffer:
        opened["buffer"] = unchecked(buffer, maxlen=None)
    later = _defaults_of_others(options, (*there, *OF_RUN))
    opened |= later
    if "agent" in opened:
        younger = _defaults_of_others(agent, (*parts["agent"], *OF_AGENT))
        opened["agent"] = unchecked(opened["agent"], **younger)
        of_agent += younger
    now = describe_in_force(unchecked(options, **opened))
    plain |= {name: now[name] for name in (*left, *later)}
    if of_agent:
        plain["agent"] = {**parts["agent"], **{n: now["agent"][n] for n in of_agent}}
    if "buffer" in opened and isinstance(parts["buffer"], dict):
        plain["buffer"] = {**parts["buffer"], "maxlen": now["buffer"]["maxlen"]}
    return plain


def _defaults_of_others(record: Options | Agent, names: Collection[str]) -> dict[str, Any]:
    """The defaults of a record's fields but those of these names."""
    fields = field_options(type(record)).items()
    return {
        name: field.default
        for name, field in fields
        if name not in names and field.default is not dataclasses.MISSING
    }


def split_defaults(given: Mapping[str, Plain], whole: Mapping[str, Plain]) -> dict[str, Plain]:
    """The table `defaults`: what the plain form of the options in force has, and that of the given
    ones hasn't."""
    found: dict[str, Plain] = {}
    for name, value in whole.items():
        if name not in given:
            found[name] = value
        elif isinstance(value, dict) and isinstance(given[name], dict):
            inner = split_defaults(given[name], value)
            if inner:
                found[name] = inner
    return found


def with_file_defaults(
    fields: Mapping[str, Plain], agent: str | None = None, *, sizes: bool = True
) -> dict[str, Plain]:
    """The fields of a file, over those in its table `defaults`.

    Args:
        fields: of the file.
        agent: the run's, if it isn't the one in the file.
        sizes: whether the rollout has the size of the file's run.

    Raises:
        ConfigError: `defaults` is no table, or has what is none: above all environments, which may
            be code, and are checked where a file names them.
    """
    plain = dict(fields)
    defaults = plain.pop(DEFAULTS, {})
    if not isinstance(defaults, Mapping):
        raise ConfigError(f"{DEFAULTS}: got {shown(defaults)}, expected a table")
    for name in defaults:
        if name not in (*OF_RUN, "agent"):
            raise ConfigError(f"{DEFAULTS}: no field {shown(name)} there; {suggest(name, OF_RUN)}")
    of_agent = dict(defaults.get("agent", {}))
    meant = of_agent.pop("name", None)
    if meant is None or meant != (agent or _name(plain.get("agent", "ppo"))).lower():
        return plain
    rest = {name: value for name, value in defaults.items() if name != "agent"}
    if not sizes:
        of_agent.pop("batch_size", None)
        rest.pop("buffer", None)
    merged = {**rest, **plain}
    for name, inner, cls in (
        ("agent", of_agent, AGENTS.get(meant, Options)),
        ("buffer", rest.get("buffer"), Buffer),
    ):
        there = plain.get(name, {})
        there = {"name": there} if isinstance(there, str) else there
        if isinstance(inner, Mapping) and isinstance(there, Mapping):
            merged[name] = {**inner, **read_names(cls, there)}
    if merged.get("agent") == {}:
        del merged["agent"]
    return merged


def _name(part: Plain) -> str:
    return str(part.get("name", "ppo") if isinstance(part, Mapping) else part)
