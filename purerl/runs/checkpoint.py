"""A run's folder: what the run is, its checkpoints, and the metrics up to each.

    run.json        config, hyperparameters, seeds, versions and hardware
    checkpoints/N/  the whole state after N updates (see `state_store`)
    metrics/        the metrics of the updates between two checkpoints, one .npz each
    lock            held while a process trains here

Every file is written under another name and then moved to its final one, so that a kill at any
moment leaves the last complete checkpoint. Each has checksums over all that is read of it, and
names the run and the updates that it belongs to: a file that was damaged, or lies in another's
place, doesn't pass. Training then starts from an older checkpoint, and the newer ones are put
aside; nothing is deleted for being damaged. Loading reads arrays and JSON: no code comes from the
files.
"""

import contextlib
import io
import json
import logging
import os
import pathlib
import re
import shutil
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import jax
import numpy as np

from purerl.accelerator import devices
from purerl.records.errors import RunError
from purerl.records.fields import check_path
from purerl.records.files import (
    by_path,
    counted,
    plain_bytes,
    put_aside,
    read_arrays,
    read_text,
    reason,
    sealed,
    unsealed,
    write_arrays,
    write_whole,
)
from purerl.records.folders import EMPTY, LOCK, is_taken, list_checkpoints, locked, refuse_links
from purerl.records.types import PyTree
from purerl.runs.folder import RUN

FORMAT = 2
KIND = "purerl metrics"
REMOVED = ".removed-"  # and the name of a checkpoint: one that is being removed
KEPT = "nothing was changed: put it back, or choose another folder"


