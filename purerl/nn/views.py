"""Views: the part of the observations that a network sees, and the actions that are legal there."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval

from purerl.envs.base import EnvSpec
from purerl.envs.spaces import is_space, leaves_of, map_spaces
from purerl.records.errors import ConfigError, shown, suggest
from purerl.records.types import PyTree

Sees = str | tuple[str, ...] | Callable[[PyTree], PyTree] | None


@dataclasses.dataclass(frozen=True)
class View:
    """A network's way of looking at the observations of an environment.

    Attributes:
        observation_space: the environment's; None where it isn't known.
        sees: the part that the network sees: a key of a dict observation, several keys, or a
            function of one observation; None for all of it.
        legal: the legal actions, `EnvSpec.legal`.
    """

    observation_space: PyTree = None
    sees: Sees = None
    legal: str | Callable[[PyTree], jax.Array] | None = None

    def __hash__(self) -> int:
        spaces, structure = leaves_of(self.observation_space)
        return hash((tuple(spaces), structure, self.sees, self.legal))

    @classmethod
    def of(cls, spec: EnvSpec, sees: Sees = None, name: str = "sees") -> "View":
        """The view of an environment.

        Args:
            spec: the environment's.
            sees: see `View`.
            name: the argument's, for errors.

        Raises:
            ConfigError: a key that observations don't have, or a function that can't take them.
        """
        keys = (sees,) if isinstance(sees, str) else sees if isinstance(sees, tuple) else ()
        known = spec.observation_space
        if keys and not isinstance(known, dict):
            raise ConfigError(
                f"{name}: got {shown(sees)}, but observations of {spec.name} are no dict, expected "
                "a function of one observation"
            )
        for key in keys:
            if key not in known:
                raise ConfigError(
                    f"{name}: got {shown(key)}, expected a key of the observations of {spec.name}; "
                    f"{suggest(key, known)}"
                )
        view = cls(known, sees, spec.legal)
        if callable(sees):
            try:
                _sources(view)
            except Exception as error:  # a user's function raises of every kind
                raise ConfigError(
                    f"{name}: {getattr(sees, '__name__', sees)} can't take one observation of "
                    f"{spec.name}: {type(error).__name__}: {error}"
                ) from error
        return view

    def seen(self, obs: PyTree) -> PyTree:
        """The network's part of observations `[B, *obs_shape]`, `[B, ...]`."""
        return jax.vmap(functools.partial(_part, self.sees))(obs) if self.sees is not None else obs

    def mask(self, obs: PyTree) -> jax.Array | None:
        """`[B, num_outputs]` bool, the legal actions at observations `[B, *obs_shape]`; None where
        the environment has no illegal ones."""
        if self.legal is None:
            return None
        return jax.vmap(functools.partial(_part, self.legal))(obs).astype(jnp.bool_)

    def features(self, seen: PyTree) -> list[jax.Array]:
        """Numbers for a network that has no use for structure, of what `seen` gave: the leaves,
        those of discrete spaces one-hot. A leaf that is the mask of legal actions is left out."""
        leaves = jax.tree.leaves(seen)
        if self.observation_space is None:
            return leaves
        spaces, _ = leaves_of(self.observation_space)
        sources, masks = _sources(self), _mask_sources(self)
        kept = []
        for leaf, source in zip(leaves, sources, strict=True):
            if source is None:
                kept.append(leaf)
            elif source not in masks:
                space = spaces[source]
                kept.append(leaf if space.sizes is None else space.encode(leaf))
        return kept or leaves


def _part(chosen: Any, obs: PyTree) -> PyTree:
    """Of one observation the part that a key, several keys or a function chooses."""
    if isinstance(chosen, str):
        return obs[chosen]
    if isinstance(chosen, tuple):
        return {key: obs[key] for key in chosen}
    return obs if chosen is None else chosen(obs)


@functools.lru_cache(maxsize=256)
def _sources(view: View) -> list[int | None]:
    """For each leaf that a network sees, the leaf of the observation that it is, if it is one."""
    return _passed_on(view.sees, view.observation_space)


