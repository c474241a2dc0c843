"""Types that have no name elsewhere."""

from typing import Any, TypeAlias

# Arrays in nested tuples, lists, dicts and registered classes: what `jax.tree.map` goes through.
PyTree: TypeAlias = Any
