"""Arrays to the host and back, typed keys included."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_key(x: Any) -> bool:
    """Whether it is an array of typed keys."""
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def to_host(x: jax.Array) -> np.ndarray:
    """A numpy array; of keys their data."""
    return np.asarray(jax.random.key_data(x) if is_key(x) else x)


def host_shape(shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """What `to_host` makes of such an array."""
    return jax.eval_shape(jax.random.key_data, shape) if is_key(shape) else shape


def from_host(x: np.ndarray, shape: jax.ShapeDtypeStruct) -> Any:
    """What `to_host` was given."""
    return jax.random.wrap_key_data(jnp.asarray(x)) if is_key(shape) else x
