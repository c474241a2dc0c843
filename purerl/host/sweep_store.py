"""Finished slices of a sweep on disk, to go on from after the process has died."""

import dataclasses
import functools
import importlib.metadata
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from purerl.envs.base import Env
from purerl.errors import ConfigError
from purerl.fields import Record, field_names
from purerl.sweep import Plan

DESCRIPTION = "sweep.json"


@dataclasses.dataclass(frozen=True)
class Store:
    """A folder of slices, one file each, written whole or not at all."""

    path: Path

    def save(self, group: int, places: np.ndarray, leaves: list[np.ndarray]) -> None:
        """Writes a slice: which members of a group, and the leaves of their outputs."""
        name = f"group-{group:03d}-members-{places[0]:06d}-{places[-1]:06d}.npz"
        arrays: dict[str, Any] = {f"leaf_{i:03d}": _plain_bytes(x) for i, x in enumerate(leaves)}
        write_whole(self.path / name, lambda file: np.savez(file, places=places, **arrays))

    def load(
        self, group: int, size: int, shapes: list[jax.ShapeDtypeStruct]
    ) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
        """The slices of a group that are there whole; others are removed.

        Args:
            group: its number.
            size: how many members it has.
            shapes: of the leaves of one member's output, as on the host.
        """
        for file in sorted(self.path.glob(f"group-{group:03d}-members-*.npz")):
            try:
                yield _read(file, size, shapes)
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                file.unlink()


def open_store(run_dir: str | os.PathLike[str], description: dict[str, Any]) -> Store:
    """The store of a sweep: an empty folder that is made its own, or the one that it left.

    Raises:
        ConfigError: something else is in the folder, or another sweep: it says what differs.
    """
    path = Path(run_dir)
    description = json.loads(json.dumps(description))
    file = path / DESCRIPTION
    if not file.exists():
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigError(f"run_dir: {path} is no sweep's folder, expected an empty or new one")
        path.mkdir(parents=True, exist_ok=True)
        text = json.dumps(description, indent=2).encode()
        write_whole(file, lambda stream: stream.write(text))
        return Store(path)
    try:
        there = json.loads(file.read_text())
    except (OSError, ValueError):
        raise ConfigError(f"run_dir: {file} can't be read, expected a sweep's own") from None
    differences = list(_differences(there, description))
    if differences:
        raise ConfigError(
            f"run_dir: {path} has another sweep, expected the same or a new folder. "
            f"There and here: {'; '.join(differences[:5])}"
        )
    return Store(path)


def write_whole(path: Path, write: Any) -> None:
    """Writes a file that is there whole or not at all, even after a power cut."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with open(partial, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _plain_bytes(x: np.ndarray) -> np.ndarray:
    """An array of one of numpy's own types: npz files keep no bfloat16 and its like."""
    return x if x.dtype.isbuiltin == 1 else x.view(f"u{x.dtype.itemsize}")


def _read(
    file: Path, size: int, shapes: list[jax.ShapeDtypeStruct]
) -> tuple[np.ndarray, list[np.ndarray]]:
    with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        places = arrays["places"]
        leaves = [arrays[f"leaf_{i:03d}"] for i in range(len(arrays.files) - 1)]
    if places.ndim != 1 or not np.all((places >= 0) & (places < size)):
        raise ValueError
    for i, (leaf, shape) in enumerate(zip(leaves, shapes, strict=True)):
        leaves[i] = leaf.view(shape.dtype)
        if leaf.shape != (len(places), *shape.shape):
            raise ValueError
    return places, leaves


def describe_sweep(plan: Plan, keep_buffer: bool) -> dict[str, Any]:
    """What makes a sweep that one and no other, in plain values."""
    packages = ("purerl", "jax", "jaxlib", "flax", "optax", "gymnax")
    return {
        "format": 1,
        "config": describe(plan.config),
        "names": list(plan.names),
        "combinations": [describe(values) for values in plan.combinations],
        "seeds": list(plan.seeds),
        "keep_buffer": keep_buffer,
        "versions": {name: _version(name) for name in packages},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe(value: Any) -> Any:
    """A value in plain ones. Functions and classes are their names: what they do isn't seen."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Record):
        fields = {name: describe(getattr(value, name)) for name in field_names(type(value))}
        return {"class": type(value).__qualname__, **fields}
    if isinstance(value, Env):
        return {"env": value.spec.name, "spec": re.sub(r" at 0x\w+", "", repr(value.spec))}
    if isinstance(value, Mapping):
        return {str(name): describe(x) for name, x in value.items()}
    if isinstance(value, (tuple, list)):
        return [describe(x) for x in value]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return np.asarray(value).tolist()
    if isinstance(value, functools.partial):
        return {"partial": describe(value.func), "args": describe(value.args), **value.keywords}
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return re.sub(r" at 0x\w+", "", repr(value))


def _differences(there: Any, here: Any, name: str = "") -> Iterator[str]:
    """What two descriptions differ in, by its full name."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in {**there, **here}:
            inside = f"{name}.{key}" if name else key
            yield from _differences(there.get(key), here.get(key), inside)
    elif there != here or type(there) is not type(here):
        texts = (json.dumps(x) for x in (there, here))
        yield f"{name} {' and '.join(x if len(x) < 80 else x[:77] + '...' for x in texts)}"
