"""Small sweeps."""

import purerl

from .agents import Tiny
from .environments import target_env

SMALL = {"num_envs": 4, "update_every": 8, "total_timesteps": 96}


LRS = [0.3, 1.0]  # of Tiny, for which they make a difference


def config(env=None, agent=None, **changes):
    agent = agent or Tiny()
    return purerl.TrainConfig(env=env or target_env(), agent=agent, **{**SMALL, **changes})
