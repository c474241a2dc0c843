"""Finished slices of a sweep on disk, from which a killed sweep continues.

Each file has checksums over all its contents, and names its sweep and its members. A file that
doesn't pass is put aside, and its members are trained again.
"""

import dataclasses
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from purerl.records.errors import ConfigError, RunError
from purerl.records.files import (
    plain_bytes,
    put_aside,
    read_arrays,
    read_text,
    reason,
    seal_of,
    sealed,
    unsealed,
    write_arrays,
    write_whole,
)
from purerl.records.folders import is_taken
from purerl.sweeps.plan import Plan
from purerl.training.describe import describe, differences, versions

DESCRIPTION = "sweep.json"
KIND, FORMAT = "purerl sweep", 2


@dataclasses.dataclass(frozen=True)
class Store:
    """A folder of slices, one file each, written whole or not at all.

    Attributes:
        path: the folder.
        sweep: a hash of the sweep's description.
        read_only: whether damaged files stay where they are.
    """

    path: Path
    sweep: str = ""
    read_only: bool = False

    def save(self, group: int, places: np.ndarray, leaves: list[np.ndarray]) -> None:
        """Writes a slice: indices of members in their group, and the leaves of their outputs."""
        name = f"group-{group:03d}-members-{places[0]:06d}-{places[-1]:06d}.npz"
        arrays = {f"leaf_{i:03d}": plain_bytes(x) for i, x in enumerate(leaves)}
        arrays = {"places": places, **arrays}
        about = self._about(group)
        write_whole(self.path / name, lambda file: write_arrays(file, about, arrays))

    def load(
        self, group: int, size: int, shapes: list[jax.ShapeDtypeStruct]
    ) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
        """Reads the intact slices of a group; the others are put aside, with a warning.

        Args:
            group: its index in the plan.
            size: its number of members.
            shapes: of the leaves of one member's output, as on the host.

        Raises:
            RunError: a damaged file can't be put aside.
        """
        for file in sorted(self.path.glob(f"group-{group:03d}-members-*.npz")):
            try:
                found = self._read(file, group, size, shapes)
            except (OSError, ValueError, KeyError, TypeError) as error:
                trouble = f"{file} can't be used ({reason(error)})"
            else:
                yield found
                continue
            if self.read_only:
                warnings.warn(f"{trouble}: its members are left out", stacklevel=4)
                continue
            try:
                aside = put_aside(file)
            except OSError as error:
                raise RunError(f"{trouble}, and not be put aside: {reason(error)}") from None
            warnings.warn(
                f"{trouble}: put aside as {aside.name}, its members are trained again",
                stacklevel=4,
            )

    def _about(self, group: int) -> dict[str, object]:
        return {"kind": KIND, "format": FORMAT, "sweep": self.sweep, "group": group}

    def _read(
        self, file: Path, group: int, size: int, shapes: list[jax.ShapeDtypeStruct]
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        about, arrays = read_arrays(file)
        differing = next(differences(about, self._about(group)), None)
        if differing is not None:
            raise ValueError(f"it is in another's place: {differing}")
        places = arrays.pop("places")
        if places.ndim != 1 or not np.all((places >= 0) & (places < size)):
            raise ValueError(f"it has members beyond {size}")
        leaves = []
        for (name, leaf), shape in zip(arrays.items(), shapes, strict=True):
            leaves.append(leaf.view(shape.dtype))
            if leaf.shape != (len(places), *shape.shape):
                raise ValueError(f"{name} has shape {leaf.shape}")
        return places, leaves


def open_store(run_dir: str | os.PathLike[str], description: dict[str, object]) -> Store:
    """Opens the store of a sweep, in an empty folder or in the one of the same sweep.

    Raises:
        ConfigError: something else is in the folder, or another sweep, with the difference.
    """
    path = Path(run_dir)
    return Store(path, claim(path, DESCRIPTION, "sweep", description))


def claim(path: Path, marker: str, kind: str, description: dict[str, object]) -> str:
    """Writes a description into an empty folder, or compares it with the folder's.

    Args:
        path: the folder, which may be new.
        marker: the description's file.
        kind: what it describes, in one word.
        description: plain values, with `format`: equal for the same sweep (or search) alone.

    Returns:
        A hash of the description.

    Raises:
        ConfigError: something else is in the folder, or another of its kind, with the difference.
    """
    description = json.loads(json.dumps(description))
    file = path / marker
    if not is_taken(path, marker, kind):
        path.mkdir(parents=True, exist_ok=True)
        written = json.dumps(sealed(description), indent=2).encode()
        write_whole(file, lambda stream: stream.write(written))
        return seal_of(description)
    try:
        text = read_text(file)
        there = json.loads(text)
        if isinstance(there, dict) and there.get("format") == description["format"]:
            there = unsealed(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"run_dir: {file} can't be read, expected a {kind}'s own: {reason(error)}; choose "
            "another folder (nothing was changed)"
        ) from None
    differing = next(differences(there, description), None)
    if differing is not None:
        raise ConfigError(
            f"run_dir: {path} holds another {kind}: {differing}; choose another folder (nothing "
            "was changed)"
        )
    return seal_of(there)  # files name their sweep by it: of an earlier version it has less in it


def describe_sweep(plan: Plan, keep_buffer: bool) -> dict[str, object]:
    """The identity of a sweep in plain values: equal for the same sweep alone."""
    return {
        "format": FORMAT,
        "config": describe(plan.config),
        "names": list(plan.names),
        "combinations": [describe(values) for values in plan.combinations],
        "seeds": list(plan.seeds),
        "keep_buffer": keep_buffer,
        "versions": versions(),
    }
