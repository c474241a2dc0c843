"""`EvolveResult`: the schedules that a population found, and its best member with its lineage."""

import dataclasses
import os
from typing import NamedTuple

import jax
import numpy as np
from rich.console import Group as Lines
from rich.table import Table
from rich.text import Text

from purerl.experience.metrics import Metrics
from purerl.records.errors import ConfigError
from purerl.records.files import counted
from purerl.records.types import PyTree
from purerl.sweeps.plan import configure
from purerl.sweeps.population import Space, Values, num_replaced
from purerl.sweeps.result import Columns, Overview, member_place, write_csv
from purerl.training import card
from purerl.training.config import TrainConfig
from purerl.training.train import TrainOutput

# Intervals in the printed overview.
ROWS = 12
WITHOUT = "no member has a fitness: no episode ended, or all diverged"


@dataclasses.dataclass(frozen=True)
class Evolution:
    """The settings of `evolve`, checked.

    Attributes:
        config: common to all members.
        space: distributions by path.
        population: P, the number of members.
        bounds: `[I + 1]`, updates at which intervals begin, and the run's end.
        fraction, resample, factors: as of `evolve`.
        key: decides everything random.
    """

    config: TrainConfig
    space: Space
    population: int
    bounds: tuple[int, ...]
    fraction: float
    resample: float
    factors: tuple[float, ...]
    key: jax.Array

    @property
    def num_intervals(self) -> int:
        """I, at least two; the first and the last may be longer."""
        return len(self.bounds) - 1

    @property
    def most_replaced(self) -> int:
        """Members that are replaced after an interval, at most."""
        return num_replaced(self.population, self.fraction)


class History(NamedTuple):
    """What happened to a population of P members in I intervals, in numpy arrays.

    Attributes:
        values: `[I, P]` float32 by name, hyperparameters in each interval.
        fitness: `[I, P]` float32, at the end of each interval, as of `EvolveResult.table`.
        parents: `[I, P]` int32, the member whose state at the end of the interval before each one
            begins the interval with: its own index where it goes on with what it has.
    """

    values: Values
    fitness: np.ndarray
    parents: np.ndarray

    @classmethod
    def start(cls, first: Values, num_intervals: int) -> "History":
        """A history that begins with hyperparameters `[P]`; what is to come is NaN and -1."""
        (size,) = next(iter(first.values())).shape
        unknown = np.full((num_intervals, size), np.nan, np.float32)
        values = {name: unknown.copy() for name in first}
        for name, x in first.items():
            values[name][0] = x
        parents = np.full((num_intervals, size), -1, np.int32)
        parents[0] = np.arange(size)
        return cls(values, unknown, parents)


@dataclasses.dataclass(frozen=True)
class Effort:
    """Time and memory of an evolution, in this process.

    Attributes:
        compile_seconds, seconds: of compiling, and of training.
        parts: cores or devices that members were laid over.
        memory: bytes of a chunk of training, as the compiler reports them, on each device.
    """

    compile_seconds: float = 0.0
    seconds: float = 0.0
    parts: int = 1
    memory: int = 0


class Fittest(NamedTuple):
    """The best member of a population.

    Attributes:
        member: its index.
        fitness: of the last interval in which it, or an ancestor, has one.
        schedule: as of `EvolveResult.schedule`.
        output: its `TrainOutput`, with its policy, and the metrics of its lineage.
    """

    member: int
    fitness: float
    schedule: Columns
    output: TrainOutput


