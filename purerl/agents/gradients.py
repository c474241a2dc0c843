"""Weighted means over batches, their gradients, and optimizers."""

import inspect
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from purerl.accelerator.devices import ALONE, Devices
from purerl.accelerator.machine import num_cores
from purerl.experience.normalize import safe_sqrt
from purerl.nn.networks import trained
from purerl.records.errors import ConfigError, sentence, shown
from purerl.records.types import PyTree

AgentState: TypeAlias = PyTree
Losses = dict[str, jax.Array]
Number = jax.Array | float

# Rows of a batch in one backward pass on a CPU core, so that the activations fit its caches: PPO
# with 2,048 environments is 1.13 times as fast and holds a seventh of the memory in between, with
# 64 it is 1.04 times as fast (benchmarks/tricks.py, one core, JAX 0.11.2, November 2026).
ROWS_AT_ONCE = 512
# Of sequences at least as many environments: a step's products with the memory are of so many rows.
# A GRU of width 64 takes 1.3 times as long for 4 at once, and 1.2 times for 8.
ENVIRONMENTS_AT_ONCE = 16


def valid_count(valid: jax.Array, devices: Devices = ALONE) -> jax.Array:
    """The number of valid entries, at least 1; over several devices the mean of their counts."""
    count = devices.sum(jnp.sum(valid, dtype=jnp.int32))
    return devices.part(jnp.maximum(count, 1).astype(jnp.float32))


def masked_sum(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Sum of x times weight over the last axis; x may be NaN where the weight is 0."""
    weight = jnp.broadcast_to(weight, x.shape)
    return jnp.sum(jnp.where(weight > 0, x * weight, 0.0), axis=-1)


def moments(
    x: jax.Array, weight: jax.Array, devices: Devices = ALONE
) -> tuple[jax.Array, jax.Array]:
    """Weighted mean and variance of x, `[B]` on each device, by weights as in `mean_gradient`; 0
    if all weights are."""
    mean = devices.mean(masked_sum(x, weight))
    return mean, devices.mean(masked_sum((x - mean) ** 2, weight))


def standard_moments(
    x: jax.Array, weight: jax.Array, devices: Devices = ALONE
) -> tuple[jax.Array, jax.Array]:
    """The `moments` that `standardize` takes; 0 and 1 for a single entry with a weight, which then
    stays as it is: standardised it would be 0, and nothing would be learned from it."""
    mean, variance = moments(x, weight, devices)
    single = devices.sum(jnp.sum(weight > 0, dtype=jnp.int32)) == 1
    return jnp.where(single, 0.0, mean), jnp.where(single, 1.0, variance)


def standardize(x: jax.Array, mean: jax.Array, variance: jax.Array) -> jax.Array:
    """x minus the mean, over the standard deviation."""
    return (x - mean) / (safe_sqrt(variance) + 1e-8)


def mean_gradient(
    loss_fn: Callable[[PyTree, PyTree], Losses],
    params: PyTree,
    batch: PyTree,
    weight: jax.Array,
    devices: Devices = ALONE,
) -> tuple[Losses, PyTree]:
    """Weighted means over a batch, and the gradient of the one named "loss".

    Args:
        loss_fn: from parameters and rows `[n, ...]` of the batch to terms `[n]` by name; of
            sequences, to terms `[T n]`.
        params: the gradient is with respect to the trained ones (see `trained`).
        batch: `[B, ...]`; or sequences of n environments, `[T, n, ...]`.
        weight: `[B]`, of each row in the means; 0 masks it. 1 / `valid_count` gives means over the
            valid rows. `[T, n]` of sequences.
        devices: those that the batch is spread over.

    Returns:
        Each device's share of the means, and the gradient, averaged over the devices.
    """

    learning, join = trained(params)

    def means(learning: PyTree, rows: tuple[PyTree, jax.Array]) -> tuple[jax.Array, Losses]:
        batch, weight = rows
        terms = loss_fn(join(learning), batch)
        sums = masked_sum(jnp.stack([*terms.values()]), weight.reshape(-1))
        losses = dict(zip(terms, sums, strict=True))
        return losses["loss"], losses

    def one(rows: tuple[PyTree, jax.Array]) -> tuple[Losses, PyTree]:
        (_, losses), grads = jax.value_and_grad(means, has_aux=True)(learning, rows)
        return losses, widen(grads)

    rows = (batch, weight)
    total, most = weight.shape[-1], ROWS_AT_ONCE
    if weight.ndim == 2:
        most = max(most // len(weight), ENVIRONMENTS_AT_ONCE)
    size = _at_once(total, most, devices)
    if size == total:
        losses, grads = one(rows)
    else:

        def split(x: jax.Array) -> jax.Array:
            if weight.ndim == 1:
                return x.reshape(-1, size, *x.shape[1:])
            return x.reshape(len(x), -1, size, *x.shape[2:]).swapaxes(0, 1)

        blocks = jax.tree.map(split, rows)
        shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], blocks))
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        start, unravel = ravel_pytree(nothing)

        def add(total: jax.Array, rows: tuple[PyTree, jax.Array]) -> tuple[jax.Array, None]:
            return total + ravel_pytree(one(rows))[0], None

        losses, grads = unravel(jax.lax.scan(add, start, blocks)[0])
    return losses, devices.mean(grads)


def _at_once(size: int, most: int, devices: Devices) -> int:
    """The largest divisor of a batch's size up to `most`; the size itself if that is less than a
    quarter of `most`, if a device has several cores, which share the rows, and on a GPU."""
    alone = devices.count > 1 or devices.one_core or num_cores() <= jax.local_device_count()
    if jax.default_backend() != "cpu" or not alone or size <= most:
        return size
    divisor = next(n for n in range(most, 0, -1) if size % n == 0)
    return divisor if divisor > most // 4 else size


def gradient(
    loss_fn: Callable[[PyTree], tuple[jax.Array, PyTree]],
    params: PyTree,
    devices: Devices = ALONE,
) -> tuple[jax.Array, PyTree, PyTree]:
    """A loss, its auxiliary output, and its gradient with respect to the trained parameters. The
    gradient is averaged over the devices, loss and auxiliary output are each device's."""
    learning, join = trained(params)
    value_and_grad = jax.value_and_grad(lambda learning: loss_fn(join(learning)), has_aux=True)
    (loss, aux), grads = value_and_grad(learning)
    return loss, aux, widen(devices.mean(grads))


def widen(tree: PyTree) -> PyTree:
    """Floats of 16 bits as float32, to be accumulated."""
    narrow = (jnp.bfloat16, jnp.float16)
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype in narrow else x, tree)


