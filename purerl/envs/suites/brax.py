"""Brax: 12 tasks of MuJoCo's kind on four physics engines. Apache-2.0."""

import dataclasses
import importlib
import inspect
import os
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import jax
import numpy as np

from purerl.envs.base import Env, EnvSpec
from purerl.envs.spaces import Box
from purerl.envs.suites.dynamics import (
    LIMIT,
    Foreign,
    Maker,
    Outcome,
    SuiteDynamics,
    build,
    plain_defaults,
    refuse_wrapper,
)
from purerl.envs.suites.physics import UNSCALED, scaled
from purerl.records.errors import ConfigError
from purerl.records.types import PyTree

EPISODE_LENGTH = 1000  # of `brax.envs.create`, which no environment names
RESETTING = ("EpisodeWrapper", "AutoResetWrapper", "VmapWrapper", "EvalWrapper")
SIZE = 240, 320  # of a picture


def known() -> list[str]:
    """The names that the installed version has."""
    return list(importlib.import_module("brax.envs")._envs)


def maker(name: str) -> Maker:
    """The factory of an environment; its parameters are those of the suite's class, and those of
    its physics, `SCALED`."""
    cls = importlib.import_module("brax.envs")._envs[name]
    scales = {} if name == "fast" else UNSCALED  # which has no physics
    defaults = plain_defaults(cls.__init__) | scales

    def make(max_episode_steps: object = EPISODE_LENGTH, **kwargs: object) -> Env:
        if name == "swimmer" and "a_min" not in inspect.signature(jax.numpy.clip).parameters:
            raise ConfigError(
                "env: brax/swimmer needs a JAX that brax doesn't support any more: its fluid "
                f"forces call jnp.clip(a_min=), which JAX {jax.__version__} hasn't"
            )
        factors = {word: kwargs.pop(word, 1.0) for word in scales}
        return _env(scaled(cls(**kwargs), "sys", factors), f"brax/{name}", max_episode_steps)

    return Maker(make, {**defaults, LIMIT: EPISODE_LENGTH})


def adapt(env: Foreign) -> Env | None:
    """An `Env` of an instance of `brax.envs.Env`, which has no time limit: that is the run's; None
    for another object."""
    if not isinstance(env, importlib.import_module("brax.envs").Env):
        return None
    refuse_wrapper(
        env,
        RESETTING,
        "give the environment inside it, and its time limit as the run's max_episode_steps",
    )
    return _env(env, type(env).__name__, None)


def _env(env: Foreign, name: str, limit: object) -> Env:
    return state_env(StateDynamics(env), name, limit, "fresh", Picture(env, "pipeline_state"))


