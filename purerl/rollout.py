"""T steps of N environments: act, step, remember."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purerl.agents.base import Agent
from purerl.envs.base import AutoResetState, Env
from purerl.metrics import Episodes, summarize
from purerl.types import Transition

PyTree = Any


class RolloutState(NamedTuple):
    """Where the N environments stand between two rollouts.

    Attributes:
        env: their states, and the observations to act on next.
        episode: `[N]` int32, the number of each environment's episode.
        returns: `[N]` float32, the sum of rewards of the running episode.
        length: `[N]` int32, its steps so far.
    """

    env: AutoResetState
    episode: jax.Array
    returns: jax.Array
    length: jax.Array


def init_rollout(env: Env, key: jax.Array, num_envs: int) -> RolloutState:
    """Resets N environments.

    Args:
        env: vectorized, with auto-reset.
        key: for the initial states.
        num_envs: N.
    """
    _, state = env.reset(jax.random.split(key, num_envs))
    zeros = jnp.zeros(num_envs, jnp.int32)
    return RolloutState(state, zeros, jnp.zeros(num_envs, jnp.float32), zeros)


def rollout(
    env: Env,
    agent: Agent,
    agent_state: PyTree,
    state: RolloutState,
    key: jax.Array,
    num_steps: int,
    transform_obs: Callable[[PyTree], PyTree],
    process_action: Callable[[jax.Array], jax.Array],
) -> tuple[RolloutState, Transition, Episodes]:
    """Plays on from where the environments stand.

    Args:
        env: vectorized, with auto-reset.
        agent, agent_state: whoever acts.
        state: the environments.
        key: for actions, dynamics and resets.
        num_steps: T.
        transform_obs: from the environment's observation to what the agent sees.
        process_action: from the agent's action to what the environment gets.

    Returns:
        The environments after T steps, the transitions `[T, N, ...]`, and the statistics of the
        episodes that ended.
    """
    num_envs = state.episode.shape[0]
    act_key, env_key = jax.random.split(key)
    keys = jax.random.split(act_key, num_steps), jax.random.split(env_key, (num_steps, num_envs))

    def step(state: RolloutState, keys: tuple[jax.Array, jax.Array]) -> tuple[RolloutState, tuple]:
        obs = state.env.obs
        action, extras = agent.act(agent_state, transform_obs(obs), keys[0])
        env_state, timestep = env.step(keys[1], state.env, process_action(action))
        done = timestep.terminated | timestep.truncated
        returns, length = state.returns + timestep.reward, state.length + 1
        transition = Transition(
            obs=obs,
            action=action,
            reward=timestep.reward,
            next_obs=timestep.obs,
            terminated=timestep.terminated,
            truncated=timestep.truncated,
            episode=state.episode,
            extras=extras,
        )
        state = RolloutState(
            env=env_state,
            episode=state.episode + done,
            returns=jnp.where(done, 0.0, returns),
            length=jnp.where(done, 0, length),
        )
        return state, (transition, returns, length, done)

    state, (transitions, returns, lengths, ended) = jax.lax.scan(step, state, keys)
    return state, transitions, summarize(returns, lengths, ended)
