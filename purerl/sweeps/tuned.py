"""The result of a search: its trials, the winner, and what the winner ends at with fresh seeds."""

import dataclasses
import functools
import math
import os
from typing import NamedTuple

import numpy as np
from rich.console import Group as Lines
from rich.table import Column, Table
from rich.text import Text

from purerl.records.draws import Choice, Uniform
from purerl.records.files import counted
from purerl.statistics import bootstrap_interval
from purerl.sweeps.plan import Values, configure
from purerl.sweeps.result import Overview, SweepResult, column, value_text, write_csv
from purerl.sweeps.study import Trial
from purerl.training.config import TrainConfig
from purerl.training.presets import preset_text

# Trials in the printed overview.
ROWS = 5


class Winner(NamedTuple):
    """The best trial of a search, measured again.

    Attributes:
        number: of the trial.
        values: by name.
        config: with the values in it.
        score: what it was chosen by: the best of many, so that chance is in it.
        returns: `[fresh seeds]`, of training anew with seeds that took no part in the choice.
        mean, low, high: of these, with the ends of the 95 % bootstrap interval, NaN of a single
            seed.
    """

    number: int
    values: Values
    config: TrainConfig
    score: float
    returns: np.ndarray
    mean: float
    low: float
    high: float

    @property
    def measured(self) -> str:
        """The mean and its interval, as text."""
        if math.isnan(self.low):
            return f"{self.mean:.1f} (no interval)"
        return f"{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}]"


@dataclasses.dataclass(frozen=True, repr=False)
class TuneResult(Overview):
    """The result of a search. Print it for an overview.

    Attributes:
        config: common to all trials.
        space: the searched fields, with their draws.
        trials: in their order, each with its values, and its scores by rung.
        measured: a `SweepResult` of the winner with fresh seeds, with their policies; None where no
            trial was trained to its end with a score.
        importance: the share of each field in what tells the best trials from all; {} where there
            are too few trials.
        by: "final_return" or "eval_return", which scores are means of.
        num_rungs: a trial that reached them all was trained to its end.
        seconds, compile_seconds: of training and compiling the trials, in this process.
    """

    config: TrainConfig
    space: dict[str, Uniform | Choice]
    trials: tuple[Trial, ...]
    measured: SweepResult | None
    importance: dict[str, float]
    by: str
    num_rungs: int
    seconds: float = 0.0
    compile_seconds: float = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """The searched fields."""
        return tuple(self.space)

    @functools.cached_property
    def best(self) -> Winner | None:
        """The trial with the highest score of those trained to their ends; None without one."""
        found = best_trial(self.trials)
        if found is None or self.measured is None:
            return None
        returns = np.asarray(self.measured.table[self.by], np.float64)
        known = returns[np.isfinite(returns)]
        mean = float(known.mean()) if known.size else math.nan
        low, high = map(float, bootstrap_interval(np.mean, known)) if known.size else (mean, mean)
        config = configure(self.config, found.values)
        return Winner(found.number, found.values, config, found.score, returns, mean, low, high)

    @property
    def table(self) -> dict[str, np.ndarray]:
        """A row a trial, as columns `[trials]` by name: `trial`; every searched name; `score`, that
        of the last rung it reached, the mean over seeds; `rungs`, how many it reached (0: its
        values don't fit each other); `complete`, whether it was trained to its end;
        `num_timesteps`, over all seeds."""
        trials = self.trials
        return {
            "trial": np.array([x.number for x in trials]),
            **{name: column([x.values[name] for x in trials]) for name in self.names},
            "score": np.array([x.score for x in trials]),
            "rungs": np.array([len(x.outcome.scores) for x in trials]),
            "complete": np.array([x.complete for x in trials]),
            "num_timesteps": np.array([x.outcome.num_timesteps for x in trials], np.int64),
        }

    @property
    def num_timesteps(self) -> int:
        """Environment steps of all trials, without the winner's measurement."""
        return sum(trial.outcome.num_timesteps for trial in self.trials)

    def ranked(self) -> list[Trial]:
        """The trials, the best first: by the rungs that they reached, then by their scores."""
        return sorted(self.trials, key=lambda trial: trial.standing, reverse=True)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Writes the table, its columns' names in the first line."""
        write_csv(self.table, path)

    def preset(self) -> str | None:
        """The winner as the text of a preset file; None without one."""
        best = self.best
        if best is None:
            return None
        note = (
            f"{best.measured} with {counted(len(best.returns), 'fresh seed')}, "
            f"chosen by {best.score:.1f} of {counted(len(self.trials), 'trial')}"
        )
        return preset_text(best.config, note)

    def __rich__(self) -> Lines:
        return _overview(self)

    def __repr__(self) -> str:
        return f"TuneResult({counted(len(self.trials), 'trial')} of {', '.join(self.names)})"


def best_trial(trials: tuple[Trial, ...]) -> Trial | None:
    """The complete trial with the highest score, the first of equal ones; None without one."""
    complete = [trial for trial in trials if trial.complete]
    return max(complete, key=lambda trial: trial.score, default=None)


def _overview(result: TuneResult) -> Lines:
    """The best trials, what their fields matter, and what the winner ends at."""
    lines: list[str | Table] = [_spent(result)]
    table = Table(*[Column(Text(name)) for name in result.names], box=None, pad_edge=False)
    table.add_column("score", justify="right")
    for trial in [x for x in result.ranked() if x.complete][:ROWS]:
        cells = [value_text(trial.values[name]) for name in result.names]
        table.add_row(*cells, f"{trial.score:.1f}")
    if table.row_count:
        lines.append(table)
    if result.importance:
        shares = [f"{name} {share:.0%}" for name, share in result.importance.items()]
        lines.append(f"importance: {', '.join(shares)}")
    misfits = [x for x in result.trials if x.outcome.misfit]
    if misfits:
        lines.append(f"{len(misfits)} not trained, such as: {misfits[0].outcome.misfit}")
    best = result.best
    if best is None:
        lines.append("no winner: no trial that was trained to its end has a score")
    else:
        lines.append(
            f"the winner, trial {best.number}, was chosen by {best.score:.1f}; with "
            f"{counted(len(best.returns), 'fresh seed')} it ends at {best.measured}"
        )
    return Lines(*[Text(x) if isinstance(x, str) else x for x in lines])


def _spent(result: TuneResult) -> str:
    complete = sum(trial.complete for trial in result.trials)
    took = f", compiled in {result.compile_seconds:.0f} s, trained in {result.seconds:.0f} s"
    return (
        f"{counted(len(result.trials), 'trial')}, {complete} trained to the end; "
        f"{result.num_timesteps:,} environment steps" + (took if result.seconds else "")
    )
