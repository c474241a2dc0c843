"""Agents, one file each."""

from purerl.agents.actor_critic import ActorCritic, ActorCriticState
from purerl.agents.base import Agent, NetworkAgent, RunDefaults
from purerl.agents.ddpg import DDPG, DDPGState
from purerl.agents.dqn import DQN, DQNState, double_q_target, q_target
from purerl.agents.ppo import PPO, PPOState
from purerl.agents.pqn import PQN, PQNState
from purerl.agents.reinforce import REINFORCE, REINFORCEState
from purerl.agents.sac import SAC, SACState
from purerl.agents.td3 import TD3, TD3State

AGENTS: dict[str, type[Agent]] = {
    "actor_critic": ActorCritic,
    "ddpg": DDPG,
    "dqn": DQN,
    "ppo": PPO,
    "pqn": PQN,
    "reinforce": REINFORCE,
    "sac": SAC,
    "td3": TD3,
}

__all__ = [
    "AGENTS",
    "DDPG",
    "DQN",
    "PPO",
    "PQN",
    "REINFORCE",
    "SAC",
    "TD3",
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
    "SACState",
    "TD3State",
    "double_q_target",
    "q_target",
]