@functools.lru_cache(maxsize=256)
def _mask_sources(view: View) -> frozenset[int]:
    """The leaves of the observation that are the mask of legal actions, whole and unchanged."""
    if view.legal is None:
        return frozenset()
    return frozenset(x for x in _passed_on(view.legal, view.observation_space) if x is not None)


def _passed_on(chosen: Any, space: PyTree) -> list[int | None]:
    """Of the leaves that are chosen of an observation, those that are leaves of it, but for their
    dtype; None for what is computed."""
    example = map_spaces(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), space)
    jaxpr = jax.make_jaxpr(functools.partial(_part, chosen))(example).jaxpr
    sources: dict[int, int] = {id(x): i for i, x in enumerate(jaxpr.invars)}
    for equation in jaxpr.eqns:
        before = id(equation.invars[0]) if equation.invars else 0
        if equation.primitive.name == "convert_element_type" and before in sources:
            sources[id(equation.outvars[0])] = sources[before]
    return [sources.get(id(x)) for x in jaxpr.outvars]


def reads(function: Callable[[PyTree], Any], space: PyTree) -> list[bool]:
    """Whether the result of a function of observations depends on each leaf of them.

    Args:
        function: of observations `[B, *obs_shape]`; it is traced.
        space: the observations' spaces.
    """
    example = map_spaces(lambda s: jax.ShapeDtypeStruct((2, *s.shape), s.dtype), space)
    jaxpr = jax.make_jaxpr(function)(example).jaxpr
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[1]


def check_mask_is_kept(spec: EnvSpec) -> None:
    """Checks that the legal actions are those of the environment where observations are normalised.

    Raises:
        ConfigError: they follow from floats, which would be others then.
    """
    if spec.legal is None:
        return
    read = reads(View.of(spec).mask, spec.observation_space)
    spaces = jax.tree_util.tree_leaves_with_path(spec.observation_space, is_leaf=is_space)
    for (path, space), used in zip(spaces, read, strict=True):
        if used and jnp.issubdtype(space.dtype, jnp.floating):
            raise ConfigError(
                f"normalize_obs: got True, expected False: the legal actions of {spec.name} follow "
                f"from floats of the observation{jax.tree_util.keystr(path)}, which would be "
                "normalised; give the mask a separate bool entry"
            )


def without_unread(tree: PyTree, read: list[bool], is_leaf: Any = None) -> PyTree:
    """A pytree without the entries of its dicts in which no leaf is read; other containers stay
    whole. At least one leaf is read."""
    keep = iter(read)

    def prune(tree: PyTree) -> tuple[PyTree, bool]:
        if is_leaf is not None and is_leaf(tree):
            return tree, next(keep)
        if type(tree) is dict:
            parts = {key: prune(tree[key]) for key in sorted(tree)}
            kept = {key: part for key, (part, used) in parts.items() if used}
            return {key: kept[key] for key in tree if key in kept}, bool(kept)
        used = [next(keep) for _ in jax.tree.leaves(tree, is_leaf=is_leaf)]
        return tree, any(used)

    return prune(tree)[0]


def filled(space: PyTree, asked: PyTree, obs: PyTree, batch: tuple[int, ...] = ()) -> PyTree:
    """An observation with zeros for the entries that its dicts lack and nobody asks for.

    Args:
        space: of the whole observation.
        asked: the same without the entries that nobody asks for, as of `without_unread`.
        obs: the observation.
        batch: its leading axes.

    Raises:
        ConfigError: an entry is missing that is asked for.
    """
    zeros: Any = jnp.zeros if batch else np.zeros
    if type(space) is not dict or not isinstance(obs, Mapping):
        return obs
    whole = dict(obs)
    for key, part in space.items():
        if key in obs:
            whole[key] = filled(part, asked.get(key, {}), obs[key], batch)
        elif key in asked:
            hint = suggest(key, [x for x in map(str, obs) if x not in space])
            raise ConfigError(
                f"obs: no {key!r}, expected {', '.join(map(repr, asked))}"
                + (f"; {hint}" if hint.startswith("did") else "")
            )
        else:
            whole[key] = map_spaces(lambda s: zeros((*batch, *s.shape), s.dtype), part)
    return whole
