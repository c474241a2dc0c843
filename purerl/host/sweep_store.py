"""Finished slices of a sweep on disk, to go on from after the process has died."""

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from purerl.errors import ConfigError
from purerl.host.files import (
    DAMAGED,
    describe,
    differences,
    plain_bytes,
    read_text,
    versions,
    write_whole,
)
from purerl.host.folders import is_taken
from purerl.sweep import Plan

DESCRIPTION = "sweep.json"


@dataclasses.dataclass(frozen=True)
class Store:
    """A folder of slices, one file each, written whole or not at all."""

    path: Path

    def save(self, group: int, places: np.ndarray, leaves: list[np.ndarray]) -> None:
        """Writes a slice: which members of a group, and the leaves of their outputs."""
        name = f"group-{group:03d}-members-{places[0]:06d}-{places[-1]:06d}.npz"
        arrays: dict[str, Any] = {f"leaf_{i:03d}": plain_bytes(x) for i, x in enumerate(leaves)}
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
            except DAMAGED:
                file.unlink()


def open_store(run_dir: str | os.PathLike[str], description: dict[str, Any]) -> Store:
    """The store of a sweep: an empty folder that is made its own, or the one that it left.

    Raises:
        ConfigError: something else is in the folder, or another sweep: it says what differs.
    """
    path = Path(run_dir)
    description = json.loads(json.dumps(description))
    file = path / DESCRIPTION
    if not is_taken(path, DESCRIPTION, "sweep"):
        path.mkdir(parents=True, exist_ok=True)
        text = json.dumps(description, indent=2).encode()
        write_whole(file, lambda stream: stream.write(text))
        return Store(path)
    try:
        there = json.loads(read_text(file))
    except (OSError, ValueError, RecursionError):
        raise ConfigError(f"run_dir: {file} can't be read, expected a sweep's own") from None
    differing = next(differences(there, description), None)
    if differing is not None:
        raise ConfigError(
            f"run_dir: {path} holds another sweep: {differing}; choose another folder (nothing was "
            "changed)"
        )
    return Store(path)


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
    return {
        "format": 1,
        "config": describe(plan.config),
        "names": list(plan.names),
        "combinations": [describe(values) for values in plan.combinations],
        "seeds": list(plan.seeds),
        "keep_buffer": keep_buffer,
        "versions": versions(),
    }
