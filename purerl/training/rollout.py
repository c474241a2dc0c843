"""T steps of N environments: act, step, remember."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purerl.accelerator.lean_scan import lean_scan
from purerl.agents.acting import Acting
from purerl.envs.base import AutoResetState
from purerl.envs.vector import FewResetsState, SpareState, VectorEnv
from purerl.experience.metrics import Episodes, summarize
from purerl.experience.transition import Transition
from purerl.records.types import PyTree


class RolloutState(NamedTuple):
    """The N environments between two rollouts, and the memory of whoever acts in them.

    Attributes:
        env: their states, and the observations to act on next.
        episode: `[N]` int32, the number of each environment's episode.
        returns: `[N]` float32, the sum of rewards of the running episode.
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
        acting: whoever acts in them.
        key: for the initial states.
        num_envs: N.
    """
    _, state = env.reset(jax.random.split(key, num_envs))
    zeros = jnp.zeros(num_envs, jnp.int32)
    returns = jnp.zeros(num_envs, jnp.float32)
    return RolloutState(state, zeros, returns, zeros, acting.init(num_envs))


def restart(env: VectorEnv, acting: Acting, key: jax.Array, state: RolloutState) -> RolloutState:
    """Resets all environments, wherever they are; arguments as in `init_rollout`."""
    left = state.length > 0  # an episode that had begun
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
) -> tuple[RolloutState, Transition, Episodes]:
    """Plays on from where the environments are, or from a reset of all of them.

    Args:
        env: N environments, from `vector_env`, which take the actions of `acting`.
        acting: whoever acts: `Agent.acting`, with what is put around it.
        state: the environments, and the memory.
        key: for actions, dynamics and resets.
        num_steps: T.
        episodic: all environments are reset first, and what follows the first end of each is not
            `valid` and doesn't count in the statistics (nor does an episode that NaN or infinity
            broke off, or whose return isn't finite).

    Returns:
        The environments after T steps, the transitions `[T, N, ...]`, and the statistics of the
        episodes that ended.
    """
    num_envs = state.episode.shape[0]
    if episodic:
        key, reset_key = jax.random.split(key)
        state = restart(env, acting, reset_key, state)
    # All from one split: as an operation in a loop, a split costs as much for one key as for many.
    split = jax.random.split(key, (num_steps, num_envs + 1))

    def step(carry: tuple[RolloutState, Any], keys: tuple) -> tuple[tuple, tuple]:
        state, valid = carry
        obs = state.env.obs
        memory, action, extras = acting.step(state.memory, obs, keys[0])
        env_state, timestep = env.step(keys[1], state.env, action)
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
            memory=acting.reset(memory, done),
        )
        ended = done & transition.valid & ~timestep.info["nonfinite"] & jnp.isfinite(returns)
        return (state, None if valid is None else valid & ~done), (
            transition,
            returns,
            length,
            ended,
            {name: timestep.info[name] for name in env.spec.metrics},
        )

    start = state, jnp.ones(num_envs, bool) if episodic else None
    (state, _), (transitions, *seen) = lean_scan(step, start, (split[:, 0], split[:, 1:]))
    return state, transitions, summarize(*seen)
