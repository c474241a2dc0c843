"""Spaces, the sets of possible observations and actions. Static, hashable, comparable.

Everything that depends on the kind of a space is a method of it: the number of outputs of a network
for its actions, the encoding of actions as a network's input, sampling, clipping, the form in
files. No other module checks the class of a space.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, ClassVar, Self, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.typing import ArrayLike, DTypeLike

from purerl.records.errors import ConfigError, shown
from purerl.records.types import Plain, PyTree, Structure

MOST_CODES = 64  # values of an integer, beyond which it is a quantity


class Space:
    """Base of the spaces.

    Attributes:
        kind: the name of the class in files.
        shape, dtype: of an element.
        low, high: `[*shape]`, the bounds of each number, inclusive.
        sizes: `[prod(shape)]`, the number of choices of each number of an element, in the order of
            the flattened element; None for a continuous space.
    """

    kind: ClassVar[str]
    shape: tuple[int, ...]
    dtype: np.dtype
    low: np.ndarray
    high: np.ndarray
    sizes: tuple[int, ...] | None = None

    @property
    def n(self) -> int | None:
        """The number of elements if an element is a single choice; None for other spaces."""
        return None

    @property
    def num_outputs(self) -> int:
        """The number of outputs of a network for an element, also the width of `encode` and of a
        mask: one for each choice of each number; for each number of a continuous space."""
        return math.prod(self.shape) if self.sizes is None else sum(self.sizes)

    def encode(self, x: jax.Array) -> jax.Array:
        """Elements as a network's input, `[B, *shape]` to `[B, num_outputs]` float32.

        Choices are one-hot and concatenated. Continuous numbers are scaled so that -1 and 1 are the
        bounds.
        """
        raise NotImplementedError

    def features(self, x: jax.Array) -> jax.Array:
        """Elements `[B, *shape]` as the default networks see them: choices one-hot, `[B,
        num_outputs]`; for a `Box` see there. Several choices of at most 64 values each are as the
        codes of a `Box`."""
        return x if self.sizes is None else self.encode(x)

    def widened(self) -> "Space":
        """The space with infinity for bounds of float32's largest number, as gymnax has them."""
        return self

    def clip(self, x: jax.Array) -> jax.Array:
        """Elements `[..., *shape]` clipped to the bounds, in the space's dtype, the nearest of
        integers; choices as is."""
        return x

    def sample(self, key: jax.Array, legal: jax.Array | None = None) -> jax.Array:
        """One element, drawn uniformly.

        Args:
            key: for the draw.
            legal: `[num_outputs]` bool, the choices that may be drawn; None for all. If a number
                has no legal choice, all of its choices may be. Ignored by a continuous space.
        """
        raise NotImplementedError

    def example(self, *batch: int) -> jax.Array:
        """Zeros of the space's dtype, `[*batch, *shape]`."""
        return jnp.zeros((*batch, *self.shape), self.dtype)

    def contains(self, x: ArrayLike) -> bool:
        """Whether a concrete value has the space's shape and dtype and is inside the bounds."""
        x = np.asarray(x)
        if x.shape != self.shape or x.dtype != self.dtype:
            return False
        return bool(np.all(x >= self.low) and np.all(x <= self.high))

    def on_host(self, x: np.ndarray) -> int | np.ndarray:
        """An element for an environment outside of JAX: an int for a single choice, else the numpy
        array."""
        return x

    def plain(self) -> Plain:
        """The space in JSON types, for `from_plain`."""
        raise NotImplementedError

    @classmethod
    def from_plain(cls, value: Plain) -> Self:
        """The space from its `plain` value."""
        raise NotImplementedError

    def as_gymnasium(self, spaces: ModuleType) -> PyTree:
        """The Gymnasium space, from the module `gymnasium.spaces`."""
        raise NotImplementedError

    def _identity(self) -> tuple[object, ...]:
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash((self.kind, self._identity()))