def adam(lr: Number, max_grad_norm: Number) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2015, arXiv:1412.6980) on gradients whose global norm is clipped.

    All parameters are one vector: a few operations in all, not a few for each parameter. Updates
    equal those of optax's `clip_by_global_norm` and `adam` with `eps=1e-5`, but derivatives through
    an update are finite also where a gradient has always been 0, as behind a dead ReLU.
    """
    b1, b2, eps = 0.9, 0.999, 1e-5

    def init(params: PyTree) -> optax.OptState:
        zeros = jnp.zeros_like(_vector(trained(params)[0])[0])
        state = optax.ScaleByAdamState(jnp.int32(0), zeros, zeros)
        return optax.EmptyState(), (state, optax.EmptyState())

    def update(
        grads: PyTree, state: optax.OptState, params: PyTree = None
    ) -> tuple[PyTree, optax.OptState]:
        clip, (moments, scale) = state
        vector, unravel = _vector(grads)
        vector = _clip(vector, jnp.asarray(max_grad_norm, vector.dtype))
        count = optax.safe_increment(moments.count)
        mu = (1 - b1) * vector + b1 * moments.mu
        nu = (1 - b2) * vector**2 + b2 * moments.nu
        steps = count.astype(jnp.float32)
        mean, variance = mu / (1 - b1**steps), nu / (1 - b2**steps)
        updates = -lr * (mean / (safe_sqrt(variance) + eps))
        moments = optax.ScaleByAdamState(count, mu, nu)
        return unravel(updates), (clip, (moments, scale))

    return optax.GradientTransformation(init, update)


# Optimizers by name; `optimizer=` takes any other factory.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation] | None] = {
    "adam": None,  # the function above
    **{
        name: getattr(optax, name) for name in ("adamw", "lion", "nadam", "radam", "rmsprop", "sgd")
    },
}


def make_optimizer(
    factory: Callable[..., optax.GradientTransformation] | None,
    lr: Number,
    max_grad_norm: Number,
    timesteps: Number = 0.0,
) -> optax.GradientTransformation:
    """The optimizer of an agent, on gradients whose global norm is clipped.

    Args:
        factory: from the learning rate to a transformation that minimises, such as `optax.adamw`;
            None for `adam`. With a parameter `timesteps` it gets these, too.
        lr: the current learning rate; it may be traced.
        max_grad_norm: the largest norm.
        timesteps: environment steps before this update.

    Raises:
        ConfigError: the factory makes no `optax.GradientTransformation`.
    """
    if factory is None:
        return adam(lr, max_grad_norm)
    options = {"timesteps": timesteps} if takes_timesteps(factory) else {}
    with sentence("optimizer: can't be made"):
        inner = factory(lr, **options)
    if not isinstance(inner, optax.GradientTransformation):
        raise ConfigError(
            f"optimizer: got {shown(inner)} from {shown(factory)}, expected an "
            "optax.GradientTransformation"
        )

    def init(params: PyTree) -> optax.OptState:
        return inner.init(widen(trained(params)[0]))

    def update(
        grads: PyTree, state: optax.OptState, params: PyTree = None
    ) -> tuple[PyTree, optax.OptState]:
        vector, unravel = _vector(grads)
        clipped = unravel(_clip(vector, jnp.asarray(max_grad_norm, vector.dtype)))
        updates: tuple[PyTree, optax.OptState]
        updates = inner.update(clipped, state, None if params is None else widen(params))
        return updates

    return optax.GradientTransformation(init, update)


def takes_timesteps(factory: Callable[..., object]) -> bool:
    """Whether an optimizer's factory has a parameter `timesteps`, for schedules in those."""
    try:
        return "timesteps" in inspect.signature(factory).parameters
    except (TypeError, ValueError):  # it has no signature
        return False


