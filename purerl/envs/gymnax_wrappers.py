"""Wrappers of gymnax environments, whose `step` and `reset` are called without auto-reset.

gymnax's `Environment.step` is `step_env` and a reset if the episode ended. A wrapper overrides
`step` and forwards every other attribute, `step_env` included, to the environment inside. So its
behaviour is only in its `step`, after the reset inside, which loses the true successor. Here a
wrapper is copied with an inner environment whose `step` doesn't reset.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp

from purerl.records.errors import ConfigError
from purerl.records.types import PyTree

# The public methods of gymnax, and the raw dynamics that they call.
PAIRS = (("step", "step_env"), ("reset", "reset_env"))
FAR = (1_000_000, 0)
# Methods of which a wrapper may override both.
SAME = (*PAIRS, ("is_terminal", "is_terminated"))
NO_DYNAMICS = ("observation_space", "action_space", "state_space", "render", "discount")


class GymnaxEnv(Protocol):
    """A gymnax `Environment`, or a wrapper of one, which forwards its attributes."""

    @property
    def name(self) -> str: ...
    @property
    def default_params(self) -> PyTree: ...
    def reset(self, key: jax.Array, params: PyTree = None) -> PyTree: ...
    def reset_env(self, key: jax.Array, params: PyTree) -> PyTree: ...
    def step(
        self, key: jax.Array, state: PyTree, action: jax.Array, params: PyTree = None
    ) -> PyTree: ...
    def step_env(
        self, key: jax.Array, state: PyTree, action: jax.Array, params: PyTree
    ) -> PyTree: ...
    def is_truncated(self, state: PyTree, params: PyTree) -> jax.Array: ...
    def action_space(self, params: PyTree) -> PyTree: ...
    def observation_space(self, params: PyTree) -> PyTree: ...


class Bare:
    """A gymnax environment without auto-reset in its `step`."""

    def __init__(self, env: GymnaxEnv) -> None:
        self._env = env
        self.called: set[str] = set()  # the raw methods called while tracing

    @property
    def env(self) -> GymnaxEnv:
        """The wrapped environment."""
        return self._env

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_env":
            raise AttributeError(name)
        return getattr(self._env, name)

    def reset_env(self, key: jax.Array, params: PyTree) -> PyTree:
        self.called.add("reset")
        return self._env.reset_env(key, params)

    def step_env(self, key: jax.Array, state: PyTree, action: jax.Array, params: PyTree) -> PyTree:
        self.called.add("step")
        return self._env.step_env(key, state, action, params)

    def reset(self, key: jax.Array, params: PyTree = None) -> PyTree:
        return self.reset_env(key, self._env.default_params if params is None else params)

    def step(
        self, key: jax.Array, state: PyTree, action: jax.Array, params: PyTree = None
    ) -> PyTree:
        params = self._env.default_params if params is None else params
        obs, state, reward, terminated, info = self.step_env(key, state, action, params)
        truncated = self._env.is_truncated(state, params)
        ends = {"terminated": terminated, "truncated": truncated}
        info = {**info, **ends, "final_observation": obs}
        return obs, state, reward, terminated, truncated, info


def without_resets(env: GymnaxEnv) -> tuple[GymnaxEnv, Bare | None]:
    """A copy of a wrapper with auto-reset disabled inside, and the innermost environment of it. The
    environment and None if it doesn't override `step` or `reset`.

    Raises:
        ConfigError: it overrides `step` or `reset`, but doesn't wrap exactly one environment.
    """
    overridden = next((pair for pair in PAIRS if _place(env, pair[0]) < _place(env, pair[1])), None)
    if overridden is None:
        return env, None
    inner = wrapped(env)
    if inner is None:
        kind, (whole, raw) = type(env).__name__, overridden
        raise ConfigError(
            f"env: {kind} overrides {whole}, but not {raw}: purerl resets environments itself, and "
            f"never calls {kind}.{whole}. Override {raw} in place of {whole}"
        )
    inside, innermost = without_resets(inner)
    if innermost is None:
        innermost = Bare(inside)
        inside = cast(GymnaxEnv, innermost)
    values = {name: inside if x is inner else x for name, x in _attributes(env).items()}
    return cast(GymnaxEnv, _rebuilt(type(env), values)), innermost


class Watch(NamedTuple):
    """A wrapper's method that overrides one of the environment inside.

    Attributes:
        kind: the wrapper's class.
        name: of the method.
    """

    kind: type
    name: str


def watched(env: GymnaxEnv, called: set[Watch]) -> tuple[GymnaxEnv, list[Watch]]:
    """A copy of an environment from `without_resets`, whose wrappers add the methods of theirs that
    are called to a set; and all their methods. The environment itself if it is no wrapper."""
    inner = wrapped(env)
    if inner is None:
        return env, []
    inside, rest = watched(inner, called)
    values = {name: inside if x is inner else x for name, x in _attributes(env).items()}
    copy = _rebuilt(type(env), values)
    names = [] if isinstance(env, Bare) else _overridden(type(env), inner)
    own = [Watch(type(env), name) for name in names]
    for method in own:
        _attributes(copy)[method.name] = _recorded(copy, method, called)
    return cast(GymnaxEnv, copy), [*own, *rest]


def _overridden(kind: type, inner: GymnaxEnv) -> list[str]:
    """Names of a wrapper's public methods of dynamics that the environment inside has, too; those
    that it has from gymnax's base class are nobody's."""
    theirs = "gymnax.environments.environment"
    classes = [cls for cls in reversed(kind.__mro__) if cls.__module__ != theirs]
    found = {name: x for cls in classes for name, x in vars(cls).items()}
    return [
        name
        for name, x in found.items()
        if callable(x)
        and not isinstance(x, type)
        and not name.startswith("_")
        and name not in NO_DYNAMICS
        and callable(getattr(inner, name, None))
    ]


def _recorded(owner: object, method: Watch, called: set[Watch]) -> Callable[..., PyTree]:
    function = getattr(method.kind, method.name)

    def record(*args: PyTree, **kwargs: PyTree) -> PyTree:
        called.add(method)
        return function(owner, *args, **kwargs)

    return record


def check_called(name: str, methods: list[Watch], called: set[Watch]) -> None:
    """Raises ConfigError for a wrapper's method that training would pass by.

    Args:
        name: the environment's.
        methods: of its wrappers.
        called: those that a reset and a step have called.
    """
    for method in methods:
        same = next((pair for pair in SAME if method.name in pair), (method.name,))
        if called & {Watch(method.kind, other) for other in same}:
            continue
        kind = method.kind.__name__
        raise ConfigError(
            f"env: {kind} overrides {method.name}, which nothing in {name} calls: wrappers inside "
            f"or around {kind} override other methods, or the environment calls its own. Override "
            "step and reset, in each wrapper"
        )


def wrapped(env: object) -> GymnaxEnv | None:
    """The only environment among an object's attributes; None if there is none, or several."""
    found = {id(x): x for x in _attributes(env).values() if _is_environment(x)}
    return cast(GymnaxEnv, next(iter(found.values()))) if len(found) == 1 else None


