"""Last action and last reward as part of observations, for policies with a memory."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from purerl.envs.base import Adapter, Env, EnvSpec, TimeStep, refuse_host, typed
from purerl.envs.registry import as_env
from purerl.envs.spaces import Box
from purerl.records.errors import ConfigError
from purerl.records.types import PyTree

OBS, LAST_ACTION, LAST_REWARD = "obs", "last_action", "last_reward"


def remember_action(env: object) -> Env:
    """An environment whose observations have the last action and the last reward, too.

    Observations become dicts, with two more entries if they are dicts already, else
    `{"obs", "last_action", "last_reward"}`:

    - `last_action`, `[num_outputs]` float32: the environment's action as a network's input, choices
      one-hot and numbers scaled to their bounds (`Space.encode`); zeros at an episode's start.
    - `last_reward`, `[1]` float32, as the environment gave it; 0 at an episode's start.

    The run's option `remember_action=True` does this outside of frame skip and time limit.

    Args:
        env: a name, a `purerl.Env`, or a gymnax `Environment`.

    Raises:
        ConfigError: the observations have such an entry already; or an environment of the host.
    """
    env = typed(as_env(env))
    refuse_host(env, "remember_action")
    spec, space = env.spec, env.spec.observation_space
    known = dict(space) if isinstance(space, dict) else {OBS: space}
    for name in (LAST_ACTION, LAST_REWARD):
        if name in known:
            raise ConfigError(
                f"remember_action: observations of {spec.name} have an entry {name!r} already"
            )
    actions, inside, legal = spec.action_space, isinstance(space, dict), spec.legal
    bounds = (-np.inf, np.inf) if actions.sizes is None else (0.0, 1.0)
    known[LAST_ACTION] = Box(*bounds, (actions.num_outputs,))
    known[LAST_REWARD] = Box(-np.inf, np.inf, (1,))
    if callable(legal):
        legal = _Legal(legal, inside)
    return _LastAction(env, inside).as_env(
        spec._replace(observation_space=known, legal=legal, source=None)
    )


def remembers_action(spec: EnvSpec) -> bool:
    """Whether observations are those of `remember_action`."""
    space = spec.observation_space
    return isinstance(space, dict) and {LAST_ACTION, LAST_REWARD} <= set(space)


def as_remembered(spec: EnvSpec, env: Env) -> Env:
    """The environment as a policy's spec has it: with `remember_action` if that has, and the
    environment hasn't."""
    missing = remembers_action(spec) and not remembers_action(env.spec)
    return remember_action(env) if missing else env


def with_last_action(spec: EnvSpec, obs: PyTree, action: object, reward: float) -> PyTree:
    """An observation as of `remember_action`, on the host.

    Args:
        spec: of the environment with `remember_action`.
        obs: one observation of the environment without.
        action: the last one, `[*action_shape]`; None at the start of an episode.
        reward: that followed it.
    """
    space = spec.action_space
    encoded = np.zeros(space.num_outputs, np.float32)
    if action is not None:
        encoded = np.asarray(space.encode(jnp.asarray(action, space.dtype)[None])[0])
    last = {LAST_ACTION: encoded, LAST_REWARD: np.asarray([reward], np.float32)}
    return {**(obs if isinstance(obs, Mapping) else {OBS: obs}), **last}


@dataclasses.dataclass(frozen=True)
class _Legal:
    """The legal actions at an observation with the last action."""

    legal: Callable[[PyTree], jax.Array]
    inside: bool

    def __call__(self, obs: PyTree) -> jax.Array:
        if not self.inside:
            return self.legal(obs[OBS])
        return self.legal({n: x for n, x in obs.items() if n not in (LAST_ACTION, LAST_REWARD)})


@dataclasses.dataclass(frozen=True, eq=False)
class _LastAction(Adapter):
    inside: bool  # whether observations are dicts, to which entries are added

    def reset(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        obs, state = self.env.reset(key)
        nothing = jnp.zeros(self.env.spec.action_space.num_outputs, jnp.float32)
        return self._with(obs, nothing, jnp.float32(0.0)), state

    def step(self, key: jax.Array, state: PyTree, action: jax.Array) -> tuple[PyTree, TimeStep]:
        state, timestep = self.env.step(key, state, action)
        encoded = self.env.spec.action_space.encode(action[None])[0]
        obs = self._with(timestep.obs, encoded, timestep.reward.astype(jnp.float32))
        return state, timestep._replace(obs=obs)

    def _with(self, obs: PyTree, action: jax.Array, reward: jax.Array) -> dict[str, PyTree]:
        last = {LAST_ACTION: action, LAST_REWARD: reward[None]}
        return {**(obs if self.inside else {OBS: obs}), **last}
