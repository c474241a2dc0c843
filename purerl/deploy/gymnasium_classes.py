"""purerl environments as subclasses of Gymnasium's. Imported late, by `to_gymnasium`, since it
imports gymnasium."""

import functools
import re
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.vector.utils import batch_space

from purerl.accelerator.compiling import jit
from purerl.deploy.drawing import draw
from purerl.envs.base import Env, TimeStep, where
from purerl.envs.spaces import is_space
from purerl.records.errors import ConfigError
from purerl.records.types import PyTree

Info = dict[str, PyTree]
METADATA: dict[str, object] = {"render_modes": ["rgb_array"], "render_fps": 30}
VECTOR_METADATA = {**METADATA, "autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}


def as_gymnasium_space(space: PyTree) -> gymnasium.Space:
    """A space, or a pytree of them, as Gymnasium's."""
    if is_space(space):
        return space.as_gymnasium(gymnasium.spaces)
    if isinstance(space, dict):
        return gymnasium.spaces.Dict({k: as_gymnasium_space(x) for k, x in space.items()})
    if isinstance(space, (tuple, list)):
        return gymnasium.spaces.Tuple([as_gymnasium_space(x) for x in space])
    raise ConfigError(
        f"env: observations are a {type(space).__name__}, expected arrays, or dicts and tuples"
    )


def _on_host(space: gymnasium.Space, obs: PyTree) -> PyTree:
    """An observation in numpy, in the space's dtypes; with a batch axis or without."""
    if isinstance(space, gymnasium.spaces.Dict):
        return {name: _on_host(part, obs[name]) for name, part in space.items()}
    if isinstance(space, gymnasium.spaces.Tuple):
        return tuple(_on_host(part, x) for part, x in zip(space, obs, strict=True))
    array = np.array(obs, space.dtype)
    return array[()] if isinstance(space, gymnasium.spaces.Discrete) else array


def _mask(env: Env, obs: PyTree) -> PyTree:
    """The mask of legal actions at one observation, as `sample(mask)` of Gymnasium's action spaces
    takes it: int8 `[n]`, for a `MultiDiscrete` a tuple of such. None where all are legal."""
    legal, sizes = env.spec.legal_actions(obs), env.spec.action_space.sizes
    if legal is None or sizes is None:
        return None
    ends = np.cumsum(np.array(sizes))[:-1]
    parts = tuple(x.astype(jnp.int8) for x in jnp.split(legal, ends))
    return parts[0] if env.spec.action_space.n is not None else parts


def _first(env: Env, key: jax.Array) -> tuple[jax.Array, PyTree, PyTree, PyTree]:
    """A reset: the key of the next reset, where no step comes between; the observation, the mask
    of legal actions, the state."""
    again, key = jax.random.split(key)
    obs, state = env.reset(key)
    return again, obs, _mask(env, obs), state


def _with_mask(info: Info, mask: PyTree) -> Info:
    if mask is not None:
        info["action_mask"] = jax.tree.map(np.array, mask)
    return info


def _next_keys(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The next key, one for a step, and one for the reset after it."""
    key, step_key, reset_key = jax.random.split(key, 3)
    return key, step_key, reset_key


class GymnasiumEnv(gymnasium.Env):
    """A single environment, made by `to_gymnasium`."""

    metadata = METADATA

    def __init__(self, env: Env, render_mode: str | None = None) -> None:
        self.env, self.render_mode = env, render_mode
        self.observation_space = as_gymnasium_space(env.spec.observation_space)
        self.action_space = as_gymnasium_space(env.spec.action_space)
        name = re.sub(r"[^\w:.-]", "-", env.spec.name)
        entry: Any = functools.partial(GymnasiumEnv, env)
        self.spec = gymnasium.envs.registration.EnvSpec(f"purerl/{name}", entry)
        self._keys: tuple[jax.Array, jax.Array] | None = None  # the next, and one for a reset
        self._state: PyTree = None
        self._seen: tuple[PyTree, int, float] = (None, 0, 0.0)  # observation, steps, return

        @jit
        def step(key: jax.Array, state: PyTree, action: jax.Array) -> tuple:
            key, step_key, reset_key = _next_keys(key)
            state, timestep = env.step(step_key, state, action)
            return (key, reset_key), state, timestep, _mask(env, timestep.obs)

        self._reset, self._step = jit(functools.partial(_first, env)), step

    def reset(
        self, *, seed: int | None = None, options: dict[str, object] | None = None
    ) -> tuple[PyTree, Info]:
        super().reset(seed=seed)
        if seed is not None or self._keys is None:
            seed = int(self.np_random.integers(2**32)) if seed is None else seed
            key, _, reset_key = _next_keys(jax.random.key(seed % 2**32))
            self._keys = key, reset_key
        again, obs, mask, self._state = self._reset(self._keys[1])
        self._keys = self._keys[0], again
        obs = _on_host(self.observation_space, obs)
        self._seen = obs, 0, 0.0
        return obs, _with_mask({}, mask)

    def step(self, action: object) -> tuple[PyTree, float, bool, bool, Info]:
        if self._keys is None:
            raise gymnasium.error.ResetNeeded("call reset before the first step")
        action = _action(self.env, action, ())
        self._keys, self._state, timestep, mask = self._step(self._keys[0], self._state, action)
        obs = _on_host(self.observation_space, timestep.obs)
        reward = float(timestep.reward)
        self._seen = obs, self._seen[1] + 1, self._seen[2] + reward
        ends = bool(timestep.terminated), bool(timestep.truncated)
        return obs, reward, *ends, _with_mask(jax.tree.map(np.array, timestep.info), mask)

    def render(self) -> np.ndarray | None:
        """`[height, width, 3]` uint8 where `render_mode` is "rgb_array"."""
        if self.render_mode is None:
            return None
        if self._keys is None:
            raise gymnasium.error.ResetNeeded("call reset before the first render")
        return np.asarray(draw(self.env.spec, self._state, *self._seen))


class GymnasiumVectorEnv(gymnasium.vector.VectorEnv):
    """A vector of N environments, made by `to_gymnasium`."""

    metadata = VECTOR_METADATA

    def __init__(self, env: Env, num_envs: int, render_mode: str | None = None) -> None:
        self.env, self.num_envs, self.render_mode = env, num_envs, render_mode
        self.single_observation_space = as_gymnasium_space(env.spec.observation_space)
        self.single_action_space = as_gymnasium_space(env.spec.action_space)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._keys: tuple[jax.Array, jax.Array] | None = None  # each [N]
        self._state: PyTree = None
        self._seen: tuple[PyTree, np.ndarray, np.ndarray] = (None, np.zeros(0), np.zeros(0))
        self._reset = jit(jax.vmap(functools.partial(_first, env)))
        self._step = jit(jax.vmap(self._play))

    def _play(self, key: jax.Array, state: PyTree, action: jax.Array) -> tuple:
        """A step of one environment, and a reset where it ends the episode."""
        key, step_key, reset_key = _next_keys(key)
        state, timestep = self.env.step(step_key, state, action)
        again, obs, _, first = _first(self.env, reset_key)
        done = timestep.terminated | timestep.truncated
        went_on = (reset_key, timestep.obs, state)
        reset_key, obs, state = where(done, (again, obs, first), went_on)
        return (key, reset_key), obs, _mask(self.env, obs), state, timestep

    def reset(
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: dict[str, object] | None = None,
    ) -> tuple[PyTree, Info]:
        if options and "reset_mask" in options:
            raise ConfigError("reset_mask: environments reset themselves (SAME_STEP)")
        if isinstance(seed, int):
            super().reset(seed=seed)
        if seed is not None or self._keys is None:
            seeds = np.asarray(self._seeds(seed), np.uint32)
            self._keys = jax.vmap(lambda s: _next_keys(jax.random.key(s))[::2])(seeds)
        again, obs, mask, self._state = self._reset(self._keys[1])
        self._keys = self._keys[0], again
        zeros = np.zeros(self.num_envs)
        self._seen = _on_host(self.observation_space, obs), zeros.astype(int), zeros
        return self._seen[0], self._with_masks({}, mask)

    def _seeds(self, seed: int | list[int | None] | None) -> list[int]:
        if isinstance(seed, int):
            return [(seed + i) % 2**32 for i in range(self.num_envs)]
        given = [None] * self.num_envs if seed is None else list(seed)
        if len(given) != self.num_envs:
            raise ConfigError(f"seed: got {len(given)}, expected one for each of {self.num_envs}")
        drawn = self.np_random.integers(2**32, size=self.num_envs)
        return [int(d) if s is None else s % 2**32 for s, d in zip(given, drawn, strict=True)]

    def step(self, actions: object) -> tuple[PyTree, np.ndarray, np.ndarray, np.ndarray, Info]:
        if self._keys is None:
            raise gymnasium.error.ResetNeeded("call reset before the first step")
        action = _action(self.env, actions, (self.num_envs,))
        played = self._step(self._keys[0], self._state, action)
        self._keys, obs, mask, self._state, timestep = played
        obs = _on_host(self.observation_space, obs)
        reward = np.array(timestep.reward, np.float64)
        ends = np.array(timestep.terminated), np.array(timestep.truncated)
        done = ends[0] | ends[1]
        lengths, returns = self._seen[1] + 1, self._seen[2] + reward
        self._seen = obs, np.where(done, 0, lengths), np.where(done, 0.0, returns)
        return obs, reward, *ends, self._with_masks(self._info(timestep, done), mask)

    def _with_masks(self, info: Info, mask: PyTree) -> Info:
        every = np.ones(self.num_envs, bool)
        return info if mask is None else info | _masked(_with_mask({}, mask), every)

    def _info(self, timestep: TimeStep, done: np.ndarray) -> Info:
        """The info of a vector, as Gymnasium has it: with a mask for each entry."""
        given: Info = jax.tree.map(np.array, timestep.info)
        info = _masked(given, ~done)
        if done.any():
            last = _on_host(self.observation_space, timestep.obs)
            final = np.full(self.num_envs, None, dtype=object)
            for i in np.flatnonzero(done):
                final[i] = jax.tree.map(lambda x, i=i: x[i], last)
            info |= _masked({"final_obs": final, "final_info": _masked(given, done)}, done)
        return info

    def render(self) -> tuple[np.ndarray, ...] | None:
        """A frame of each, `[height, width, 3]` uint8, where `render_mode` is "rgb_array"."""
        if self.render_mode is None:
            return None
        if self._keys is None:
            raise gymnasium.error.ResetNeeded("call reset before the first render")
        together = (self._state, self._seen)
        each = [jax.tree.map(lambda x, i=i: x[i], together) for i in range(self.num_envs)]
        return tuple(np.asarray(draw(self.env.spec, state, *seen)) for state, seen in each)


def _masked(values: Info, mask: np.ndarray) -> Info:
    masks = {f"_{name}": mask.copy() for name in values}
    return {**values, **masks}


def _action(env: Env, action: object, batch: tuple[int, ...]) -> jax.Array:
    space = env.spec.action_space
    array = np.asarray(action)
    if array.shape != batch + space.shape:
        raise ConfigError(
            f"action: got shape {array.shape}, expected {batch + space.shape} for {space}"
        )
    return jnp.asarray(array, space.dtype)
