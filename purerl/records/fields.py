"""Records: frozen dataclasses that are pytrees, with an error that names the wrong field.

Agents, buffers and configurations are records. A field made by `real` is a leaf of the pytree, so
that it can be traced, vmapped and swept; every other field is static and fixes the program.
Values are checked where a user gives them, in the constructor and in `replace`. JAX flattens and
unflattens records with tracers and placeholders inside, and bypasses the checks.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TypeAlias, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

from purerl.records.aliases import field_of
from purerl.records.docs import complete
from purerl.records.errors import ConfigError, shown, suggest

R = TypeVar("R", bound="Record")
V = TypeVar("V")
_MISSING = dataclasses.MISSING
# A field's specifier, which a type checker accepts in `lr: float = real()`.
FieldOf: TypeAlias = Any
# From a user's value to the stored one; raises ValueError or TypeError.
Check: TypeAlias = Callable[[Any], object]
Leaves: TypeAlias = tuple[object, ...]
# Sizes and indices are int32 on the device; counts of steps and episodes may be larger.
INT32, INT64 = 2**31 - 1, 2**63 - 1
# The package's records, by name.
_RECORDS: dict[str, type] = {}


def _field(
    check: Check,
    expected: str,
    default: object,
    optional: bool,
    traced: bool,
    total: bool = False,
) -> FieldOf:
    metadata = {
        "check": check,
        "expected": expected + (" or None" if optional else ""),
        "optional": optional,
        "traced": traced,
        "total": total,
    }
    return dataclasses.field(default=default, metadata=metadata)


def _bounds(
    above: float | None, at_least: float | None, below: float | None, at_most: float | None
) -> tuple[Callable[[float], bool], str]:
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
    default: object = _MISSING,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    optional: bool = False,
) -> FieldOf:
    """A float field: a leaf of the pytree, which `vmap` may map over and `jit` may trace."""
    within, text = _bounds(above, at_least, below, at_most)

    def check(value: object) -> object:
        if isinstance(value, (np.ndarray, np.generic, jax.Array)):
            kinds = (np.integer, np.floating)  # bfloat16 is none of numpy's
            if value.shape != () or not any(jnp.issubdtype(value.dtype, k) for k in kinds):
                raise ValueError
            if isinstance(value, jax.core.Tracer):
                return value
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError
        # Checked in float32 too, as on the device: 1e39 is infinite there, and 1e-50 is 0.
        for number in (float(value), float(_float32(value))):
            if not math.isfinite(number) or not within(number):
                raise ValueError
        return value if isinstance(value, jax.Array) else float(value)

    return _field(check, "a float" + text, default, optional, traced=True)


def _float32(value: Any) -> np.float32:
    with np.errstate(over="ignore", under="ignore"):
        return np.float32(value)


def integer(
    default: object = _MISSING,
    *,
    at_least: int | None = None,
    at_most: int | None = None,
    optional: bool = False,
    counter: bool = False,
    total: bool = False,
) -> FieldOf:
    """A static integer field, which fixes shapes or trip counts: below 2**31, or below 2**63 for a
    `counter`. A `total` is over all devices, each of which gets an equal part."""
    within, text = _bounds(None, at_least, None, at_most)
    largest = INT64 if counter else INT32

    def check(value: object) -> int:
        # People write half a million as 5e5: a float with an integer's value is accepted.
        if isinstance(value, (float, np.floating)) and float(value).is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise ValueError
        if abs(int(value)) > largest:
            raise ValueError(f"at most {largest}")
        if not within(int(value)):
            raise ValueError
        return int(value)

    return _field(check, "an integer" + text, default, optional, traced=False, total=total)


def flag(default: object = _MISSING, *, optional: bool = False) -> FieldOf:
    """A static boolean field."""

    def check(value: object) -> bool:
        if not isinstance(value, (bool, np.bool_)):
            raise ValueError
        return bool(value)

    return _field(check, "True or False", default, optional, traced=False)


def choice(default: object, options: Iterable[str], *, optional: bool = False) -> FieldOf:
    """A static field whose value is one of a few strings."""
    options = tuple(options)

    def check(value: object) -> str:
        if not isinstance(value, str):
            raise ValueError
        if value not in options:
            raise ValueError(suggest(value, options))
        return value

    expected = "one of " + ", ".join(map(repr, options))
    return _field(check, expected, default, optional, traced=False)


def sizes(default: object = _MISSING, *, optional: bool = False) -> FieldOf:
    """A static field of positive integers, such as the widths of hidden layers; a single integer
    is a sequence of one."""

    def check(value: object) -> tuple[int, ...]:
        if isinstance(value, (int, np.integer)):
            value = (value,)
        if not isinstance(value, (tuple, list)):
            raise ValueError
        if any(isinstance(n, bool) or not isinstance(n, (int, np.integer)) for n in value):
            raise ValueError
        if any(n < 1 for n in value):
            raise ValueError
        if any(n > INT32 for n in value):
            raise ValueError(f"at most {INT32} each")
        return tuple(int(n) for n in value)

    return _field(check, "a sequence of positive integers", default, optional, traced=False)


def static(
    default: object = _MISSING,
    *,
    check: Check = lambda value: value,
    expected: str = "",
    optional: bool = True,
) -> FieldOf:
    """A static field of any kind; `check` returns the value to keep or raises `ValueError`."""
    return _field(check, expected, default, optional, traced=False)


def named(*, default: object, options: Mapping[str, object], optional: bool = False) -> FieldOf:
    """A static field for a function: the name of a known one, or a user's."""

    def check(value: object) -> object:
        if isinstance(value, str):
            if value not in options:
                raise ValueError(suggest(value, options))
            return options[value]
        if not callable(value):
            raise ValueError
        return value

    expected = "a function, or one of " + ", ".join(map(repr, options))
    field = _field(check, expected, default, optional, traced=False)
    return dataclasses.field(default=default, metadata={**field.metadata, "options": options})


