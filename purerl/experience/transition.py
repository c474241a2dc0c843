"""What passes between rooms."""

from typing import NamedTuple

import jax

from purerl.records.types import PyTree


class Transition(NamedTuple):
    """What one step leaves behind: `[N, ...]`, and `[T, N, ...]` after a rollout of T steps.

    Attributes:
        obs: `[N, *obs_shape]`, as the environment gave it (not normalised).
        action: `[N, *action_shape]`, the agent's own.
        reward: `[N]` float32, after the rewarder.
        next_obs: `[N, *obs_shape]`, the true successor, also where the environment was then reset.
        terminated: `[N]` bool, the value beyond is 0.
        truncated: `[N]` bool, the value beyond is V(next_obs).
        episode: `[N]` int32, the number of the environment's episode. It changes where one ends, is
            left unfinished by a reset, or has lost a rollout that was dropped for NaN.
        valid: `[N]` bool, False for what follows an environment's first end in an episodic rollout
            (`wait_end_path`): real experience, but of a path that is not waited for.
        extras: what the agent wants back, such as `log_prob` and `value`, `[N]` each.
    """

    obs: PyTree
    action: jax.Array
    reward: jax.Array
    next_obs: PyTree
    terminated: jax.Array
    truncated: jax.Array
    episode: jax.Array
    valid: jax.Array
    extras: dict[str, jax.Array]
