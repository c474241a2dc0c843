"""`evaluate`: the return of a policy."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from purerl.agents.acting import Acting, Extras, memoryless
from purerl.envs.base import Env, vectorize
from purerl.envs.registry import as_env
from purerl.experience.metrics import Episodes, summarize
from purerl.records.errors import ConfigError, sentence, shown
from purerl.records.fields import check_count, check_key
from purerl.records.types import PyTree
from purerl.training.episodes import play_episodes
from purerl.training.policy import Policy


def evaluate(
    env: Env,
    policy: Policy | Acting | Callable[[PyTree, jax.Array], jax.Array],
    key: jax.Array,
    num_episodes: int,
    max_steps: int,
) -> Episodes:
    """Plays episodes in parallel, each to its end or to the step limit.

    Args:
        env: raw, neither vectorized nor with auto-reset.
        policy: a `Policy`, which plays its mode; an `Acting`, such as
            `out.policy.acting(sample=True)`, which samples; or a function
            `([B, *obs_shape], key) -> [B, *action_shape]`, B the number of episodes. Actions are
            passed to the environment unchanged.
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
        raise ConfigError(
            f"policy: got {shown(policy)}, expected a Policy, or a function of obs and key"
        )
    if isinstance(policy, Policy):
        policy = policy.acting()
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
