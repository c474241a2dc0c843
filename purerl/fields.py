"""Records: frozen dataclasses that are pytrees, and that name the field when a value is wrong.

Agents, buffers and configurations are records. A field made by `real` is a leaf of the pytree, so
that it can be traced, vmapped and swept; every other field is static and fixes the program.
Values are checked where a user writes them, in the constructor and in `replace`; JAX, which takes
pytrees apart and puts them together with tracers and placeholders inside, bypasses the checks.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Self, dataclass_transform

import jax
import numpy as np

from purerl.errors import ConfigError, suggest

_MISSING: Any = dataclasses.MISSING


def _field(
    check: Callable[[Any], Any], expected: str, default: Any, optional: bool, traced: bool
) -> Any:
    metadata = {
        "check": check,
        "expected": expected + (" or None" if optional else ""),
        "optional": optional,
        "traced": traced,
    }
    return dataclasses.field(default=default, metadata=metadata)


def _bounds(above: Any, at_least: Any, below: Any, at_most: Any) -> tuple[Callable, str]:
    limits = [
        (above, lambda x, y: x > y, ">"),
        (at_least, lambda x, y: x >= y, ">="),
        (below, lambda x, y: x < y, "<"),
        (at_most, lambda x, y: x <= y, "<="),
    ]
    limits = [limit for limit in limits if limit[0] is not None]
    text = " and ".join(f"{sign} {limit}" for limit, _, sign in limits)
    return lambda x: all(holds(x, limit) for limit, holds, _ in limits), text and " " + text


def real(
    default: Any = _MISSING,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    optional: bool = False,
) -> Any:
    """A float field: a leaf of the pytree, which `vmap` may map over and `jit` may trace."""
    within, text = _bounds(above, at_least, below, at_most)

    def check(value: Any) -> Any:
        if isinstance(value, jax.core.Tracer) and value.shape == ():
            return value
        number = isinstance(value, (int, float, np.number, np.ndarray, jax.Array))
        if isinstance(value, bool) or not number or np.shape(value) != ():
            raise ValueError
        if not math.isfinite(value) or not within(float(value)):
            raise ValueError
        return value if isinstance(value, jax.Array) else float(value)

    return _field(check, "a float" + text, default, optional, traced=True)


def integer(
    default: Any = _MISSING,
    *,
    at_least: int | None = None,
    at_most: int | None = None,
    optional: bool = False,
) -> Any:
    """A static integer field: it fixes shapes or trip counts."""
    within, text = _bounds(None, at_least, None, at_most)

    def check(value: Any) -> int:
        # 5e5 is how people write half a million: a float with an integer's value is one.
        if isinstance(value, (float, np.floating)) and float(value).is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise ValueError
        if not within(value):
            raise ValueError
        return int(value)

    return _field(check, "an integer" + text, default, optional, traced=False)


def flag(default: Any = _MISSING, *, optional: bool = False) -> Any:
    """A static boolean field."""

    def check(value: Any) -> bool:
        if not isinstance(value, (bool, np.bool_)):
            raise ValueError
        return bool(value)

    return _field(check, "True or False", default, optional, traced=False)


def choice(default: Any, options: Iterable[str], *, optional: bool = False) -> Any:
    """A static field that takes one of a few words."""
    options = tuple(options)

    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError
        if value not in options:
            raise ValueError(suggest(value, options))
        return value

    expected = "one of " + ", ".join(map(repr, options))
    return _field(check, expected, default, optional, traced=False)


def sizes(default: Any = _MISSING, *, optional: bool = False) -> Any:
    """A static field of positive integers, such as the widths of hidden layers."""

    def check(value: Any) -> tuple[int, ...]:
        if not isinstance(value, (tuple, list)):
            raise ValueError
        if any(isinstance(n, bool) or not isinstance(n, (int, np.integer)) for n in value):
            raise ValueError
        if any(n < 1 for n in value):
            raise ValueError
        return tuple(int(n) for n in value)

    return _field(check, "a sequence of positive integers", default, optional, traced=False)


def static(
    default: Any = _MISSING,
    *,
    check: Callable[[Any], Any] = lambda value: value,
    expected: str = "",
    optional: bool = True,
) -> Any:
    """A static field of any kind; `check` returns the value to keep or raises `ValueError`."""
    return _field(check, expected, default, optional, traced=False)


def named(*, default: Any, options: Mapping[str, Any]) -> Any:
    """A static field of a function, one of a few that have names, or a user's own."""

    def check(value: Any) -> Any:
        if isinstance(value, str):
            if value not in options:
                raise ValueError(suggest(value, options))
            return options[value]
        if not callable(value):
            raise ValueError
        return value

    expected = "a function, or one of " + ", ".join(map(repr, options))
    field = _field(check, expected, default, False, traced=False)
    return dataclasses.field(default=default, metadata={**field.metadata, "options": options})


