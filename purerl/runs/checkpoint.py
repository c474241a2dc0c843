"""A run's folder: the run's description, its checkpoints, and the metrics up to each.

    run.json        config, hyperparameters, seeds, versions and hardware
    checkpoints/N/  the whole state after N updates (see `state_store`)
    metrics/        the metrics of the updates between two checkpoints, one .npz each
    lock            held while a process trains here

Every file is written under a temporary name and then renamed, so that a kill at any moment leaves
the last complete checkpoint. Each has checksums of its contents, and the run and the updates that
it belongs to: a file that is damaged or misplaced is refused. Training then starts from an older
checkpoint, and the newer ones are put aside; nothing is deleted for being damaged. Loading reads
arrays and JSON, and executes no code from the files.
"""

import contextlib
import io
import json
import logging
import os
import pathlib
import re
import shutil
import threading
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Self

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
from purerl.records.types import Plain, PyTree
from purerl.runs.folder import RUN

FORMAT = 2
KIND = "purerl metrics"
# orbax numbers its operations process-wide: threads that save at once would confuse them.
ONE_AT_A_TIME = threading.RLock()
REMOVED = ".removed-"  # prefix of a checkpoint that is being removed
KEPT = "nothing was changed: put it back, or choose another folder"


class Start(NamedTuple):
    """A point that training starts from.

    Attributes:
        num_updates: of the state.
        state: as it was saved; None before the first checkpoint.
        metrics: of the updates before, in consecutive pieces.
    """

    num_updates: int
    state: PyTree
    metrics: list[PyTree]


