"""What the host writes: files whole or not at all, and plain words for what a run is."""

import functools
import itertools
import os
import platform
import re
import zipfile
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from purerl.envs.base import Env
from purerl.errors import RunError
from purerl.fields import Record, field_names

PACKAGES = ("purerl", "jax", "jaxlib", "flax", "optax", "gymnax", "orbax-checkpoint")
# What numpy raises where an npz file is not what it was.
DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


def write_whole(path: Path, write: Any) -> None:
    """Writes a file that is there whole or not at all, even after a power cut."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.unlink(missing_ok=True)  # of a process that was killed, or a link to anything
        with partial.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: Any, what: str) -> None:
    """Writes bytes as `write_whole` does. Raises RunError: what couldn't be written, and why."""
    try:
        write_whole(path, lambda file: file.write(data))
    except OSError as error:
        raise RunError(f"{what} can't be written to {path}: {reason(error)}") from None


def by_path(tree: Any) -> dict[str, Any]:
    """A pytree's leaves by their path in it."""
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}


def plain_bytes(x: np.ndarray) -> np.ndarray:
    """An array of one of numpy's own types: archives keep no bfloat16 and its like."""
    return x if x.dtype.isbuiltin == 1 else x.view(f"u{x.dtype.itemsize}")


def counted(number: int, noun: str) -> str:
    """`1 seed`, `8 seeds`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def reason(error: BaseException) -> str:
    """An error in one line; the system's own word where it has one."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def versions() -> dict[str, str | None]:
    """The versions of what numbers depend on."""

    def known(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {"python": platform.python_version(), **{name: known(name) for name in PACKAGES}}


def describe(value: Any) -> Any:
    """A value in plain ones. Functions and classes are their names: what they do isn't seen."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Record):
        fields = {name: describe(getattr(value, name)) for name in field_names(type(value))}
        return {"class": type(value).__qualname__, **fields}
    if isinstance(value, Env):
        fields = value.spec._asdict()
        spec = {name: re.sub(r" at 0x\w+", "", repr(fields[name])) for name in fields}
        return {"env": fields["name"], "spec": spec}
    if isinstance(value, Mapping):
        return {str(name): describe(x) for name, x in value.items()}
    if isinstance(value, (tuple, list)):
        return [describe(x) for x in value]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return np.asarray(value).tolist()
    if isinstance(value, functools.partial):
        return {
            "partial": describe(value.func),
            "args": describe(value.args),
            **describe(value.keywords),
        }
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return re.sub(r" at 0x\w+", "", repr(value))


def differences(there: Any, here: Any, name: str = "") -> Iterator[str]:
    """What two descriptions differ in, by its full name."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in {**there, **here}:
            inside = f"{name}.{key}" if name else key
            yield from differences(there.get(key), here.get(key), inside)
    elif there != here or type(there) is not type(here):
        old, new = _where_they_part(repr(there), repr(here))
        yield f"{name} is {old} there, got {new}"


def _where_they_part(old: str, new: str) -> tuple[str, str]:
    """Two texts; of long ones what is around the first place in which they differ."""
    if max(len(old), len(new)) < 80:
        return old, new
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False))
    first = sum(1 for _ in pairs)
    start = first - 30 if first > 33 else 0

    def cut(text: str) -> str:
        end = start + 70
        return "..." * (start > 0) + text[start:end] + "..." * (len(text) > end)

    return cut(old), cut(new)
