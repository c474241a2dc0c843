"""What an actor returns: distributions over actions, as pytrees.

Each has `sample(key)`, `mode()`, `log_prob(action)` and `entropy()`. Batch axes come first; the log
probability of an array-valued action is the sum over its own axes. `sample_and_log_prob` is exact
also where inverting a transformation would not be.
"""

import math
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


class Distribution(Protocol):
    """The protocol."""

    def sample(self, key: jax.Array) -> jax.Array: ...
    def mode(self) -> jax.Array: ...
    def log_prob(self, action: jax.Array) -> jax.Array: ...
    def sample_and_log_prob(self, key: jax.Array) -> tuple[jax.Array, jax.Array]: ...
    def entropy(self) -> jax.Array: ...


class Categorical(NamedTuple):
    """One of n actions.

    Attributes:
        logits: `[..., n]`, unnormalised log probabilities.
    """

    logits: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        """`[...]` int32."""
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def mode(self) -> jax.Array:
        """`[...]` int32, the most likely action."""
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """`[...]`; action is `[...]` of integers."""
        # A one-hot product, not a gather: its gradient is a product too, and not a scatter.
        chosen = jax.nn.one_hot(action, self.logits.shape[-1], dtype=self.logits.dtype)
        log_probs = jax.nn.log_softmax(self.logits)
        return jnp.sum(jnp.where(chosen > 0, log_probs, 0.0), axis=-1)

    def sample_and_log_prob(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        action = self.sample(key)
        return action, self.log_prob(action)

    def entropy(self) -> jax.Array:
        """`[...]`, in nats; an action of probability 0 (logit -inf) adds 0."""
        log_probs = jax.nn.log_softmax(self.logits)
        probs = jnp.exp(log_probs)
        return -jnp.sum(probs * jnp.where(probs > 0, log_probs, 0.0), axis=-1)


@struct.dataclass
class Normal:
    """Independent normal distributions for each number of the action.

    Attributes:
        loc, scale: `[..., *action_shape]`, mean and standard deviation, of one shape.
        event_ndim: number of the action's own axes.
    """

    loc: jax.Array
    scale: jax.Array
    event_ndim: int = struct.field(pytree_node=False, default=1)

    def sample(self, key: jax.Array) -> jax.Array:
        """`[..., *action_shape]`."""
        return self.loc + self.scale * jax.random.normal(key, self.loc.shape, self.loc.dtype)

    def mode(self) -> jax.Array:
        """`[..., *action_shape]`, the mean."""
        return self.loc

    def log_prob(self, action: jax.Array) -> jax.Array:
        """`[...]`."""
        z = (action - self.loc) / self.scale
        log_prob = -0.5 * (z**2 + math.log(2 * math.pi)) - jnp.log(self.scale)
        return _sum_event(log_prob, self.event_ndim)

    def sample_and_log_prob(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        action = self.sample(key)
        return action, self.log_prob(action)

    def entropy(self) -> jax.Array:
        """`[...]`, in nats."""
        entropy = 0.5 * math.log(2 * math.pi * math.e) + jnp.log(self.scale)
        return _sum_event(jnp.broadcast_to(entropy, self.loc.shape), self.event_ndim)


@struct.dataclass
class TanhNormal:
    """A normal distribution squashed by tanh into [low, high] (Haarnoja et al. 2018, app. C).

    Attributes:
        loc, scale: `[..., *action_shape]`, mean and standard deviation before the squashing.
        low, high: bounds, which broadcast to `action_shape`.
        event_ndim: number of the action's own axes.
    """

    loc: jax.Array
    scale: jax.Array
    low: jax.Array | float = -1.0
    high: jax.Array | float = 1.0
    event_ndim: int = struct.field(pytree_node=False, default=1)

    def _squash(self, x: jax.Array) -> jax.Array:
        center, half = (self.high + self.low) / 2, (self.high - self.low) / 2
        return center + half * jnp.tanh(x)

    def _log_slope(self, x: jax.Array) -> jax.Array:
        # log(1 - tanh(x)^2), which a difference of two numbers near 1 would lose.
        half = (self.high - self.low) / 2
        return jnp.log(half) + 2.0 * (math.log(2.0) - x - jax.nn.softplus(-2.0 * x))

    def _base(self) -> Normal:
        return Normal(self.loc, self.scale, self.event_ndim)

    def sample(self, key: jax.Array) -> jax.Array:
        """`[..., *action_shape]`, inside the bounds."""
        return self._squash(self._base().sample(key))

    def mode(self) -> jax.Array:
        """`[..., *action_shape]`, the squashed mean, which is the median."""
        return self._squash(self.loc)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """`[...]`; an action on a bound is taken for one just inside."""
        center, half = (self.high + self.low) / 2, (self.high - self.low) / 2
        squashed = (action - center) / half
        edge = 1.0 - jnp.finfo(squashed.dtype).eps
        return self._log_prob_before(jnp.arctanh(jnp.clip(squashed, -edge, edge)))

    def _log_prob_before(self, x: jax.Array) -> jax.Array:
        return self._base().log_prob(x) - _sum_event(self._log_slope(x), self.event_ndim)

    def sample_and_log_prob(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A sample and its exact log probability, without inverting tanh."""
        x = self._base().sample(key)
        return self._squash(x), self._log_prob_before(x)

    def entropy(self) -> jax.Array:
        """`[...]`, in nats: the normal's entropy plus E[log slope] by 8-point quadrature."""
        log_slope = sum(
            weight * self._log_slope(self.loc + self.scale * node)
            for node, weight in zip(_NODES.tolist(), _WEIGHTS.tolist(), strict=True)
        )
        return self._base().entropy() + _sum_event(jnp.asarray(log_slope), self.event_ndim)


def _sum_event(x: jax.Array, event_ndim: int) -> jax.Array:
    return jnp.sum(x, axis=tuple(range(x.ndim - event_ndim, x.ndim)))


# Gauss-Hermite nodes and weights for an expectation over the standard normal.
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(8)
_WEIGHTS = _WEIGHTS / math.sqrt(2 * math.pi)
