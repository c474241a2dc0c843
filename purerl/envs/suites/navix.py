"""Navix: MiniGrid's tasks. Apache-2.0. From Python 3.12; it depends on wandb, pytest, black."""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np

from purerl.accelerator.compiling import jit
from purerl.envs.base import Env, EnvSpec
from purerl.envs.spaces import Box, Discrete, Space
from purerl.envs.suites.dynamics import LIMIT, Foreign, Maker, Outcome, SuiteDynamics, build
from purerl.records.errors import ConfigError, shown, suggest
from purerl.records.types import PyTree

WHOLE = ("categorical", "symbolic", "rgb")
VIEWS = (*WHOLE, *(f"{view}_first_person" for view in WHOLE))
CODED = tuple(view for view in VIEWS if not view.startswith("rgb"))
STATES = 4  # directions; doors have 3
OUTSIDE = 100  # the tag of what is outside of the grid, in "categorical_first_person"


def known() -> list[str]:
    """The names that the installed version has."""
    return list(importlib.import_module("navix").registry())


def maker(name: str) -> Maker:
    """The factory of an environment. Its parameters: `observation`, a function of
    `navix.observations`, and the time limit, which the suite itself keeps.

    Rewards don't depend on the limit, since `penalty_coeff` is 0 in all of the suite's environments
    (of navix 4). In an instance with another one they fall with the steps taken, as a part of the
    instance's `max_steps`; a run's smaller limit cuts episodes and leaves them as they are.
    """
    suite = importlib.import_module("navix")
    usual = suite.make(name)
    view = usual.observation_fn.__name__

    def make(max_episode_steps: object = None, observation: str = view) -> Env:
        if observation not in VIEWS:
            raise ConfigError(
                f"env.observation: got {shown(observation)}; {suggest(observation, VIEWS)}"
            )
        limit = {} if max_episode_steps is None else {"max_steps": max_episode_steps}
        see = getattr(suite.observations, observation)
        return _env(suite.make(name, observation_fn=see, **limit), f"navix/{name}")

    return Maker(make, {"observation": view, LIMIT: int(usual.max_steps)})


def adapt(env: Foreign) -> Env | None:
    """An `Env` of an instance of `navix.Environment`; None for another object."""
    if not isinstance(env, importlib.import_module("navix").Environment):
        return None
    return _env(env, type(env).__name__)


def _env(env: Foreign, name: str) -> Env:
    spec = EnvSpec(
        name,
        _space(env),
        Discrete(len(env.action_set)),
        int(env.max_steps),
        metrics=("success",),
        resets="spare(64)",
        draw=_draw,
    )
    return build(NavixDynamics(env.replace(disable_autoreset=True)), spec)


def _space(env: Foreign) -> Space:
    """Codes with the suite's true bounds, so that networks get them one-hot; pixels as bytes."""
    space, view = env.observation_space, env.observation_fn.__name__
    if view in CODED:
        suite = importlib.import_module("navix.environments.environment")
        colours = importlib.import_module("navix.rendering.registry").PALETTE.as_string()
        tags = int(suite.MAX_CATEGORICAL_VALUE)
        if view.startswith("symbolic"):
            return Box(0, [tags - 1, len(colours) - 1, STATES - 1], space.shape, np.uint8)
        return Box(-1, tags, space.shape, np.int8)  # -1 is a wall, the last one is outside
    if space.dtype == np.uint8:
        return Box(0, 255, space.shape, np.uint8)
    low, high = float(np.min(space.minimum)), float(np.max(space.maximum))
    return Box(low, high, space.shape, space.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class NavixDynamics(SuiteDynamics):
    """Dynamics whose state is the suite's `Timestep`, without the picture of the empty grid, which
    only pixels need: 12 to 125 kB that would be copied wherever an episode may begin."""

    def begin(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        timestep = self.env.reset(key)
        return self._seen(timestep.observation), self._lean(timestep)

    def advance(self, key: jax.Array, state: PyTree, action: jax.Array) -> Outcome:
        # The suite's step traces its reset too, though we never take it, and some of its
        # environments draw the picture there instead of taking that of the state.
        timestep = self._lean(self.env.step(self._whole(state), action))
        terminated = timestep.is_termination()
        info = {"success": (terminated & (timestep.reward > 0)).astype(np.float32)}
        ends = terminated, timestep.is_truncation()
        obs = self._seen(timestep.observation)
        return Outcome(obs, timestep, timestep.reward, *ends, info)

    def _lean(self, timestep: PyTree) -> PyTree:
        if self.env.observation_fn.__name__ not in CODED:
            return timestep
        return _with_picture(timestep, jnp.zeros(0, jnp.uint8))

    def _whole(self, timestep: PyTree) -> PyTree:
        if self.env.observation_fn.__name__ not in CODED:
            return timestep
        picture = self._first.state.cache.patches
        return _with_picture(timestep, jnp.zeros(picture.shape, picture.dtype))

    @functools.cached_property
    def _first(self) -> PyTree:
        """Shapes of a first `Timestep`."""
        return jax.eval_shape(self.env.reset, jax.eval_shape(lambda: jax.random.key(0)))

    def _seen(self, obs: jax.Array) -> jax.Array:
        """Observations with the code after the last tag for what is outside of the grid."""
        if self.env.observation_fn.__name__ != "categorical_first_person":
            return obs
        suite = importlib.import_module("navix.environments.environment")
        return jnp.where(obs == OUTSIDE, suite.MAX_CATEGORICAL_VALUE, obs)


def _with_picture(timestep: PyTree, patches: jax.Array) -> PyTree:
    """A `Timestep` with another picture of the empty grid."""
    cache = timestep.state.cache.replace(patches=patches)
    return timestep.replace(state=timestep.state.replace(cache=cache))


def _draw(timestep: PyTree) -> np.ndarray:
    return np.asarray(_renderer()(timestep), np.uint8)


@functools.cache
def _renderer() -> Foreign:
    def picture(timestep: PyTree) -> jax.Array:
        cache = importlib.import_module("navix.rendering.cache").RenderingCache
        whole = _with_picture(timestep, cache.init(timestep.state.grid).patches)
        drawn: jax.Array = importlib.import_module("navix").observations.rgb(whole.state)
        return drawn

    return jit(picture)
