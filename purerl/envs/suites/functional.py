"""Gymnasium's functional environments, which are marked experimental there. MIT."""

import contextlib
import dataclasses
import importlib
import inspect
import os
import warnings
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from purerl.envs.base import Env, EnvSpec
from purerl.envs.params import Rule, followed, rules_of
from purerl.envs.spaces import Box, Discrete, Space, convert_spaces
from purerl.envs.suites.dynamics import (
    LIMIT,
    Foreign,
    Maker,
    Outcome,
    SuiteDynamics,
    build,
    fields_of,
)
from purerl.records.errors import raised
from purerl.records.types import PyTree

DEVICES = ("SDL_VIDEODRIVER", "SDL_AUDIODRIVER")  # environment variables of pygame
# Module, class and time limit, those of Gymnasium's registry.
CLASSES = {
    "CartPole-v1": ("phys2d.cartpole", "CartPoleFunctional", 500),
    "Pendulum-v0": ("phys2d.pendulum", "PendulumFunctional", 200),
    "Blackjack-v0": ("tabular.blackjack", "BlackjackFunctional", None),
    "CliffWalking-v0": ("tabular.cliffwalking", "CliffWalkingFunctional", None),
}


def known() -> list[str]:
    """The names, which Gymnasium has in no list of functional environments."""
    importlib.import_module("gymnasium.experimental.functional")
    return list(CLASSES)


def maker(name: str) -> Maker:
    """The factory of an environment; its parameters are the fields of the environment's `params`,
    whose floats may be traced."""
    module, word, limit = CLASSES[name]
    cls = getattr(importlib.import_module(f"gymnasium.envs.{module}"), word)

    def make(max_episode_steps: object = limit) -> Env:
        return _env(cls(), None, f"functional/{name}", max_episode_steps)

    return Maker(make, {LIMIT: limit})


def adapt(env: Foreign, params: PyTree = None) -> Env | None:
    """An `Env` of an instance of `FuncEnv`, with its parameters; None for another object."""
    if not isinstance(env, importlib.import_module("gymnasium.experimental.functional").FuncEnv):
        return None
    return _env(env, params, type(env).__name__, None)


def _env(env: Foreign, params: PyTree, name: str, limit: object) -> Env:
    usual = env.get_default_params()
    params = usual if params is None else params
    rules = rules_of(fields_of(usual), fields_of(params))
    dynamics = FunctionalDynamics(env, params, rules=rules)
    actions = _actions(env.action_space)
    picture = Picture(env, params)
    spec = EnvSpec(name, convert_spaces(env.observation_space), actions, draw=picture)
    obs = jax.eval_shape(dynamics.reset, jax.eval_shape(lambda: jax.random.key(0)))[0]
    space = spec.observation_space
    if isinstance(space, Box):  # whose dtype and shape aren't always those of observations
        space = Box(space.low, space.high, obs.shape, obs.dtype)
        spec = spec._replace(observation_space=space)
    return build(dynamics, spec, limit)


def _actions(space: Foreign) -> Space:
    made: Space = convert_spaces(space)
    if isinstance(made, Box) and np.size(made.high) == 1 and made.dtype.kind == "i":
        return Discrete(int(made.high.item()) + 1)
    return made


@dataclasses.dataclass(frozen=True, eq=False)
class FunctionalDynamics(SuiteDynamics):
    """Dynamics in five functions, of which some take no key.

    Attributes:
        rules: by which parameters follow from others.
    """

    rules: tuple[Rule, ...] = ()

    def begin(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        state_key, obs_key = jax.random.split(key)
        state = self.env.initial(state_key, self.given)
        # CliffWalking's first state has other shapes than those that follow.
        space = self.env.action_space
        action = jnp.zeros(space.shape, jax.dtypes.canonicalize_dtype(space.dtype))
        later = jax.eval_shape(self.env.transition, state, action, key, self.given)
        state = jax.tree.map(lambda x, y: jnp.broadcast_to(x, y.shape), state, later)
        return self._call(self.env.observation, state, key=obs_key), state

    def advance(self, key: jax.Array, state: PyTree, action: jax.Array) -> Outcome:
        keys = jax.random.split(key, 4)
        if action.ndim == 0:
            action = action.reshape(self.env.action_space.shape)
        after = self.env.transition(state, action, keys[0], self.given)
        obs = self._call(self.env.observation, after, key=keys[1])
        reward = self._call(self.env.reward, state, action, after, key=keys[2])
        return Outcome(obs, after, reward, self._call(self.env.terminal, after, key=keys[3]))

    def replace_params(self, values: Mapping[str, object]) -> SuiteDynamics:
        values, rules = followed(fields_of(self.given), values, self.rules)
        given = dataclasses.replace(self.given, **values)
        return dataclasses.replace(self, given=given, rules=rules)

    def _call(self, function: Callable[..., PyTree], *args: PyTree, key: jax.Array) -> PyTree:
        takes_key = not {"rng", "key"}.isdisjoint(inspect.signature(function).parameters)
        return function(*args, *([key] if takes_key else []), self.given)


class Picture:
    """Draws states as Gymnasium does, with pygame.

    Args:
        env: the environment.
        params: its parameters.
    """

    def __init__(self, env: Foreign, params: PyTree) -> None:
        self._env, self._params = env, params
        self._canvas: Foreign = None
        self._warned = False

    def __call__(self, state: PyTree) -> np.ndarray | None:
        rest = () if self._params is None else (self._params,)
        try:
            if self._canvas is None:
                with _no_devices():
                    self._canvas = self._env.render_init(*rest)
            self._canvas, image = self._env.render_image(state, self._canvas, *rest)
        except Exception as error:  # pygame isn't there, or it can't draw
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"no picture, so that observations are drawn instead: {raised(error)}",
                    stacklevel=2,
                )
            return None
        return np.asarray(image, np.uint8)

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return Picture, (self._env, self._params)


@contextlib.contextmanager
def _no_devices() -> Iterator[None]:
    """A context in which pygame, when it is initialised, opens no window and no sound device,
    unless the user has chosen some."""
    chosen = [name for name in DEVICES if name not in os.environ]
    os.environ.update(dict.fromkeys(chosen, "dummy"))
    try:
        yield
    finally:
        for name in chosen:
            os.environ.pop(name, None)
