"""Rewarders: pure transforms of the reward, with their state in the `RunState`."""

import inspect
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from purerl.accelerator.devices import ALONE, Devices
from purerl.experience.normalize import (
    BOUND,
    RunningStats,
    init_stats,
    moments,
    safe_sqrt,
    update_stats,
)
from purerl.experience.returns import n_step_return
from purerl.experience.transition import Transition
from purerl.records.errors import ConfigError
from purerl.records.fields import Record, flag, integer, real
from purerl.records.types import PyTree


class Rewarder(Protocol):
    """Interface of rewarders. They get whole rollouts, so that they may look ahead."""

    def init(self, num_envs: int) -> PyTree:
        """The initial state."""
        ...

    def __call__(
        self, state: PyTree, reward: jax.Array, terminated: jax.Array, truncated: jax.Array
    ) -> tuple[PyTree, jax.Array]:
        """Maps the state and the rewards `[T, N]` of a rollout to a state and rewards `[T, N]`.

        If it has parameters of these names, they are passed by keyword, as arrays `[T, N]`:

        valid: bool, False after an environment's first end in an episodic rollout: these steps
            aren't learned from.
        episode: int32, the number of the environment's episode. It also changes where an episode
            was abandoned, or steps were dropped because of NaN.
        devices: the run's `Devices`, for statistics over all of them.
        """
        ...


def transform(
    rewarder: Rewarder, state: PyTree, transitions: Transition, devices: Devices = ALONE
) -> tuple[PyTree, jax.Array]:
    """Calls a rewarder with a rollout `[T, N]`, and the optional arguments that it takes."""
    known = inspect.signature(rewarder).parameters
    offered: dict[str, Any] = {
        "valid": transitions.valid,
        "episode": transitions.episode,
        "devices": devices,
    }
    more = {name: value for name, value in offered.items() if name in known}
    ends = transitions.terminated, transitions.truncated
    return rewarder(state, transitions.reward, *ends, **more)


class Identity(Record):
    """The environment's reward, unchanged."""

    def init(self, num_envs: int) -> tuple[()]:
        return ()

    def __call__(
        self, state: tuple[()], reward: jax.Array, terminated: jax.Array, truncated: jax.Array
    ) -> tuple[tuple[()], jax.Array]:
        return state, reward


class Scale(Record):
    """Multiplies rewards.

    Attributes:
        factor: of the reward.
    """

    factor: float = real()

    def init(self, num_envs: int) -> tuple[()]:
        return ()

    def __call__(
        self, state: tuple[()], reward: jax.Array, terminated: jax.Array, truncated: jax.Array
    ) -> tuple[tuple[()], jax.Array]:
        return state, self.factor * reward


class Clip(Record):
    """Clips rewards.

    Attributes:
        low, high: the bounds.
    """

    low: float = real(default=-1.0)
    high: float = real(default=1.0)

    def check(self) -> None:
        traced = any(isinstance(x, jax.core.Tracer) for x in (self.low, self.high))
        if not traced and self.low > self.high:
            raise ConfigError(f"Clip.low: got {self.low}, expected at most high={self.high}")

    def init(self, num_envs: int) -> tuple[()]:
        return ()

    def __call__(
        self, state: tuple[()], reward: jax.Array, terminated: jax.Array, truncated: jax.Array
    ) -> tuple[tuple[()], jax.Array]:
        return state, jnp.clip(reward, self.low, self.high)


