"""Learning curves to look at: from what training returns, or from a run's folder."""

import csv
import dataclasses
import io
import math
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np

from purerl import statistics
from purerl.errors import ConfigError, RunError
from purerl.host.files import open_file, reason
from purerl.host.run_files import METRICS
from purerl.host.run_view import RunView
from purerl.metrics import Metrics
from purerl.train import TrainOutput

COLUMNS = ("seed", "update", "timesteps", "episode_return", "num_episodes")


@dataclasses.dataclass(frozen=True, eq=False)
class Curves:
    """The returns of one run's training episodes over time.

    Attributes:
        name: what it is called in a legend.
        timesteps: `[U]` int64, environment steps of each seed after each update.
        returns: `[S, U]`, mean return of the episodes that ended in each update, NaN where none.
        num_episodes: `[S, U]`, how many ended.
        seconds: `[U]`, wall-clock time of training after each update; None where it isn't known.
        num_updates: `[S]`, how many updates each seed ran; None for U. Fewer where `max_episodes`
            ended its run.

    Raises:
        ConfigError: arrays that don't fit each other.
    """

    name: str
    timesteps: np.ndarray
    returns: np.ndarray
    num_episodes: np.ndarray
    seconds: np.ndarray | None = None
    num_updates: np.ndarray | None = None

    def __post_init__(self) -> None:
        shape = np.shape(self.returns)
        if len(shape) != 2 or 0 in shape:
            raise ConfigError(f"{self.name}: returns have shape {shape}, expected [S, U]")
        for field, wanted in (
            ("timesteps", shape[1:]),
            ("num_episodes", shape),
            ("seconds", shape[1:]),
            ("num_updates", shape[:1]),
        ):
            value = getattr(self, field)
            if value is not None and np.shape(value) != wanted:
                raise ConfigError(
                    f"{self.name}: {field} has shape {np.shape(value)}, expected {wanted}, since "
                    f"returns have {shape}"
                )

    @classmethod
    def of(
        cls,
        name: str,
        out: TrainOutput | Metrics,
        steps_per_update: int | None = None,
        seconds: np.ndarray | None = None,
    ) -> Self:
        """The curves of what training returns, of one seed or of several.

        Args:
            name: what they are called.
            out: a `TrainOutput`, or its `Metrics`, `[U]` or `[S, U]`.
            steps_per_update: environment steps in each update; a `TrainOutput` knows it.
            seconds: `[U]`, wall-clock time after each update.

        Raises:
            ConfigError: `out` is neither, it has other axes, or `steps_per_update` is not known.
        """
        metrics, num_updates = out, None
        if isinstance(out, TrainOutput):
            metrics, steps_per_update = out.metrics, out.steps_per_update
            num_updates = np.atleast_1d(out.state.num_updates)
        if not isinstance(metrics, Metrics):
            raise ConfigError(f"out: got {type(out).__name__}, expected a TrainOutput or Metrics")
        if steps_per_update is None:
            raise ConfigError("steps_per_update: got None, expected it together with metrics")
        returns = np.atleast_2d(np.asarray(metrics.episode_return, np.float64))
        if returns.ndim != 2:
            raise ConfigError(
                f"{name}: the metrics have shape {returns.shape}, expected [U] or [S, U]: choose "
                "by out.member(i)"
            )
        num_episodes = np.atleast_2d(np.asarray(metrics.num_episodes))
        updates = np.arange(1, returns.shape[1] + 1, dtype=np.int64)
        timesteps = updates * steps_per_update
        return cls(name, timesteps, returns, num_episodes, seconds, num_updates)

    @property
    def num_seeds(self) -> int:
        """How many seeds there are."""
        return len(self.returns)

    @property
    def final_returns(self) -> np.ndarray:
        """`[S]`: mean return over the last tenth of the updates, each episode counted once; NaN
        where none ended."""
        return statistics.final_returns(self.returns, self.num_episodes, self.num_updates)

    def binned(self, x: np.ndarray, num_bins: int = 100) -> tuple[np.ndarray, np.ndarray]:
        """The curves `[S, bins]` over `x` (`timesteps` or `seconds`), as `bin_curves` makes
        them."""
        return statistics.bin_curves(x, self.returns, self.num_episodes, num_bins)


def read_run(path: str | os.PathLike[str], name: str | None = None) -> Curves:
    """The curves of a run's folder, also of a run that is still on its way or was killed.

    Args:
        path: the folder, with `metrics.csv`; of a sweep, whose best combination it is.
        name: what they are called; None for agent and environment.

    Raises:
        RunError: it is no run's folder, is damaged, or no episode has ended in it.
    """
    view = RunView(path)
    curves = curves_of(view, name)
    if not np.any(curves.num_episodes > 0):
        raise RunError(f"{view.path} has no finished episode: no return is known; train for longer")
    return curves


