"""Arrays to the host and back, typed keys included."""

import jax
import jax.numpy as jnp
import numpy as np


def is_key(x: jax.Array | np.ndarray | jax.ShapeDtypeStruct) -> bool:
    """Whether an array has typed keys as its elements."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def to_host(x: jax.Array) -> np.ndarray:
    """The numpy array of an array; typed keys become their key data."""
    return np.asarray(jax.random.key_data(x) if is_key(x) else x)


def host_shape(shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The shape of the result of `to_host` for an array of this shape."""
    return jax.eval_shape(jax.random.key_data, shape) if is_key(shape) else shape


def from_host(
    x: jax.Array | np.ndarray, shape: jax.Array | jax.ShapeDtypeStruct
) -> jax.Array | np.ndarray:
    """The array that `to_host` was called with, from its result and its shape."""
    return jax.random.wrap_key_data(jnp.asarray(x)) if is_key(shape) else x
