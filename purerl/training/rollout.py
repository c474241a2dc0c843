"""Rollouts: T steps of N environments."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from purerl.accelerator.lean_scan import lean_scan
from purerl.agents.acting import Acting
from purerl.envs.base import AutoResetState, where
from purerl.envs.vector import FewResetsState, SpareState, VectorEnv
from purerl.experience.log import Log, Sums, log_step
from purerl.experience.metrics import Episodes, summarize
from purerl.experience.successors import Successors, num_blocks
from purerl.experience.transition import Transition
from purerl.records.types import PyTree


class RolloutState(NamedTuple):
    """State between two rollouts of N environments and of the `Acting` in them.

    Attributes:
        env: the environments' states, and the observations to act on next.
        episode: `[N]` int32, index of the current episode.
        returns: `[N]` float32, its sum of rewards so far.
        length: `[N]` int32, its steps so far.
        memory: of the `Acting`, `[N, ...]`.
    """

    env: AutoResetState | FewResetsState | SpareState
    episode: jax.Array
    returns: jax.Array
    length: jax.Array
    memory: PyTree


def init_rollout(env: VectorEnv, acting: Acting, key: jax.Array, num_envs: int) -> RolloutState:
    """Resets N environments.

    Args:
        env: N environments, from `vector_env`.
        acting: the agent's `Acting`.
        key: for the initial states.
        num_envs: N.
    """
    _, state = env.reset(jax.random.split(key, num_envs))
    zeros = jnp.zeros(num_envs, jnp.int32)
    returns = jnp.zeros(num_envs, jnp.float32)
    return RolloutState(state, zeros, returns, zeros, acting.init(num_envs))


def restart(env: VectorEnv, acting: Acting, key: jax.Array, state: RolloutState) -> RolloutState:
    """Resets all environments, in the middle of episodes too; arguments as in `init_rollout`."""
    left = state.length > 0  # in the middle of an episode
    fresh = init_rollout(env, acting, key, state.episode.shape[0])
    episode = state.episode + left.astype(jnp.int32)
    return fresh._replace(episode=episode, memory=acting.reset(state.memory, left))


def rollout(
    env: VectorEnv,
    acting: Acting,
    state: RolloutState,
    key: jax.Array,
    num_steps: int,
    *,
    episodic: bool = False,
    limit: int | None = None,
) -> tuple[RolloutState, Transition, Episodes]:
    """T steps of N environments, from their current states or from a reset of all.

    Args:
        env: N environments, from `vector_env`.
        acting: gives the actions: `Agent.acting`, or a wrapper of it.
        state: from `init_rollout`, or from the last rollout.
        key: for actions, dynamics and resets.
        num_steps: T.
        episodic: reset all environments first; steps after the first end of each are not `valid`.
        limit: time limit of the environments: true successors are stored only where it cuts an
            episode. None to store them all.

    Returns:
        The state after T steps, the transitions `[T, N, ...]`, and the statistics of the episodes
        that ended: of valid ones, without those that NaN or infinity has cut, or whose return isn't
        finite. A step to NaN or infinity has a reward of NaN.
    """
    return logged_rollout(env, acting, state, key, num_steps, episodic=episodic, limit=limit)[:3]


def logged_rollout(
    env: VectorEnv,
    acting: Acting,
    state: RolloutState,
    key: jax.Array,
    num_steps: int,
    *,
    episodic: bool = False,
    limit: int | None = None,
    log: Log | None = None,
) -> tuple[RolloutState, Transition, Episodes, Sums]:
    """As `rollout`, and the sums `[T, ...]` of what `log` returns at each step (`log_step`)."""
    num_envs = state.episode.shape[0]
    blocks = num_blocks(num_steps, limit, whole=True)
    block = num_steps if limit is None else min(limit, num_steps)
    key, state = _begun(env, acting, key, state, episodic)
    # One split, outside the loop: inside, a split costs as much for one key as for many.
    split = jax.random.split(key, (num_steps, num_envs + 1))

    def step(carry: PyTree, keys: PyTree) -> tuple[PyTree, PyTree]:
        state, valid, kept = carry
        obs = state.env.obs
        memory, action, extras = acting.step(state.memory, obs, keys[0])
        env_state, timestep = env.step(keys[1], state.env, action)
        done = timestep.terminated | timestep.truncated
        # Marked in the reward too, since the observation may not be stored.
        reward = jnp.where(timestep.info["nonfinite"], jnp.nan, timestep.reward)
        reward = reward.astype(jnp.float32)
        cut = timestep.truncated & ~timestep.terminated
        if blocks is not None:
            kept = _keep(kept, keys[2], cut, timestep.obs)
        returns, length = state.returns + reward, state.length + 1
        transition = Transition(
            obs=obs,
            action=action,
            reward=reward,
            next_obs=timestep.obs if blocks is None else (),
            terminated=timestep.terminated,
            truncated=timestep.truncated,
            episode=state.episode,
            valid=jnp.ones_like(done) if valid is None else valid,
            extras=extras,
        )
        logged = log_step(log, transition._replace(next_obs=timestep.obs))
        state = RolloutState(
            env=env_state,
            episode=state.episode + done.astype(jnp.int32),
            returns=jnp.where(done, 0.0, returns),
            length=jnp.where(done, 0, length),
            memory=acting.reset(memory, done),
        )
        ended = done & transition.valid & ~timestep.info["nonfinite"] & jnp.isfinite(returns)
        return (state, None if valid is None else valid & ~done, kept), (
            transition,
            returns,
            length,
            ended,
            {name: timestep.info[name] for name in env.spec.metrics},
            logged,
        )

    kept = jax.tree.map(lambda x: jnp.zeros((blocks or 0, *x.shape), x.dtype), state.env.obs)
    start = state, jnp.ones(num_envs, bool) if episodic else None, kept
    keys = split[:, 0], split[:, 1:], jnp.arange(num_steps, dtype=jnp.int32) // block
    (state, _, kept), (transitions, *seen, logged) = lean_scan(step, start, keys)
    if blocks is not None:
        cut = transitions.truncated & ~transitions.terminated
        last = jax.tree.map(lambda x: x[-1], kept)
        head = jax.vmap(where)(cut[-1], last, state.env.obs)
        successors = Successors.of_rollout(kept, head, transitions._asdict(), block)
        transitions = transitions._replace(next_obs=successors)
    return state, transitions, summarize(*seen), logged


def _begun(
    env: VectorEnv, acting: Acting, key: jax.Array, state: RolloutState, episodic: bool
) -> tuple[jax.Array, RolloutState]:
    """A key for the steps, and the state that they begin in: after a reset, or after the
    environments' initial states are refilled."""
    if episodic:
        key, reset_key = jax.random.split(key)
        return key, restart(env, acting, reset_key, state)
    if env.refill is not None:
        key, refill_key = jax.random.split(key)
        return key, state._replace(env=env.refill(refill_key, state.env))
    return key, state


def _keep(kept: PyTree, index: jax.Array, cut: jax.Array, next_obs: PyTree) -> PyTree:
    """`[K, N, ...]` with row `index` replaced where `cut`, `[N]`."""
    row = jax.tree.map(lambda x: x[index], kept)
    row = jax.vmap(where)(cut, next_obs, row)
    return jax.tree.map(lambda x, new: x.at[index].set(new), kept, row)
