"""Agents, one file each."""

from purerl.agents.actor_critic import ActorCritic, ActorCriticState
from purerl.agents.base import Agent, NetworkAgent, RunDefaults
from purerl.agents.ddpg import DDPG, DDPGState
from purerl.agents.dqn import DQN, DQNState, double_q_target, q_target
from purerl.agents.ppo import PPO, PPOState
from purerl.agents.pqn import PQN, PQNState
from purerl.agents.reinforce import REINFORCE, REINFORCEState

AGENTS: dict[str, type[Agent]] = {
    "actor_critic": ActorCritic,
    "ddpg": DDPG,
    "dqn": DQN,
    "ppo": PPO,
    "pqn": PQN,
    "reinforce": REINFORCE,
}

__all__ = [
    "AGENTS",
    "DDPG",
    "DQN",
    "PPO",
    "PQN",
    "REINFORCE",
    "ActorCritic",
    "ActorCriticState",
    "Agent",
    "DDPGState",
    "DQNState",
    "NetworkAgent",
    "PPOState",
    "PQNState",
    "REINFORCEState",
    "RunDefaults",
    "double_q_target",
    "q_target",
]
