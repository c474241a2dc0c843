"""Transitions, the data of a rollout."""

from typing import NamedTuple

import jax

from purerl.experience.successors import Successors
from purerl.records.types import PyTree


class Transition(NamedTuple):
    """One step of N environments, `[N, ...]`; `[T, N, ...]` for a rollout of T steps.

    Attributes:
        obs: `[N, *obs_shape]`, from the environment, not normalised.
        action: `[N, *action_shape]`, the agent's, before the action processor.
        reward: `[N]` float32, after the rewarder.
        next_obs: `[N, *obs_shape]`, the true successor, also if the environment was then reset; of
            a rollout whose time limit is known, `Successors`, those that no next row has.
        terminated: `[N]` bool, the bootstrap value is 0.
        truncated: `[N]` bool, the bootstrap value is V(next_obs).
        episode: `[N]` int32, the number of the environment's episode. It changes where an episode
            ends, is abandoned by a reset, or loses a rollout that is dropped because of NaN.
        valid: `[N]` bool, False after an environment's first end in an episodic rollout
            (`wait_end_path`): real transitions, but of a path that may be unfinished.
        extras: the agent's records, such as `log_prob` and `value`, `[N]` each.
    """

    obs: PyTree
    action: jax.Array
    reward: jax.Array
    next_obs: PyTree | Successors
    terminated: jax.Array
    truncated: jax.Array
    episode: jax.Array
    valid: jax.Array
    extras: dict[str, jax.Array]