class EvolveResult(Overview):
    """The result of `evolve`, on the host. Print it for an overview.

    Attributes:
        table: the schedules, a row for each interval and member, as columns `[I * P]` by name:
            `interval`; `member`; `start` and `stop`, environment steps of the member; each name of
            the space, its value in the interval; `fitness` (NaN where no episode ended, -inf where
            the member diverged); `parent`, the member whose state the interval began with, its own
            index unless it was replaced.
        output: `TrainOutput` `[P]` of the members at the end. Its metrics are those of the places
            in the population: a place keeps its history where its member is replaced.
        history: the same as the table in arrays `[I, P]`.
        effort: time and memory.
    """

    def __init__(
        self, evolution: Evolution, history: History, output: TrainOutput, effort: Effort
    ) -> None:
        self.evolution, self.history = evolution, history
        self.output, self.effort = output, effort
        self.table = self._table()

    @property
    def names(self) -> tuple[str, ...]:
        """The evolved hyperparameters."""
        return tuple(self.evolution.space)

    @property
    def steps(self) -> np.ndarray:
        """`[I + 1]` int64, environment steps of a member at which intervals begin, and the end."""
        return np.asarray(self.evolution.bounds, np.int64) * self.output.steps_per_update

    @property
    def metrics(self) -> Metrics:
        """`Metrics` `[P, num_rows]` of the places in the population."""
        return self.output.metrics

    def member(self, index: int) -> TrainOutput:
        """A member's `TrainOutput`, without the buffer, with the metrics of its place.

        Raises:
            MemberError: no such member. It is an `IndexError`.
        """
        return self.output.member(self._place(index))

    def lineage(self, index: int) -> np.ndarray:
        """`[I]` int64, the places in which a member and its ancestors were trained."""
        line = np.empty(self.evolution.num_intervals, np.int64)
        place = self._place(index)
        for i in reversed(range(len(line))):
            line[i] = place
            place = int(self.history.parents[i, place])
        return line

    def schedule(self, index: int | None = None) -> Columns:
        """What a member was trained with, from the beginning: columns `[I]` of the table, of its
        lineage; `member` is the place in each interval.

        Args:
            index: of the member; None for the best.
        """
        line = self.lineage(self._best_place() if index is None else index)
        rows = np.arange(len(line)) * self.evolution.population + line
        return {name: column[rows] for name, column in self.table.items()}

    def lineage_metrics(self, index: int) -> Metrics:
        """`Metrics` `[num_rows]` of a member and its ancestors: the learning curve of its
        policy."""
        bounds = -(-np.asarray(self.evolution.bounds) // self.output.log_every)
        row = np.repeat(self.lineage(index), np.diff(bounds))
        at = np.arange(len(row))
        return jax.tree.map(lambda x: np.asarray(x)[row, at], self.metrics)

    def config(self, index: int) -> TrainConfig:
        """The config with a member's last hyperparameters."""
        last = {name: float(x[-1]) for name, x in self._values(self._place(index)).items()}
        return configure(self.evolution.config, last)

    def best(self) -> Fittest:
        """The member with the highest fitness in the last interval.

        Raises:
            ConfigError: no member has one.
        """
        place = self._best_place()
        out: PyTree = self.member(place)
        out = out.replace(metrics=self.lineage_metrics(place))
        return Fittest(place, float(self.final_fitness[place]), self.schedule(place), out)

    @property
    def final_fitness(self) -> np.ndarray:
        """`[P]` float32, of the last interval in which each member, or an ancestor, has one; -inf
        for members that diverged in the last."""
        found = self.history.fitness[-1].copy()
        for place in np.flatnonzero(np.isnan(found)):
            line = self.lineage(int(place))
            known = self.history.fitness[np.arange(len(line)), line]
            known = known[np.isfinite(known)]
            found[place] = known[-1] if known.size else np.nan
        return found

    @property
    def has_fitness(self) -> bool:
        """Whether any member has a fitness, and hasn't diverged."""
        return bool(np.any(np.isfinite(self.final_fitness)))

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Writes the table, its columns' names in the first line."""
        write_csv(self.table, path)

    def _best_place(self) -> int:
        if not self.has_fitness:
            raise ConfigError(f"best: {WITHOUT}, train for longer")
        return int(np.nanargmax(self.final_fitness))

    def _place(self, index: object) -> int:
        """A member's index, not negative. Raises MemberError, ConfigError."""
        return member_place(index, self.evolution.population)

    def _values(self, place: int) -> Values:
        return {name: x[:, place] for name, x in self.history.values.items()}

    def _table(self) -> Columns:
        number, size = self.evolution.num_intervals, self.evolution.population
        steps = self.steps
        return {
            "interval": np.repeat(np.arange(number), size),
            "member": np.tile(np.arange(size), number),
            "start": np.repeat(steps[:-1], size),
            "stop": np.repeat(steps[1:], size),
            **{name: x.reshape(-1) for name, x in self.history.values.items()},
            "fitness": self.history.fitness.reshape(-1),
            "parent": self.history.parents.reshape(-1),
        }

    def __rich__(self) -> Lines:
        return _overview(self)

    def _curves(self) -> str:
        best = self.lineage_metrics(self._best_place()) if self.has_fitness else self.metrics
        return card.curves_of(best, self.output.timesteps)

    def __repr__(self) -> str:
        evolution = self.evolution
        return f"EvolveResult({evolution.population} members x {evolution.num_intervals} intervals)"


def _overview(result: EvolveResult) -> Lines:
    """The best member, its schedule, time and memory."""
    evolution, config = result.evolution, result.evolution.config
    what = f"{type(config.agent).__name__} on {config.env.spec.name}"
    lengths = np.diff(result.steps)  # the first and the last may be longer
    some = " to ".join(f"{x:,}" for x in sorted({int(lengths.min()), int(lengths.max())}))
    lines = [
        f"{what}: {evolution.population} members, "
        f"{counted(evolution.num_intervals, 'interval')} of {some} steps; "
        f"{int(np.sum(_replaced(result.history)))} times a member was replaced"
    ]
    if not result.has_fitness:
        return Lines(*map(Text, [*lines, WITHOUT]))
    best, of_all = result.best(), result.final_fitness
    kind = "training" if evolution.config.eval_every is None else "evaluation"
    lines.append(
        f"best: member {best.member}, {kind} return {_number(best.fitness)} in the last interval "
        f"(median of all {_number(np.nanmedian(of_all))}); its schedule:"
    )
    return Lines(*map(Text, lines), _schedule_table(result, best.schedule), *_took(result))


def _replaced(history: History) -> np.ndarray:
    """`[I, P]` bool, whether a member was replaced before an interval."""
    return history.parents != np.arange(history.parents.shape[1])


def _schedule_table(result: EvolveResult, schedule: Columns) -> Table:
    """A row an interval, of more than `ROWS` those spread evenly."""
    table = Table(box=None, pad_edge=False)
    for name in ("steps", *result.names, "return", "member"):
        table.add_column(Text(name), justify="right")
    number = len(schedule["stop"])
    for i in np.unique(np.linspace(0, number - 1, min(ROWS, number)).round().astype(int)):
        table.add_row(
            f"{schedule['stop'][i]:,}",
            *(f"{schedule[name][i]:.3g}" for name in result.names),
            _number(schedule["fitness"][i]),
            str(schedule["member"][i]),
        )
    return table


def _number(value: float) -> str:
    if np.isnan(value):
        return "-"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _took(result: EvolveResult) -> list[Text]:
    effort = result.effort
    total = int(result.steps[-1]) * result.evolution.population
    lines = [f"{total:,} environment steps in all"]
    if effort.seconds:
        lines[0] += (
            f"; {counted(effort.parts, 'part')} at once, {effort.memory / 2**20:,.0f} MiB; "
            f"compiled in {effort.compile_seconds:.1f} s, trained in {effort.seconds:.1f} s"
        )
    return [Text(line) for line in lines]
