"""Descriptions of configs, agents and environments in plain values, which identify a run."""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import itertools
import platform
import re
import types
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import numpy as np

from purerl.envs.base import Dynamics, Env, dynamics_of
from purerl.envs.gymnax_wrappers import Bare
from purerl.records.fields import Record, field_names
from purerl.records.types import Plain

PACKAGES = ("purerl", "jax", "jaxlib", "flax", "optax", "gymnax", "orbax-checkpoint")
# Arrays of more numbers are described by a digest.
MANY = 64
# Values of these types in the closures of an environment's functions are its parameters.
CONSTANTS = (bool, int, float, str, tuple, np.ndarray, np.generic, jax.Array, Record, Env)


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that results depend on."""

    def known(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {"python": platform.python_version(), **{name: known(name) for name in PACKAGES}}


def describe(value: Any, inside: tuple[object, ...] = ()) -> Plain:
    """A description of a value in plain ones; of functions and classes only the names.

    Args:
        value: of any type.
        inside: the objects that it is an attribute of, which aren't described again.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Record):
        fields = {name: describe(getattr(value, name)) for name in field_names(type(value))}
        return {"class": type(value).__qualname__, **fields}
    if isinstance(value, Env):
        return _describe_env(value, inside)
    if isinstance(value, Mapping):
        return {str(name): describe(x, inside) for name, x in value.items()}
    if isinstance(value, (tuple, list)):
        return [describe(x, inside) for x in value]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return _describe_array(value)
    if isinstance(value, functools.partial):
        return {
            "partial": describe(value.func),
            "args": describe(value.args),
            **describe(value.keywords),
        }
    if hasattr(value, "__qualname__"):
        return _name_of(value)
    if dataclasses.is_dataclass(value) or hasattr(value, "step_env"):
        return _describe_object(value, inside)
    if isinstance(value, (set, frozenset)):  # their order differs between processes
        return sorted(map(_printed, value))
    return _printed(value)


def _name_of(value: Any) -> str:
    """The full name of a class or a function; of purerl's without the module, which may change."""
    module = value.__module__
    return f"{'purerl' if module.startswith('purerl.') else module}.{value.__qualname__}"


def _printed(value: object) -> str:
    return re.sub(r" at 0x\w+", "", repr(value))


def _describe_env(env: Env, inside: tuple[object, ...]) -> dict[str, Plain]:
    """An environment's spec and parameters: the fields of its `Dynamics`, or the constants in the
    closures of a user's functions."""
    spec, dynamics = env.spec, dynamics_of(env)
    spaces = (spec.observation_space, spec.action_space)
    known = (
        {name: _constants(getattr(env, name), inside) for name in ("reset", "step")}
        if dynamics is None
        else _describe_dynamics(dynamics, inside)
    )
    return {
        "env": spec.name,
        **dict(zip(("observation_space", "action_space"), map(_printed, spaces), strict=True)),
        "max_episode_steps": spec.max_episode_steps,
        **({} if spec.legal is None else {"legal": describe(spec.legal)}),
        "dynamics": known,
    }


def _describe_dynamics(dynamics: Dynamics, inside: tuple[object, ...]) -> dict[str, Plain]:
    """Parameters; of functions among them also the constants in their closures."""
    identity = dynamics.identity()
    functions = {n: x for n, x in identity.items() if isinstance(x, types.FunctionType)}
    seen = {n: {"function": describe(x), **_constants(x, inside)} for n, x in functions.items()}
    return {name: describe(x, inside) for name, x in identity.items()} | seen


def _constants(function: Any, inside: tuple[object, ...]) -> dict[str, Plain]:
    """Numbers, arrays, records and environments that a function refers to by its closure, its
    default arguments, or its instance if it is a method; not by global names."""
    if isinstance(owner := getattr(function, "__self__", None), Dynamics):
        return _describe_dynamics(owner, inside)
    function = inspect.unwrap(function)  # of jax.jit and its like
    if isinstance(function, type) or any(function is x for x in inside):
        return {}
    if owner is None and not isinstance(function, types.FunctionType):
        owner = function  # a callable object
    found = dict(getattr(owner, "__dict__", {}))
    if isinstance(function, functools.partial):
        found |= {"func": function.func, "args": function.args, **function.keywords}
    with contextlib.suppress(AttributeError, TypeError, ValueError):  # no Python function
        found |= {
            name: x.default
            for name, x in inspect.signature(function).parameters.items()
            if x.default is not x.empty
        }
        found |= inspect.getclosurevars(function).nonlocals
    constants: dict[str, Plain] = {}
    for name, value in found.items():
        if isinstance(value, CONSTANTS) or (
            dataclasses.is_dataclass(value) and not isinstance(value, type)
        ):
            constants[name] = describe(value, (*inside, function))
        elif callable(value) and (inner := _constants(value, (*inside, function))):
            constants[name] = inner
    return constants


def _describe_array(x: Any) -> Plain:
    """The numbers of an array, or a digest of more than `MANY`."""
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    x = np.asarray(x)
    if x.size <= MANY:
        return x.tolist()
    digest = hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()
    return {"shape": list(x.shape), "dtype": x.dtype.name, "sha256": digest}


def _describe_object(value: object, inside: tuple[object, ...]) -> dict[str, Plain]:
    """The class and the attributes of a dataclass or a gymnax environment."""
    if isinstance(value, Bare):
        return _describe_object(value.env, inside)
    attributes: dict[str, object] = {}
    if not any(value is x for x in inside):
        names = list(getattr(value, "__dict__", {}))
        if dataclasses.is_dataclass(value):
            names = [field.name for field in dataclasses.fields(value)]
        attributes = {name: getattr(value, name) for name in names}
    return {"class": type(value).__qualname__, **describe(attributes, (*inside, value))}


def differences(there: Plain, here: Plain, name: str = "") -> Iterator[str]:
    """Differences between two descriptions, in words, each with its path."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in {**there, **here}:
            inside = f"{name}.{key}" if name else key
            yield from differences(there.get(key), here.get(key), inside)
    elif there != here or type(there) is not type(here):
        old, new = _where_they_part(repr(there), repr(here))
        yield f"{name} is {old} there, got {new}"


def _where_they_part(old: str, new: str) -> tuple[str, str]:
    """Two texts, cut around their first difference if they are long."""
    if max(len(old), len(new)) < 80:
        return old, new
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False))
    first = sum(1 for _ in pairs)
    start = first - 30 if first > 33 else 0

    def cut(text: str) -> str:
        end = start + 70
        return "..." * (start > 0) + text[start:end] + "..." * (len(text) > end)

    return cut(old), cut(new)
