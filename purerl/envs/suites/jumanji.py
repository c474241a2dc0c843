"""Jumanji: combinatorial and routing tasks, with masks of legal actions. Apache-2.0."""

import copy
import dataclasses
import functools
import importlib
import inspect
import math
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from purerl.envs.base import Env, EnvSpec
from purerl.envs.spaces import Box, Discrete, MultiDiscrete, Space
from purerl.envs.suites.dynamics import (
    LIMIT,
    MASK,
    NEVER,
    Foreign,
    Maker,
    Outcome,
    SuiteDynamics,
    as_dicts,
    box_of,
    build,
    plain_defaults,
    refuse_wrapper,
)
from purerl.records.errors import ConfigError
from purerl.records.types import PyTree

RESETTING = ("AutoResetWrapper", "VmapWrapper", "VmapAutoResetWrapper")
TIME = "time_limit"
CLOCKS = ("step_count", "step")  # entries of observations
NEEDS_DOWNLOAD = ("Sokoban-v0",)


def known() -> list[str]:
    """The names that the installed version has."""
    return list(importlib.import_module("jumanji.registration")._REGISTRY)


def maker(name: str) -> Maker:
    """The factory of an environment; its parameters are those of the suite's class that are
    numbers."""
    registration = importlib.import_module("jumanji.registration")
    spec = registration._REGISTRY[name]
    cls = registration.load(spec.entry_point)
    plain = plain_defaults(cls.__init__, without=(TIME,))
    plain = {n: x for n, x in plain.items() if n not in spec.kwargs}
    timed = TIME in inspect.signature(cls.__init__).parameters
    if name in NEEDS_DOWNLOAD:
        return Maker(lambda **_: _refuse_download(name), {**plain, LIMIT: None})
    limit = getattr(registration.make(name), TIME, None)

    def make(max_episode_steps: object = limit, **given: object) -> Env:
        # In the constructor too, where some allocate arrays of that length.
        longest = {TIME: max_episode_steps} if timed and max_episode_steps is not None else {}
        return _env(
            registration.make(name, **longest, **given), f"jumanji/{name}", max_episode_steps
        )

    return Maker(make, {**plain, LIMIT: limit})


def _refuse_download(name: str) -> Env:
    raise ConfigError(f"env: 'jumanji/{name}' can't be made here: it wants to download levels")


def adapt(env: Foreign) -> Env | None:
    """An `Env` of an instance of `jumanji.Environment`, a copy of which has no time limit; None
    for another object."""
    suite = importlib.import_module("jumanji.env")
    if not isinstance(
        env, (suite.Environment, importlib.import_module("jumanji.wrappers").Wrapper)
    ):
        return None
    refuse_wrapper(env, RESETTING, "give the environment inside it")
    return _env(env, type(env).__name__, getattr(env.unwrapped, TIME, None))


def _env(env: Foreign, name: str, limit: object) -> Env:
    actions = env.action_spec
    spec_tree = env.observation_spec  # cached, with the true limit in it
    if hasattr(env.unwrapped, TIME):
        env = _lifted(env)
    obs = jax.eval_shape(lambda key: as_dicts(env.reset(key)[1].observation), jax.random.key(0))
    masked = isinstance(obs, dict) and MASK in obs
    mask = obs[MASK].shape if masked else None
    space, joint = _actions(actions, mask)
    clocks = [n for n in CLOCKS if isinstance(obs, dict) and n in obs and limit is not None]
    dynamics = JumanjiDynamics(
        env,
        actions=actions,
        choices=space,
        joint=joint,
        masked=masked,
        clock=clocks[0] if clocks else None,
        limit=limit,
    )
    spaces = _spaces(spec_tree, obs)
    if clocks:
        spaces[clocks[0]] = Box(0.0, 1.0, obs[clocks[0]].shape)
    if masked:
        spaces[MASK] = Box(0, 1, (space.num_outputs,), bool)
    key = jax.eval_shape(lambda: jax.random.key(0))
    extras = jax.eval_shape(lambda key: env.reset(key)[1].extras, key)
    legal = MASK if masked else None
    spec = EnvSpec(
        name,
        spaces,
        space,
        metrics=tuple(sorted(extras)),
        legal=legal,
        resets="spare(64)",
        draw=Viewer(env),
    )
    return build(dynamics, spec, limit)


def _lifted(env: Foreign) -> Foreign:
    """A copy of an environment, and of those inside it, without the time limit, which jumanji takes
    for a termination."""
    made = copy.copy(env)
    if env.unwrapped is not env:
        made._env = _lifted(env._env)
        return made
    limit = getattr(env, TIME)
    if type(env).__name__ == "SearchAndRescue":  # whose rewards are scaled by it
        made._reward_fn = functools.partial(_reward, env._reward_fn, limit)
    setattr(made, TIME, NEVER)
    return made


