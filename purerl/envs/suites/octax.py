"""Octax: CHIP-8 arcade games, which all begin alike. MIT; the games are their authors'."""

import copy
import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np

from purerl.envs.base import Env, EnvSpec
from purerl.envs.spaces import Discrete
from purerl.envs.suites.dynamics import (
    LIMIT,
    NEVER,
    Foreign,
    Maker,
    Outcome,
    SuiteDynamics,
    build,
)
from purerl.envs.suites.names import NAMES
from purerl.records.types import PyTree

STEPS = "max_num_steps_per_episodes"
DEFAULTS: dict[str, object] = {"frame_skip": 4, "instruction_frequency": 700, "fps": 60}
SCALE = 6  # pixels of a picture for each of the game's


def known() -> list[str]:
    """The names, some of which have a level; the suite has them in no list."""
    importlib.import_module("octax.environments")
    return list(NAMES["octax"])


def maker(name: str) -> Maker:
    """The factory of a game; its parameters are those of the emulator."""
    make_game = importlib.import_module("octax.environments").create_environment

    def make(max_episode_steps: object = 4500, **given: object) -> Env:
        return _env(make_game(name, **given)[0], f"octax/{name}", max_episode_steps)

    return Maker(make, {**DEFAULTS, LIMIT: 4500})


def adapt(env: Foreign) -> Env | None:
    """An `Env` of an instance of `OctaxEnv`; None for another object."""
    if not isinstance(env, importlib.import_module("octax.env").OctaxEnv):
        return None
    return _env(env, type(env).__name__, int(getattr(env, STEPS)))


def _env(env: Foreign, name: str, limit: object) -> Env:
    env = copy.copy(env)
    setattr(env, STEPS, NEVER)
    actions = Discrete(int(env.num_actions))
    spec = EnvSpec(name, None, actions, metrics=("score",), draw=_draw)
    return build(OctaxDynamics(env), spec, limit)


@dataclasses.dataclass(frozen=True, eq=False)
class OctaxDynamics(SuiteDynamics):
    """Dynamics with the last frames as channels, `[height, width, frames]`."""

    def begin(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        state, obs, _ = self.env.reset(key)
        return jnp.transpose(obs), state

    def advance(self, key: jax.Array, state: PyTree, action: jax.Array) -> Outcome:
        state, obs, reward, terminated, truncated, info = self.env.step(state, action)
        return Outcome(jnp.transpose(obs), state, reward, terminated, truncated, info)


def _draw(state: PyTree) -> np.ndarray:
    lit = np.asarray(state.display).astype(np.uint8).T * 255
    return np.repeat(np.kron(lit, np.ones((SCALE, SCALE), np.uint8))[..., None], 3, axis=-1)
