"""Agents, one file each."""

from purerl.agents.base import Agent, NetworkAgent
from purerl.agents.ppo import PPO, PPOState

AGENTS: dict[str, type[Agent]] = {"ppo": PPO}

__all__ = ["AGENTS", "PPO", "Agent", "NetworkAgent", "PPOState"]