class NStep(Record):
    """Replaces each reward by the discounted sum of the next n.

    r'_t = factor * (r_t + gamma r_{t+1} + ... + gamma^(n-1) r_{t+n-1}), with fewer terms if the
    episode or the rollout ends before.

    Attributes:
        n: the number of rewards; at most the rollout's number of steps.
        factor: of the sum.
        gamma: discount; None for the agent's.
        normalize: to mean 0 and standard deviation 1 over the rollout, before `factor`.
    """

    n: int = integer(at_least=1)
    factor: float = real(default=1.0)
    gamma: Any = real(default=None, at_least=0.0, at_most=1.0, optional=True)
    normalize: bool = flag(default=False)

    def check_run(self, num_envs: int, update_every: int) -> None:
        """Raises ConfigError if rollouts have fewer than n steps, or one transition to normalise
        by."""
        if self.n > update_every:
            raise ConfigError(
                f"NStep.n: got {self.n}, expected at most update_every={update_every}: rewards "
                "after the rollout's end are not known"
            )
        if self.normalize and num_envs * update_every == 1:
            raise ConfigError(
                "NStep.normalize: got True, expected False for rollouts of one transition, whose "
                "only reward would become 0; RunningNormalize keeps statistics over rollouts"
            )

    def init(self, num_envs: int) -> tuple[()]:
        return ()

    def __call__(
        self,
        state: tuple[()],
        reward: jax.Array,
        terminated: jax.Array,
        truncated: jax.Array,
        valid: jax.Array | None = None,
        devices: Devices = ALONE,
    ) -> tuple[tuple[()], jax.Array]:
        nothing = jnp.zeros_like(reward)
        total = n_step_return(reward, nothing, terminated, truncated, self.gamma, self.n)
        if self.normalize:
            mean, var = moments(total, 2, devices, valid)
            total = (total - mean) / (safe_sqrt(var) + 1e-8)
        return state, self.factor * total


class RunningNormalizeState(NamedTuple):
    """State of `RunningNormalize`.

    Attributes:
        discounted: `[N]` float32, the discounted return so far of each environment's episode.
        episode: `[N]` int32, the expected number of the next step's episode; another one means that
            steps were left out.
        stats: over all environments.
    """

    discounted: jax.Array
    episode: jax.Array
    stats: RunningStats


class RunningNormalize(Record):
    """Divides rewards by the running standard deviation of the discounted return, and clips.

    The mean isn't subtracted, which would change the optimal policy (Engstrom et al. 2020,
    arXiv:2005.12729, section 3). The discounted return restarts from 0 in every episode; rewards
    beyond 1e15 are left out of it.

    Attributes:
        gamma: discount; None for the agent's.
        clip: largest absolute value of a normalised reward.
    """

    gamma: Any = real(default=None, at_least=0.0, at_most=1.0, optional=True)
    clip: float = real(default=10.0, above=0.0)

    def init(self, num_envs: int) -> RunningNormalizeState:
        stats = init_stats(jax.ShapeDtypeStruct((), jnp.float32))
        zeros = jnp.zeros(num_envs, jnp.float32)
        return RunningNormalizeState(zeros, zeros.astype(jnp.int32), stats)

    def __call__(
        self,
        state: RunningNormalizeState,
        reward: jax.Array,
        terminated: jax.Array,
        truncated: jax.Array,
        valid: jax.Array | None = None,
        episode: jax.Array | None = None,
        devices: Devices = ALONE,
    ) -> tuple[RunningNormalizeState, jax.Array]:
        done = terminated | truncated
        if episode is None:  # no steps were left out: each end starts the next
            ends = jnp.asarray(done, jnp.int32)
            episode = state.episode[None] + jnp.cumsum(ends, axis=0) - ends

        def step(
            carry: tuple[jax.Array, jax.Array], inputs: tuple[jax.Array, jax.Array, jax.Array]
        ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
            (discounted, expected), (reward, episode, done) = carry, inputs
            bounded = jnp.where(jnp.abs(reward) <= BOUND, reward, 0.0)
            discounted = jnp.where(episode == expected, self.gamma * discounted, 0.0) + bounded
            # The statistics get rewards out of bounds too, and count them.
            seen = discounted + (reward - bounded)
            return (jnp.where(done, 0.0, discounted), episode + done.astype(jnp.int32)), seen

        start = state.discounted, state.episode
        (discounted, expected), seen = jax.lax.scan(step, start, (reward, episode, done))
        stats = update_stats(state.stats, seen, 2, devices, valid)
        scaled = jnp.clip(reward * jax.lax.rsqrt(stats.var + 1e-8), -self.clip, self.clip)
        return RunningNormalizeState(discounted, expected, stats), scaled


REWARDERS: dict[str, type[Record]] = {
    "clip": Clip,
    "n_step": NStep,
    "running_normalize": RunningNormalize,
    "scale": Scale,
}
