"""Rewarders: pure transforms of the reward, with their state in the run's."""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from purerl.fields import Record, real
from purerl.normalize import RunningStats, init_stats, update_stats

PyTree = Any


class Rewarder(Protocol):
    """The protocol. The loop gives whole rollouts, so that a rewarder may look ahead."""

    def init(self, num_envs: int) -> PyTree:
        """The state at the start."""
        ...

    def __call__(
        self, state: PyTree, reward: jax.Array, terminated: jax.Array, truncated: jax.Array
    ) -> tuple[PyTree, jax.Array]:
        """State and rewards `[T, N]` of a rollout to state and rewards `[T, N]`."""
        ...


class Identity(Record):
    """The reward as the environment gives it."""

    def init(self, num_envs: int) -> tuple:
        return ()

    def __call__(
        self, state: tuple, reward: jax.Array, terminated: jax.Array, truncated: jax.Array
    ) -> tuple[tuple, jax.Array]:
        return state, reward


class RunningNormalizeState(NamedTuple):
    """Discounted return so far of each environment's episode, `[N]`, and the statistics of all."""

    discounted: jax.Array
    stats: RunningStats


class RunningNormalize(Record):
    """Divides rewards by the running standard deviation of the discounted return, and clips.

    The mean is left alone: taking it off would change what is optimal. (Engstrom et al. 2020,
    arXiv:2005.12729, section 3.)

    Attributes:
        gamma: discount; None for the agent's.
        clip: largest absolute value of a normalised reward.
    """

    gamma: Any = real(default=None, at_least=0.0, at_most=1.0, optional=True)
    clip: float = real(default=10.0, above=0.0)

    def init(self, num_envs: int) -> RunningNormalizeState:
        stats = init_stats(jax.ShapeDtypeStruct((), jnp.float32))
        return RunningNormalizeState(jnp.zeros(num_envs), stats)

    def __call__(
        self,
        state: RunningNormalizeState,
        reward: jax.Array,
        terminated: jax.Array,
        truncated: jax.Array,
    ) -> tuple[RunningNormalizeState, jax.Array]:
        def step(discounted: jax.Array, inputs: tuple) -> tuple[jax.Array, jax.Array]:
            reward, done = inputs
            discounted = self.gamma * discounted + reward
            return jnp.where(done, 0.0, discounted), discounted

        discounted, seen = jax.lax.scan(step, state.discounted, (reward, terminated | truncated))
        stats = update_stats(state.stats, seen, num_axes=2)
        scaled = jnp.clip(reward * jax.lax.rsqrt(stats.var + 1e-8), -self.clip, self.clip)
        return RunningNormalizeState(discounted, stats), scaled
