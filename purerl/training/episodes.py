"""Whole episodes of a policy, in environments of their own."""

import jax
import jax.numpy as jnp

from purerl.agents.acting import Acting
from purerl.envs.base import Env, all_finite
from purerl.records.errors import ConfigError
from purerl.records.types import PyTree


def play_episodes(
    env: Env, acting: Acting, key: jax.Array, num_episodes: int, max_steps: int
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Plays whole episodes, each from a fresh memory, in a vectorized environment.

    Returns:
        Returns, lengths, and the metrics of `EnvSpec.metrics` in the last step's info, each
        `[num_episodes]`. An episode ends where an observation or reward isn't finite, and its
        return is NaN.
    """
    reset_key, play_key = jax.random.split(key)
    obs, env_state = env.reset(jax.random.split(reset_key, num_episodes))
    zeros = jnp.zeros(num_episodes, jnp.int32)
    metrics = dict.fromkeys(env.spec.metrics, zeros.astype(jnp.float32))
    rest = (zeros.astype(bool), zeros.astype(jnp.float32), zeros, metrics)
    start = (0, obs, env_state, acting.init(num_episodes), *rest)

    def going(carry: tuple[PyTree, ...]) -> jax.Array:
        playing: jax.Array = (carry[0] < max_steps) & ~jnp.all(carry[4])
        return playing

    def step(carry: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
        time, obs, env_state, memory, over, returns, lengths, metrics = carry
        policy_key, env_key = jax.random.split(jax.random.fold_in(play_key, time))
        memory, action, _ = acting.step(memory, obs, policy_key)
        expected = (num_episodes, *env.spec.action_space.shape)
        if jnp.shape(action) != expected:
            raise ConfigError(
                f"policy: its actions have shape {jnp.shape(action)}, expected {expected}"
            )
        keys = jax.random.split(env_key, num_episodes)
        env_state, timestep = env.step(keys, env_state, action)
        fine = jax.vmap(all_finite)((timestep.obs, timestep.reward))
        returns = returns + jnp.where(over, 0.0, jnp.where(fine, timestep.reward, jnp.nan))
        lengths = lengths + (~over).astype(jnp.int32)
        metrics = {n: jnp.where(over, x, timestep.info[n]) for n, x in metrics.items()}
        over = over | timestep.terminated | timestep.truncated | ~fine
        return time + 1, timestep.obs, env_state, memory, over, returns, lengths, metrics

    *_, returns, lengths, metrics = jax.lax.while_loop(going, step, start)
    return returns, lengths, metrics
