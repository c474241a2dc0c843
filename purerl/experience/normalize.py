"""Running mean and variance, over all environments together (not one per environment)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from purerl.accelerator.devices import ALONE, Devices
from purerl.records.types import PyTree

BOUND = 1e15  # values further from the mean are left out: their squares would dominate


class RunningStats(NamedTuple):
    """Mean and variance of observations, over their batch axes.

    Only floats are normalised: integers and bools are counts, categories, pixels or masks, whose
    values have a meaning. The pytrees have None in place of such a leaf.

    The averages are of differences to a fixed `shift` near the data: for a feature that stays near
    5,000, float32 would lose the variance otherwise.

    Attributes:
        size: `[]` float32, the number of observations.
        offset: pytree of `[*shape]` float32, the mean of x - shift.
        var: pytree of `[*shape]` float32, the variance.
        shift: pytree of `[*shape]` in an observation's dtype.
        lost: accumulated rounding errors of size, offset and var (Kahan summation), without which
            small additions to large numbers would vanish.
        left_out: `[]` int32, the number of batches with values that were left out, since they were
            further than 1e15 from the mean.
    """

    size: jax.Array
    offset: PyTree
    var: PyTree
    shift: PyTree
    lost: tuple[jax.Array, PyTree, PyTree]
    left_out: jax.Array

    @property
    def mean(self) -> PyTree:
        """The mean, a pytree of `[*shape]` float32."""
        return jax.tree.map(lambda s, m: s.astype(jnp.float32) + m, self.shift, self.offset)


def init_stats(example: PyTree, shift: PyTree | None = None) -> RunningStats:
    """Initial statistics: mean 0, variance 1, so that normalising changes nothing.

    Args:
        example: one observation, or its shape and dtype.
        shift: an observation near the later ones, such as the first; None for zeros.
    """
    if shift is None:
        shift = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example)
    shift = jax.tree.map(lambda x, y: _bounded(y) if _is_float(x) else None, example, shift)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shift)
    return RunningStats(
        size=jnp.float32(0.0),
        offset=jax.tree.map(lambda x: -x.astype(jnp.float32), shift),
        var=jax.tree.map(jnp.ones_like, zeros),
        shift=shift,
        lost=(jnp.float32(0.0), zeros, zeros),
        left_out=jnp.int32(0),
    )


def update_stats(
    stats: RunningStats,
    batch: PyTree,
    num_axes: int,
    devices: Devices = ALONE,
    valid: jax.Array | None = None,
) -> RunningStats:
    """Adds a batch (Chan, Golub and LeVeque 1979, the parallel algorithm).

    Values that are NaN, or further than 1e15 from the mean, count as the mean, so that a diverging
    simulation doesn't spoil the statistics.

    Args:
        stats: before the batch.
        batch: pytree of `[*batch_shape, *shape]`.
        num_axes: the number of axes of `batch_shape`.
        devices: whose batches, of equal size, are all added.
        valid: `[*batch_shape]` bool, the observations to count; None for all.
    """
    batch = _map(lambda _, x: x, stats.shift, batch)
    if not jax.tree.leaves(batch):
        return stats
    begun = stats.size > 0
    # Before the first batch, offset and variance are only for `normalize`.
    old_offset, old_var = jax.tree.map(
        lambda x: jnp.where(begun, x, 0.0), (stats.offset, stats.var)
    )
    distance = jax.tree.map(_distance, batch, stats.shift, old_offset)
    near = jax.tree.map(lambda x: jnp.abs(x) <= BOUND, distance)
    distance = jax.tree.map(lambda x, near: jnp.where(near, x, 0.0), distance, near)
    far = sum(jnp.sum(~x, dtype=jnp.float32) for x in jax.tree.leaves(near))
    size, mean, var, far = _moments(distance, num_axes, devices, valid, far)
    total, lost_size = _add(stats.size, stats.lost[0], size)
    weight = size / total

    def spread(old: jax.Array, mean: jax.Array, var: jax.Array) -> jax.Array:
        return weight * (var + (1.0 - weight) * mean**2 - old)

    changes = jax.tree.map(lambda x: weight * x, mean), jax.tree.map(spread, old_var, mean, var)
    added = jax.tree.map(_add, (old_offset, old_var), stats.lost[1:], changes)
    (offset, var), lost = jax.tree.transpose(
        jax.tree.structure(changes), jax.tree.structure((0, 0)), added
    )
    left_out = stats.left_out + (far > 0).astype(jnp.int32)
    return RunningStats(total, offset, var, stats.shift, (lost_size, *lost), left_out)


def moments(
    x: jax.Array, num_axes: int, devices: Devices = ALONE, valid: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Mean and variance over the leading axes, and over all devices.

    Args:
        x: `[*batch_shape, *shape]`, of the same shape on every device.
        num_axes: the number of axes of `batch_shape`.
        devices: the run's.
        valid: `[*batch_shape]` bool, the entries to count; None for all.
    """
    return _moments(x, num_axes, devices, valid, jnp.float32(0.0))[1:3]


