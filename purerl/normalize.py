"""Running mean and variance, kept once over all environments (not one per environment)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purerl.devices import axis_size, pmean

PyTree = Any


class RunningStats(NamedTuple):
    """Mean and variance of all that was seen, over every axis but an observation's own.

    Attributes:
        size: `[]` float32, how many were seen.
        mean, var: pytrees of `[*shape]` float32.
    """

    size: jax.Array
    mean: PyTree
    var: PyTree


def init_stats(example: PyTree) -> RunningStats:
    """Statistics of nothing yet: mean 0, variance 1, so that normalising changes nothing.

    Args:
        example: one observation, or its shape.
    """
    return RunningStats(
        jnp.float32(0.0),
        jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), example),
        jax.tree.map(lambda x: jnp.ones(x.shape, jnp.float32), example),
    )


def update_stats(
    stats: RunningStats, batch: PyTree, num_axes: int, axis_name: str | None = None
) -> RunningStats:
    """Adds a batch (Chan, Golub and LeVeque 1979, the parallel algorithm).

    Args:
        stats: so far.
        batch: pytree of `[*batch_shape, *shape]`.
        num_axes: how many axes `batch_shape` has.
        axis_name: where it is one device's batch of several, equally large: all are added.
    """
    axes = tuple(range(num_axes))
    shape = jax.tree.leaves(batch)[0].shape[:num_axes]
    size = axis_size(axis_name)
    for length in shape:
        size *= length
    total = stats.size + size
    weight = size / total

    def merge(mean: jax.Array, var: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = x.astype(jnp.float32)
        batch_mean, batch_var = mean_and_var(x, axes, axis_name)
        delta = batch_mean - mean
        spread = delta**2 * weight * (1.0 - weight)
        return mean + weight * delta, (1.0 - weight) * var + weight * batch_var + spread

    merged = jax.tree.map(merge, stats.mean, stats.var, batch)
    mean, var = jax.tree.transpose(
        jax.tree.structure(stats.mean), jax.tree.structure((0, 0)), merged
    )
    return RunningStats(total, mean, var)


def mean_and_var(
    x: jax.Array, axes: tuple[int, ...], axis_name: str | None
) -> tuple[jax.Array, jax.Array]:
    """Mean and variance over some axes, and over all devices' x of the same shape."""
    mean, var = jnp.mean(x, axes), jnp.var(x, axes)
    if axis_name is None:
        return mean, var
    whole = pmean(mean, axis_name)
    return whole, pmean(var + (mean - whole) ** 2, axis_name)


def normalize(stats: RunningStats, x: PyTree, clip: float = 10.0) -> PyTree:
    """(x - mean) / std, clipped, leaf by leaf; x is `[..., *shape]` and comes back as float32."""

    def scale(x: jax.Array, mean: jax.Array, var: jax.Array) -> jax.Array:
        mean, var = (jnp.reshape(m, (1,) * (x.ndim - m.ndim) + m.shape) for m in (mean, var))
        scaled = (x.astype(jnp.float32) - mean) * jax.lax.rsqrt(var + 1e-8)
        return jnp.clip(scaled, -clip, clip)

    return jax.tree.map(scale, x, stats.mean, stats.var)


@jax.custom_jvp
def safe_sqrt(x: jax.Array) -> jax.Array:
    """The square root, with a derivative of 0 at 0: where a spread is 0 since all is alike,
    derivatives through it would be NaN."""
    return jnp.sqrt(x)


@safe_sqrt.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    positive = x > 0
    slope = jnp.where(positive, 0.5 / jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)
    return safe_sqrt(x), slope * dx