@dataclasses.dataclass(frozen=True, eq=False)
class StateDynamics(SuiteDynamics):
    """Dynamics of environments whose state is a whole step: observation, reward, done, metrics."""

    def begin(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        state = self.env.reset(key)
        return state.obs, state

    def advance(self, key: jax.Array, state: PyTree, action: jax.Array) -> Outcome:
        # A copy: MuJoCo Playground writes into the metrics and infos that it is given.
        copy = state.replace(metrics=dict(state.metrics), info=dict(state.info))
        state = self.env.step(copy, action)
        return Outcome(state.obs, state, state.reward, state.done > 0.5, info=state.metrics)

    def leak_free(self) -> bool:
        return False  # jaxopt, in brax, keeps tracers in a cache

    def __reduce__(self) -> tuple[Callable[..., "StateDynamics"], tuple[object, ...]]:
        return _dynamics_of, (packed(self.env), self.given, self.space, self.dtypes)


def state_env(
    dynamics: StateDynamics,
    name: str,
    limit: object,
    resets: str,
    draw: Callable[[PyTree], np.ndarray | None],
) -> Env:
    """An `Env` of such dynamics. Parts of the reward and velocities, which are of single steps, are
    no metrics."""
    state = jax.eval_shape(dynamics.env.reset, jax.eval_shape(lambda: jax.random.key(0)))
    steps = ("reward", "velocity")
    metrics = sorted(n for n in state.metrics if not any(word in n for word in steps))
    actions = Box(-1.0, 1.0, (dynamics.env.action_size,))
    return build(
        dynamics,
        EnvSpec(name, None, actions, metrics=tuple(metrics), resets=resets, draw=draw),
        limit,
    )


class Picture:
    """Draws states by MuJoCo's renderer, which needs OpenGL: without a display EGL is tried, unless
    the environment variable MUJOCO_GL names another library.

    Args:
        env: the suite's environment.
        physics: the attribute of states that has the physics' state.
    """

    def __init__(self, env: Foreign, physics: str) -> None:
        self._env, self._physics = env.unwrapped, physics
        self._renderer: Foreign = None

    def __call__(self, state: PyTree) -> np.ndarray | None:
        mujoco = importlib.import_module("mujoco")
        model = getattr(self._env, "mj_model", None)
        if model is None and hasattr(self._env, "sys"):
            model = self._env.sys.mj_model
        if model is None:  # as of brax's `fast`, which has no physics
            return None
        try:
            self._renderer = self._renderer or _renderer(mujoco, model)
        except Exception as error:
            warnings.warn(
                f"no OpenGL, so that observations are drawn instead ({error}): set the environment "
                "variable MUJOCO_GL to egl or osmesa, whichever is installed",
                stacklevel=2,
            )
            return None
        physics = getattr(state, self._physics)
        data = mujoco.MjData(model)
        data.qpos[:] = physics.qpos if hasattr(physics, "qpos") else physics.q
        if hasattr(physics, "mocap_pos"):
            data.mocap_pos[:], data.mocap_quat[:] = physics.mocap_pos, physics.mocap_quat
        mujoco.mj_forward(model, data)
        # A camera that follows the body, where the model has one.
        self._renderer.update_scene(data, camera=0 if model.ncam else -1)
        picture: np.ndarray = self._renderer.render()
        return picture

    def __reduce__(self) -> tuple[Callable[..., "Picture"], tuple[object, ...]]:
        return _picture_of, (packed(self._env), self._physics)


class Packed(NamedTuple):
    """An environment in a form that pickles: brax keeps its engine, a module, as an attribute."""

    cls: type
    values: dict[str, object]
    modules: dict[str, str]


def packed(env: Foreign) -> Foreign:
    """An environment without modules among its attributes; the same object if there are none."""
    found = {n: x.__name__ for n, x in vars(env).items() if isinstance(x, ModuleType)}
    if not found:
        return env
    values = {n: x for n, x in vars(env).items() if n not in found}
    return Packed(type(env), values, found)


def unpacked(env: Foreign) -> Foreign:
    """The environment from its `packed` form."""
    if not isinstance(env, Packed):
        return env
    made: Foreign = object.__new__(env.cls)
    modules = {n: importlib.import_module(word) for n, word in env.modules.items()}
    made.__dict__.update(env.values, **modules)
    return made


def _picture_of(env: Foreign, physics: str) -> Picture:
    return Picture(unpacked(env), physics)


def _dynamics_of(env: Foreign, *rest: PyTree) -> StateDynamics:
    return StateDynamics(unpacked(env), *rest)


def _renderer(mujoco: Foreign, model: Foreign) -> Foreign:
    blind = sys.platform == "linux" and not {"DISPLAY", "MUJOCO_GL"} & set(os.environ)
    if not blind:
        return mujoco.Renderer(model, *SIZE)
    context: Foreign = importlib.import_module("mujoco.rendering.classic.gl_context")
    usual = context.GLContext
    context.GLContext = importlib.import_module("mujoco.egl").GLContext
    try:
        return mujoco.Renderer(model, *SIZE)
    finally:
        context.GLContext = usual
