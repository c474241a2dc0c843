"""Means over batches, their gradients, and steps along those."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from purerl import devices
from purerl.machine import num_cores

PyTree = Any
Losses = dict[str, jax.Array]

# Rows of a batch that a CPU core takes the gradient of at once: what it computes on the way stays
# in its caches.
ROWS_AT_ONCE = 512


def valid_count(valid: jax.Array, axis_name: str | None = None) -> jax.Array:
    """How many entries are valid, at least 1; of several devices the mean of their counts."""
    return devices.share(jnp.maximum(devices.psum(jnp.sum(valid), axis_name), 1), axis_name)


def masked_sum(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Sum over the last axis of x times weight, and of nothing where the weight is 0."""
    return jnp.sum(jnp.where(weight > 0, x * weight, 0.0), axis=-1)


def moments(
    x: jax.Array, weight: jax.Array, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of x, `[B]` on each device, by the weights that `mean_gradient` takes; 0
    where all of them are."""
    mean = devices.pmean(masked_sum(x, weight), axis_name)
    return mean, devices.pmean(masked_sum((x - mean) ** 2, weight), axis_name)


def standardize(x: jax.Array, mean: jax.Array, variance: jax.Array) -> jax.Array:
    """x, shifted and scaled so that what had this mean and variance has 0 and 1."""
    return (x - mean) / (jnp.sqrt(variance) + 1e-8)


def mean_gradient(
    loss_fn: Callable[[PyTree, PyTree], Losses],
    params: PyTree,
    batch: PyTree,
    weight: jax.Array,
    axis_name: str | None = None,
) -> tuple[Losses, PyTree]:
    """Means over a batch, and the gradient of the one that is called "loss".

    Args:
        loss_fn: from parameters and rows `[n, ...]` of the batch to numbers for each row, `[n]`.
        params: what the gradient is taken of.
        batch: `[B, ...]`.
        weight: `[B]`, of each row in the means; 0 for a row that doesn't count. 1 / `valid_count`
            makes them means over the valid rows.
        axis_name: the agent's.

    Returns:
        The means, each device's share of them, and the gradient, its mean over the devices.
    """

    def means(params: PyTree, rows: tuple[PyTree, jax.Array]) -> tuple[jax.Array, Losses]:
        batch, weight = rows
        terms = loss_fn(params, batch)
        sums = masked_sum(jnp.stack([*terms.values()]), weight)
        losses = dict(zip(terms, sums, strict=True))
        return losses["loss"], losses

    def one(rows: tuple[PyTree, jax.Array]) -> tuple[Losses, PyTree]:
        (_, losses), grads = jax.value_and_grad(means, has_aux=True)(params, rows)
        return losses, grads

    rows = (batch, weight)
    size = _rows_at_once(weight.size, axis_name)
    if size == weight.size:
        losses, grads = one(rows)
    else:
        blocks = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), rows)
        shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], blocks))
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        start, unravel = ravel_pytree(nothing)

        def add(total: jax.Array, rows: tuple[PyTree, jax.Array]) -> tuple[jax.Array, None]:
            return total + ravel_pytree(one(rows))[0], None

        losses, grads = unravel(jax.lax.scan(add, start, blocks)[0])
    return losses, devices.pmean(grads, axis_name)


def _rows_at_once(size: int, axis_name: str | None) -> int:
    """A divisor of a batch's size, as large as it may be for a core's caches; all rows where a
    device has several cores, which share them, and on a GPU."""
    alone = axis_name is not None or num_cores() <= jax.local_device_count()
    if jax.default_backend() != "cpu" or not alone or size <= ROWS_AT_ONCE:
        return size
    divisor = next(n for n in range(ROWS_AT_ONCE, 0, -1) if size % n == 0)
    return divisor if divisor > ROWS_AT_ONCE // 4 else size


def adam(lr: Any, max_grad_norm: Any) -> optax.GradientTransformation:
    """Adam on gradients whose global norm is clipped.

    It works on all parameters as one vector: a few operations in place of a few for each of them.
    """
    chain = optax.chain(optax.clip_by_global_norm(max_grad_norm), optax.adam(lr, eps=1e-5))

    def init(params: PyTree) -> Any:
        return chain.init(ravel_pytree(params)[0])

    def update(grads: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        vector, unravel = ravel_pytree(grads)
        updates, state = chain.update(vector, state)
        return unravel(updates), state

    return optax.GradientTransformation(init, update)


def global_norm(grads: PyTree) -> jax.Array:
    """The norm of all gradients, as `adam` takes it."""
    return optax.tree.norm(ravel_pytree(grads)[0])


def annealed(lr: Any, progress: Any, anneal: bool) -> Any:
    """The learning rate, lowered linearly to 0 over the run where it is to be."""
    return lr * (1.0 - progress) if anneal else lr


def descend(
    optimizer: optax.GradientTransformation, grads: PyTree, opt_state: Any, params: PyTree
) -> tuple[PyTree, Any]:
    """Parameters and optimizer state after one step."""
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state
