"""MuJoCo Playground: the DeepMind Control Suite, locomotion and manipulation on MJX. Apache-2.0.

The tasks of locomotion and manipulation clone a repository of robots when they are made first.
Their observations are dicts: `state` for the actor, `privileged_state` for the critic, if it is
given by `critic_obs="privileged_state"`.
"""

import importlib
from collections.abc import Mapping

import jax

from purerl.envs.base import Env, action_repeat, time_limit
from purerl.envs.suites.brax import Picture, StateDynamics, state_env
from purerl.envs.suites.dynamics import LIMIT, Foreign, Maker, refuse_wrapper
from purerl.envs.suites.physics import UNSCALED, scaled

REGISTRY = "mujoco_playground._src.registry"
RESETTING = ("Wrapper",)
LENGTH = "episode_length"  # of the config, in frames
USUAL = {LENGTH: 1000, "action_repeat": 1}


def known() -> list[str]:
    """The names that the installed version has."""
    return list(importlib.import_module(REGISTRY).ALL_ENVS)


def maker(name: str) -> Maker:
    """The factory of an environment; its parameters are the entries of its config, those of parts
    with a dot: `reward_config.scales.energy`, and those of its physics, `SCALED`.

    `max_episode_steps` None is the config's length in frames, divided by `action_repeat` and
    rounded up; `impl` None is the config's engine on a GPU, and "jax" elsewhere.

    Some tasks begin again, as does the time in their observations, in the step that reaches the
    config's length, which is therefore set beyond the limit.
    """
    registry = importlib.import_module(REGISTRY)
    defaults = _flat(registry.get_default_config(name))
    defaults.pop(LENGTH, None)
    engine = {}
    if "impl" in defaults:
        # None stands for it, so that a source has the engine only if it was given.
        engine = {"impl": defaults["impl"] if jax.default_backend() == "gpu" else "jax"}
        defaults["impl"] = None

    def make(max_episode_steps: Foreign = None, impl: object = None, **overrides: object) -> Env:
        given = {**engine, **({} if impl is None else {"impl": impl}), **overrides}
        factors = {word: given.pop(word, 1.0) for word in UNSCALED}
        config = registry.get_default_config(name)
        limit, repeats = _limit({**config, **given}, max_episode_steps)
        if LENGTH in config:
            # In their count a frame is `action_repeat` of them.
            given[LENGTH] = limit * repeats**2 + 1
        env = registry.load(name, config, given)
        changed = env._config.get(LENGTH) != given.get(LENGTH)  # as of Cartpole's with pictures
        env = scaled(env, "_mjx_model", factors)
        return _env(env, f"playground/{name}", max_episode_steps if changed else limit)

    return Maker(make, {**defaults, **UNSCALED, LIMIT: None})


def _flat(config: Foreign, prefix: str = "") -> dict[str, Foreign]:
    found: dict[str, Foreign] = {}
    for name, value in config.items():
        if hasattr(value, "items"):
            found |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, (bool, int, float, str)):
            found[prefix + name] = value
    return found


def adapt(env: Foreign) -> Env | None:
    """An `Env` of an instance of `mujoco_playground.MjxEnv`, whose config has the time limit; None
    for another object."""
    if not isinstance(env, importlib.import_module("mujoco_playground").MjxEnv):
        return None
    refuse_wrapper(env, RESETTING, "give the environment inside it")
    return _env(env, type(env).__name__, None)


def _limit(config: Mapping[str, Foreign], limit: Foreign) -> tuple[int, int]:
    """The time limit in decisions, the config's if it is None, and the frames in a decision."""
    length, repeats = (int(config.get(n, x)) for n, x in USUAL.items())
    return -(-length // repeats) if limit is None else int(limit), repeats


def _env(env: Foreign, name: str, given: Foreign) -> Env:
    limit, repeats = _limit(env._config, given)
    made = state_env(StateDynamics(env), name, None, "spare(256)", Picture(env, "data"))
    made = action_repeat(made, repeats) if repeats > 1 else made
    return time_limit(made, limit)
