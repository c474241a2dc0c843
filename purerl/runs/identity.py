"""The identity of the run in a folder: only the same run resumes there."""

import contextlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import jax

from purerl.records.errors import ConfigError
from purerl.records.fields import unchecked
from purerl.records.files import read_text
from purerl.records.folders import is_taken, list_checkpoints
from purerl.records.types import Plain
from purerl.runs.checkpoint import RunFolder
from purerl.runs.folder import CONFIG, RUN
from purerl.training.config import TrainConfig
from purerl.training.describe import differences, versions
from purerl.training.effective import describe_in_force, filled
from purerl.training.loop import Loop


def refuse_to_begin(path: Path) -> None:
    """Raises ConfigError if a folder holds no run to resume. Changes nothing."""
    if not is_taken(path, RUN, "run"):
        raise ConfigError(f"resume: got True, but {path} holds no run (nothing was changed)")


def with_rows_of(config: TrainConfig, path: Path) -> TrainConfig:
    """The config with the `log_every` of the run in a folder, where it leaves that open: by default
    it follows from the length of a run, and a longer one couldn't go on in rows of that size."""
    there: Plain = None
    with contextlib.suppress(OSError, ValueError, RecursionError):  # which are told later
        if config.log_every is None and list_checkpoints(path):
            there = json.loads(read_text(path / RUN))
    rows = there.get("log_every") if isinstance(there, dict) else None
    if type(rows) is not int:
        return config
    loop = config.make_loop()
    fits = 1 <= rows <= loop.num_updates and rows != loop.log_every
    return unchecked(config, log_every=rows) if fits else config


def claim(
    folder: RunFolder,
    run: dict[str, Plain],
    options: TrainConfig,
    loop: Loop,
    resume: bool | None,
) -> None:
    """Writes the run's description into a new folder, or compares it with the folder's.

    Args:
        folder: the run's.
        run: `hyperparams`, `config`, `seeds`, `init` and `log_every`, in plain values.
        options: of the run; in `config`, its description, are also the hyperparameters that all
            seeds share.
        loop: of the run.
        resume: as in `fit`.

    Raises:
        ConfigError: the folder holds another run, or one although `resume` is False.
    """
    run = json.loads(json.dumps(run))  # as it comes back from a file
    found = folder.read_run()
    trained = folder.latest or 0
    if resume and found is not None and run["init"] is None:
        run["init"] = _init_of(folder, found)
    if found is None or (folder.latest is None and not resume):
        folder.write_run({**run, "versions": versions(), "hardware": hardware()})
        return
    if resume is False:
        raise ConfigError(
            f"resume: got False, but {folder.path} holds a run of {trained} updates; choose "
            "another folder (nothing was changed)"
        )
    old, new = (x["config"]["total_timesteps"] for x in (found, run))
    config = filled(found["config"], options)
    config = {**config, "total_timesteps": new} if old and new else config
    # By default `log_every` follows from the length of the run.
    config = config | {"log_every": run["config"]["log_every"]}
    # What a run leaves open is the environment's strategy, whether it is named or not.
    if (config.get("resets") or loop.env.spec.resets) == loop.resets:
        config = config | {"resets": run["config"]["resets"]}
    parts = {name: found.get(name) for name in run} | {"config": config}
    parts["log_every"] = run["log_every"]
    differing = _differing(parts, run, options)
    if differing is not None:
        raise ConfigError(
            f"run_dir: {folder.path} holds another run: {differing}; choose another folder "
            "(nothing was changed)"
        )
    if old != new and loop.schedules:
        raise ConfigError(
            f"total_timesteps: {folder.path} holds a run of {old} steps, got {new}; "
            f"{' and '.join(loop.schedules)} follows the length of the run, so that a longer one "
            f"is another run (nothing was changed). {_instead(folder, found, old, new)}"
        )
    _check_rows(folder, found.get("log_every", 1), trained, loop)
    if trained > loop.num_updates:
        raise ConfigError(
            f"total_timesteps: got {new}, but {folder.path} has been trained for "
            f"{trained * loop.steps_per_update} steps already (nothing was changed)"
        )
    warn_of_versions(folder, found)
    if old != new or config != run["config"]:
        folder.write_run({**run, "versions": versions(), "hardware": hardware()})


def _differing(
    there: Mapping[str, Plain], here: Mapping[str, Plain], options: TrainConfig
) -> str | None:
    """The first difference between the descriptions of two runs, in words; `options` as of
    `claim`."""
    found = next(differences(dict(there), dict(here)), None)
    if found is None or not here["hyperparams"]:
        return found
    # In folders of earlier versions the config is described without the hyperparameters.
    config = json.loads(json.dumps(describe_in_force(options)))
    earlier = next(differences(dict(there), {**here, "config": config}), None)
    return None if earlier is None else found


def _init_of(folder: RunFolder, found: Mapping[str, Plain]) -> Plain:
    """The digest of the learned parameters that a run began with, which aren't needed any more.
    Raises ConfigError where they are, since it has no checkpoint yet."""
    init = found.get("init")
    if init is not None and folder.latest is None:
        raise ConfigError(
            f"init: missing, since {folder.path} has no checkpoint yet: give that which the run "
            "began with (nothing was changed)"
        )
    return init


def _instead(folder: RunFolder, found: Mapping[str, Plain], old: Plain, new: Plain) -> str:
    """What to do instead of a longer run with schedules, in words."""
    if not (isinstance(old, int) and isinstance(new, int) and new > old):
        return "Choose another folder"
    seeds = found.get("seeds")
    which = "" if seeds is None else f" --seeds {_listed(seeds)}"
    return (
        "A new run that starts from what this one has learned, with fresh schedules: purerl train "
        f"--config {folder.path / CONFIG} --init {folder.path} --total-timesteps {new - old}{which}"
    )


def _listed(seeds: list[int]) -> str:
    """Seeds as the command line takes them."""
    if seeds == list(range(len(seeds))):
        return str(len(seeds))
    return ",".join(map(str, seeds)) + ("," if len(seeds) == 1 else "")


def warn_of_versions(folder: RunFolder, found: Mapping[str, Plain]) -> None:
    """Warns if the run in a folder, of this description, began with other versions of packages."""
    now = versions()
    changed = {n: (x, now[n]) for n, x in found["versions"].items() if now.get(n) != x}
    if changed:
        warnings.warn(
            f"{folder.path} was trained with other versions, so that the rest may differ in the "
            f"last digits from what it would have been: {changed}",
            stacklevel=4,
        )


def _check_rows(folder: RunFolder, log_every: int, trained: int, loop: Loop) -> None:
    """Raises ConfigError if the saved rows of metrics don't match the rows to come."""
    if log_every != loop.log_every:
        raise ConfigError(
            f"log_every: {folder.path} has a row of metrics every {log_every} updates, got "
            f"{loop.log_every}; say log_every={log_every} (nothing was changed)"
        )
    if trained % log_every and trained < loop.num_updates:
        raise ConfigError(
            f"total_timesteps: {folder.path} has ended after {trained} updates, within a row of "
            f"metrics (log_every={log_every}), so that it can't be made longer: choose another "
            "folder (nothing was changed)"
        )


def hardware() -> str:
    """Devices and CPU cores, in words."""
    found = jax.devices()
    return f"{len(found)} x {found[0].device_kind}, {os.cpu_count()} CPU cores"
