"""What a run tells of itself, reduced inside the scan: one number an update."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from purerl.devices import pmin, psum


class Episodes(NamedTuple):
    """Returns and lengths of the episodes that ended.

    NaN where none did (see `missing`); each episode counts once, however long it was.

    Attributes:
        episode_return, episode_return_min, episode_return_max: `[]` float32, sums of the
            environment's own rewards, not discounted: mean, minimum, maximum.
        episode_length, episode_length_min, episode_length_max: `[]` float32, in steps.
        num_episodes: `[]` int32, how many ended.
    """

    episode_return: jax.Array
    episode_return_min: jax.Array
    episode_return_max: jax.Array
    episode_length: jax.Array
    episode_length_min: jax.Array
    episode_length_max: jax.Array
    num_episodes: jax.Array


class Metrics(NamedTuple):
    """One update's metrics; out of `train` each has a leading axis `[num_updates]`.

    Attributes:
        episode_return, ... num_episodes: of training episodes, as in `Episodes`.
        losses: the agent's losses and diagnostics by name, `[]` float32.
        nonfinite_updates: `[]` int32, 1 where the update was skipped, since NaN or infinity came
            from the environment or would have come into the agent.
        eval: `Episodes` of the evaluation after this update, NaN and 0 where there was none; None
            where the run has no evaluation.
    """

    episode_return: jax.Array
    episode_return_min: jax.Array
    episode_return_max: jax.Array
    episode_length: jax.Array
    episode_length_min: jax.Array
    episode_length_max: jax.Array
    num_episodes: jax.Array
    losses: dict[str, jax.Array]
    nonfinite_updates: jax.Array
    eval: Episodes | None


def missing() -> float:
    """A number that isn't known: NaN; infinity where JAX takes every NaN that a program returns for
    a fault (`jax_debug_nans`, read when a program is traced)."""
    return math.inf if jax.config.jax_debug_nans else math.nan


def summarize(returns: jax.Array, lengths: jax.Array, ended: jax.Array) -> Episodes:
    """Statistics over the entries where an episode ended.

    Args:
        returns: `[...]` float32, the return up to and with each step.
        lengths: `[...]` int32, the steps up to and with each step.
        ended: `[...]` bool, whether the episode ended there.
    """
    # Two reductions for all that is asked: as many operations as for one number each.
    both = jnp.stack([returns, lengths.astype(jnp.float32)])
    axes = tuple(range(1, both.ndim))
    total = jnp.sum(jnp.where(ended, jnp.stack([*both, jnp.ones_like(returns)]), 0.0), axes)
    ends = jnp.min(jnp.where(ended, jnp.concatenate([both, -both]), jnp.inf), axes)
    count = total[2]
    low_return, low_length, high_return, high_length = jnp.where(count > 0, ends, missing())
    mean_return, mean_length = jnp.where(count > 0, total[:2] / jnp.maximum(count, 1), missing())
    return Episodes(
        *(mean_return, low_return, -high_return),
        *(mean_length, low_length, -high_length),
        num_episodes=count.astype(jnp.int32),
    )


def pool(episodes: Episodes, axis_name: str | None) -> Episodes:
    """The statistics of all devices' episodes, from those of each device's own."""
    if axis_name is None:
        return episodes
    means = jnp.stack([episodes.episode_return, episodes.episode_length])
    lows = jnp.stack([episodes.episode_return_min, episodes.episode_length_min])
    highs = jnp.stack([episodes.episode_return_max, episodes.episode_length_max])
    seen = episodes.num_episodes > 0
    sums = jnp.where(seen, means * episodes.num_episodes, 0.0)
    sums, count = psum((sums, episodes.num_episodes), axis_name)
    ends = jnp.where(seen, jnp.concatenate([lows, -highs]), jnp.inf)
    ends = pmin(ends, axis_name)
    both = jnp.concatenate([sums / jnp.maximum(count, 1), ends[:2], -ends[2:]])
    both = jnp.where(count > 0, both, missing())
    mean_return, mean_length, low_return, low_length, high_return, high_length = both
    return Episodes(
        *(mean_return, low_return, high_return), *(mean_length, low_length, high_length), count
    )


def no_episodes() -> Episodes:
    """The statistics of no episode at all."""
    none = jnp.float32(missing())
    return Episodes(none, none, none, none, none, none, jnp.int32(0))
