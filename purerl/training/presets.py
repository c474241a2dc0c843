"""Presets: tuned hyperparameters for environments and agents, from `presets.toml`."""

import copy
import functools
import tomllib
from importlib.resources import files

from purerl.agents import AGENTS
from purerl.records.errors import ConfigError, shown, suggest
from purerl.records.fields import read_names
from purerl.records.types import Plain
from purerl.training.config import TrainConfig


def preset(env: str, agent: str = "ppo", **changes: object) -> TrainConfig:
    """A config with tuned hyperparameters.

    Args:
        env: an environment's name.
        agent: an agent's name.
        **changes: further fields of the config.

    Raises:
        ConfigError: there is none for this environment and agent; the message lists the presets.
    """
    found = find_preset(env, agent)
    if not found:
        known = [f"{x}, {y}" for x, agents in list_presets().items() for y in agents]
        got = f"{shown(env)} with {shown(agent)}"
        raise ConfigError(f"preset: none for {got}; {suggest(f'{env}, {agent}', known)}")
    return TrainConfig.from_mapping({**found, "env": env, **read_names(TrainConfig, changes)})


def find_preset(env: object, agent: str | None) -> dict[str, Plain]:
    """A preset as a mapping for `TrainConfig.from_mapping`; {} where there is none."""
    agent = "ppo" if agent is None else str(agent).lower()
    found = list_presets().get(env, {}).get(agent) if isinstance(env, str) else None
    if found is None:
        return {}
    found["agent"] = {"name": agent, **found.get("agent", {})}
    return found


def list_presets() -> dict[str, dict[str, dict[str, Plain]]]:
    """All presets, as differences from the defaults, by environment and agent."""
    return copy.deepcopy(_read())


@functools.cache
def _read() -> dict[str, dict[str, dict[str, Plain]]]:
    presets = tomllib.loads((files("purerl") / "presets.toml").read_text())
    assert all(agent in AGENTS for agents in presets.values() for agent in agents)
    return presets