def _reward(
    function: Callable[..., jax.Array], limit: int, found: jax.Array, step: jax.Array, _: int
) -> jax.Array:
    """SearchAndRescue's reward, scaled by the true time limit."""
    return function(found, step, limit)


def _actions(spec: Foreign, mask: tuple[int, ...] | None) -> tuple[Space, bool]:
    """The action space of a spec, and whether it has an action for each combination of choices.

    A mask `[*sizes]` is over the combinations, one `[parts, n]` over the choices of each part.
    """
    specs = importlib.import_module("jumanji.specs")
    if isinstance(spec, specs.DiscreteArray):
        return Discrete(spec.num_values), False
    if np.issubdtype(spec.dtype, np.floating):
        return Box(spec.minimum, spec.maximum, spec.shape), False
    low, high = (np.broadcast_to(x, spec.shape) for x in (spec.minimum, spec.maximum))
    sizes = np.asarray(high - low + 1, np.int64)
    if mask is not None and mask == tuple(sizes.ravel()):
        return Discrete(math.prod(mask)), True
    if mask is not None and len(mask) == 2 and mask[0] == sizes.size:
        sizes = np.full(sizes.shape, mask[1])  # MultiCVRP's spec has one choice too many
    return MultiDiscrete(sizes), False


def _spaces(spec: Foreign, obs: PyTree) -> PyTree:
    """Spaces for observations: bounds and choices from the suite's specs."""
    if isinstance(obs, dict):
        return {name: _spaces(spec[name], part) for name, part in obs.items()}
    specs = importlib.import_module("jumanji.specs")
    if isinstance(spec, specs.BoundedArray) and obs.dtype != np.bool_:
        counts = np.issubdtype(obs.dtype, np.integer) and np.all(np.asarray(spec.maximum) > 2**20)
        if not counts:
            low = np.asarray(spec.minimum)
            if np.issubdtype(obs.dtype, np.signedinteger):
                low = np.minimum(low, -1)  # which stands for none, whatever the spec says
            return Box(low, spec.maximum, obs.shape, obs.dtype)
    return box_of(obs)


@dataclasses.dataclass(frozen=True, eq=False)
class JumanjiDynamics(SuiteDynamics):
    """Dynamics whose rewards are summed over the agents of a team.

    Attributes:
        actions: the suite's action spec.
        choices: the action space.
        joint: whether actions are indices of combinations of choices.
        masked: whether observations have a mask, which becomes flat.
        clock: the entry of observations that counts steps, which becomes a part of the limit.
        limit: the time limit.
    """

    actions: Foreign = None
    choices: Space | None = None
    joint: bool = False
    masked: bool = False
    clock: str | None = None
    limit: object = None

    def begin(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        state, timestep = self.env.reset(key)
        return self._seen(timestep.observation), state

    def advance(self, key: jax.Array, state: PyTree, action: jax.Array) -> Outcome:
        state, timestep = self.env.step(state, self._decoded(action))
        last, goes_on = timestep.last(), jnp.any(timestep.discount > 0)
        obs, reward = self._seen(timestep.observation), jnp.sum(timestep.reward)
        return Outcome(obs, state, reward, last & ~goes_on, last & goes_on, dict(timestep.extras))

    def _seen(self, obs: PyTree) -> PyTree:
        obs = as_dicts(obs)
        if self.masked:
            mask = obs[MASK].astype(bool)
            several = isinstance(self.choices, MultiDiscrete)
            # Where no choice is legal, as in FlatPack near the end, any does nothing.
            some = jnp.any(mask, axis=-1 if several else None, keepdims=True)
            obs[MASK] = (mask | ~some).reshape(-1)
        if self.clock is not None:
            obs[self.clock] = jnp.minimum(obs[self.clock] / self.limit, 1.0).astype(jnp.float32)
        return obs

    def _decoded(self, action: jax.Array) -> jax.Array:
        spec = self.actions
        if np.issubdtype(spec.dtype, np.floating):
            return action
        low = np.broadcast_to(spec.minimum, spec.shape)
        if self.joint:
            sizes = tuple(np.ravel(np.broadcast_to(spec.maximum, spec.shape) - low + 1).tolist())
            action = jnp.stack(jnp.unravel_index(action, sizes)).reshape(spec.shape)
        return (action + low).astype(spec.dtype)


class Viewer:
    """Draws states with the suite's viewer, by matplotlib.

    Args:
        env: the environment.
    """

    def __init__(self, env: Foreign) -> None:
        self._env = env

    def __call__(self, state: PyTree) -> np.ndarray | None:
        viewer: Foreign = getattr(self._env.unwrapped, "_viewer", None)
        if not hasattr(viewer, "_display_rgb_array"):
            return None
        viewer._display, viewer.figure_size = viewer._display_rgb_array, (4.0, 4.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # figures without a window
            image = viewer.render(state)
        return None if image is None else np.asarray(image, np.uint8)[..., :3]