def _moments(
    batch: PyTree,
    num_axes: int,
    devices: Devices,
    valid: jax.Array | None,
    count: jax.Array | float,
) -> tuple[jax.Array | float, PyTree, PyTree, jax.Array]:
    """Number of entries, mean, variance, and the sum of `count` over the devices."""
    axes, shape = tuple(range(num_axes)), jax.tree.leaves(batch)[0].shape[:num_axes]
    size: jax.Array | float = devices.count
    for length in shape:
        size *= length

    def total(x: jax.Array) -> jax.Array:
        if valid is not None:
            x = jnp.where(valid.reshape(*shape, *[1] * (x.ndim - num_axes)), x, 0.0)
        return jnp.sum(x, axes)

    counted: jax.Array
    sums = jax.tree.map(total, batch)
    if valid is None:
        sums, counted = devices.sum((sums, count))
    else:
        size = jnp.sum(valid, dtype=jnp.float32)
        sums, counted, size = devices.sum((sums, count, size))
        size = jnp.maximum(size, 1.0)
    mean = jax.tree.map(lambda x: x / size, sums)
    squares = jax.tree.map(lambda x, mean: total((x - _as_wide(mean, x)) ** 2), batch, mean)
    var = jax.tree.map(lambda x: x / size, devices.sum(squares))
    return size, mean, var, counted


def normalize(stats: RunningStats, x: PyTree, clip: float = 10.0) -> PyTree:
    """(x - mean) / std, clipped, of the floats in x, `[..., *shape]`, as float32; other leaves are
    unchanged."""

    def scale(shift: jax.Array, x: jax.Array, offset: jax.Array, var: jax.Array) -> jax.Array:
        distance = _distance(x, shift, offset)
        return jnp.clip(distance * _as_wide(jax.lax.rsqrt(var + 1e-8), distance), -clip, clip)

    return _map(scale, stats.shift, x, stats.offset, stats.var, other=lambda x: x)


def _map(
    function: Callable[..., PyTree],
    shift: PyTree,
    *trees: PyTree,
    other: Callable[[PyTree], PyTree] = lambda x: None,
) -> PyTree:
    """`function` mapped over the normalised leaves, and `other` over the others."""

    def each(shift: PyTree, first: PyTree, *rest: PyTree) -> PyTree:
        return other(first) if shift is None else function(shift, first, *rest)

    return jax.tree.map(each, shift, *trees, is_leaf=lambda x: x is None)


def _is_float(x: jax.Array) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.floating))


def left_out(tree: PyTree) -> jax.Array:
    """`[]` int32, the sum of `left_out` over all `RunningStats` in a pytree."""
    found = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, RunningStats))
    counts = [x.left_out for x in found if isinstance(x, RunningStats)]
    return sum(counts, jnp.int32(0))


def _distance(x: jax.Array, shift: jax.Array, offset: jax.Array) -> jax.Array:
    """x - shift - offset in float32, without rounding x - shift if the two are close."""
    x = jnp.asarray(x)
    shift, offset = _as_wide(shift, x), _as_wide(offset, x)
    wide = 8 in (x.dtype.itemsize, shift.dtype.itemsize)  # only under `jax_enable_x64`
    real = jnp.float64 if wide else jnp.float32
    return (x.astype(real) - shift.astype(real)).astype(jnp.float32) - offset


def _as_wide(x: jax.Array, other: jax.Array) -> jax.Array:
    """x with leading axes added, to as many as `other` has."""
    return jnp.expand_dims(x, tuple(range(other.ndim - x.ndim)))


def _bounded(x: jax.Array) -> jax.Array:
    x = jnp.asarray(x)
    return jnp.where(jnp.abs(x) <= BOUND, x, 0)


def _add(
    value: jax.Array, lost: jax.Array, change: jax.Array | float
) -> tuple[jax.Array, jax.Array]:
    """The sum and its rounding error (Kahan 1965, with Knuth's exact remainder)."""
    change = lost + change
    total = value + change
    part = total - value
    return total, (value - (total - part)) + (change - part)


@jax.custom_jvp
def safe_sqrt(x: jax.Array) -> jax.Array:
    """The square root, with a derivative of 0 at 0, where gradients through a variance of 0 would
    be NaN."""
    return jnp.sqrt(x)


@safe_sqrt.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    positive = x > 0
    slope = jnp.where(positive, 0.5 / jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)
    return safe_sqrt(x), slope * dx
