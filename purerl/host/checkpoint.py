"""A run's folder: what the run is, its checkpoints, and the metrics up to each.

    run.json        config, hyperparameters, seeds, versions and hardware
    checkpoints/N/  the whole state after N updates, by orbax
    metrics/        the metrics of the updates between two checkpoints, one .npz each
    lock            held while a process trains here

Every file is written under another name and then moved to its own, so that a kill at any moment
leaves the last complete checkpoint. Loading reads arrays and JSON: no code comes from the files.
"""

import contextlib
import gc
import io
import json
import logging
import os
import pathlib
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Self

import jax
import numpy as np

from purerl import devices
from purerl.errors import RunError
from purerl.fields import check_path
from purerl.host.files import DAMAGED, by_path, reason, write_whole
from purerl.host.folders import EMPTY, LOCK, is_taken, locked, refuse_links

PyTree = Any
FORMAT = 1
RUN = "run.json"


class RunFolder:
    """The folder of one run, opened by the process that trains in it.

    Args:
        path: where it is, or is to be.
        keep: how many checkpoints stay.
        read_only: opened by another process, to be read; nothing is made, locked or removed.

    Raises:
        ConfigError: it is somebody else's: neither empty nor a run's.
        RunError: it can't be made or written, or another process trains in it.
    """

    def __init__(self, path: str | os.PathLike, keep: int, read_only: bool = False) -> None:
        self.path = check_path("run_dir", path).absolute()
        self._exits = contextlib.ExitStack()
        with self._exits:  # gives the lock back where something fails
            if devices.is_first_host() and not read_only:
                self._make()
            devices.wait_for_all_hosts("run_dir")
            # Imported late: only those who save wait for it.
            import orbax.checkpoint as ocp

            self._ocp = ocp
            self._exits.enter_context(_quiet_orbax())
            options = ocp.CheckpointManagerOptions(
                max_to_keep=keep, cleanup_tmp_directories=not read_only, read_only=read_only
            )
            self._manager = ocp.CheckpointManager(self.path / "checkpoints", options=options)
            self._exits = self._exits.pop_all()

    def _make(self) -> None:
        """Looks first: nothing is touched in a folder that isn't this one's to write into."""
        if is_taken(self.path, RUN, "run"):
            self.read_run()
        refuse_links(self.path, [RUN], EMPTY)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._exits.enter_context(locked(self.path / LOCK))
            for folder in EMPTY:
                (self.path / folder).mkdir(exist_ok=True)
            _remove_rests(self.path / "checkpoints")
        except OSError as error:
            raise RunError(f"run_dir: can't write into {self.path}: {reason(error)}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._exits, contextlib.suppress(Exception):  # what failed was raised by `wait`
            self._manager.close()

    @property
    def latest(self) -> int | None:
        """The updates of the newest complete checkpoint; None where there is none."""
        return self._manager.latest_step()

    def read_run(self) -> dict[str, Any] | None:
        """What `write_run` has written; None where it hasn't.

        Raises:
            RunError: it can't be read, or was written by another version.
        """
        file = self.path / "run.json"
        try:
            run = json.loads(file.read_text())
        except FileNotFoundError:
            if self.latest is None:
                return None
            raise RunError(f"{self.path} has checkpoints but no run.json: what they are of is not "
                           "known; nothing was changed") from None  # fmt: skip
        except (OSError, ValueError) as error:
            raise RunError(f"{file} can't be read: {reason(error)}; nothing was changed") from None
        if not isinstance(run, dict) or run.get("format") != FORMAT:
            found = run.get("format") if isinstance(run, dict) else None
            raise RunError(
                f"{file} has format {found}, expected {FORMAT}: it was written by another version "
                "of purerl; nothing was changed"
            )
        return run

    def write_run(self, run: Mapping[str, Any]) -> None:
        """Notes what the run is, in plain values."""
        text = json.dumps({"format": FORMAT, **run}, indent=2)
        with self._telling("what the run is"):
            write_whole(self.path / "run.json", lambda file: file.write(text.encode()))

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is still being written."""
        return self._manager.is_saving_in_progress()

    def save(self, num_updates: int, state: PyTree) -> None:
        """Starts to save a state, and comes back while it is written.

        Args:
            num_updates: its number of updates.
            state: stays as it is until all is written.

        Raises:
            RunError: it, or the one before, could not be written.
        """
        leaves = by_path(state)
        about = {"format": FORMAT, "state": _shapes(leaves)}
        args = self._ocp.args
        with self._telling("a checkpoint"):
            self._manager.check_for_errors()
            saved = args.StandardSave({n: x for n, x in leaves.items() if x.size})
            self._manager.save(
                num_updates, args=args.Composite(state=saved, about=args.JsonSave(about))
            )

    def wait(self) -> None:
        """Comes back when all is written. Raises RunError where that failed."""
        with self._telling("a checkpoint"):
            self._manager.wait_until_finished()

    def restore(self, num_updates: int, like: PyTree) -> PyTree:
        """A state that was saved.

        Args:
            num_updates: which.
            like: a state's shapes, and where they are to lie.

        Raises:
            RunError: it is damaged, or of another kind of state.
        """
        wanted = by_path(like)
        where = self.path / "checkpoints" / str(num_updates)
        args = self._ocp.args
        others = [step for step in self._manager.all_steps() if step < num_updates]
        way = f"to go on from the one before, of update {max(others)}, remove" if others else (
            "there is none before it; to start anew, remove")  # fmt: skip
        damage = None
        with _silent():
            try:
                about = self._manager.restore(
                    num_updates, args=args.Composite(about=args.JsonRestore())
                )
                about = about["about"]
                if about.get("format") == FORMAT and about["state"] == _shapes(wanted):
                    arrays = {n: x for n, x in wanted.items() if x.size}
                    saved = args.Composite(state=args.StandardRestore(arrays))
                    leaves = self._manager.restore(num_updates, args=saved)["state"]
                    found = [leaves.get(n, x) for n, x in wanted.items()]
                    return jax.tree.unflatten(jax.tree.structure(like), found)
            except Exception as error:  # orbax and its readers raise of every kind
                damage = f"{type(error).__name__}: {reason(error)}"
            for _ in range(5 if damage else 0):  # the readers of the other arrays come to an end
                gc.collect()
                time.sleep(0.1)
        if damage:
            raise RunError(
                f"the checkpoint {where} is damaged ({damage}); nothing was changed: {way} that "
                "folder"
            )
        raise RunError(
            f"the checkpoint {where} is of another kind of run: {_difference(about, wanted)}; "
            "nothing was changed"
        )

    def save_metrics(self, start: int, stop: int, metrics: PyTree) -> None:
        """Saves the metrics `[..., n]`, n rows, of the updates from `start` up to `stop`."""
        if not devices.is_first_host():
            return
        arrays = by_path(metrics)
        file = self.path / "metrics" / f"{start:012d}-{stop:012d}.npz"
        with self._telling("metrics"):
            np.savez(packed := io.BytesIO(), **arrays)  # it complains twice where a disk is full
            write_whole(file, lambda opened: opened.write(packed.getbuffer()))

    def read_metrics(self, num_updates: int, like: PyTree) -> list[PyTree]:
        """Metrics of the first updates, in pieces that follow each other.

        Those of later updates, which a kill has left without their checkpoint, are removed.

        Raises:
            RunError: some are missing or damaged.
        """
        pieces, reached = [], 0
        for file in sorted((self.path / "metrics").glob("*.npz")):
            start, stop = (int(number) for number in file.stem.split("-"))
            if start >= num_updates:
                file.unlink(missing_ok=True)
            elif start == reached and stop <= num_updates:
                pieces.append(_load(file, like))
                reached = stop
        if reached != num_updates:
            raise RunError(f"{self.path / 'metrics'}: the updates from {reached} to {num_updates} "
                           "are missing; nothing was changed")  # fmt: skip
        return pieces

    @contextlib.contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax passes on errors of every kind from its threads
            raise RunError(
                f"run_dir: can't save {what} into {self.path}: {reason(error)}; {self.good()}"
            ) from error

    def good(self) -> str:
        """What is still there when something has failed, by what lies on the disk."""
        names = [path.name for path in (self.path / "checkpoints").iterdir()]
        numbers = [int(name) for name in names if name.isdigit()]
        return (
            f"the checkpoint of update {max(numbers)} is still good"
            if numbers
            else "there is no checkpoint yet"
        )


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Keeps orbax's threads from logging pages of what is told in a line."""

    def ours(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname

    logger = logging.getLogger("absl")
    logger.addFilter(ours)
    try:
        yield
    finally:
        logger.removeFilter(ours)


def _remove_rests(folder: pathlib.Path) -> None:
    """Removes what a kill has left of a checkpoint that was just being removed."""
    for checkpoint in folder.iterdir():
        if checkpoint.name.isdigit() and not (checkpoint / "_CHECKPOINT_METADATA").exists():
            shutil.rmtree(checkpoint)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keeps from the terminal what nobody waits for: where one array can't be read, the readers of
    the others find the loop closed that they report to."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    finally:
        sys.unraisablehook = hook


def _shapes(leaves: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in leaves.items()}


def _difference(about: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first thing in which a checkpoint differs from what is wanted."""
    if about.get("format") != FORMAT:
        return f"format {about.get('format')}, expected {FORMAT}"
    found, expected = about["state"], _shapes(wanted)
    name = next(n for n in {**found, **expected} if found.get(n) != expected.get(n))
    return f"{name} is {found.get(name, 'missing')}, expected {expected.get(name, 'none')}"


def _load(file: pathlib.Path, like: PyTree) -> PyTree:
    names = by_path(like)
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in names])
    except DAMAGED as error:
        raise RunError(f"{file} is damaged: {reason(error)}; nothing was changed") from None