class Discrete(Space):
    """The integers 0 to n - 1, as int32 scalars."""

    kind = "discrete"
    shape = ()
    dtype = np.dtype(np.int32)
    low = np.zeros((), np.int32)

    def __init__(self, n: int):
        self.sizes = (_count("Discrete.n", n),)
        self.high = np.asarray(self.n - 1, np.int32)

    @property
    def n(self) -> int:
        """The number of elements."""
        assert self.sizes is not None
        return self.sizes[0]

    def encode(self, x: jax.Array) -> jax.Array:
        return jax.nn.one_hot(x, self.n, dtype=jnp.float32)

    def sample(self, key: jax.Array, legal: jax.Array | None = None) -> jax.Array:
        if legal is None:
            return jax.random.randint(key, (), 0, self.n, dtype=jnp.int32)
        return _any_legal(key, legal)

    def on_host(self, x: np.ndarray) -> int | np.ndarray:
        return x.item() if x.ndim == 0 else x

    def plain(self) -> Plain:
        return self.n

    @classmethod
    def from_plain(cls, value: Plain) -> Self:
        return cls(value)

    def as_gymnasium(self, spaces: ModuleType) -> PyTree:
        return spaces.Discrete(self.n)

    def _identity(self) -> tuple[object, ...]:
        return (self.n,)

    def __repr__(self) -> str:
        return f"Discrete({self.n})"


class MultiDiscrete(Space):
    """Several choices at once: int32 arrays whose i-th number is from 0 to nvec[i] - 1.

    Attributes:
        nvec: `[*shape]`, the number of choices of each number.
    """

    kind = "multi_discrete"
    dtype = np.dtype(np.int32)
    sizes: tuple[int, ...]

    def __init__(self, nvec: npt.ArrayLike):
        try:
            given = np.asarray(nvec, dtype=object)
        except ValueError:  # nested lists of several lengths
            given = np.empty(0, dtype=object)
        if given.ndim == 0 or given.size == 0 or any(isinstance(x, Sequence) for x in given.flat):
            raise ConfigError(
                f"MultiDiscrete.nvec: got {shown(nvec)}, expected a sequence of integers, the "
                "number of choices of each"
            )
        self.shape = given.shape
        self.sizes = tuple(_count("MultiDiscrete.nvec", x) for x in given.flat)
        self.nvec = np.array(self.sizes, np.int32).reshape(self.shape)
        self.low, self.high = np.zeros_like(self.nvec), self.nvec - 1

    def features(self, x: jax.Array) -> jax.Array:
        grid = Box(self.low, self.high, self.shape, self.dtype)
        return self.encode(x) if grid.codes is None else grid.features(x)

    def encode(self, x: jax.Array) -> jax.Array:
        parts = x.reshape(x.shape[0], -1)
        if len(set(self.sizes)) == 1:
            return jax.nn.one_hot(parts, self.sizes[0], dtype=jnp.float32).reshape(len(x), -1)
        each = [jax.nn.one_hot(parts[:, i], n, dtype=jnp.float32) for i, n in enumerate(self.sizes)]
        return jnp.concatenate(each, axis=-1)

    def sample(self, key: jax.Array, legal: jax.Array | None = None) -> jax.Array:
        if legal is None:
            return jax.random.randint(key, self.shape, 0, self.nvec, dtype=jnp.int32)
        return _any_legal(key, legal, self.sizes).reshape(self.shape)

    def plain(self) -> Plain:
        return self.nvec.tolist()

    @classmethod
    def from_plain(cls, value: Plain) -> Self:
        return cls(value)

    def as_gymnasium(self, spaces: ModuleType) -> PyTree:
        return spaces.MultiDiscrete(self.nvec, dtype=np.int32)

    def _identity(self) -> tuple[object, ...]:
        return self.shape, self.sizes

    def __repr__(self) -> str:
        return f"MultiDiscrete({_as_tuples(self.nvec.tolist())})"


