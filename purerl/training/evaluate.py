"""Evaluation: whole episodes of a policy, in separate environments."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from purerl.agents.acting import Acting, Extras, memoryless
from purerl.envs.base import Env, all_finite, vectorize
from purerl.envs.registry import as_env
from purerl.experience.metrics import Episodes, summarize
from purerl.records.errors import ConfigError, sentence, shown
from purerl.records.fields import check_count, check_key
from purerl.records.types import PyTree


def evaluate(
    env: Env,
    policy: Acting | Callable[[PyTree, jax.Array], jax.Array],
    key: jax.Array,
    num_episodes: int,
    max_steps: int,
) -> Episodes:
    """Plays episodes in parallel, each to its end or to the step limit.

    Args:
        env: raw, neither vectorized nor with auto-reset.
        policy: `([B, *obs_shape], key) -> [B, *action_shape]`, B the number of episodes, such as
            `out.policy.act`; or an `Acting`, such as `out.policy.acting()`, which may have a
            memory. Actions are passed to the environment unchanged.
        key: for initial states, dynamics, and a policy that samples.
        num_episodes: B.
        max_steps: a longer episode is cut here, and counts.

    Returns:
        Statistics over all episodes but those in which NaN or infinity came up.

    Raises:
        ConfigError: arguments that can't be used, or actions of a wrong shape.
    """
    env = as_env(env)
    num_episodes = check_count("num_episodes", num_episodes)
    max_steps = check_count("max_steps", max_steps)
    check_key(key)
    if not isinstance(policy, Acting) and not callable(policy):
        raise ConfigError(f"policy: got {shown(policy)}, expected a function of obs and key")
    acting = policy if isinstance(policy, Acting) else _acting_of(policy)

    def play(key: jax.Array) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        return play_episodes(vectorize(env), acting, key, num_episodes, max_steps)

    if not isinstance(key, jax.core.Tracer):  # errors come before any episode is played
        jax.eval_shape(play, key)
    returns, lengths, info = play(key)
    return summarize(returns, lengths, jnp.isfinite(returns), info)


def _acting_of(policy: Callable[[PyTree, jax.Array], jax.Array]) -> Acting:
    def act(obs: PyTree, key: jax.Array) -> tuple[jax.Array, Extras]:
        with sentence("policy: can't be traced"):
            return policy(obs, key), {}

    return memoryless(act)


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
