"""Evaluation: whole episodes of a policy, on environments of its own."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from purerl.envs.base import Env, vectorize
from purerl.metrics import Episodes, summarize

PyTree = Any


def evaluate(
    env: Env,
    policy: Callable[[PyTree, jax.Array], jax.Array],
    key: jax.Array,
    num_episodes: int,
    max_steps: int,
) -> Episodes:
    """Plays episodes side by side, each to its end or to the step limit.

    Args:
        env: raw, neither vectorized nor with auto-reset.
        policy: `([B, *obs_shape], key) -> [B, *action_shape]`, B the number of episodes; what it
            returns goes to the environment as it is.
        key: for initial states, dynamics, and a policy that samples.
        num_episodes: how many.
        max_steps: an episode longer than this counts with what it has reached by then.

    Returns:
        Statistics over all of them.
    """
    returns, lengths = play_episodes(env, policy, key, num_episodes, max_steps)
    return summarize(returns, lengths, jnp.ones(num_episodes, bool))


def play_episodes(
    env: Env,
    policy: Callable[[PyTree, jax.Array], jax.Array],
    key: jax.Array,
    num_episodes: int,
    max_steps: int,
) -> tuple[jax.Array, jax.Array]:
    """Plays as `evaluate` does; the return and the length of each episode, `[num_episodes]`."""
    env = vectorize(env)
    reset_key, play_key = jax.random.split(key)
    obs, env_state = env.reset(jax.random.split(reset_key, num_episodes))
    zeros = jnp.zeros(num_episodes, jnp.int32)
    start = (0, obs, env_state, zeros.astype(bool), zeros.astype(jnp.float32), zeros)

    def going(carry: tuple) -> jax.Array:
        return (carry[0] < max_steps) & ~jnp.all(carry[3])

    def step(carry: tuple) -> tuple:
        time, obs, env_state, over, returns, lengths = carry
        policy_key, env_key = jax.random.split(jax.random.fold_in(play_key, time))
        action = policy(obs, policy_key)
        keys = jax.random.split(env_key, num_episodes)
        env_state, timestep = env.step(keys, env_state, action)
        returns = returns + jnp.where(over, 0.0, timestep.reward.astype(jnp.float32))
        lengths = lengths + (~over).astype(jnp.int32)
        over = over | timestep.terminated | timestep.truncated
        return time + 1, timestep.obs, env_state, over, returns, lengths

    _, _, _, _, returns, lengths = jax.lax.while_loop(going, step, start)
    return returns, lengths
