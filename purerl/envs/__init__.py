"""Environments: the contract, wrappers for every suite, spaces, and the adapter for gymnax."""

from purerl.envs.base import (
    AutoResetState,
    Env,
    EnvSource,
    EnvSpec,
    TimeLimitState,
    TimeStep,
    action_repeat,
    auto_reset,
    map_actions,
    time_limit,
    vectorize,
)
from purerl.envs.check import EnvError, check_env
from purerl.envs.gymnasium_host import gymnasium_env
from purerl.envs.gymnax import gymnax_env
from purerl.envs.last_action import remember_action
from purerl.envs.params import RandomizedState, env_params
from purerl.envs.registry import as_env, env_names, env_suites, make, randomize, register
from purerl.envs.spaces import Box, Discrete, MultiDiscrete, Space
from purerl.envs.vector import VectorEnv, vector_env

__all__ = [
    "AutoResetState",
    "Box",
    "Discrete",
    "Env",
    "EnvError",
    "EnvSource",
    "EnvSpec",
    "MultiDiscrete",
    "RandomizedState",
    "Space",
    "TimeLimitState",
    "TimeStep",
    "VectorEnv",
    "action_repeat",
    "as_env",
    "auto_reset",
    "check_env",
    "env_names",
    "env_params",
    "env_suites",
    "gymnasium_env",
    "gymnax_env",
    "make",
    "map_actions",
    "randomize",
    "register",
    "remember_action",
    "time_limit",
    "vector_env",
    "vectorize",
]