@dataclass_transform(
    frozen_default=True,
    field_specifiers=(real, integer, flag, choice, sizes, static, named),
)
class Record:
    """Base of agents, buffers and configurations: subclass it and list the fields.

    Raises:
        ConfigError: from the constructor and from `replace`: an unknown name, a missing field, a
            value of the wrong type or out of range.

    A field may also be given by an alias, its name in other libraries (`purerl.records.aliases`).
    """

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True, repr=False)(cls)
        construct: Callable[..., None] = cls.__init__

        @functools.wraps(construct)  # so that `help` and `inspect.signature` show the fields
        def __init__(self: Any, *args: object, **values: object) -> None:  # noqa: N807
            values = read_names(type(self), values)
            _check_names(type(self), values, len(args))
            construct(self, *args, **values)
            for name in field_names(type(self)):
                object.__setattr__(self, name, check_value(type(self), name, getattr(self, name)))
            self.check()

        cls.__init__ = __init__  # type: ignore[method-assign]
        cls.__doc__ = complete(cls, field_names(cls))
        if cls.__module__.startswith("purerl."):
            _RECORDS[cls.__name__] = cls
        _register(cls)

    def __repr__(self) -> str:
        """The call of the constructor, with the fields that differ from their defaults."""
        values = ", ".join(f"{name}={x!r}" for name, x in self.given().items())
        return f"{type(self).__name__}({values})"

    def given(self) -> dict[str, object]:
        """The fields that differ from their defaults, by name."""
        return {
            name: getattr(self, name)
            for name, field in field_options(type(self)).items()
            if not _same(getattr(self, name), field.default)
        }

    def check(self) -> None:
        """Checks conditions between fields; for subclasses to extend. Raises ConfigError."""

    def replace(self, **changes: object) -> Self:
        """A copy with some fields changed. Raises ConfigError as the constructor does."""
        cls = type(self)
        changes = read_names(cls, changes)
        _check_names(cls, changes, None)
        copy = unchecked(self, **{name: check_value(cls, name, x) for name, x in changes.items()})
        copy.check()
        return copy


