"""Craftax and Craftax-Classic, symbolic or as pixels. MIT."""

import dataclasses
import functools
import importlib
from collections.abc import Mapping

import jax
import numpy as np

from purerl.accelerator.compiling import jit
from purerl.envs.base import Env, EnvSpec
from purerl.envs.params import is_float
from purerl.envs.spaces import Box, Discrete
from purerl.envs.suites.dynamics import (
    LIMIT,
    NEVER,
    Foreign,
    Maker,
    Outcome,
    SuiteDynamics,
    build,
    fields_of,
)
from purerl.envs.suites.names import NAMES
from purerl.records.errors import ConfigError
from purerl.records.types import PyTree

OURS = "max_timesteps"  # the suite's limit, a part of its `done`
PIXELS = 16  # of a block in a picture


def known() -> list[str]:
    """The names, which the suite has in no list."""
    importlib.import_module("craftax.craftax_env")
    return list(NAMES["craftax"])


def maker(name: str) -> Maker:
    """The factory of an environment; its parameters are the fields of the suite's `EnvParams`, and
    of its `StaticEnvParams`, which have the sizes."""
    construct = importlib.import_module("craftax.craftax_env").make_craftax_env_from_name
    env = construct(name, auto_reset=False)
    usual = fields_of(env.default_params)
    static = fields_of(env.static_env_params)
    limit = usual.pop(OURS)
    # Floats are parameters of the dynamics, which may be traced.
    fixed = {n: x for n, x in {**usual, **static}.items() if not is_float(x)}

    def make(max_episode_steps: object = limit, **given: object) -> Env:
        sizes = {n: x for n, x in given.items() if n in static}
        env = construct(name, auto_reset=False)
        env = type(env)(env.static_env_params.replace(**sizes))
        rest = {n: x for n, x in given.items() if n not in static}
        return _env(env, f"craftax/{name}", env.default_params.replace(**rest), max_episode_steps)

    return Maker(make, {**fixed, LIMIT: limit})


def adapt(env: Foreign, params: PyTree = None) -> Env | None:
    """An `Env` of an instance of one of the suite's classes, with its parameters; None for another
    object."""
    base = importlib.import_module("craftax.environment_base.environment_bases")
    if not isinstance(env, (base.EnvironmentAutoReset, base.EnvironmentNoAutoReset)):
        return None
    for name in ("step", "reset"):
        if not any(name in vars(x) for x in base.__dict__.values() if isinstance(x, type)):
            continue
        owner = next(cls for cls in type(env).__mro__ if name in vars(cls))
        if not owner.__module__.startswith("craftax."):
            raise ConfigError(
                f"env: {owner.__name__} overrides {name}, which purerl never calls: override "
                f"{name}_env in place of it"
            )
    params = env.default_params if params is None else params
    return _env(env, env.name, params, getattr(params, OURS))


def _env(env: Foreign, name: str, params: PyTree, limit: object) -> Env:
    shape = env.observation_space(params).shape
    prefix = "craftax.craftax_classic" if "classic" in type(env).__module__ else "craftax.craftax"
    words = tuple(
        f"achievement/{x.name.lower()}"
        for x in importlib.import_module(f"{prefix}.constants").Achievement
    )
    spec = EnvSpec(
        name,
        Box(0.0, 1.0, shape),
        Discrete(env.num_actions),
        metrics=("achievements", *words),
        resets="spare(64)",
        draw=functools.partial(_draw, prefix),
    )
    dynamics = CraftaxDynamics(env, params.replace(**{OURS: NEVER}), words=words)
    return build(dynamics, spec, limit)


@dataclasses.dataclass(frozen=True, eq=False)
class CraftaxDynamics(SuiteDynamics):
    """Dynamics with an API as gymnax had it before 1.0.

    Attributes:
        words: names of the achievements, whose values in `info` are 1 once they are unlocked.
    """

    words: tuple[str, ...] = ()

    def begin(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        obs, state = self.env.reset_env(key, self.given)
        return obs, state

    def advance(self, key: jax.Array, state: PyTree, action: jax.Array) -> Outcome:
        obs, state, reward, done, _ = self.env.step_env(key, state, action, self.given)
        unlocked = state.achievements.astype(np.float32)
        info = {"achievements": unlocked.sum(), **dict(zip(self.words, unlocked, strict=True))}
        return Outcome(obs, state, reward, done, info=info)

    def replace_params(self, values: Mapping[str, object]) -> SuiteDynamics:
        return dataclasses.replace(self, given=self.given.replace(**values))


def _draw(prefix: str, state: PyTree) -> np.ndarray:
    image = np.asarray(_renderer(prefix)(state))
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


@functools.cache
def _renderer(prefix: str) -> Foreign:
    return jit(importlib.import_module(f"{prefix}.renderer").make_craftax_pixel_renderer(PIXELS))
