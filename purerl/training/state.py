"""The whole of a run, as one pytree."""

from typing import Any, NamedTuple, cast

import jax

from purerl.experience.buffer import BufferState
from purerl.experience.metrics import Count
from purerl.experience.normalize import RunningStats
from purerl.records.types import PyTree
from purerl.training.rollout import RolloutState


class RunState(NamedTuple):
    """The whole of a run: save it, load it, go on.

    Attributes:
        agent: the agent's state.
        buffer: what the buffer holds.
        rollout: the environments, and the memory of the agent and its noise.
        obs_stats: running statistics of observations; None where they aren't normalised.
        rewarder: the rewarder's state.
        key: for what comes next.
        eval_key: for evaluations, a stream of its own: they don't change what is learned.
        num_updates: how many rollouts were played, each with its update.
        num_episodes: how many episodes have ended.
        nonfinite_updates: `[]` int32, how many updates were skipped, or kept values out of running
            statistics.

    Of a run over devices the buffer, the environments and the rewarder are each device's own, with
    a leading axis `[D]`; the rest is the same on all, and there once.
    """

    agent: PyTree
    buffer: BufferState
    rollout: RolloutState
    obs_stats: RunningStats | None
    rewarder: PyTree
    key: jax.Array
    eval_key: jax.Array
    num_updates: Count
    num_episodes: Count
    nonfinite_updates: jax.Array


# What of the state each device has for itself.
_OWN = {"buffer", "rollout", "rewarder"}
OWN = RunState(*(cast(Any, name in _OWN) for name in RunState._fields))