def curves_of(view: RunView, name: str | None = None) -> Curves:
    """As `read_run`, also where no episode has ended. Raises RunError."""
    file = view.folder / METRICS
    try:
        with io.TextIOWrapper(open_file(file), encoding="utf-8", newline="") as lines:
            table = _columns(csv.reader(lines))
        return _curves(name or view.name, table)
    except FileNotFoundError:
        raise RunError(
            f"{view.path} has no {METRICS}: nothing was reported yet, or it is lost; purerl resume "
            f"{view.path} goes on, and writes it"
        ) from None
    except (OSError, ValueError, csv.Error) as error:
        raise RunError(f"{file} is damaged: {reason(error)}") from None


def read_runs(paths: Iterable[str | os.PathLike[str]]) -> list[Curves]:
    """The curves of several folders; those of the same agent and environment are told apart by
    their folders' names.

    Raises:
        RunError: as from `read_run`.
    """
    folders = [Path(path) for path in paths]
    return apart(folders, [read_run(folder) for folder in folders])


def apart(folders: Iterable[Path], runs: list[Curves]) -> list[Curves]:
    """The runs, with their folders' names in theirs where these are the same."""
    count = Counter(run.name for run in runs)
    names = [folder.expanduser().absolute().name for folder in folders]
    return [
        run if count[run.name] == 1 else dataclasses.replace(run, name=f"{run.name}: {name}")
        for run, name in zip(runs, names, strict=True)
    ]


def _columns(rows: Any) -> dict[str, np.ndarray]:
    """The columns that curves are made of, float64, NaN where a field is empty.

    Raises:
        ValueError: one is missing, or something is no number.
    """
    header: list[str] = next(rows, [])
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise ValueError(f"it has no column {missing[0]!r}")
    names = [*COLUMNS, "seconds"] if "seconds" in header else list(COLUMNS)
    places = [header.index(name) for name in names]
    values: list[list[float]] = []
    faulty: str | None = None
    for row in rows:
        if faulty is not None:
            raise ValueError(faulty)
        try:
            if len(row) != len(header):
                raise ValueError(f"{len(row)} fields, expected {len(header)}")
            values.append([float(row[i]) if row[i] else math.nan for i in places])
        except ValueError as error:  # the last line may be one that is being written
            faulty = f"line {rows.line_num}: {error}"
    array = np.array(values, np.float64).reshape(-1, len(names))
    return dict(zip(names, array.T, strict=True))


def _curves(name: str, table: dict[str, np.ndarray]) -> Curves:
    """Rows, in any order, put into `[S, U]`; a last update that isn't there of all seeds is not
    counted.

    Raises:
        ValueError: rows are missing, or there twice.
    """
    for column in ("seed", "update", "timesteps", "num_episodes"):
        if not np.all(np.isfinite(table[column])):
            raise ValueError(f"{column} is empty in some row")
    if not len(table["seed"]):
        raise ValueError("it has no rows")
    seeds, seed = np.unique(table["seed"], return_inverse=True)
    first = table["update"].min()
    update = (table["update"] - first).astype(np.int64)
    if len(seeds) * update.max() > len(update):  # before memory is taken for what isn't there
        raise ValueError(f"{len(update)} rows are too few for {len(seeds)} seeds up to update "
                         f"{table['update'].max():.0f}")  # fmt: skip
    rows = np.zeros((len(seeds), update.max() + 1), np.int64)
    np.add.at(rows, (seed, update), 1)
    num_updates = rows.shape[1]
    if num_updates > 1 and np.any(rows[:, -1] == 0):
        num_updates -= 1
    for i, j in np.argwhere(rows[:, :num_updates] != 1):
        what = f"seed {seeds[i]:.0f} has {rows[i, j]} rows of update {first + j:.0f}"
        raise ValueError(f"{what}, expected one")
    grids = {}
    for column, values in table.items():
        grid = np.full(rows.shape, np.nan)
        grid[seed, update] = values
        grids[column] = grid[:, :num_updates]
    seconds = grids["seconds"].max(axis=0) if "seconds" in grids else np.array([np.nan])
    return Curves(
        name,
        grids["timesteps"][0].astype(np.int64),
        grids["episode_return"],
        grids["num_episodes"].astype(np.int64),
        seconds if np.all(np.isfinite(seconds)) else None,
    )
