"""Types that have no name elsewhere."""

from typing import Any, TypeAlias

# Arrays in nested tuples, lists, dicts and registered classes: an argument of `jax.tree.map`.
PyTree: TypeAlias = Any
# Values of JSON types: None, bool, int, float, str, and lists and dicts of them.
Plain: TypeAlias = Any
