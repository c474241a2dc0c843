"""Spaces, and dicts and tuples of them, to and from the plain values of JSON."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from purerl.envs.spaces import KINDS, is_space
from purerl.records.errors import ConfigError
from purerl.records.types import PyTree


def space_to_plain(space: PyTree, name: str) -> dict[str, object]:
    """A space in plain values, without loss.

    Raises:
        ConfigError: a pytree of spaces with other containers than dicts and tuples.
    """
    if is_space(space):
        return {space.kind: space.plain()}
    if type(space) is dict and all(isinstance(key, str) for key in space):
        return {"dict": {key: space_to_plain(part, f"{name}.{key}") for key, part in space.items()}}
    if type(space) in (tuple, list):
        parts = [space_to_plain(part, f"{name}.{i}") for i, part in enumerate(space)]
        return {type(space).__name__: parts}
    raise ConfigError(
        f"{name}: a {type(space).__name__} can't be saved, expected Box, Discrete, MultiDiscrete, "
        "or dicts (of strings), tuples and lists of them"
    )


def space_from_plain(plain: Mapping[str, Any]) -> PyTree:
    """The inverse of `space_to_plain`."""
    ((kind, value),) = plain.items()
    if kind in KINDS:
        return KINDS[kind].from_plain(value)
    if kind == "dict":
        return {key: space_from_plain(part) for key, part in value.items()}
    return {"tuple": tuple, "list": list}[kind](space_from_plain(part) for part in value)


def count_elements(plain: Mapping[str, Any]) -> int:
    """The number of elements of all spaces in plain values: in memory a `Box` has bounds for each,
    in the file perhaps one number for all."""
    ((kind, value),) = plain.items()
    if kind == "discrete":
        return 1
    if kind == "multi_discrete":
        return np.size(value)
    if kind == "box":
        return abs(math.prod(value["shape"]))  # a negative size makes up for no other
    return sum(map(count_elements, value.values() if kind == "dict" else value))
