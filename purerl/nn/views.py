"""Views: the part of an observation that a network sees, and the mask of legal actions."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

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
    """A network's view of an environment's observations.

    Attributes:
        observation_space: the environment's; None if it isn't known.
        sees: the part that the network sees: a key of a dict observation, several keys, or a
            function of one observation; None for the whole.
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
        """A view of an environment.

        Args:
            spec: the environment's.
            sees: see `View`.
            name: of the argument `sees`, for errors.

        Raises:
            ConfigError: an unknown key, or a function that fails on an observation.
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
            except Exception as error:  # any kind, from a user's function
                raise ConfigError(
                    f"{name}: {getattr(sees, '__name__', sees)} can't take one observation of "
                    f"{spec.name}: {type(error).__name__}: {error}"
                ) from error
        return view

    def seen(self, obs: PyTree) -> PyTree:
        """The part that the network sees, `[B, ...]`, of observations `[B, *obs_shape]`."""
        return jax.vmap(functools.partial(_part, self.sees))(obs) if self.sees is not None else obs

    def mask(self, obs: PyTree) -> jax.Array | None:
        """The mask of legal actions, `[B, num_outputs]` bool, at observations `[B, *obs_shape]`;
        None if all are legal."""
        if self.legal is None:
            return None
        mask: jax.Array = jax.vmap(functools.partial(_part, self.legal))(obs)
        return mask.astype(jnp.bool_)

    def features(self, seen: PyTree) -> list[jax.Array]:
        """The leaves of a part from `seen`, for a network without structured inputs, as
        `Space.features`: choices and codes are one-hot, images `[B, H, W, C]`. The mask of legal
        actions is left out. What a function computes of the observation is unchanged."""
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
                kept.append(spaces[source].features(leaf))
        return kept or leaves


def _part(chosen: Sees, obs: PyTree) -> PyTree:
    """The part of one observation that a key, several keys or a function selects."""
    if isinstance(chosen, str):
        return obs[chosen]
    if isinstance(chosen, tuple):
        return {key: obs[key] for key in chosen}
    return obs if chosen is None else chosen(obs)


@functools.lru_cache(maxsize=256)
def _sources(view: View) -> list[int | None]:
    """For each leaf that a network sees, the index of the same leaf of the observation, or None."""
    return _passed_on(view.sees, view.observation_space)


@functools.lru_cache(maxsize=256)
def _mask_sources(view: View) -> frozenset[int]:
    """The indices of the observation's leaves that are the mask of legal actions, unchanged."""
    if view.legal is None:
        return frozenset()
    return frozenset(x for x in _passed_on(view.legal, view.observation_space) if x is not None)


def _passed_on(chosen: Sees, space: PyTree) -> list[int | None]:
    """For each selected leaf, the index of the observation's leaf that it is, up to its dtype; None
    if it is computed."""
    example = map_spaces(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), space)
    jaxpr = jax.make_jaxpr(functools.partial(_part, chosen))(example).jaxpr
    sources: dict[int, int] = {id(x): i for i, x in enumerate(jaxpr.invars)}
    for equation in jaxpr.eqns:
        before = id(equation.invars[0]) if equation.invars else 0
        if equation.primitive.name == "convert_element_type" and before in sources:
            sources[id(equation.outvars[0])] = sources[before]
    return [sources.get(id(x)) for x in jaxpr.outvars]


def reads(function: Callable[[PyTree], PyTree], space: PyTree) -> list[bool]:
    """Whether the result of a function of observations depends on each leaf of them.

    Args:
        function: of observations `[B, *obs_shape]`, to be traced.
        space: the observation space.
    """
    example = map_spaces(lambda s: jax.ShapeDtypeStruct((2, *s.shape), s.dtype), space)
    jaxpr = jax.make_jaxpr(function)(example).jaxpr
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[1]


def check_mask_is_kept(spec: EnvSpec) -> None:
    """Checks that normalising the observations keeps the legal actions.

    Raises:
        ConfigError: they depend on floats of the observation, which are normalised.
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


def without_unread(
    tree: PyTree, read: list[bool], is_leaf: Callable[[PyTree], bool] | None = None
) -> PyTree:
    """A pytree without the dict entries in which no leaf is read; other containers stay whole. At
    least one leaf has to be read."""
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
    """An observation with zeros for missing dict entries that aren't needed.

    Args:
        space: the observation space.
        asked: its needed part, from `without_unread`.
        obs: the observation.
        batch: its leading axes.

    Raises:
        ConfigError: a needed entry is missing.
    """
    zeros: Callable[..., jax.Array | np.ndarray] = jnp.zeros if batch else np.zeros
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
