"""Spaces: what an observation or an action may be. Static, hashable, comparable."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class Discrete:
    """The integers 0 to n - 1, as int32 scalars."""

    shape: tuple[int, ...] = ()
    dtype = np.dtype(np.int32)

    def __init__(self, n: int):
        if int(n) != n or n < 1:
            raise ValueError(f"Discrete.n: got {n!r}, expected an integer >= 1")
        self.n = int(n)

    def sample(self, key: jax.Array) -> jax.Array:
        """One element, uniformly."""
        return jax.random.randint(key, (), 0, self.n, dtype=jnp.int32)

    def contains(self, x: Any) -> bool:
        """Whether a concrete value has the space's dtype and lies inside."""
        x = np.asarray(x)
        return x.shape == () and x.dtype == self.dtype and 0 <= int(x) < self.n

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Discrete) and self.n == other.n

    def __hash__(self) -> int:
        return hash((Discrete, self.n))

    def __repr__(self) -> str:
        return f"Discrete({self.n})"


class Box:
    """Arrays of one shape between two bounds, which broadcast to it and may be infinite."""

    def __init__(self, low: Any, high: Any, shape: Sequence[int] | None = None, dtype: Any = float):
        if shape is None:
            shape = np.broadcast_shapes(np.shape(low), np.shape(high))
        self.shape = tuple(int(size) for size in shape)
        self.dtype = np.dtype(jax.dtypes.canonicalize_dtype(dtype))
        self.low = np.broadcast_to(np.asarray(low, np.float32), self.shape)
        self.high = np.broadcast_to(np.asarray(high, np.float32), self.shape)
        if not np.all(self.low <= self.high):
            raise ValueError(f"Box: low {low!r} is not below high {high!r}")

    @property
    def bounded(self) -> bool:
        """Whether every bound is finite (gymnax writes float32's largest number for infinity)."""
        huge = np.finfo(np.float32).max
        return bool(np.all(np.abs(self.low) < huge) and np.all(np.abs(self.high) < huge))

    @property
    def center(self) -> np.ndarray:
        """`[*shape]` float32, the middle of the range; 0 where a bound is infinite."""
        low, high = self._finite_bounds()
        return (high + low) / 2

    @property
    def half_range(self) -> np.ndarray:
        """`[*shape]` float32, from the middle to a bound; 1 where a bound is infinite."""
        low, high = self._finite_bounds()
        return (high - low) / 2

    def _finite_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        huge = np.finfo(np.float32).max
        finite = (np.abs(self.low) < huge) & (np.abs(self.high) < huge)
        one = np.float32(1.0)
        return np.where(finite, self.low, -one), np.where(finite, self.high, one)

    def sample(self, key: jax.Array) -> jax.Array:
        """One element, uniformly; from a standard normal, clipped, where a bound is infinite."""
        if self.dtype.kind in "biu" and self.bounded:
            return self._sample_integer(key)
        if self.bounded:
            x = jax.random.uniform(key, self.shape, minval=self.low, maxval=self.high)
        else:
            x = jnp.clip(jax.random.normal(key, self.shape), self.low, self.high)
        return x.astype(self.dtype)

    def _sample_integer(self, key: jax.Array) -> jax.Array:
        # Drawn as int32 where that has room for it: one beyond the highest number of a small type
        # is none of its own. Of larger types the very highest numbers are left out instead.
        size = self.dtype.itemsize
        small, left_out = size < 4, 1 if size < 8 else 2**11
        limits = np.iinfo(np.int32 if small else self.dtype)
        low, high = (
            np.clip(x.astype(np.float64), float(limits.min), float(limits.max - left_out))
            for x in (np.ceil(self.low), np.floor(self.high))
        )
        drawn = np.dtype(np.int32) if small else self.dtype
        bounds = low.astype(drawn), high.astype(drawn) + drawn.type(1)
        return jax.random.randint(key, self.shape, *bounds, drawn).astype(self.dtype)

    def contains(self, x: Any) -> bool:
        """Whether a concrete value has the space's shape and dtype and lies inside."""
        x = np.asarray(x)
        if x.shape != self.shape or x.dtype != self.dtype:
            return False
        return bool(np.all(x >= self.low) and np.all(x <= self.high))

    def _identity(self) -> tuple:
        return (self.shape, self.dtype.str, self.low.tobytes(), self.high.tobytes())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Box) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash((Box, self._identity()))

    def __repr__(self) -> str:
        def bound(x: np.ndarray) -> str:
            return f"{x.flat[0]:g}" if x.size and np.all(x == x.flat[0]) else str(x.tolist())

        dtype = "" if self.dtype == np.float32 else f", {self.dtype.name}"
        return f"Box({bound(self.low)}, {bound(self.high)}, {self.shape}{dtype})"


Space = Discrete | Box


def is_space(x: Any) -> bool:
    """Whether it is a space, and not a pytree of spaces."""
    return isinstance(x, Space)
