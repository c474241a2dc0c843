"""What a network sees of the observations, and which actions they leave open."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from purerl.envs.base import EnvSpec
from purerl.envs.spaces import leaves_of, map_spaces
from purerl.records.errors import ConfigError, shown, suggest

PyTree = Any
Sees = str | tuple[str, ...] | Callable[[PyTree], PyTree] | None


@dataclasses.dataclass(frozen=True)
class View:
    """How a network looks at the observations of an environment.

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
        for key in keys:
            if not isinstance(known, dict) or key not in known:
                hint = suggest(key, map(str, known)) if isinstance(known, dict) else "no dict"
                raise ConfigError(
                    f"{name}: got {shown(sees)}, but observations of {spec.name} are "
                    f"{shown(known)}; {hint}"
                )
        view = cls(known, sees, spec.legal)
        if callable(sees):
            try:
                _sources(view)
            except Exception as error:  # a user's function raises of every kind
                raise ConfigError(
                    f"{name}: {shown(sees)} can't take one observation of {spec.name}, "
                    f"{shown(known)}: {type(error).__name__}: {error}"
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
