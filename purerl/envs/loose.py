"""Corrections of what other libraries' environments leave loose: dtypes of states, promotion."""

import contextlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from purerl.records.types import PyTree

KEYS = "keys"  # stands for the dtype of typed keys, which can't be pickled


def common_dtypes(state: PyTree, other: PyTree) -> PyTree:
    """The dtypes that hold the leaves of two states, those of a reset and of a step. A reset may
    return Python numbers where a step returns arrays, and scans need one dtype.

    Args:
        state: shapes and dtypes, as from `jax.eval_shape`.
        other: the same of the other state.
    """
    return jax.tree.map(_common_dtype, state, other)


def _common_dtype(x: jax.ShapeDtypeStruct, y: jax.ShapeDtypeStruct) -> np.dtype | str:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return KEYS
    return np.dtype(x.dtype if x.dtype == y.dtype else jnp.promote_types(x.dtype, y.dtype))


def cast(tree: PyTree, dtypes: PyTree = None) -> PyTree:
    """A pytree of arrays in the dtypes of `common_dtypes`, or their present ones, without weak
    types; typed keys are unchanged."""
    if dtypes is None:
        return jax.tree.map(strong, tree)
    return jax.tree.map(strong, tree, dtypes)


def strong(x: ArrayLike, dtype: DTypeLike | None = None) -> jax.Array:
    """An array of a dtype, without a weak type; typed keys are unchanged."""
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return x
    return jax.lax.convert_element_type(x, np.dtype(dtype or x.dtype))


@contextlib.contextmanager
def usual_promotion() -> Iterator[None]:
    """JAX's default promotion of dtypes and ranks, which other libraries rely on, whatever the user
    has configured."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
