"""Learning curves, from training's output or from a run's folder."""

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from purerl import statistics
from purerl.experience.metrics import Metrics
from purerl.records.errors import ConfigError, RunError, shown, suggest
from purerl.records.files import open_file, read_arrays, reason
from purerl.runs.folder import METRICS, RUN
from purerl.training.train import TrainOutput

# A check of seeds `[S]`, timesteps `[U]`, returns and numbers of episodes `[S, U]`.
Check = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], None]
INFO, LOG = "info/", "log/"  # prefixes of the environment's metrics, and of the user's
EVALUATED = "eval_return"
COLUMNS = ("seed", "update", "timesteps", "episode_return", "num_episodes")
# Columns of a table that say nothing about whether a seed still trained, and what the others have
# in a row in which it didn't: no number, an infinite one under `jax_debug_nans`, or a count of 0.
_ALWAYS = ("seed", "update", "timesteps", "seconds")
_NOTHING = ("", "0", "inf", "-inf")
_LIVE = "is live"  # the name of a column that is made of them: 1 where a seed trained, else 0


@dataclasses.dataclass(frozen=True, eq=False)
class Curves:
    """The returns of one run's training episodes over time.

    Attributes:
        name: the label in legends.
        timesteps: `[U]` int64, environment steps of each seed after each row of metrics, which is
            one update or several.
        returns: `[S, U]`, mean return of the episodes that ended in each row, NaN where none did.
        num_episodes: `[S, U]`, number of episodes that ended.
        seconds: `[U]`, wall-clock time of training after each row; None if unknown.
        num_updates: `[S]`, the rows until each seed's run was over, fewer than U if `max_episodes`
            or the like ended it; None for all.
        info: `[S, U]` by name, the environment's metrics (see `EnvSpec.metrics`).
        log: `[S, U]` by name, what the run's `log` returns.
        eval_return: `[S, U]`, mean return of the newest evaluation up to each row, NaN before the
            first; None for a run without evaluations.

    Raises:
        ConfigError: the arrays' shapes don't match.
    """

    name: str
    timesteps: np.ndarray
    returns: np.ndarray
    num_episodes: np.ndarray
    seconds: np.ndarray | None = None
    num_updates: np.ndarray | None = None
    info: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    log: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    eval_return: np.ndarray | None = None

    def __post_init__(self) -> None:
        shape = np.shape(self.returns)
        if len(shape) != 2 or 0 in shape:
            raise ConfigError(f"{self.name}: returns have shape {shape}, expected [S, U]")
        for field, wanted in (
            ("timesteps", shape[1:]),
            ("num_episodes", shape),
            ("seconds", shape[1:]),
            ("num_updates", shape[:1]),
            ("eval_return", shape),
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
        """The curves of training's output, of one seed or of several.

        Args:
            name: the label in legends.
            out: a `TrainOutput`, or its `Metrics`, `[U]` or `[S, U]`.
            steps_per_update: environment steps in each row of metrics; only for `Metrics`.
            seconds: `[U]`, wall-clock time after each row.

        Raises:
            ConfigError: `out` is neither, it has more axes, or `steps_per_update` is missing.
        """
        metrics, num_rows, timesteps = out, None, None
        if isinstance(out, TrainOutput):
            metrics, steps_per_update = out.metrics, out.steps_per_update
            num_rows, timesteps = np.atleast_1d(out.num_rows), out.timesteps
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
        if timesteps is None:
            timesteps = np.arange(1, returns.shape[1] + 1, dtype=np.int64) * steps_per_update
        info, log = (
            {n: np.atleast_2d(np.asarray(x, np.float64)) for n, x in named.items()}
            for named in (metrics.info, metrics.log)
        )
        evaluated = None
        if metrics.eval is not None:
            evaluated = statistics.carried(
                np.atleast_2d(np.asarray(metrics.eval.episode_return, np.float64))
            )
        return cls(name, timesteps, returns, num_episodes, seconds, num_rows, info, log, evaluated)

    def of_metric(self, metric: str) -> Self:
        """Curves of a metric in place of returns.

        Args:
            metric: "eval_return", of evaluations; of the environment, as "info/success", or the
                run's `log`, as "log/speed"; or the name alone, where one of these two has it.

        Raises:
            ConfigError: the run has no such metric.
        """
        known = {INFO + name: x for name, x in self.info.items()}
        known |= {LOG + name: x for name, x in self.log.items()}
        if self.eval_return is not None:
            known[EVALUATED] = self.eval_return
        found = [name for name in known if metric in (name, name.partition("/")[2])]
        if len(found) != 1:
            hint = " or ".join(found) or suggest(metric, ["return", *known])
            if metric == EVALUATED:
                hint = "it was trained without eval_every"
            raise ConfigError(f"{self.name}: no metric {shown(metric)}; {hint}")
        counts, (name,) = self.num_episodes, found
        if not name.startswith(INFO):  # a mean over steps, or evaluated: each update counts once
            counts = np.isfinite(known[name]).astype(np.int64)
        return dataclasses.replace(self, returns=known[name], num_episodes=counts)

    @property
    def num_seeds(self) -> int:
        """S, the number of seeds."""
        return len(self.returns)

    @property
    def final_returns(self) -> np.ndarray:
        """`[S]`, mean return over the episodes in the last tenth of the updates; NaN where none
        ended."""
        return statistics.final_returns(self.returns, self.num_episodes, self.num_updates)

    def binned(self, x: np.ndarray, num_bins: int = 100) -> tuple[np.ndarray, np.ndarray]:
        """The curves `[S, bins]` over `x` (`timesteps` or `seconds`); see
        `statistics.bin_curves`."""
        return statistics.bin_curves(x, self.returns, self.num_episodes, num_bins)


def read_curves(
    folder: Path, name: str, check: Check, seeds: Sequence[int] | None = None
) -> Curves:
    """The curves of a run's `metrics.csv`, even if no episode has ended.

    Args:
        folder: the run's.
        name: the label in legends.
        check: takes seeds `[S]`, timesteps `[U]`, returns and numbers of episodes `[S, U]`, and
            raises ValueError if they differ from what training has written.
        seeds: in the run's order, that of the metrics that are saved with checkpoints; those of
            curves are in the order of their numbers. None for that order.

    Raises:
        RunError: the file is missing, or damaged.
    """
    file = folder / METRICS
    saved = _saved_pieces(folder)  # first: a process that trains there writes them after the rows
    try:
        with io.TextIOWrapper(open_file(file), encoding="utf-8", newline="") as lines:
            table = _columns(csv.reader(lines))
        curves = _curves(name, table)
        there = np.unique(table["seed"]).astype(np.int64)
        check(there, curves.timesteps, curves.returns, curves.num_episodes)
        _compare(curves, saved, np.argsort(np.argsort(there if seeds is None else seeds)))
        return curves
    except FileNotFoundError:
        way = f"; purerl resume {folder} goes on, and writes it"
        raise RunError(
            f"{folder} has no {METRICS}: nothing was reported yet, or it is lost"
            + (way if (folder / RUN).exists() else "")
        ) from None
    except (OSError, ValueError, csv.Error) as error:
        raise RunError(f"{file} is damaged: {reason(error)}") from None


def _saved_pieces(folder: Path) -> list[dict[str, np.ndarray]]:
    """The metrics `[S, n]` by name that were saved with the checkpoints, with checksums: in order,
    up to the first that are missing or damaged."""
    pieces: list[dict[str, np.ndarray]] = []
    reached = 0
    for file in sorted((folder / "metrics").glob("*.npz")):
        try:
            about, arrays = read_arrays(file)
            if about["start"] != reached:
                break
            names = ("episode_return", "num_episodes")
            pieces.append({name: np.atleast_2d(arrays[name]) for name in names})
            reached = about["stop"]
        except (OSError, ValueError, KeyError):
            break
    return pieces


def _compare(curves: Curves, pieces: list[dict[str, np.ndarray]], places: np.ndarray) -> None:
    """Raises ValueError if rows differ from the saved metrics, whose seeds have these places among
    those of the curves."""
    if pieces and len(places) != curves.num_seeds:
        raise ValueError(f"it has {curves.num_seeds} seeds, expected {len(places)}")
    row = 0
    for piece in pieces:
        rows = slice(row, row := row + piece["num_episodes"].shape[1])
        for name, found in (
            ("episode_return", curves.returns[places, rows].astype(np.float32)),
            ("num_episodes", curves.num_episodes[places, rows]),
        ):
            if not np.array_equal(found, piece[name], equal_nan=name == "episode_return"):
                raise ValueError(
                    f"rows {rows.start + 1} to {rows.stop} have another {name} than "
                    "was saved in metrics/"
                )


def _columns(rows: Any) -> dict[str, np.ndarray]:
    """The columns for curves, float64, NaN where a field is empty, and `_LIVE`.

    Raises:
        ValueError: a column is missing, or a field isn't a number.
    """
    header: list[str] = next(rows, [])
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise ValueError(f"it has no column {missing[0]!r}")
    also = ("seconds", EVALUATED)
    more = [name for name in header if name in also or name.startswith((INFO, LOG))]
    names = [*COLUMNS, *more]
    places = [header.index(name) for name in names]
    others = [i for i, name in enumerate(header) if name not in _ALWAYS]
    values: list[list[float]] = []
    faulty: str | None = None
    for row in rows:
        if faulty is not None:
            raise ValueError(faulty)
        try:
            if len(row) != len(header):
                raise ValueError(f"{len(row)} fields, expected {len(header)}")
            live = any(row[i] not in _NOTHING for i in others)
            values.append([*(float(row[i]) if row[i] else math.nan for i in places), live])
        except ValueError as error:  # the last line may not be complete yet
            faulty = f"line {rows.line_num}: {error}"
    array = np.array(values, np.float64).reshape(-1, len(names) + 1)
    return dict(zip([*names, _LIVE], array.T, strict=True))


def _curves(name: str, table: dict[str, np.ndarray]) -> Curves:
    """Curves `[S, U]` of a table's rows, in any order. A last row that not all seeds have is left
    out.

    Raises:
        ValueError: rows are missing or duplicated.
    """
    for column in ("seed", "update", "timesteps", "num_episodes"):
        if not np.all(np.isfinite(table[column])):
            raise ValueError(f"{column} is empty in some row")
    if not len(table["seed"]):
        raise ValueError("it has no rows")
    seeds, seed = np.unique(table["seed"], return_inverse=True)
    updates = np.unique(table["update"])
    # All rows have the same number of updates, except the run's last.
    log_every = np.diff(updates)[:-1].min(initial=updates[-1] - updates[0]) or 1
    place = np.ceil((table["update"] - updates[0]) / log_every).astype(np.int64)
    if len(seeds) * place.max() > len(place):  # before a large array is allocated
        raise ValueError(
            f"{len(place)} rows are too few for {len(seeds)} seeds up to update {updates[-1]:.0f}"
        )
    rows = np.zeros((len(seeds), place.max() + 1), np.int64)
    np.add.at(rows, (seed, place), 1)
    num_rows = rows.shape[1]
    if num_rows > 1 and np.any(rows[:, -1] == 0):
        num_rows -= 1
    for i, j in np.argwhere(rows[:, :num_rows] != 1):
        update = updates[0] + j * log_every
        what = f"seed {seeds[i]:.0f} has {rows[i, j]} rows of update {update:.0f}"
        raise ValueError(f"{what}, expected one")
    grids = {}
    for column, values in table.items():
        grid = np.full(rows.shape, np.nan)
        grid[seed, place] = values
        grids[column] = grid[:, :num_rows]
    steps = table["timesteps"] / np.maximum(table["update"], 1)
    if np.any(table["update"] % 1) or np.any(steps != steps[0]):
        raise ValueError("timesteps don't follow from the updates")
    seconds = grids["seconds"].max(axis=0) if "seconds" in grids else np.array([np.nan])
    info, log = (
        {n.removeprefix(prefix): x for n, x in grids.items() if n.startswith(prefix)}
        for prefix in (INFO, LOG)
    )
    return Curves(
        name,
        grids["timesteps"][0].astype(np.int64),
        grids["episode_return"],
        grids["num_episodes"].astype(np.int64),
        seconds if np.all(np.isfinite(seconds)) else None,
        _last_live(grids[_LIVE] > 0),
        info,
        log,
        statistics.carried(grids[EVALUATED]) if EVALUATED in grids else None,
    )


def _last_live(live: np.ndarray) -> np.ndarray:
    """`[S]`, the rows up to the last one in which each seed trained, of `[S, U]` bool; all for a
    seed without any."""
    return live.shape[1] - np.argmax(live[:, ::-1], axis=1)
