"""Spaces, and dicts and tuples of them, in the plain values that JSON has."""

import math
from typing import Any

import numpy as np

from purerl.envs.spaces import Box, Discrete
from purerl.records.errors import ConfigError


def space_to_plain(space: Any, name: str) -> dict[str, Any]:
    """A space in plain values, exactly.

    Raises:
        ConfigError: a pytree of spaces with other containers than dicts and tuples.
    """
    if isinstance(space, Discrete):
        return {"discrete": space.n}
    if isinstance(space, Box):
        bounds = {"low": _bound(space.low), "high": _bound(space.high)}
        return {"box": {**bounds, "shape": list(space.shape), "dtype": space.dtype.name}}
    if type(space) is dict and all(isinstance(key, str) for key in space):
        return {"dict": {key: space_to_plain(part, f"{name}.{key}") for key, part in space.items()}}
    if type(space) in (tuple, list):
        parts = [space_to_plain(part, f"{name}.{i}") for i, part in enumerate(space)]
        return {type(space).__name__: parts}
    raise ConfigError(
        f"{name}: a {type(space).__name__} can't be saved, expected Box, Discrete, or dicts (of "
        "strings), tuples and lists of them"
    )


def space_from_plain(plain: Any) -> Any:
    """What `space_to_plain` was given."""
    ((kind, value),) = plain.items()
    if kind == "discrete":
        return Discrete(value)
    if kind == "box":
        low, high = (np.array(value[bound], np.float32) for bound in ("low", "high"))
        return Box(low, high, value["shape"], value["dtype"])
    if kind == "dict":
        return {key: space_from_plain(part) for key, part in value.items()}
    return {"tuple": tuple, "list": list}[kind](space_from_plain(part) for part in value)


def count_elements(plain: Any) -> int:
    """Elements of all boxes in what `space_to_plain` gave: the bounds of a `Box` take memory for
    each, where the plain values may have one number for all."""
    ((kind, value),) = plain.items()
    if kind == "discrete":
        return 1
    if kind == "box":
        return abs(math.prod(value["shape"]))  # a negative size makes up for no other
    return sum(map(count_elements, value.values() if kind == "dict" else value))


def _bound(x: np.ndarray) -> Any:
    """One number where all are the same, else nested lists."""
    return float(x.flat[0]) if x.size and np.all(x == x.flat[0]) else x.tolist()