def by_loop(default: Any = None, *, traced: bool = False, init: Literal[False] = False) -> Any:
    """A field that the loop fills in, by `tell`; no argument of the constructor."""
    return dataclasses.field(default=default, init=init, metadata={"traced": traced})


@dataclass_transform(
    frozen_default=True,
    field_specifiers=(real, integer, flag, choice, sizes, static, named, by_loop),
)
class Record:
    """Base of agents, buffers and configurations: subclass it and list the fields.

    Raises:
        ConfigError: from the constructor and from `replace`: an unknown name, a missing field, a
            value of the wrong type or out of range.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True)(cls)
        construct = cls.__init__

        def __init__(self: Any, *args: Any, **values: Any) -> None:  # noqa: N807
            _check_names(type(self), values, len(args))
            construct(self, *args, **values)
            # A default that stayed on the class would be bound as a method where it is a function.
            for field in _fields(type(self)):
                if not field.init:
                    object.__setattr__(self, field.name, field.default)
            for name in field_names(type(self)):
                object.__setattr__(self, name, check_value(type(self), name, getattr(self, name)))
            self.check()

        cls.__init__ = __init__  # type: ignore[method-assign]
        jax.tree_util.register_pytree_with_keys(cls, *_flattening(cls))

    def check(self) -> None:
        """Checks what several fields have to satisfy together. For subclasses to extend."""

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, and checked."""
        cls = type(self)
        _check_names(cls, changes, None)
        copy = self.tell(**{name: check_value(cls, name, x) for name, x in changes.items()})
        copy.check()
        return copy

    def tell(self, **values: Any) -> Self:
        """A copy with some fields filled in, unchecked: for what the loop knows."""
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__, **values)
        return copy


def field_names(cls: type, traced: bool | None = None) -> list[str]:
    """Names of the fields that a user may give; only the traced (or the static) ones if asked."""
    return [f.name for f in _fields(cls, traced) if f.init]


def field_options(cls: type) -> dict[str, dataclasses.Field]:
    """The fields that a user may give, by name, with their default, and in `metadata` what is
    `expected`."""
    return {f.name: f for f in _fields(cls) if f.init}


def _fields(cls: type, traced: bool | None = None) -> list[dataclasses.Field]:
    fields = dataclasses.fields(cls)
    return [f for f in fields if traced is None or f.metadata.get("traced", False) == traced]


def check_value(cls: type, name: str, value: Any) -> Any:
    """The value as the field keeps it. Raises ConfigError where it can't be used."""
    field = field_options(cls)[name]
    if "check" not in field.metadata or (value is None and field.metadata["optional"]):
        return value
    try:
        return field.metadata["check"](value)
    except (ValueError, TypeError) as error:
        shape = np.shape(value) if isinstance(value, (np.ndarray, jax.Array)) else ()
        got = f"an array of shape {shape}" if shape else repr(value)
        expected = field.metadata["expected"]
        message = f"{cls.__name__}.{name}: got {got}, expected {expected}"
        if shape and field.metadata["traced"]:
            message += "; to sweep it, give train its hyperparameters under jax.vmap"
        hint = str(error) if isinstance(error, ValueError) else ""
        raise ConfigError(f"{message}; {hint}" if hint else message) from None


def _check_names(cls: type, values: Mapping[str, Any], num_positional: int | None) -> None:
    names = field_names(cls)
    for name in values:
        if name not in names:
            raise ConfigError(f"{cls.__name__}: no field {name!r}; {suggest(name, names)}")
    if num_positional is None:
        return
    given = set(values) | set(names[:num_positional])
    for field in _fields(cls):
        required = field.default is _MISSING and field.default_factory is _MISSING
        if required and field.name not in given:
            expected = field.metadata.get("expected", "a value")
            raise ConfigError(f"{cls.__name__}.{field.name}: missing, expected {expected}")


def _flattening(cls: type) -> tuple[Callable, Callable, Callable]:
    """Flatten and unflatten, round the constructor, which would refuse JAX's placeholders."""
    traced, fixed = ([f.name for f in _fields(cls, kind)] for kind in (True, False))
    keys = [jax.tree_util.GetAttrKey(name) for name in traced]

    def flatten(self: Any) -> tuple[tuple, tuple]:
        return tuple(getattr(self, n) for n in traced), tuple(getattr(self, n) for n in fixed)

    def flatten_with_keys(self: Any) -> tuple[tuple, tuple]:
        leaves, aux = flatten(self)
        return tuple(zip(keys, leaves, strict=True)), aux

    def unflatten(aux: tuple, leaves: tuple) -> Any:
        self: Any = object.__new__(cls)
        for name, value in zip(traced + fixed, (*leaves, *aux), strict=True):
            object.__setattr__(self, name, value)
        return self

    return flatten_with_keys, unflatten, flatten