class RunFolder:
    """The folder of one run, opened by the process that trains in it.

    Args:
        path: of the folder, which may be new.
        keep: number of checkpoints to keep.
        read_only: to be read by another process; nothing is created, locked or removed.
        marker: the file with the run's description, by which its folder is recognised.
        kind: of the run, for messages.

    Raises:
        ConfigError: the folder is neither empty nor a run's.
        RunError: it can't be created or written, or another process trains in it.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        keep: int,
        read_only: bool = False,
        marker: str = RUN,
        kind: str = "run",
    ) -> None:
        self.path = check_path("run_dir", path).absolute()
        self.keep, self.marker, self.kind = keep, marker, kind
        self._run: dict[str, Plain] = {}
        # In run.json too: a unique name, and whether there ever was a complete checkpoint.
        self._id, self._saved_once = uuid.uuid4().hex, False
        self._exits = contextlib.ExitStack()
        with self._exits:  # releases the lock if something fails
            if devices.is_first_host() and not read_only:
                self._make()
            devices.wait_for_all_hosts("run_dir")
            # Imported late, since it takes long.
            from purerl.runs import state_store

            self._store = state_store
            self._exits.enter_context(_quiet_orbax())
            self._writer = state_store.Writer()
            self._exits = self._exits.pop_all()

    def _make(self) -> None:
        """Creates and locks the folder, after checking that it may be written."""
        taken = is_taken(self.path, self.marker, self.kind)
        refuse_links(self.path, [self.marker], EMPTY)
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
            self._writer.close()  # `wait` has raised its errors

    @property
    def _checkpoints(self) -> pathlib.Path:
        return self.path / "checkpoints"

    def _saved(self) -> list[int]:
        return list_checkpoints(self.path)

    def _pieces(self) -> list[tuple[int, int, pathlib.Path]]:
        """The files of metrics, in order, each with its first and last update."""
        return sorted(
            (int(name[1]), int(name[2]), file)
            for file in (self.path / "metrics").glob("*.npz")
            if (name := re.fullmatch("([0-9]{12,18})-([0-9]{12,18})[.]npz", file.name))
        )

    @property
    def latest(self) -> int | None:
        """The update of the newest complete checkpoint; None if there is none."""
        return max(self._saved(), default=None)

    def read_run(self) -> dict[str, Plain] | None:
        """The description that `write_run` has written; None if there is none.

        Raises:
            RunError: it can't be read, is of another version, or its checkpoints are missing.
        """
        file = self.path / self.marker
        try:
            text = read_text(file)
            plain = json.loads(text)
        except FileNotFoundError:
            there = "checkpoints" if self._saved() else "metrics" if self._pieces() else None
            if there is None:
                return None
            raise RunError(
                f"{self.path} has {there} but no {self.marker}: what they are of is not known; "
                f"{KEPT}"
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

    def write_run(self, run: Mapping[str, Plain]) -> None:
        """Writes the run's description, in plain values."""
        self._run, self._saved_once = {**run, "format": FORMAT}, bool(self._saved())
        values = sealed({**self._run, "id": self._id, "saved": self._saved_once})
        text = json.dumps(values, indent=2)
        with self._saving("what the run is"):
            write_whole(self.path / self.marker, lambda file: file.write(text.encode()))

    def load(self, state_like: PyTree, metrics_like: PyTree) -> Start:
        """The newest valid checkpoint, with the metrics up to it.

        Newer checkpoints and metrics are put aside with a warning; incomplete ones, which a kill
        leaves behind, are removed.

        Args:
            state_like: as in `restore`.
            metrics_like: as in `read_metrics`.

        Raises:
            RunError: none of the checkpoints is valid. Nothing was changed.
        """
        if not self._run:
            self.read_run()  # on hosts other than the first
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
            with self._saving("what training starts from"):
                self._settle(start.num_updates, bad)
            if bad:
                warnings.warn(
                    f"{bad[0][1]}: {counted(len(bad), 'checkpoint')} put aside, training starts "
                    f"from that of update {start.num_updates}",
                    stacklevel=4,
                )
        return start

    def _settle(self, num_updates: int, bad: Sequence[tuple[int, str]]) -> None:
        """Puts aside or removes the files of updates after a checkpoint."""
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
        self._record_saved()

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is still being written."""
        return self._writer.busy

    def save(self, num_updates: int, state: PyTree) -> None:
        """Starts to save a state in the background.

        Args:
            num_updates: its number of updates.
            state: must not be changed or donated before `wait`.

        Raises:
            RunError: this state, or the one before, could not be written.
        """
        about = {"format": FORMAT, "run": self._id, "num_updates": num_updates}
        path = self._checkpoints / str(num_updates)
        with self._saving("a checkpoint"):
            self._finish()
            if devices.is_first_host() and path.exists():
                put_aside(path)
            self._writer.start(path, state, about)

    def wait(self) -> None:
        """Blocks until all is written. Raises RunError if that failed."""
        with self._saving("a checkpoint"):
            self._finish()

    def _finish(self) -> None:
        self._writer.wait()
        if not devices.is_first_host():
            return
        self._record_saved()
        saved = self._saved()
        while len(saved) > self.keep:
            path = self._checkpoints / str(saved.pop(0))
            # Renamed first: after a kill in between, a folder with a checkpoint's name is complete.
            path.rename(removed := path.with_name(f"{REMOVED}{path.name}"))
            shutil.rmtree(removed)

    def _record_saved(self) -> None:
        """Records in run.json that there is a complete checkpoint, so that a loss is noticed."""
        if self._run and not self._saved_once and self._saved():
            self.write_run(self._run)

    def restore(self, num_updates: int, like: PyTree) -> PyTree:
        """A state that was saved, bit for bit.

        Args:
            num_updates: of the checkpoint.
            like: the state's shapes and shardings.

        Raises:
            RunError: it is damaged, misplaced, or of another structure.
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

    def _whose(self, about: Mapping[str, Plain]) -> str:
        return "this run" if about["run"] == self._id else "another run"

    def save_metrics(self, start: int, stop: int, metrics: PyTree) -> None:
        """Saves the metrics `[..., n]`, n rows, of the updates from `start` up to `stop`."""
        if not devices.is_first_host():
            return
        arrays = {name: plain_bytes(np.asarray(x)) for name, x in by_path(metrics).items()}
        about = {"kind": KIND, "format": FORMAT, "run": self._id, "start": start, "stop": stop}
        file = self.path / "metrics" / f"{start:012d}-{stop:012d}.npz"
        with self._saving("metrics"):
            # In memory first: on a full disk an archive raises once more when it is closed.
            write_arrays(packed := io.BytesIO(), about, arrays)
            write_whole(file, lambda opened: opened.write(packed.getbuffer()))

    def read_metrics(self, num_updates: int, like: PyTree) -> list[PyTree]:
        """Metrics of the first updates, in consecutive pieces `[..., n]`.

        Args:
            num_updates: the number of updates.
            like: the shapes `[...]` of a row of metrics.

        Raises:
            RunError: some are missing, damaged or misplaced.
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
    def _saving(self, what: str) -> Iterator[None]:
        try:
            yield
        except RunError:
            raise
        except Exception as error:  # orbax raises errors of every type from its threads
            raise RunError(
                f"run_dir: can't save {what} into {self.path}: {reason(error)}; {self.good()}"
            ) from error

    def good(self) -> str:
        """The newest checkpoint in words, for error messages."""
        latest = self.latest
        if latest is None:
            return "there is no checkpoint yet"
        return f"the checkpoint of update {latest} is still good"


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Suppresses orbax's log of errors, which are raised as one line."""

    def ours(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname

    logger = logging.getLogger("absl")
    logger.addFilter(ours)
    try:
        yield
    finally:
        logger.removeFilter(ours)


def _difference(about: Mapping[str, Plain], wanted: Mapping[str, str]) -> str | None:
    """The first difference between a checkpoint and the expected shapes; None if there is none."""
    if about["format"] != FORMAT:
        return f"format {about['format']}, expected {FORMAT}"
    found = about["state"]
    for name in {**found, **wanted}:
        if found.get(name) != wanted.get(name):
            there, expected = found.get(name, "missing"), wanted.get(name, "none")
            return f"{name} is {there}, expected {expected}"
    return None
