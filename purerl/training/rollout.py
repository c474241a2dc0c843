"""T steps of N environments: act, step, remember."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purerl.accelerator.lean_scan import lean_scan
from purerl.agents.base import Agent
from purerl.agents.noise import Noise
from purerl.envs.base import AutoResetState, Env
from purerl.experience.metrics import Episodes, summarize
from purerl.experience.transition import Transition

PyTree = Any


class RolloutState(NamedTuple):
    """Where the N environments stand between two rollouts.

    Attributes:
        env: their states, and the observations to act on next.
        episode: `[N]` int32, the number of each environment's episode.
        returns: `[N]` float32, the sum of rewards of the running episode.
        length: `[N]` int32, its steps so far.
        noise: the exploration noise's state; None where there is none.
    """

    env: AutoResetState
    episode: jax.Array
    returns: jax.Array
    length: jax.Array
    noise: PyTree


def init_rollout(
    env: Env, key: jax.Array, num_envs: int, noise: Noise | None = None
) -> RolloutState:
    """Resets N environments.

    Args:
        env: vectorized, with auto-reset.
        key: for the initial states.
        num_envs: N.
        noise: what explores.
    """
    _, state = env.reset(jax.random.split(key, num_envs))
    zeros = jnp.zeros(num_envs, jnp.int32)
    shape = env.spec.action_space.shape
    noise_state = None if noise is None else noise.init(num_envs, shape)
    return RolloutState(state, zeros, jnp.zeros(num_envs, jnp.float32), zeros, noise_state)


def restart(
    env: Env, key: jax.Array, state: RolloutState, noise: Noise | None = None
) -> RolloutState:
    """Resets all environments, wherever they stand; arguments as in `init_rollout`."""
    num_envs = state.episode.shape[0]
    fresh = init_rollout(env, key, num_envs, noise)
    left = state.length > 0  # an episode that had begun
    if noise is not None:
        fresh = fresh._replace(noise=noise.restart(state.noise, left))
    return fresh._replace(episode=state.episode + left.astype(jnp.int32))


def rollout(
    env: Env,
    agent: Agent,
    agent_state: PyTree,
    state: RolloutState,
    key: jax.Array,
    num_steps: int,
    transform_obs: Callable[[PyTree], PyTree],
    process_action: Callable[[jax.Array], jax.Array],
    *,
    noise: Noise | None = None,
    episodic: bool = False,
    at_random: jax.Array | None = None,
) -> tuple[RolloutState, Transition, Episodes]:
    """Plays on from where the environments stand, or from a reset of all of them.

    Args:
        env: vectorized, with auto-reset.
        agent, agent_state: whoever acts.
        state: the environments.
        key: for actions, dynamics and resets.
        num_steps: T.
        transform_obs: from the environment's observation to what the agent sees.
        process_action: from the agent's action to what the environment gets.
        noise: added to the agent's actions, which then are clipped to their bounds; transitions
            hold the sum.
        episodic: all environments are reset first, and what follows the first end of each is not
            `valid` and doesn't count in the statistics (nor does an episode that NaN or infinity
            broke off, or whose return isn't finite).
        at_random: `[]` bool, whether actions are drawn from the action space, without the agent
            and its noise; None for never.

    Returns:
        The environments after T steps, the transitions `[T, N, ...]`, and the statistics of the
        episodes that ended.
    """
    num_envs = state.episode.shape[0]
    if episodic:
        key, reset_key = jax.random.split(key)
        state = restart(env, reset_key, state, noise)
    # All from one split: as an operation in a loop, a split costs as much for one key as for many.
    split = jax.random.split(key, (num_steps, num_envs + 2))
    step_keys = split[:, 0], split[:, 1], split[:, 2:]

    def step(carry: tuple[RolloutState, Any], keys: tuple) -> tuple[tuple, tuple]:
        (state, valid), noise_state = carry, carry[0].noise
        obs = state.env.obs
        action, extras = agent.act(agent_state, transform_obs(obs), keys[0])
        if noise is not None:
            noise_state, drawn = noise.step(state.noise, keys[1])
            action = _perturb(env, action, drawn)
        if at_random is not None:
            any_key = jax.random.fold_in(keys[1], 1)  # the noise has drawn from the key itself
            keys_of_each = jax.random.split(any_key, num_envs)
            drawn = jax.vmap(env.spec.random_action)(keys_of_each, obs)
            action = jnp.where(at_random, drawn.astype(action.dtype), action)
        env_state, timestep = env.step(keys[2], state.env, process_action(action))
        done = timestep.terminated | timestep.truncated
        reward = timestep.reward.astype(jnp.float32)
        returns, length = state.returns + reward, state.length + 1
        transition = Transition(
            obs=obs,
            action=action,
            reward=reward,
            next_obs=timestep.obs,
            terminated=timestep.terminated,
            truncated=timestep.truncated,
            episode=state.episode,
            valid=jnp.ones_like(done) if valid is None else valid,
            extras=extras,
        )
        state = RolloutState(
            env=env_state,
            episode=state.episode + done.astype(jnp.int32),
            returns=jnp.where(done, 0.0, returns),
            length=jnp.where(done, 0, length),
            noise=None if noise is None else noise.restart(noise_state, done),
        )
        ended = done & transition.valid & ~timestep.info["nonfinite"] & jnp.isfinite(returns)
        return (state, None if valid is None else valid & ~done), (
            transition,
            returns,
            length,
            ended,
        )

    start = state, jnp.ones(num_envs, bool) if episodic else None
    (state, _), (transitions, returns, lengths, ended) = lean_scan(step, start, step_keys)
    return state, transitions, summarize(returns, lengths, ended)


def _perturb(env: Env, action: jax.Array, drawn: jax.Array) -> jax.Array:
    """Action plus noise, `[N, *action_shape]`, inside the bounds."""
    space: Any = env.spec.action_space
    half, low, high = (x[None] for x in (space.half_range, space.low, space.high))
    return jnp.clip(action + half * drawn, low, high)