def unchecked(record: R, **values: object) -> R:
    """A copy with some fields set without checks, for values that are known to be valid."""
    copy = object.__new__(type(record))
    copy.__dict__.update(record.__dict__, **values)
    return copy


def title(cls: type) -> str:
    """The name of a record in errors: its `_title`, or the name of its class."""
    return str(cls.__dict__.get("_title", cls.__name__))


def field_names(cls: type, traced: bool | None = None) -> list[str]:
    """Names of the fields; only the traced ones if `traced` is True, the static ones if False."""
    return [f.name for f in _fields(cls, traced)]


def total_names(cls: type) -> list[str]:
    """Names of the fields that are totals over all devices."""
    return [f.name for f in _fields(cls) if f.metadata.get("total")]


def field_options(cls: type) -> dict[str, dataclasses.Field[object]]:
    """The dataclass fields by name; `metadata["expected"]` describes the allowed values."""
    return {f.name: f for f in _fields(cls)}


def _same(value: object, default: object) -> bool:
    """Whether a field has its default value; an array never does, since `==` is elementwise."""
    if isinstance(value, Record) and type(value) is type(default):
        return repr(value) == repr(default)
    plain = isinstance(value, (bool, int, float, str, tuple)) and type(value) is type(default)
    return value is default or (plain and bool(value == default))


def _fields(cls: type, traced: bool | None = None) -> list[dataclasses.Field[object]]:
    fields = dataclasses.fields(cls)
    return [f for f in fields if traced is None or f.metadata.get("traced", False) == traced]


def check_value(cls: type, name: str, value: object) -> Any:
    """The value as the field stores it. Raises ConfigError if it isn't allowed."""
    field = field_options(cls)[name]
    if "check" not in field.metadata or (value is None and field.metadata["optional"]):
        return value
    try:
        return field.metadata["check"](value)
    except (ValueError, TypeError, OverflowError) as error:
        shape = np.shape(value) if isinstance(value, (np.ndarray, jax.Array)) else ()
        got = f"an array of shape {shape}" if shape else shown(value)
        expected = field.metadata["expected"]
        message = f"{title(cls)}.{name}: got {got}, expected {expected}"
        if shape and field.metadata["traced"]:
            message += "; to sweep it, give train its hyperparameters under jax.vmap"
        hint = str(error) if isinstance(error, ValueError) else ""
        raise ConfigError(f"{message}; {hint}" if hint else message) from None


def _elsewhere(cls: type, name: str) -> str:
    """A hint at the package's record that has a field of this name; empty if none has."""
    for other in (_RECORDS[word] for word in ("TrainConfig", "Buffer", "PPO") if word in _RECORDS):
        field = field_of(name, field_names(other))
        if field in field_names(other) and not issubclass(other, cls):
            return f"it is a field of {other.__name__}, {field!r}"
    return ""


def read_names(cls: type, values: Mapping[str, V]) -> dict[str, V]:
    """Values by field, with aliases replaced by the fields' names; unknown names are kept.

    Raises:
        ConfigError: a field is given under two names.
    """
    names = field_names(cls)
    found: dict[str, V] = {}
    given: dict[str, str] = {}
    for name, value in values.items():
        field = field_of(name, names)
        if field in given:
            raise ConfigError(
                f"{title(cls)}: {given[field]!r} and {name!r} are the same field, expected one "
                "of them"
            )
        given[field], found[field] = name, value
    return found