def global_norm(grads: PyTree) -> jax.Array:
    """The global norm of gradients."""
    return _norm(_vector(grads)[0])


def _norm(vector: jax.Array) -> jax.Array:
    return safe_sqrt(jnp.sum(vector**2))


@jax.custom_jvp
def _clip(vector: jax.Array, max_norm: jax.Array) -> jax.Array:
    """The vector, scaled down to `max_norm` if it is longer."""
    norm = _norm(vector)
    return jnp.where(norm < max_norm, vector, vector / norm * max_norm)


@_clip.defjvp
def _(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # For a vector of zeros the branch not taken would make the derivative NaN.
    def divided_by_one(vector: jax.Array, max_norm: jax.Array) -> jax.Array:
        norm = _norm(vector)
        fits = norm < max_norm
        return jnp.where(fits, vector, vector / jnp.where(fits, 1.0, norm) * max_norm)

    return jax.jvp(divided_by_one, primals, tangents)


def _vector(tree: PyTree) -> tuple[jax.Array, Callable[[jax.Array], PyTree]]:
    """A tree of floats as one vector of 32 or 64 bits, and the inverse function."""
    leaves = jax.tree.leaves(tree)
    wide = jnp.float64 if any(x.dtype == jnp.float64 for x in leaves) else jnp.float32
    return ravel_pytree(jax.tree.map(lambda x: x.astype(wide), tree))


def annealed(lr: Number, progress: Number, anneal: bool) -> Number:
    """The learning rate, with `anneal` lowered linearly to 0 over the run."""
    return lr * (1.0 - progress) if anneal else lr


def descend(
    optimizer: optax.GradientTransformation,
    grads: PyTree,
    opt_state: optax.OptState,
    params: PyTree,
) -> tuple[PyTree, optax.OptState]:
    """Parameters and optimizer state after one step. Parameters keep their dtypes; those that
    aren't trained are unchanged."""
    learning, join = trained(params)
    updates, opt_state = optimizer.update(grads, opt_state, learning)
    moved = jax.tree.map(lambda p, u: (p.astype(u.dtype) + u).astype(p.dtype), learning, updates)
    return join(moved), opt_state


def follow(target_params: PyTree, params: PyTree, tau: Number) -> PyTree:
    """Polyak averaging: target parameters (1 - tau) target + tau params. Variables that aren't
    trained are copied."""
    old, (new, join) = trained(target_params)[0], trained(params)

    def mix(new: jax.Array, old: jax.Array) -> jax.Array:
        mixed: jax.Array = tau * widen(new) + (1.0 - tau) * widen(old)
        return mixed.astype(old.dtype)

    return join(jax.tree.map(mix, new, old))
