"""Spaces: what an observation or an action may be. Static, hashable, comparable."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purerl.records.errors import ConfigError, shown


class Discrete:
    """The integers 0 to n - 1, as int32 scalars."""

    shape: tuple[int, ...] = ()
    dtype = np.dtype(np.int32)

    def __init__(self, n: int):
        whole = isinstance(n, (int, np.integer)) or (isinstance(n, float) and n.is_integer())
        if not whole or isinstance(n, bool) or not 1 <= n < 2**31:
            raise ConfigError(
                f"Discrete.n: got {shown(n)}, expected an integer >= 1, and below 2**31"
            )
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
        bounds = [_bound(name, bound) for name, bound in (("low", low), ("high", high))]
        if shape is None:
            try:
                shape = np.broadcast_shapes(*(bound.shape for bound in bounds))
            except ValueError:
                shapes = " and ".join(str(bound.shape) for bound in bounds)
                raise ConfigError(f"Box: low and high have shapes {shapes}, expected one") from None
        self.shape = _shape(shape)
        self.dtype = _dtype(dtype)
        try:
            self.low, self.high = (np.broadcast_to(bound, self.shape) for bound in bounds)
        except ValueError:
            shapes = " and ".join(str(bound.shape) for bound in bounds)
            raise ConfigError(
                f"Box.shape: got {self.shape}, expected what low and high, of shapes {shapes}, "
                "broadcast to"
            ) from None
        if not np.all(self.low <= self.high):
            raise ConfigError(f"Box: low {shown(low)} is not below high {shown(high)}")

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


def convert_spaces(space: Any) -> Any:
    """A space, or a pytree of spaces, with those of Gymnasium and gymnax as ours; itself where all
    are.

    What has no counterpart stays as it is, for `check_env` to name. A `MultiDiscrete` or
    `MultiBinary` becomes a `Box` of integers.

    Raises:
        ConfigError: a `Discrete` that doesn't start at 0.
    """
    if is_space(space) or isinstance(space, type):
        return space
    children = getattr(space, "spaces", None)
    if children is not None:  # Dict and Tuple
        return convert_spaces(dict(children) if hasattr(children, "items") else tuple(children))
    if type(space) is dict or (isinstance(space, tuple | list) and space):
        old = space.values() if isinstance(space, dict) else space
        parts = [convert_spaces(part) for part in old]
        if all(part is before for part, before in zip(parts, old, strict=True)):
            return space
        if isinstance(space, dict):
            return dict(zip(space, parts, strict=True))
        return type(space)(*parts) if hasattr(space, "_fields") else type(space)(parts)
    if hasattr(space, "nvec"):
        most = np.asarray(space.nvec) - 1
        return Box(0, most, most.shape, np.int32)
    if hasattr(space, "low") and hasattr(space, "high"):
        return Box(np.asarray(space.low), np.asarray(space.high), space.shape, space.dtype)
    if hasattr(space, "n"):
        if getattr(space, "shape", None):  # MultiBinary
            return Box(0, 1, space.shape, space.dtype)
        if getattr(space, "start", 0) != 0:
            raise ConfigError(f"EnvSpec: got {shown(space)}, expected a Discrete that starts at 0")
        return Discrete(int(space.n))
    return space


def _bound(name: str, bound: Any) -> np.ndarray:
    try:
        if np.iscomplexobj(bound):
            raise TypeError
        return np.asarray(bound, np.float32)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(
            f"Box.{name}: got {shown(bound)}, expected a number, or an array of numbers"
        ) from None


def _shape(shape: Any) -> tuple[int, ...]:
    sizes = (shape,) if isinstance(shape, (int, np.integer)) else shape
    try:
        sizes = tuple(int(np.asarray(size).__index__()) for size in sizes)
    except (TypeError, ValueError, OverflowError):
        sizes = (-1,)
    if any(size < 0 for size in sizes):
        raise ConfigError(f"Box.shape: got {shown(shape)}, expected a sequence of sizes")
    return sizes


def _dtype(dtype: Any) -> np.dtype:
    kinds = (np.floating, np.integer, np.bool_)
    try:
        found = np.dtype(jax.dtypes.canonicalize_dtype(dtype))
    except (TypeError, ValueError):
        found = None
    if found is None or not any(jax.dtypes.issubdtype(found, kind) for kind in kinds):
        raise ConfigError(
            f"Box.dtype: got {shown(dtype)}, expected one of floats, integers or booleans"
        )
    return found
