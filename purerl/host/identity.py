"""Which run a folder holds, and whether it is the one that is asked for."""

import json
import os
import pathlib
import platform
import warnings
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax

from purerl.errors import ConfigError
from purerl.host.checkpoint import RunFolder
from purerl.loop import Loop

PACKAGES = ("purerl", "jax", "jaxlib", "flax", "optax", "gymnax", "orbax-checkpoint")


def claim(folder: RunFolder, run: dict[str, Any], loop: Loop, resume: bool | None) -> None:
    """Makes a folder this run's, or makes sure that it is.

    Args:
        folder: which.
        run: `config`, `hyperparams` and `seeds`, in plain values.
        loop: the run.
        resume: as in `fit`.

    Raises:
        ConfigError: the folder is another run's, or not as `resume` says.
    """
    run = json.loads(json.dumps(run))  # as it comes back from a file
    found = folder.read_run()
    if found is None or folder.latest is None:
        if resume:
            raise ConfigError(f"resume: got True, but {folder.path} holds no checkpoint yet")
        folder.write_run({**run, **surroundings()})
        return
    if resume is False:
        raise ConfigError(
            f"resume: got False, but {folder.path} holds a run of {folder.latest} updates; choose "
            "another folder (nothing was changed)"
        )
    old, new = (x["config"].get("total_timesteps") for x in (found, run))
    config = {**found["config"], "total_timesteps": new} if old and new else found["config"]
    _compare({**found, "config": config}, run, folder.path)
    if old != new and loop.schedules:
        raise ConfigError(
            f"total_timesteps: {folder.path} holds a run of {old} steps, got {new}; "
            f"{' and '.join(loop.schedules)} follows the length of the run, so that a longer one "
            "is another run: choose another folder (nothing was changed)"
        )
    if folder.latest > loop.num_updates:
        raise ConfigError(
            f"total_timesteps: got {new}, but {folder.path} has been trained for "
            f"{folder.latest * loop.steps_per_update} steps already (nothing was changed)"
        )
    versions = surroundings()["versions"]
    changed = {n: (x, versions[n]) for n, x in found["versions"].items() if versions.get(n) != x}
    if changed:
        warnings.warn(
            f"{folder.path} was trained with other versions, so that the rest may differ in the "
            f"last digits from what it would have been: {changed}",
            stacklevel=3,
        )
    if old != new:
        folder.write_run({**run, **surroundings()})


def surroundings() -> dict[str, Any]:
    """The versions and the hardware that a run was made with."""
    devices = jax.devices()
    return {
        "versions": {"python": platform.python_version(), **{n: _version(n) for n in PACKAGES}},
        "hardware": f"{len(devices)} x {devices[0].device_kind}, {os.cpu_count()} CPU cores",
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _compare(found: Mapping[str, Any], given: Mapping[str, Any], path: pathlib.Path) -> None:
    """Raises ConfigError where a folder holds another run, and says in what it differs."""
    for part in ("config", "hyperparams", "seeds"):
        differing = _first_difference(part, found.get(part), given[part])
        if differing is not None:
            name, old, new = differing
            raise ConfigError(
                f"run_dir: {path} holds another run: {name} is {old!r} there, got {new!r}; "
                "choose another folder (nothing was changed)"
            )


def _first_difference(name: str, old: Any, new: Any) -> tuple[str, Any, Any] | None:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            differing = _first_difference(f"{name}.{key}", old.get(key), new.get(key))
            if differing is not None:
                return differing
        return None
    return None if old == new else (name, old, new)
