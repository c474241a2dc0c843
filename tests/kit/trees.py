"""Pytrees compared, random keys among their leaves."""

import jax
import numpy as np


def data(leaf) -> np.ndarray:
    """An array, or the numbers of a random key."""
    key = isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if key else leaf)


def pairs(x, y):
    """The leaves of two pytrees of one structure, side by side."""
    assert jax.tree.structure(x) == jax.tree.structure(y)
    leaves = (map(data, jax.tree.leaves(tree)) for tree in (x, y))
    return zip(*leaves, strict=True)


def equal(x, y) -> bool:
    """Whether all numbers are the same; NaN is NaN."""
    return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs(x, y))


def assert_equal(x, y) -> None:
    for a, b in pairs(x, y):
        np.testing.assert_array_equal(a, b)


def assert_close(x, y, rtol: float = 1e-4, atol: float | None = None) -> None:
    """Within tolerances, of which the absolute one is `rtol` too unless it is given."""
    for a, b in pairs(x, y):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol if atol is None else atol)
