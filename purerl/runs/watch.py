"""A page on this machine that shows runs while they train, from what is in their folders.

Nothing is written there, and no lock is held.
"""

import csv
import json
import math
import os
import threading
from collections.abc import Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from purerl.records.errors import RunError
from purerl.records.files import open_file, reason
from purerl.records.types import Plain
from purerl.runs.folder import METRICS
from purerl.runs.view import RunView
from purerl.statistics import bin_curves, iqm
from purerl.training.card import THIN_LINES, middle_half

HOST = "127.0.0.1"
# Points of a curve, and seconds of the speed that is shown.
BINS, RECENT = 200, 30.0
# Columns of a table of metrics that are no curves, or are drawn from others.
APART = ("seed", "update", "timesteps", "seconds", "num_episodes", "nonfinite_updates")


class Table:
    """A run's `metrics.csv`, of which each reading takes what was added.

    Args:
        file: the table's, which may be missing.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._known: tuple[int, int] | None = None  # the file's number, and how far it is read
        self._parts: list[np.ndarray] = []
        self.names: list[str] = []

    def read(self) -> np.ndarray:
        """All complete rows `[rows, columns]`, NaN where a field is empty.

        Raises:
            OSError: it can't be read.
            ValueError: it isn't a table of numbers.
        """
        try:
            with open_file(self.file) as file:
                about = os.fstat(file.fileno())
                number, reached = self._known or (about.st_ino, 0)
                if number != about.st_ino or reached > about.st_size:  # it was written anew
                    self._parts, reached = [], 0
                file.seek(reached)
                text = file.read(about.st_size - reached)
        except FileNotFoundError:
            self._known, self._parts = None, []
            return np.zeros((0, 0))
        whole = text[: text.rfind(b"\n") + 1]  # the last line may not be complete yet
        lines = whole.decode().splitlines()
        if not reached and lines:
            self.names = next(csv.reader(lines[:1]))
            lines = lines[1:]
        if lines:
            fields = np.array([line.split(",") for line in lines])
            rows = np.where(fields == "", "nan", fields).astype(np.float64)
            if rows.shape[1] != len(self.names):
                raise ValueError(f"it has {rows.shape[1]} fields in a row, not {len(self.names)}")
            self._parts.append(rows)
        self._known = about.st_ino, reached + len(whole)
        self._parts = [np.concatenate(self._parts)] if self._parts else []
        return self._parts[0] if self._parts else np.zeros((0, len(self.names)))

    def columns(self) -> dict[str, np.ndarray]:
        """Columns `[S, U]` by name, of the rows that all seeds have; none before the first.

        Raises:
            OSError, ValueError: as from `read`; the rows aren't in order.
        """
        rows = self.read()
        if not len(rows):
            return {}
        seed = rows[:, self.names.index("seed")]
        seeds = len(np.unique(seed))
        updates = len(rows) // seeds
        grid = rows[: updates * seeds].reshape(updates, seeds, -1)
        if updates and np.any(grid[..., self.names.index("seed")] != seed[:seeds]):
            raise ValueError("its rows aren't in the order of updates and seeds")
        return {name: grid[..., i].T for i, name in enumerate(self.names)} if updates else {}


class Watched:
    """A run that is watched.

    Args:
        folder: the run's, or that of a finished sweep, of which the best is shown.

    Raises:
        RunError: it holds no run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._table = Table(RunView(folder).folder / METRICS)
        self._lock = threading.Lock()

    def snapshot(self) -> dict[str, Plain]:
        """What the page shows, in plain values; "problem" says why there is nothing to show."""
        about: dict[str, Plain] = {"name": self.folder.absolute().name, "path": str(self.folder)}
        try:
            view = RunView(self.folder)
            about |= {"title": view.name, "seeds": list(view.seeds), "state": view.state}
            with self._lock:  # of another window's request
                columns = self._table.columns()
            if not columns:
                return about | {"timesteps": 0}
            total = None if view.folder != view.path else view.total_timesteps
            return about | _pace(columns, total, about["state"] == "running") | _curves(columns)
        except (RunError, OSError, ValueError) as error:
            return about | {"problem": reason(error), "state": "unreadable"}


