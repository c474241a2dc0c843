"""Distributions over actions, the outputs of actors, as pytrees.

Each has `sample(key)`, `mode()`, `log_prob(action)` and `entropy()`. Batch axes come first; the log
probability of an array-valued action is the sum over its axes.

Illegal actions have a logit of minus infinity, from `purerl.envs.spaces.where_legal`: they are
never sampled, never the mode, contribute nothing to the entropy, and get no gradient.

The probability of a `TanhNormal`'s action can't be recovered where tanh is saturated: in float32 an
action of 1 has lost the pre-tanh number. For a loss that needs it later, keep every entry that
`draw` returns, and call `log_prob_of`.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import ArrayLike

from purerl.envs.spaces import split_choices
from purerl.records.types import PyTree


class Distribution(Protocol):
    """Interface of distributions over actions."""

    def sample(self, key: jax.Array) -> jax.Array: ...
    def mode(self) -> jax.Array: ...
    def log_prob(self, action: jax.Array) -> jax.Array: ...
    def sample_and_log_prob(self, key: jax.Array) -> tuple[jax.Array, jax.Array]: ...
    def entropy(self) -> jax.Array: ...


PRE_ACTION = "pre_action"  # the buffer's entry for the action before tanh


def draw(distribution: Distribution, key: jax.Array) -> dict[str, jax.Array]:
    """A sample, `{"action": [B, *action_shape]}`, with the other entries that `log_prob_of` needs:
    for a `TanhNormal` the pre-tanh action, else none."""
    if isinstance(distribution, TanhNormal):
        x = distribution.base.sample(key)
        return {"action": distribution.squash(x), PRE_ACTION: x}
    return {"action": distribution.sample(key)}


def log_prob_of(distribution: Distribution, batch: Mapping[str, PyTree]) -> jax.Array:
    """`[B]`, log probabilities of the actions of a batch with the entries that `draw` returned."""
    if isinstance(distribution, TanhNormal) and PRE_ACTION in batch:
        return distribution.log_prob_before(batch[PRE_ACTION])
    return distribution.log_prob(batch["action"])


def drawn_actions(data: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """The entries of a buffer that `draw` returned."""
    return {name: data[name] for name in ("action", PRE_ACTION) if name in data}


class Categorical(NamedTuple):
    """One of n actions.

    Attributes:
        logits: `[..., n]`, unnormalised log probabilities; minus infinity for illegal actions, as
            from `where_legal`.
    """

    logits: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        """A sample, `[...]` int32."""
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def mode(self) -> jax.Array:
        """`[...]` int32, the most likely action."""
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Log probability, `[...]`, of actions `[...]` of integers."""
        # A one-hot product instead of a gather, so that its gradient isn't a scatter.
        chosen = jax.nn.one_hot(action, self.logits.shape[-1], dtype=bool)
        log_probs = jax.nn.log_softmax(self.logits)
        return jnp.sum(jnp.where(chosen, log_probs, 0.0), axis=-1)

    def sample_and_log_prob(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        action = self.sample(key)
        return action, self.log_prob(action)

    def entropy(self) -> jax.Array:
        """Entropy in nats, `[...]`; an action of probability 0 (logit -inf) contributes 0."""
        log_probs = jax.nn.log_softmax(self.logits)
        probs = jnp.exp(log_probs)
        return -jnp.sum(probs * jnp.where(probs > 0, log_probs, 0.0), axis=-1)


@struct.dataclass
class MultiCategorical:
    """Several independent categorical distributions; the joint probability is their product.

    Attributes:
        logits: `[..., sum(sizes)]`, unnormalised log probabilities, concatenated.
        sizes: the number of categories of each.
        action_shape: of an action, which has `len(sizes)` numbers; None for `[len(sizes)]`.
    """

    logits: jax.Array
    sizes: tuple[int, ...] = struct.field(pytree_node=False)
    action_shape: tuple[int, ...] | None = struct.field(pytree_node=False, default=None)

    @property
    def parts(self) -> Categorical:
        """The distributions as one with batch shape `[..., len(sizes)]` over `max(sizes)`
        categories."""
        return Categorical(split_choices(self.logits, self.sizes, -jnp.inf))

    def _whole(self, parts: jax.Array) -> jax.Array:
        shape = (len(self.sizes),) if self.action_shape is None else self.action_shape
        return parts.reshape(*parts.shape[:-1], *shape)

    def sample(self, key: jax.Array) -> jax.Array:
        """A sample, `[..., *action_shape]` int32."""
        return self._whole(self.parts.sample(key))

    def mode(self) -> jax.Array:
        """`[..., *action_shape]` int32, the most likely category of each."""
        return self._whole(self.parts.mode())

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Log probability, `[...]`, of actions `[..., *action_shape]` of integers."""
        chosen = action.reshape(*self.logits.shape[:-1], len(self.sizes))
        return jnp.sum(self.parts.log_prob(chosen), axis=-1)

    def sample_and_log_prob(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        action = self.sample(key)
        return action, self.log_prob(action)

    def entropy(self) -> jax.Array:
        """Entropy in nats, `[...]`, the sum over the distributions."""
        return jnp.sum(self.parts.entropy(), axis=-1)


@struct.dataclass
class Normal:
    """Independent normal distributions, one for each number of the action.

    Attributes:
        loc, scale: `[..., *action_shape]`, mean and standard deviation, of the same shape.
        event_ndim: number of the action's axes.
    """

    loc: jax.Array
    scale: jax.Array
    event_ndim: int = struct.field(pytree_node=False, default=1)

    def sample(self, key: jax.Array) -> jax.Array:
        """A sample, `[..., *action_shape]`."""
        return self.loc + self.scale * jax.random.normal(key, self.loc.shape, self.loc.dtype)

    def mode(self) -> jax.Array:
        """`[..., *action_shape]`, the mean."""
        return self.loc

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Log probability, `[...]`, of actions `[..., *action_shape]`."""
        z = (action - self.loc) / self.scale
        log_prob = -0.5 * (z**2 + math.log(2 * math.pi)) - jnp.log(self.scale)
        return _sum_event(log_prob, self.event_ndim)

    def sample_and_log_prob(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        action = self.sample(key)
        return action, self.log_prob(action)

    def entropy(self) -> jax.Array:
        """Entropy in nats, `[...]`."""
        entropy = 0.5 * math.log(2 * math.pi * math.e) + jnp.log(self.scale)
        return _sum_event(jnp.broadcast_to(entropy, self.loc.shape), self.event_ndim)


@struct.dataclass
class TanhNormal:
    """A normal distribution squashed by tanh into [low, high] (Haarnoja et al. 2018, app. C).

    Attributes:
        loc, scale: `[..., *action_shape]`, mean and standard deviation before tanh.
        low, high: bounds, which broadcast to `action_shape`.
        event_ndim: number of the action's axes.
    """

    loc: jax.Array
    scale: jax.Array
    low: jax.Array | float = -1.0
    high: jax.Array | float = 1.0
    event_ndim: int = struct.field(pytree_node=False, default=1)

    @property
    def base(self) -> Normal:
        """The distribution before tanh."""
        return Normal(self.loc, self.scale, self.event_ndim)

    @property
    def scaled(self) -> "TanhNormal":
        """The distribution of actions that are scaled to bounds of -1 and 1."""
        return TanhNormal(self.loc, self.scale, event_ndim=self.event_ndim)

    def squash(self, x: jax.Array) -> jax.Array:
        """Actions `[..., *action_shape]` from pre-tanh numbers of the same shape."""
        center, half = self._range()
        return center + half * jnp.tanh(x)

    def _range(self) -> tuple[jax.Array, jax.Array]:
        """Center and half range of the bounds, with as many axes as `loc`."""
        low, high = (_lift(bound, self.loc) for bound in (self.low, self.high))
        return (high + low) / 2, (high - low) / 2

    def sample(self, key: jax.Array) -> jax.Array:
        """A sample, `[..., *action_shape]`, inside the bounds."""
        return self.squash(self.base.sample(key))

    def mode(self) -> jax.Array:
        """`[..., *action_shape]`, tanh of the mean, which is the median."""
        return self.squash(self.loc)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Log probability, `[...]`, of actions `[..., *action_shape]`; an action on a bound counts
        as one just inside. Inexact near the bounds, by rounding: see `log_prob_before`."""
        center, half = self._range()
        squashed = (action - center) / half
        edge = 1.0 - jnp.finfo(squashed.dtype).eps
        return self.log_prob_before(jnp.arctanh(jnp.clip(squashed, -edge, edge)))

    def log_prob_before(self, x: jax.Array) -> jax.Array:
        """Exact log probability, `[...]`, of the action `squash(x)`, for x
        `[..., *action_shape]`."""
        _, half = self._range()
        # log(1 - tanh(x)^2), without the cancellation near 1.
        log_slope = jnp.log(half) + 2.0 * (math.log(2.0) - x - jax.nn.softplus(-2.0 * x))
        return self.base.log_prob(x) - _sum_event(log_slope, self.event_ndim)

    def sample_and_log_prob(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A sample and its exact log probability, without inverting tanh."""
        x = self.base.sample(key)
        return self.squash(x), self.log_prob_before(x)

    def entropy(self) -> jax.Array:
        """Entropy in nats, `[...]`, to 1e-4: the normal's entropy plus the mean of the log slope.

        The slope is half (1 - tanh(x)^2), whose logarithm is log(half) + 2 log 2 - 2 E|x - L|, with
        L from the logistic distribution of density 1 / (2 cosh(L)^2). With a mixture of normals in
        place of the latter (Monahan and Stefanski 1989), the mean over x has a closed form.
        """
        _, half = self._range()
        total = sum(
            share * _mean_abs(self.loc, jnp.sqrt(self.scale**2 + spread**2))
            for share, spread in _LOGISTIC
        )
        log_slope = jnp.log(half) + 2.0 * (math.log(2.0) - total)
        return self.base.entropy() + _sum_event(log_slope, self.event_ndim)


def _mean_abs(loc: jax.Array, scale: jax.Array) -> jax.Array:
    """E|x| for a normal x."""
    z = loc / scale
    tail = math.sqrt(2 / math.pi) * jnp.exp(-0.5 * z**2)
    return scale * tail + loc * jax.lax.erf(z * math.sqrt(0.5))


def _lift(x: ArrayLike, like: jax.Array) -> jax.Array:
    """x with leading axes added, to as many as `like` has."""
    x = jnp.asarray(x, like.dtype)
    return x.reshape((1,) * (like.ndim - x.ndim) + x.shape)


def _sum_event(x: jax.Array, event_ndim: int) -> jax.Array:
    return jnp.sum(x, axis=tuple(range(x.ndim - event_ndim, x.ndim)))


# Weights and standard deviations of normals around 0 whose mixture approximates the logistic
# distribution of `TanhNormal.entropy`: log(2 cosh(x)) = E|x - L| to 2e-5, and tanh, its derivative.
_LOGISTIC = ((0.101506, 0.48592), (0.452002, 0.709865), (0.383809, 1.045017), (0.062683, 1.554828))