def _attributes(env: object) -> dict[str, object]:
    attributes: dict[str, object] = getattr(env, "__dict__", {})
    return attributes


def _is_environment(x: object) -> bool:
    whole = all(hasattr(x, name) for name in ("step", "reset", "step_env", "reset_env"))
    return whole and not isinstance(x, type)


def _place(env: object, name: str) -> tuple[int, int]:
    """The place of a method: the number of wrappers around it, and its index in the MRO."""
    depth = 0
    while env is not None:
        if name in _attributes(env):
            return depth, -1
        for i, cls in enumerate(type(env).__mro__):
            if name in vars(cls):
                return depth, i
        env, depth = wrapped(env), depth + 1
    return FAR


def whole_step(
    env: GymnaxEnv, key: jax.Array, state: PyTree, action: jax.Array, params: PyTree
) -> tuple[PyTree, ...]:
    """A wrapper's step: observation, state, reward, terminated, truncated, info.

    If it returns `done` in place of the two ends, the inner environment's ends, from `info`, split
    it.
    """
    out = env.step(key, state, action, params)
    if isinstance(out, tuple) and len(out) == 6:
        return out
    if isinstance(out, tuple) and len(out) == 5 and {"terminated", "truncated"} <= set(out[4]):
        obs, state, reward, done, info = out
        limit = jnp.asarray(info["truncated"], bool) & ~jnp.asarray(info["terminated"], bool)
        done = jnp.asarray(done, bool)
        return obs, state, reward, done & ~limit, done & limit, info
    got = f"{len(out)} values" if isinstance(out, tuple) else type(out).__name__
    raise ConfigError(
        f"env: {type(env).__name__}.step returns {got}, expected (obs, state, reward, terminated, "
        "truncated, info)"
    )


class _Packed(NamedTuple):
    cls: type
    values: dict[str, object]


def packed(env: object) -> object:
    """An environment in a form that pickles. Unpickling a wrapper that forwards every attribute
    would recurse forever, since its inner environment isn't set yet."""
    if not hasattr(type(env), "__getattr__"):
        return env
    return _Packed(type(env), {name: packed(x) for name, x in _attributes(env).items()})


def unpacked(env: object) -> object:
    """The environment from its `packed` form."""
    if not isinstance(env, _Packed):
        return env
    return _rebuilt(env.cls, {name: unpacked(x) for name, x in env.values.items()})


def _rebuilt(cls: type, values: dict[str, object]) -> object:
    env: object = object.__new__(cls)
    env.__dict__.update(values)
    return env