def _pace(columns: dict[str, np.ndarray], total: int | None, running: bool) -> dict[str, Plain]:
    """How far a run is, how fast, and how long it takes."""
    steps = columns["timesteps"][0]
    seconds = np.maximum.accumulate(np.nan_to_num(columns["seconds"]).max(axis=0))
    reached, elapsed = float(steps[-1]), float(seconds[-1])
    first = int(np.searchsorted(seconds, elapsed - RECENT))
    since = (seconds[first], steps[first]) if running and first < len(steps) - 1 else (0.0, 0.0)
    speed = (reached - since[1]) / (elapsed - since[0]) if elapsed > since[0] else None
    whole = max(total or 0, reached)
    return {
        "timesteps": int(reached),
        "total": total,
        "share": reached / whole if total else None,
        "seconds": elapsed,
        "speed": speed and speed * len(columns["seed"]),
        "left": (whole - reached) / speed if running and total and speed else None,
    }


def _curves(columns: dict[str, np.ndarray]) -> dict[str, Plain]:
    """The curves by name: returns and evaluations over seeds, and means of everything else."""
    curves: dict[str, Plain] = {}
    steps, episodes = columns["timesteps"][0], columns["num_episodes"]
    for name, x in columns.items():
        counts = columns["eval_num_episodes"] if name.startswith("eval_") else episodes
        if name in APART or name.endswith(("_min", "_max", "_num_episodes")):
            continue
        by_episode = name.startswith(("episode_", "info/", "eval_"))
        weight = counts if by_episode else np.isfinite(x)
        if np.any(weight > 0):
            at, binned = bin_curves(steps, x, weight, BINS)
            curves[name] = _curve(at, binned)
    return {"curves": curves, "skipped": int(columns["nonfinite_updates"].sum())}


def _curve(x: np.ndarray, by_seed: np.ndarray) -> dict[str, Plain]:
    few = len(by_seed) <= THIN_LINES
    return {
        "x": x.astype(int).tolist(),
        "middle": _numbers(iqm(by_seed, axis=0)),
        "seeds": [_numbers(y) for y in by_seed] if few and len(by_seed) > 1 else [],
        "band": [] if few else [_numbers(y) for y in middle_half(by_seed)],
    }


def _numbers(values: np.ndarray) -> list[Plain]:
    """Numbers of five digits; None where there is none, since JSON has no NaN."""
    return [float(f"{x:.5g}") if math.isfinite(x) else None for x in values.tolist()]


def make_server(folders: Sequence[Path], port: int) -> ThreadingHTTPServer:
    """A server of the page, for this machine alone.

    Args:
        folders: of the runs.
        port: 0 for a free one; see `server_port`.

    Raises:
        RunError: a folder holds no run.
        OSError: the port can't be had.
    """
    watched = [Watched(folder) for folder in folders]
    page = files("purerl.runs").joinpath("watch.html").read_bytes()
    server = ThreadingHTTPServer((HOST, port), partial(_Answer, watched, page))
    server.daemon_threads = True
    return server


class _Answer(BaseHTTPRequestHandler):
    """An answer to a browser."""

    def __init__(self, watched: list[Watched], page: bytes, *args: Any) -> None:
        self._watched, self._page = watched, page
        super().__init__(*args)

    def do_GET(self) -> None:
        """Answers with the page, or with what is in the folders."""
        path = self.path.partition("?")[0]
        host = self.headers.get("Host", "").partition(":")[0]  # without a port if that is 80
        if host not in (HOST, "localhost"):  # another site's name, made to mean this machine
            self.send_error(403)
        elif path == "/":
            self._send(self._page, "text/html; charset=utf-8")
        elif path == "/data":
            found = {"runs": [run.snapshot() for run in self._watched]}
            self._send(json.dumps(found, allow_nan=False).encode(), "application/json")
        else:
            self.send_error(404)

    def _send(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing on the terminal."""