class Box(Space):
    """Arrays of one shape between two bounds, which broadcast to the shape and may be infinite.

    What the arrays are follows from shape, dtype and bounds, for the default networks:

    - Integers with at most 64 values each are codes (a tile, a colour, a piece on a board, a
      position), and become one-hot: `[H, W, C]` to `[H, W, K]`, K the sum of the channels' numbers
      of values, and a board `[H, W]` to `[H, W, K]`. So give bounds that are as tight as they are:
      codes from 0 to 10 with bounds of 0 and 255 are taken for pixels.
    - Images of uint8 are pixels, divided by 255. All other numbers are quantities, and unchanged.
    - Images are `[H, W, C]`, or `[C, H, W]` if both H and W are at least 4 C; these are moved to
      `[H, W, C]`.
    """

    kind = "box"

    def __init__(
        self,
        low: npt.ArrayLike,
        high: npt.ArrayLike,
        shape: Sequence[int] | None = None,
        dtype: DTypeLike = float,
    ):
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
        """Whether every bound is finite (gymnax has float32's largest number for infinity)."""
        huge = np.finfo(np.float32).max
        return bool(np.all(np.abs(self.low) < huge) and np.all(np.abs(self.high) < huge))

    def widened(self) -> "Box":
        if not np.issubdtype(self.dtype, np.floating):
            return self
        huge = np.finfo(np.float32).max
        low, high = (
            np.where(abs(x) < huge, x, np.copysign(np.inf, x)) for x in (self.low, self.high)
        )
        return Box(low, high, self.shape, self.dtype)

    @property
    def center(self) -> np.ndarray:
        """`[*shape]` float32, the middle of the bounds; 0 where a bound is infinite."""
        low, high = self._finite_bounds()
        center: np.ndarray = (high + low) / 2
        return center

    @property
    def half_range(self) -> np.ndarray:
        """`[*shape]` float32, half the distance of the bounds; 1 where a bound is infinite."""
        low, high = self._finite_bounds()
        half: np.ndarray = (high - low) / 2
        return half

    def _finite_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        huge = np.finfo(np.float32).max
        finite = (np.abs(self.low) < huge) & (np.abs(self.high) < huge)
        one = np.float32(1.0)
        return np.where(finite, self.low, -one), np.where(finite, self.high, one)

    def encode(self, x: jax.Array) -> jax.Array:
        half = self.half_range  # numbers with equal bounds become 0
        divisor = np.where(half > 0.0, np.maximum(half, 1e-8), np.inf).astype(np.float32)
        scaled = (x.astype(jnp.float32) - self.center[None]) / divisor[None]
        return scaled.reshape(x.shape[0], -1)

    @property
    def channels_first(self) -> bool:
        """Whether it has images `[C, H, W]`."""
        return len(self.shape) == 3 and 0 < 4 * self.shape[0] <= min(self.shape[1:])

    @property
    def codes(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The lowest code and the number of codes of each channel, `[C]` int64; C is 1 for a board
        `[H, W]` and a single number. None if the numbers are no codes."""
        if self.dtype.kind not in "iu" or not self.bounded or 0 in self.shape:
            return None
        low, high = (self._as_channels(x.astype(np.int64)) for x in (self.low, self.high))
        low, high = low.min(axis=0), high.max(axis=0)
        count = high - low + 1
        return (low, count) if np.all(count <= MOST_CODES) else None

    def _as_channels(self, x: np.ndarray) -> np.ndarray:
        """Bounds as `[*, C]`."""
        if len(self.shape) in (0, 2):
            return x.reshape(-1, 1)
        x = np.moveaxis(x, 0, -1) if self.channels_first else x
        return x.reshape(-1, x.shape[-1])

    def features(self, x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, 1, -1) if self.channels_first else x
        codes = self.codes
        if codes is None or not jnp.issubdtype(x.dtype, jnp.integer):
            return x
        x = x[..., None] if len(self.shape) in (0, 2) else x
        low, count = codes
        lowest = low.astype(np.int32).reshape((1,) * (x.ndim - 1) + (-1,))
        shifted = x.astype(jnp.int32) - lowest
        if len(set(count.tolist())) == 1:
            one_hot = jax.nn.one_hot(shifted, int(count[0]), dtype=jnp.float32)
            return one_hot.reshape(*x.shape[:-1], -1)
        each = [
            jax.nn.one_hot(shifted[..., i], n, dtype=jnp.float32)
            for i, n in enumerate(count.tolist())
        ]
        return jnp.concatenate(each, axis=-1)

    def clip(self, x: jax.Array) -> jax.Array:
        batch = (1,) * (x.ndim - len(self.shape))
        low, high = (bound.reshape(batch + self.shape) for bound in (self.low, self.high))
        x = jnp.clip(x, low, high)
        if self.dtype.kind in "biu":  # the nearest: truncated, the upper bound is hardly reached
            x = jnp.clip(jnp.round(x), np.ceil(low), np.floor(high))
        return x.astype(self.dtype)

    def sample(self, key: jax.Array, legal: jax.Array | None = None) -> jax.Array:
        """One element, drawn uniformly; from a clipped standard normal if any bound is infinite."""
        if self.dtype.kind in "biu" and self.bounded:
            return self._sample_integer(key)
        if self.bounded:
            x = jax.random.uniform(key, self.shape, minval=self.low, maxval=self.high)
        else:
            x = jnp.clip(jax.random.normal(key, self.shape), self.low, self.high)
        return x.astype(self.dtype)

    def _sample_integer(self, key: jax.Array) -> jax.Array:
        # `randint` excludes its upper bound, which a small type can't hold: it is drawn as int32.
        # For larger types the highest numbers are left out instead.
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

    def plain(self) -> Plain:
        bounds = {name: _plain_bound(x) for name, x in (("low", self.low), ("high", self.high))}
        return {**bounds, "shape": list(self.shape), "dtype": self.dtype.name}

    @classmethod
    def from_plain(cls, value: Plain) -> Self:
        low, high = (np.array(value[bound], np.float32) for bound in ("low", "high"))
        return cls(low, high, value["shape"], value["dtype"])

    def as_gymnasium(self, spaces: ModuleType) -> PyTree:
        low, high = self.low, self.high
        if np.issubdtype(self.dtype, np.integer):
            limits = np.iinfo(self.dtype)
            # Clipped in float64: float32 can't represent every int32.
            low, high = (np.clip(x.astype(float), limits.min, limits.max) for x in (low, high))
        bounds = low.astype(self.dtype), high.astype(self.dtype)
        return spaces.Box(*bounds, self.shape, self.dtype.type)

    def _identity(self) -> tuple[object, ...]:
        return (self.shape, self.dtype.str, self.low.tobytes(), self.high.tobytes())

    def __repr__(self) -> str:
        def bound(x: np.ndarray) -> str:
            return f"{x.flat[0]:g}" if x.size and np.all(x == x.flat[0]) else str(x.tolist())

        dtype = "" if self.dtype == np.float32 else f", {self.dtype.name}"
        return f"Box({bound(self.low)}, {bound(self.high)}, {self.shape}{dtype})"


KINDS: dict[str, type[Space]] = {kind.kind: kind for kind in (Discrete, MultiDiscrete, Box)}


def is_space(x: object) -> TypeGuard[Space]:
    """Whether it is a single space, not a pytree of spaces."""
    return isinstance(x, Space)


def short(space: PyTree) -> str:
    """A space, or a pytree of spaces, in words without their bounds."""
    if is_space(space):
        if space.sizes is None:
            return f"Box{tuple(space.shape)}"
        many = len(space.shape) > 1 or len(space.sizes) > 8
        most = max(space.sizes)
        return f"MultiDiscrete{tuple(space.shape)} of {most}" if many else str(space)
    if isinstance(space, dict):
        return "{" + ", ".join(f"{name}: {short(x)}" for name, x in space.items()) + "}"
    return f"({', '.join(map(short, space))})" if isinstance(space, (tuple, list)) else str(space)


def leaves_of(space: PyTree) -> tuple[list[Space], Structure]:
    """The spaces in a pytree of spaces, and its structure."""
    return jax.tree.flatten(space, is_leaf=is_space)


def map_spaces(function: Callable[[Space], PyTree], space: PyTree) -> PyTree:
    """`jax.tree.map` over a pytree of spaces."""
    return jax.tree.map(function, space, is_leaf=is_space)


def split_choices(x: jax.Array, sizes: tuple[int, ...], fill: float) -> jax.Array:
    """Values of choices, `[..., sum(sizes)]`, as `[..., len(sizes), max(sizes)]`: a row for each
    number of an element, padded with `fill` if it has fewer choices."""
    most = max(sizes)
    if min(sizes) == most:
        return x.reshape(*x.shape[:-1], len(sizes), most)
    ends = list(itertools.accumulate(sizes))
    parts = [x[..., end - n : end] for n, end in zip(sizes, ends, strict=True)]
    keep = [(0, 0)] * (x.ndim - 1)
    padded = [jnp.pad(p, [*keep, (0, most - p.shape[-1])], constant_values=fill) for p in parts]
    return jnp.stack(padded, axis=-2)


def where_legal(
    x: jax.Array, legal: jax.Array | None, sizes: tuple[int, ...] | None = None
) -> jax.Array:
    """Logits or Q values, with minus infinity for illegal choices.

    Their gradient there is 0. If a number of an action has no legal choice (as in a state that ends
    an episode), all of its choices count as legal.

    Args:
        x: `[..., num_outputs]` floats.
        legal: `[..., num_outputs]` bool; None if all are legal.
        sizes: those of the action space; None for a single choice.
    """
    if legal is None:
        return x
    sizes = (x.shape[-1],) if sizes is None else sizes
    some = jnp.any(split_choices(legal, sizes, False), axis=-1)
    some = some[..., np.repeat(np.arange(len(sizes)), sizes)]
    return jnp.where(legal | ~some, x, -jnp.inf)


def _any_legal(key: jax.Array, legal: jax.Array, sizes: tuple[int, ...] | None = None) -> jax.Array:
    """A legal choice for each number of an element, drawn uniformly: `[len(sizes)]` int32, or `[]`
    without sizes."""
    logits = where_legal(jnp.zeros(legal.shape, jnp.float32), legal, sizes)
    if sizes is not None:
        logits = split_choices(logits, sizes, -jnp.inf)
    return jax.random.categorical(key, logits).astype(jnp.int32)


def convert_spaces(space: PyTree) -> PyTree:
    """A space, or a pytree of spaces, with those of Gymnasium and gymnax converted; the same object
    if there are none.

    A `MultiBinary` becomes a `MultiDiscrete` of twos. A space without a counterpart is left for
    `check_env` to report.

    Raises:
        ConfigError: a `Discrete` or `MultiDiscrete` that doesn't start at 0.
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
    if np.any(getattr(space, "start", 0)):
        kind = "MultiDiscrete" if hasattr(space, "nvec") else "Discrete"
        raise ConfigError(f"EnvSpec: got {shown(space)}, expected a {kind} that starts at 0")
    if hasattr(space, "nvec"):
        return MultiDiscrete(np.asarray(space.nvec))
    if hasattr(space, "low") and hasattr(space, "high"):
        return Box(np.asarray(space.low), np.asarray(space.high), space.shape, space.dtype)
    if hasattr(space, "n"):
        if getattr(space, "shape", None):  # MultiBinary
            return MultiDiscrete(np.full(space.shape, 2))
        return Discrete(int(space.n))
    return space


def _count(name: str, n: Any) -> int:
    """A number of choices. Raises ConfigError unless it is an integer from 1 to 2**31 - 1."""
    whole = isinstance(n, (int, np.integer)) or (isinstance(n, float) and n.is_integer())
    if not whole or isinstance(n, bool) or not 1 <= n < 2**31:
        raise ConfigError(f"{name}: got {shown(n)}, expected an integer >= 1, and below 2**31")
    return int(n)


def _as_tuples(x: Plain) -> Plain:
    return tuple(map(_as_tuples, x)) if isinstance(x, list) else x


def _plain_bound(x: np.ndarray) -> Plain:
    """A single number if all are equal, else nested lists."""
    return float(x.flat[0]) if x.size and np.all(x == x.flat[0]) else x.tolist()


def _bound(name: str, bound: npt.ArrayLike) -> np.ndarray:
    try:
        if np.iscomplexobj(bound):
            raise TypeError
        return np.asarray(bound, np.float32)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(
            f"Box.{name}: got {shown(bound)}, expected a number, or an array of numbers"
        ) from None


def _shape(shape: Sequence[int] | int | np.integer) -> tuple[int, ...]:
    sizes = (shape,) if isinstance(shape, (int, np.integer)) else shape
    try:
        sizes = tuple(int(np.asarray(size).__index__()) for size in sizes)
    except (TypeError, ValueError, OverflowError):
        sizes = (-1,)
    if any(size < 0 for size in sizes):
        raise ConfigError(f"Box.shape: got {shown(shape)}, expected a sequence of sizes")
    return sizes


def _dtype(dtype: DTypeLike) -> np.dtype:
    kinds = (np.floating, np.integer, np.bool_)
    try:
        found = np.dtype(jax.dtypes.canonicalize_dtype(dtype))
    except (TypeError, ValueError):
        found = None
    if found is None or not any(jnp.issubdtype(found, kind) for kind in kinds):
        raise ConfigError(
            f"Box.dtype: got {shown(dtype)}, expected one of floats, integers or booleans"
        )
    return found
