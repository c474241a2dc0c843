"""Exploration noise: processes that the loop adds to the actions of a deterministic policy.

Their unit is half the range of the action, as in actors: a sigma of 0.1 is 0.2 for actions from -2
to 2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from purerl.records.fields import Record, real


class NoiseState(NamedTuple):
    """The process's value, `[N, *action_shape]`, and its scale, `[N]`."""

    value: jax.Array
    scale: jax.Array


class Noise(Record):
    """Base of noises: an independent process for each environment, restarted after each episode.

    Attributes:
        noise_decay: factor on the noise of an environment after each of its episodes.
        min_scale: lower bound of the product of these factors.
        mean: of the noise, before decay.
    """

    noise_decay: float = real(default=1.0, above=0.0, at_most=1.0)
    min_scale: float = real(default=0.0, at_least=0.0, at_most=1.0)
    mean: float = real(default=0.0)

    def init(self, num_envs: int, action_shape: tuple[int, ...]) -> NoiseState:
        """The initial state."""
        value = jnp.broadcast_to(jnp.asarray(self.mean, jnp.float32), (num_envs, *action_shape))
        return NoiseState(value, jnp.ones(num_envs, jnp.float32))

    def step(self, state: NoiseState, key: jax.Array) -> tuple[NoiseState, jax.Array]:
        """The state after a step, and the noise `[N, *action_shape]` of this one."""
        value = self.next_value(state.value, key)
        scale = state.scale.reshape(-1, *[1] * (value.ndim - 1))
        return state._replace(value=value), scale * value

    def restart(self, state: NoiseState, ended: jax.Array) -> NoiseState:
        """The state with new, decayed processes where an episode has ended, `[N]` bool."""
        fresh = self.init(*_split(state.value.shape)).value
        at = ended.reshape(-1, *[1] * (fresh.ndim - 1))
        decayed = jnp.maximum(state.scale * self.noise_decay, self.min_scale)
        return NoiseState(jnp.where(at, fresh, state.value), jnp.where(ended, decayed, state.scale))

    def next_value(self, value: jax.Array, key: jax.Array) -> jax.Array:
        """The process's value after one step; for subclasses to implement."""
        raise NotImplementedError


class GaussianNoise(Noise):
    """Independent normal noise at every step.

    Attributes:
        sigma: its standard deviation.
    """

    sigma: float = real(default=0.1, at_least=0.0)

    def next_value(self, value: jax.Array, key: jax.Array) -> jax.Array:
        return self.mean + self.sigma * jax.random.normal(key, value.shape, jnp.float32)


class OrnsteinUhlenbeckNoise(Noise):
    """Noise that is correlated over time (Uhlenbeck and Ornstein 1930).

    dx = theta (mean - x) dt + sigma dW, stepped by its exact solution: the stationary variance is
    sigma^2 / (2 theta), the correlation after k steps exp(-theta dt k). Starts at the mean.

    Attributes:
        theta: rate of reversion to the mean.
        sigma: its diffusion.
        dt: time of one step.
    """

    theta: float = real(default=0.15, above=0.0)
    sigma: float = real(default=0.2, at_least=0.0)
    dt: float = real(default=1.0, above=0.0)

    def next_value(self, value: jax.Array, key: jax.Array) -> jax.Array:
        kept = jnp.exp(-self.theta * self.dt)
        spread = self.sigma * jnp.sqrt(-jnp.expm1(-2.0 * self.theta * self.dt) / (2.0 * self.theta))
        drawn = jax.random.normal(key, value.shape, jnp.float32)
        return self.mean + kept * (value - self.mean) + spread * drawn


NOISES: dict[str, type[Noise]] = {
    "gaussian": GaussianNoise,
    "ornstein_uhlenbeck": OrnsteinUhlenbeckNoise,
}


def _split(shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    return shape[0], shape[1:]
