"""Rewarders: pure transforms of the reward, with their state in the run's."""

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
from purerl.records.fields import ConfigError, Record, flag, integer, real
from purerl.records.types import PyTree


class Rewarder(Protocol):
    """The protocol. The loop gives whole rollouts, so that a rewarder may look ahead."""

    def init(self, num_envs: int) -> PyTree:
        """The state at the start."""
        ...

    def __call__(
        self, state: PyTree, reward: jax.Array, terminated: jax.Array, truncated: jax.Array
    ) -> tuple[PyTree, jax.Array]:
        """State and rewards `[T, N]` of a rollout to state and rewards `[T, N]`.

        Where it has parameters of these names, it also gets by keyword, arrays `[T, N]`:

        valid: bool, False for what follows an environment's first end in an episodic rollout:
            nothing is to be learned of it.
        episode: int32, the number of the environment's episode. It changes also where an episode
            was left behind unfinished, or steps in between were dropped for NaN.
        devices: the `Devices` that the run is spread over, for statistics of all of them.
        """
        ...


def transform(
    rewarder: Rewarder, state: PyTree, transitions: Transition, devices: Devices = ALONE
) -> tuple[PyTree, jax.Array]:
    """Calls a rewarder with a rollout `[T, N]`, and what else of it the rewarder asks for."""
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
    """The reward as the environment gives it."""

    def init(self, num_envs: int) -> tuple:
        return ()

    def __call__(
        self, state: tuple, reward: jax.Array, terminated: jax.Array, truncated: jax.Array
    ) -> tuple[tuple, jax.Array]:
        return state, reward


class Scale(Record):
    """Multiplies rewards.

    Attributes:
        factor: what with.
    """

    factor: float = real()

    def init(self, num_envs: int) -> tuple:
        return ()

    def __call__(
        self, state: tuple, reward: jax.Array, terminated: jax.Array, truncated: jax.Array
    ) -> tuple[tuple, jax.Array]:
        return state, self.factor * reward


class Clip(Record):
    """Clips rewards.

    Attributes:
        low, high: between which bounds.
    """

    low: float = real(default=-1.0)
    high: float = real(default=1.0)

    def check(self) -> None:
        traced = any(isinstance(x, jax.core.Tracer) for x in (self.low, self.high))
        if not traced and self.low > self.high:
            raise ConfigError(f"Clip.low: got {self.low}, expected at most high={self.high}")

    def init(self, num_envs: int) -> tuple:
        return ()

    def __call__(
        self, state: tuple, reward: jax.Array, terminated: jax.Array, truncated: jax.Array
    ) -> tuple[tuple, jax.Array]:
        return state, jnp.clip(reward, self.low, self.high)


class NStep(Record):
    """Puts the discounted sum of the next n rewards in a reward's place.

    r'_t = factor * (r_t + gamma r_{t+1} + ... + gamma^(n-1) r_{t+n-1}), with fewer terms where the
    episode or the rollout ends before.

    Attributes:
        n: how many rewards; no more than the rollout has steps.
        factor: what the sum is multiplied with.
        gamma: discount; None for the agent's.
        normalize: to mean 0 and standard deviation 1 over the rollout, before `factor`.
    """

    n: int = integer(at_least=1)
    factor: float = real(default=1.0)
    gamma: Any = real(default=None, at_least=0.0, at_most=1.0, optional=True)
    normalize: bool = flag(default=False)

    def check_run(self, num_envs: int, update_every: int) -> None:
        """Raises ConfigError where rollouts are too short to look ahead in."""
        if self.n > update_every:
            raise ConfigError(
                f"NStep.n: got {self.n}, expected at most update_every={update_every}: rewards "
                "after the rollout's end are not known"
            )

    def init(self, num_envs: int) -> tuple:
        return ()

    def __call__(
        self,
        state: tuple,
        reward: jax.Array,
        terminated: jax.Array,
        truncated: jax.Array,
        valid: jax.Array | None = None,
        devices: Devices = ALONE,
    ) -> tuple[tuple, jax.Array]:
        nothing = jnp.zeros_like(reward)
        total = n_step_return(reward, nothing, terminated, truncated, self.gamma, self.n)
        if self.normalize:
            mean, var = moments(total, 2, devices, valid)
            total = (total - mean) / (safe_sqrt(var) + 1e-8)
        return state, self.factor * total


class RunningNormalizeState(NamedTuple):
    """Discounted return so far of each environment's episode, `[N]`, the number of the episode that
    the next step belongs to unless something was left out, `[N]` int32, and the statistics of all
    environments."""

    discounted: jax.Array
    episode: jax.Array
    stats: RunningStats


class RunningNormalize(Record):
    """Divides rewards by the running standard deviation of the discounted return, and clips.

    The mean is left alone: taking it off would change what is optimal. (Engstrom et al. 2020,
    arXiv:2005.12729, section 3.) The discounted return starts from 0 with every episode; a reward
    beyond 1e15 doesn't come into it.

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
        if episode is None:  # nothing was left behind: each end begins the next
            ends = jnp.asarray(done, jnp.int32)
            episode = state.episode[None] + jnp.cumsum(ends, axis=0) - ends

        def step(carry: tuple[jax.Array, jax.Array], inputs: tuple) -> tuple[tuple, jax.Array]:
            (discounted, expected), (reward, episode, done) = carry, inputs
            bounded = jnp.where(jnp.abs(reward) <= BOUND, reward, 0.0)
            discounted = jnp.where(episode == expected, self.gamma * discounted, 0.0) + bounded
            # What is out of bounds is for the statistics to see, and to count.
            seen = discounted + (reward - bounded)
            return (jnp.where(done, 0.0, discounted), episode + done.astype(jnp.int32)), seen

        start = state.discounted, state.episode
        (discounted, expected), seen = jax.lax.scan(step, start, (reward, episode, done))
        stats = update_stats(state.stats, seen, 2, devices, valid)
        scaled = jnp.clip(reward * jax.lax.rsqrt(stats.var + 1e-8), -self.clip, self.clip)
        return RunningNormalizeState(discounted, expected, stats), scaled


REWARDERS: dict[str, Any] = {
    "clip": Clip,
    "n_step": NStep,
    "running_normalize": RunningNormalize,
    "scale": Scale,
}
