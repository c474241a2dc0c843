"""A user's metrics: scalars of every step, averaged inside the scan."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from purerl.accelerator.devices import Devices
from purerl.experience.metrics import missing
from purerl.experience.transition import Transition
from purerl.records.errors import ConfigError, sentence, shown
from purerl.records.types import PyTree

# From one step of N environments to `[N]` or `[]` numbers by name.
Log = Callable[[Transition], Mapping[str, jax.Array]]
# Sums of finite values and how many there are, `[2]` float32 by name.
Sums = dict[str, jax.Array]


def log_step(log: Log | None, transition: Transition) -> Sums:
    """The sums over the environments of one step, `valid` ones.

    Args:
        log: the user's; None for none.
        transition: one step of N environments.

    Raises:
        ConfigError: it can't be traced, or returns something else.
    """
    if log is None:
        return {}
    with sentence("log: can't be traced"):
        values: PyTree = log(transition)
    if not isinstance(values, Mapping):
        raise ConfigError(f"log: got {shown(values)}, expected a dict of numbers by name")
    return {name: _sums(name, x, transition.valid) for name, x in values.items()}


def _sums(name: object, x: PyTree, valid: jax.Array) -> jax.Array:
    if not isinstance(name, str) or not name.strip() or set(name) & set(',"\n\r'):
        raise ConfigError(f"log: got the name {shown(name)}, expected text without , or quotes")
    number = isinstance(x, (bool, int, float, jax.Array, np.ndarray, np.generic))
    kinds = (np.floating, np.integer, np.bool_)
    if not number or not any(jnp.issubdtype(jnp.asarray(x).dtype, kind) for kind in kinds):
        raise ConfigError(f"log: {name} is {shown(x)}, expected numbers, one of each environment")
    if jnp.shape(x) not in ((), valid.shape):
        raise ConfigError(
            f"log: {name} has shape {jnp.shape(x)}, expected [N], one of each of the "
            f"{valid.shape[0]} environments, or []"
        )
    each = jnp.broadcast_to(jnp.asarray(x, jnp.float32), valid.shape)
    known = valid & jnp.isfinite(each)
    return jnp.stack([jnp.sum(jnp.where(known, each, 0.0)), jnp.sum(known).astype(jnp.float32)])


def log_means(sums: Sums, devices: Devices) -> dict[str, jax.Array]:
    """The means, over all devices, of the sums `[T, 2]` of T steps; NaN where nothing is finite."""
    if not sums:
        return {}
    whole: Sums = devices.sum({name: jnp.sum(x, axis=0) for name, x in sums.items()})
    return {
        name: jnp.where(count > 0, total / jnp.maximum(count, 1.0), missing())
        for name, (total, count) in whole.items()
    }
