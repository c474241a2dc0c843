"""Environments: a record of pure functions, and what every suite needs written once.

An `Env` is the raw dynamics of one environment. `action_repeat`, `time_limit`, `auto_reset` and
`vectorize` each take an `Env` and return one.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from purerl.envs.spaces import Space, is_space
from purerl.fields import check_count

PyTree = Any


class TimeStep(NamedTuple):
    """What follows an action.

    Attributes:
        obs: `[*obs_shape]`, the true successor, before any reset.
        reward: `[]` float32.
        terminated: `[]` bool, the MDP ended here: the value beyond is 0.
        truncated: `[]` bool, a time limit cut the episode: the value beyond is V(obs). Never
            together with `terminated`.
        info: whatever else the environment tells.
    """

    obs: PyTree
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    info: dict[str, Any]


class EnvSpec(NamedTuple):
    """What is known of an environment before it is run. Hashable, dicts of spaces included.

    Attributes:
        name: for people.
        observation_space: a space, or a pytree of spaces where observations are pytrees.
        action_space: `Discrete` or `Box`.
        max_episode_steps: the time limit that the dynamics keep by themselves, or None.

    Spaces of Gymnasium or gymnax will do; they are converted where the environment is used.
    """

    name: str
    observation_space: Any
    action_space: Space
    max_episode_steps: int | None = None

    def __hash__(self) -> int:
        spaces: Any = jax.tree.flatten(self.observation_space, is_leaf=is_space)
        leaves, structure = spaces
        parts = (*leaves, structure, self.action_space, self.max_episode_steps)
        return hash((self.name, *parts))


class _Reset(Protocol):
    def __call__(self, key: jax.Array, /) -> tuple[PyTree, PyTree]: ...


class _Step(Protocol):
    def __call__(
        self, key: jax.Array, env_state: PyTree, action: jax.Array, /
    ) -> tuple[PyTree, TimeStep]: ...


class Env(NamedTuple):
    """An environment.

    Attributes:
        reset: `(key) -> (obs, env_state)`.
        step: `(key, env_state, action) -> (env_state, TimeStep)`.
        spec: the `EnvSpec`.
    """

    reset: _Reset
    step: _Step
    spec: EnvSpec


def where(condition: jax.Array, x: PyTree, y: PyTree) -> PyTree:
    """Leaf by leaf, x where the scalar condition holds and y elsewhere."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), x, y)


def all_finite(tree: PyTree) -> jax.Array:
    """`[]` bool, whether no float in it is NaN or infinite."""
    finite: dict[tuple[int, ...], jax.Array] = {}
    for x in jax.tree.leaves(tree):
        if jnp.issubdtype(x.dtype, jnp.floating):
            finite[x.shape] = finite.get(x.shape, True) & jnp.isfinite(x)
    scalar = jnp.asarray(finite.pop((), True))
    if not finite:
        return scalar
    # One reduction in place of one a leaf, which cost more than what they reduce; the barrier keeps
    # XLA from taking it apart.
    flat = [x.reshape(-1) for x in finite.values()]
    whole = flat[0] if len(flat) == 1 else jax.lax.optimization_barrier(jnp.concatenate(flat))
    return scalar & jnp.all(whole)


def vectorize(env: Env) -> Env:
    """N independent copies: keys, states, actions and time steps all get a leading axis `[N]`.

    N is the number of keys given, so the randomness of many steps can be split in one block.
    """
    return Env(jax.vmap(env.reset), jax.vmap(env.step), env.spec)


class AutoResetState(NamedTuple):
    """State of an `auto_reset` environment.

    Attributes:
        env: the inner state, that of a new episode where one has just ended.
        obs: `[*obs_shape]`, the observation to act on next, of that same state.
    """

    env: PyTree
    obs: PyTree


def auto_reset(env: Env) -> Env:
    """Starts a new episode in the very step that ends one.

    The time step keeps the true successor (`TimeStep.obs`); the new episode's first observation is
    in the state (`AutoResetState.obs`). Every episode draws its own initial state from a key of its
    own, and each initial state that is drawn for an episode is acted on.

    An observation or reward that isn't finite cuts the episode too (`truncated`), so that a broken
    simulation doesn't go on; `info["nonfinite"]` is True there.
    """

    def reset(key: jax.Array) -> tuple[PyTree, AutoResetState]:
        obs, state = env.reset(key)
        return obs, AutoResetState(state, obs)

    def step(
        key: jax.Array, state: AutoResetState, action: jax.Array
    ) -> tuple[AutoResetState, TimeStep]:
        step_key, reset_key = jax.random.split(key)
        inner, timestep = env.step(step_key, state.env, action)
        first_obs, first = env.reset(reset_key)
        broken = ~all_finite((timestep.obs, timestep.reward))
        timestep = timestep._replace(
            truncated=timestep.truncated | (broken & ~timestep.terminated),
            info={**timestep.info, "nonfinite": broken},
        )
        done = timestep.terminated | timestep.truncated
        obs = where(done, first_obs, timestep.obs)
        return AutoResetState(where(done, first, inner), obs), timestep

    return Env(reset, step, env.spec)


class TimeLimitState(NamedTuple):
    """State of a `time_limit` environment: the inner state, and the steps taken in the episode."""

    env: PyTree
    time: jax.Array


def time_limit(env: Env, max_episode_steps: int) -> Env:
    """Cuts an episode after so many steps by `truncated`, never by `terminated`.

    Raises:
        ConfigError: `max_episode_steps` is no integer >= 1.
    """
    max_episode_steps = check_count("max_episode_steps", max_episode_steps)

    def reset(key: jax.Array) -> tuple[PyTree, TimeLimitState]:
        obs, state = env.reset(key)
        return obs, TimeLimitState(state, jnp.int32(0))

    def step(
        key: jax.Array, state: TimeLimitState, action: jax.Array
    ) -> tuple[TimeLimitState, TimeStep]:
        inner, timestep = env.step(key, state.env, action)
        time = state.time + 1
        late = (time >= max_episode_steps) & ~timestep.terminated
        timestep = timestep._replace(truncated=timestep.truncated | late)
        return TimeLimitState(inner, time), timestep

    limit = env.spec.max_episode_steps
    limit = max_episode_steps if limit is None else min(limit, max_episode_steps)
    return Env(reset, step, env.spec._replace(max_episode_steps=limit))


def action_repeat(env: Env, num_repeats: int) -> Env:
    """Repeats each action; rewards are summed, and nothing moves after an episode's end.

    `max_episode_steps` counts decisions, not frames: it is divided by `num_repeats`, rounded up.

    Raises:
        ConfigError: `num_repeats` is no integer >= 1.
    """
    num_repeats = check_count("num_repeats", num_repeats)

    def step(key: jax.Array, state: PyTree, action: jax.Array) -> tuple[PyTree, TimeStep]:
        keys = jax.random.split(key, num_repeats)
        carry = env.step(keys[0], state, action)

        def repeat(carry: tuple[PyTree, TimeStep], key: jax.Array) -> tuple[Any, None]:
            state, last = carry
            done = last.terminated | last.truncated
            next_state, timestep = env.step(key, state, action)
            timestep = timestep._replace(reward=last.reward + timestep.reward)
            return where(done, carry, (next_state, timestep)), None

        return jax.lax.scan(repeat, carry, keys[1:])[0]

    limit = env.spec.max_episode_steps
    limit = None if limit is None else -(-limit // num_repeats)
    return Env(env.reset, step, env.spec._replace(max_episode_steps=limit))