def _check_names(cls: type, values: Mapping[str, object], num_positional: int | None) -> None:
    names = field_names(cls)
    for name in values:
        if name not in names:
            hint = _elsewhere(cls, name) or suggest(name, names)
            noun = "field" if title(cls) == cls.__name__ else "argument"
            raise ConfigError(f"{title(cls)}: no {noun} {shown(name)}; {hint}")
    if num_positional is None:
        return
    if num_positional > len(names):
        raise ConfigError(
            f"{title(cls)}: got {num_positional} values, expected at most {len(names)}: "
            f"{', '.join(names)}"
        )
    for name in names[:num_positional]:
        if name in values:
            raise ConfigError(f"{title(cls)}.{name}: given twice, by its place and by its name")
    given = set(values) | set(names[:num_positional])
    for field in _fields(cls):
        required = field.default is _MISSING and field.default_factory is _MISSING
        if required and field.name not in given:
            expected = field.metadata.get("expected", "a value")
            raise ConfigError(f"{title(cls)}.{field.name}: missing, expected {expected}")


def _register(cls: type) -> None:
    """Registers a record as a pytree; without its constructor, which rejects placeholders."""
    traced, fixed = ([f.name for f in _fields(cls, kind)] for kind in (True, False))
    keys = [jax.tree_util.GetAttrKey(name) for name in traced]

    def flatten(self: object) -> tuple[Leaves, Leaves]:
        return tuple(getattr(self, n) for n in traced), tuple(getattr(self, n) for n in fixed)

    def flatten_with_keys(
        self: object,
    ) -> tuple[tuple[tuple[jax.tree_util.GetAttrKey, object], ...], Leaves]:
        leaves, aux = flatten(self)
        return tuple(zip(keys, leaves, strict=True)), aux

    def unflatten(aux: Leaves, leaves: Iterable[object]) -> object:
        self: object = object.__new__(cls)
        for name, value in zip(traced + fixed, (*leaves, *aux), strict=True):
            object.__setattr__(self, name, value)
        return self

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)


def check_path(name: str, path: object) -> Path:
    """A user's path, with `~` expanded.

    Raises:
        ConfigError: it is neither text nor an `os.PathLike` of text, is empty, or contains a NUL.
    """
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str) or not text or "\0" in text:
        raise ConfigError(f"{name}: got {shown(path)}, expected a path, as text or pathlib.Path")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~somebody
        raise ConfigError(f"{name}: got {text!r}: {error}") from None


def check_key(key: object) -> None:
    """Raises ConfigError unless `key` is a single typed key, `jax.random.key(seed)`."""
    dtype = getattr(key, "dtype", None)
    if not isinstance(key, jax.Array | jax.ShapeDtypeStruct | jax.core.Tracer) or not (
        jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    ):
        got = f"{dtype} {key.shape}" if hasattr(key, "shape") else shown(key)
        raise ConfigError(f"key: got {got}, expected a typed key: jax.random.key(seed)")
    if key.shape:
        raise ConfigError(
            f"key: got {math.prod(key.shape)} keys, expected one; for many agents, "
            "jax.vmap(train)(keys)"
        )


def check_count(
    name: str,
    value: Any,
    *,
    at_least: int = 1,
    at_most: int = INT32,
    optional: bool = False,
) -> int:
    """An argument that is an integer, such as a number of episodes.

    Args:
        name: the argument's, for the message.
        value: the argument.
        at_least, at_most: the bounds, both allowed.
        optional: whether the message mentions None as allowed.

    Raises:
        ConfigError: it is no integer, or out of bounds.
    """
    whole = isinstance(value, (float, np.floating)) and float(value).is_integer()
    right = whole or (isinstance(value, (int, np.integer)) and not isinstance(value, bool))
    if not right or not at_least <= value <= at_most:
        words = f"an integer >= {at_least}" + (" or None" if optional else "")
        hint = f"; at most {at_most}" if right and value > at_most else ""
        raise ConfigError(f"{name}: got {shown(value)}, expected {words}{hint}")
    return int(value)