class Start(NamedTuple):
    """A point that training starts from.

    Attributes:
        num_updates: of the state.
        state: as it was saved; None at the very beginning.
        metrics: of the updates before, in pieces that follow each other.
    """

    num_updates: int
    state: PyTree
    metrics: list[PyTree]


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
        self.keep = keep
        self._run: dict[str, Any] = {}
        # In run.json too: a name that no other run has, and whether a checkpoint was ever complete.
        self._id, self._saved_once = uuid.uuid4().hex, False
        self._exits = contextlib.ExitStack()
        with self._exits:  # gives the lock back where something fails
            if devices.is_first_host() and not read_only:
                self._make()
            devices.wait_for_all_hosts("run_dir")
            # Imported late: only those who save wait for it.
            from purerl.runs import state_store

            self._store = state_store
            self._exits.enter_context(_quiet_orbax())
            self._writer = state_store.Writer()
            self._exits = self._exits.pop_all()

    def _make(self) -> None:
        """Looks first: nothing is touched in a folder that isn't this one's to write into."""
        taken = is_taken(self.path, RUN, "run")
        refuse_links(self.path, [RUN], EMPTY)
        if taken:
            self.read_run()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._exits.enter_context(locked(self.path / LOCK))
            for folder in EMPTY:
                (self.path / folder).mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(f"run_dir: can't write into {self.path}: {reason(error)}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._exits:
            self._writer.close()  # `wait` has raised what failed

    @property
    def _checkpoints(self) -> pathlib.Path:
        return self.path / "checkpoints"

    def _saved(self) -> list[int]:
        return list_checkpoints(self.path)

    def _pieces(self) -> list[tuple[int, int, pathlib.Path]]:
        """The files of metrics, in order, with the updates that they start and stop at."""
        return sorted(
            (int(name[1]), int(name[2]), file)
            for file in (self.path / "metrics").glob("*.npz")
            if (name := re.fullmatch("([0-9]{12,18})-([0-9]{12,18})[.]npz", file.name))
        )

    @property
    def latest(self) -> int | None:
        """The updates of the newest complete checkpoint; None where there is none."""
        return max(self._saved(), default=None)

    def read_run(self) -> dict[str, Any] | None:
        """The run that `write_run` has written; None where it hasn't.

        Raises:
            RunError: it can't be read, was written by another version, or has lost its checkpoints.
        """
        file = self.path / RUN
        try:
            text = read_text(file)
            plain = json.loads(text)
        except FileNotFoundError:
            there = "checkpoints" if self._saved() else "metrics" if self._pieces() else None
            if there is None:
                return None
            raise RunError(
                f"{self.path} has {there} but no run.json: what they are of is not known; {KEPT}"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{file} can't be read: {reason(error)}; {KEPT}") from None
        found = plain.get("format") if isinstance(plain, dict) else None
        if found != FORMAT:
            raise RunError(
                f"{file} has format {found}, expected {FORMAT}: it was written by another version "
                "of purerl; nothing was changed"
            )
        try:
            run = unsealed(text)
            self._id, self._saved_once = run.pop("id"), run.pop("saved")
        except (ValueError, KeyError) as error:
            raise RunError(f"{file} is damaged: {reason(error)}; {KEPT}") from None
        self._run = run
        pieces = self._pieces()
        if self._saved_once and pieces and not self._saved():
            raise RunError(
                f"{self.path} has the metrics of {pieces[-1][1]} updates but no checkpoint to "
                f"resume from; nothing was changed: put {self._checkpoints} back, or to start "
                f"anew, remove {self.path / 'metrics'}"
            )
        return run

    def write_run(self, run: Mapping[str, Any]) -> None:
        """Writes the run's description, in plain values."""
        self._run, self._saved_once = {**run, "format": FORMAT}, bool(self._saved())
        values = sealed({**self._run, "id": self._id, "saved": self._saved_once})
        text = json.dumps(values, indent=2)
        with self._telling("what the run is"):
            write_whole(self.path / RUN, lambda file: file.write(text.encode()))

    def load(self, state_like: PyTree, metrics_like: PyTree) -> Start:
        """The newest checkpoint that is good, with the metrics up to it.

        Newer ones that aren't, and metrics that lie beyond, are put aside with a warning; what a
        kill has left half written is removed.

        Args:
            state_like: as in `restore`.
            metrics_like: as in `read_metrics`.

        Raises:
            RunError: none of the checkpoints is good. Nothing was changed.
        """
        if not self._run:
            self.read_run()  # of several hosts, those that don't write it
        start = Start(0, None, [])
        bad: list[tuple[int, str]] = []
        for number in reversed(self._saved()):
            trouble = ""
            try:
                metrics = self.read_metrics(number, metrics_like)
                start = Start(number, self.restore(number, state_like), metrics)
            except RunError as error:
                trouble = str(error)
            if devices.of_all_hosts(not trouble).all():
                break
            bad.append((number, trouble or "another host can't read it"))
        else:
            if bad:
                older = f", nor do the {len(bad) - 1} before it" if len(bad) > 1 else ""
                raise RunError(
                    f"{bad[0][1]}: the newest checkpoint doesn't serve{older}; nothing was "
                    "changed: put the files back, or choose another folder"
                )
        devices.wait_for_all_hosts("loaded")
        if devices.is_first_host():
            with self._telling("what training starts from"):
                self._settle(start.num_updates, bad)
            if bad:
                warnings.warn(
                    f"{bad[0][1]}: {counted(len(bad), 'checkpoint')} put aside, training starts "
                    f"from that of update {start.num_updates}",
                    stacklevel=4,
                )
        return start

    def _settle(self, num_updates: int, bad: Sequence[tuple[int, str]]) -> None:
        """Makes a checkpoint the newest, and the files those of the updates up to it."""
        for number, _ in bad:
            put_aside(self._checkpoints / str(number))
        for start, _, file in self._pieces():
            if start >= num_updates and bad:
                put_aside(file)
            elif start >= num_updates:
                file.unlink()
        for path in self._checkpoints.iterdir():
            partial = re.match("[0-9]+" + re.escape(self._store.PARTIAL), path.name)
            if partial or path.name.startswith(REMOVED):
                shutil.rmtree(path)
        self._note_saved()

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is still being written."""
        return self._writer.busy

    def save(self, num_updates: int, state: PyTree) -> None:
        """Starts to save a state, and comes back while it is written.

        Args:
            num_updates: its number of updates.
            state: stays as it is until all is written.

        Raises:
            RunError: it, or the one before, could not be written.
        """
        about = {"format": FORMAT, "run": self._id, "num_updates": num_updates}
        path = self._checkpoints / str(num_updates)
        with self._telling("a checkpoint"):
            self._finish()
            if devices.is_first_host() and path.exists():
                put_aside(path)
            self._writer.start(path, state, about)

    def wait(self) -> None:
        """Comes back when all is written. Raises RunError where that failed."""
        with self._telling("a checkpoint"):
            self._finish()

    def _finish(self) -> None:
        self._writer.wait()
        if not devices.is_first_host():
            return
        self._note_saved()
        saved = self._saved()
        while len(saved) > self.keep:
            path = self._checkpoints / str(saved.pop(0))
            # What has a checkpoint's name is whole, also after a kill in the middle of this.
            path.rename(removed := path.with_name(f"{REMOVED}{path.name}"))
            shutil.rmtree(removed)

    def _note_saved(self) -> None:
        """Remembers the first complete checkpoint: from then on, a folder without has lost it."""
        if self._run and not self._saved_once and self._saved():
            self.write_run(self._run)

    def restore(self, num_updates: int, like: PyTree) -> PyTree:
        """A state that was saved, bit for bit.

        Args:
            num_updates: which.
            like: a state's shapes, and where they are to lie.

        Raises:
            RunError: it is damaged, in another's place, or of another kind of state.
        """
        where = self._checkpoints / str(num_updates)
        wanted = self._store.shapes(by_path(like))
        try:
            about = self._store.read_about(where)
            difference = _difference(about, wanted)
            if difference is not None:
                raise RunError(f"the checkpoint {where} is of another kind of run: {difference}")
            if (about["run"], about["num_updates"]) != (self._id, num_updates):
                raise RunError(
                    f"the checkpoint {where} is in another's place: it is of update "
                    f"{about['num_updates']} of {self._whose(about)}"
                )
            return self._store.read_state(where, like)
        except (self._store.DamageError, KeyError) as error:
            raise RunError(f"the checkpoint {where} is damaged ({reason(error)})") from None

    def _whose(self, about: Mapping[str, Any]) -> str:
        return "this run" if about["run"] == self._id else "another run"

    def save_metrics(self, start: int, stop: int, metrics: PyTree) -> None:
        """Saves the metrics `[..., n]`, n rows, of the updates from `start` up to `stop`."""
        if not devices.is_first_host():
            return
        arrays = {name: plain_bytes(np.asarray(x)) for name, x in by_path(metrics).items()}
        about = {"kind": KIND, "format": FORMAT, "run": self._id, "start": start, "stop": stop}
        file = self.path / "metrics" / f"{start:012d}-{stop:012d}.npz"
        with self._telling("metrics"):
            # In memory first: an archive complains once more where a disk is full.
            write_arrays(packed := io.BytesIO(), about, arrays)
            write_whole(file, lambda opened: opened.write(packed.getbuffer()))

    def read_metrics(self, num_updates: int, like: PyTree) -> list[PyTree]:
        """Metrics of the first updates, in pieces `[..., n]` that follow each other.

        Args:
            num_updates: how many updates.
            like: the shapes `[...]` of one update's.

        Raises:
            RunError: some are missing or damaged, or lie in another's place.
        """
        pieces, reached = [], 0
        for start, stop, file in self._pieces():
            if start == reached and stop <= num_updates:
                pieces.append(self._read_piece(file, start, stop, like))
                reached = stop
        if reached != num_updates:
            raise RunError(
                f"{self.path / 'metrics'}: the updates from {reached} to {num_updates} are missing"
            )
        return pieces

    def _read_piece(self, file: pathlib.Path, start: int, stop: int, like: PyTree) -> PyTree:
        wanted = by_path(like)
        try:
            about, arrays = read_arrays(file)
            if (about["kind"], about["format"]) != (KIND, FORMAT):
                raise ValueError(f"it is {about['kind']!r} of format {about['format']}")
            if (about["run"], about["start"], about["stop"]) != (self._id, start, stop):
                raise RunError(
                    f"{file} is in another's place: it is of the updates {about['start']} to "
                    f"{about['stop']} of {self._whose(about)}"
                )
            leaves = [arrays[name].view(x.dtype) for name, x in wanted.items()]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{file} is damaged ({reason(error)})") from None
        num_rows = leaves[0].shape[-1:]
        for name, x, leaf in zip(wanted, wanted.values(), leaves, strict=True):
            if leaf.shape != (*x.shape, *num_rows):
                raise RunError(f"{file} is of another kind of run: {name} has shape {leaf.shape}")
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    @contextlib.contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        try:
            yield
        except RunError:
            raise
        except Exception as error:  # orbax passes on errors of every kind from its threads
            raise RunError(
                f"run_dir: can't save {what} into {self.path}: {reason(error)}; {self.good()}"
            ) from error

    def good(self) -> str:
        """The checkpoint that is still there when something has failed, in words."""
        latest = self.latest
        if latest is None:
            return "there is no checkpoint yet"
        return f"the checkpoint of update {latest} is still good"


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


def _difference(about: Mapping[str, Any], wanted: Mapping[str, str]) -> str | None:
    """The first thing in which a checkpoint differs from the wanted one; None where in nothing."""
    if about["format"] != FORMAT:
        return f"format {about['format']}, expected {FORMAT}"
    found = about["state"]
    for name in {**found, **wanted}:
        if found.get(name) != wanted.get(name):
            there, expected = found.get(name, "missing"), wanted.get(name, "none")
            return f"{name} is {there}, expected {expected}"
    return None
