"""The result of a sweep: its table, its members' outputs, the best of them."""

import csv
import dataclasses
import html
import io
import math
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.console import Group as Lines
from rich.table import Column, Table
from rich.text import Text

from purerl.accelerator.transfer import from_host
from purerl.experience.metrics import Episodes, Metrics
from purerl.records.errors import ConfigError, MemberError, RunError, shown
from purerl.records.fields import check_path
from purerl.records.files import counted, reason, write_whole
from purerl.runs.report import by_name
from purerl.statistics import bin_curves
from purerl.sweeps.plan import Group, Plan, Values, configure
from purerl.sweeps.slices import CompiledGroup
from purerl.training import card
from purerl.training.config import TrainConfig
from purerl.training.train import TrainOutput, final_return

# A table: columns of equal length by name.
Columns = dict[str, np.ndarray]
# Combinations in the printed overview.
ROWS = 20


@dataclasses.dataclass(frozen=True)
class Effort:
    """Time and memory of a sweep, without slices that were on disk already.

    Attributes:
        slices: number of slices trained.
        compiled: number of programs compiled for them.
        compile_seconds, seconds: of compiling, and of training.
        parts: most cores or devices that members were laid over.
        slice_sizes: members trained at once, for each group that was trained.
        memory: bytes of the largest slice, as the compiler reports them, on each device.
    """

    slices: int = 0
    compiled: int = 0
    compile_seconds: float = 0.0
    seconds: float = 0.0
    parts: int = 1
    slice_sizes: tuple[int, ...] = ()
    memory: int = 0

    def plus(self, program: CompiledGroup, num_members: int, seconds: float) -> "Effort":
        """The sum with a group's training."""
        return Effort(
            slices=self.slices + -(-num_members // program.slice_size),
            compiled=self.compiled + program.compiled,
            compile_seconds=self.compile_seconds + program.seconds,
            seconds=self.seconds + seconds,
            parts=max(self.parts, program.call.layout.num_parts),
            slice_sizes=(*self.slice_sizes, program.slice_size),
            memory=max(self.memory, program.memory),
        )


class Best(NamedTuple):
    """The best combination of a sweep.

    Attributes:
        hyperparams: its values by name.
        mean, std: of its seeds' returns (the standard deviation of a sample; 0 for one seed).
        member: the best of its seeds, as an index for `SweepResult.member`.
        output: that member's `TrainOutput`, with its policy.
    """

    hyperparams: Values
    mean: float
    std: float
    member: int
    output: TrainOutput


@dataclasses.dataclass(frozen=True)
class GroupResult:
    """Members that one program trained.

    Attributes:
        group: their indices in the sweep, and their config.
        outputs: the leaves of their `TrainOutput`s, `[S, ...]` numpy arrays; keys as their data.
        shapes: one member's `TrainOutput` of `jax.ShapeDtypeStruct`s.
    """

    group: Group
    outputs: list[np.ndarray]
    shapes: TrainOutput

    @property
    def metrics(self) -> Metrics:
        """`Metrics` of `[S, num_rows]` numpy arrays."""
        return self._whole().metrics

    @property
    def num_updates(self) -> np.ndarray:
        """`[S]` int64, updates that each member ran."""
        return np.asarray(self._whole().state.num_updates, np.int64)

    @property
    def num_rows(self) -> np.ndarray:
        """`[S]` int64, rows of metrics of each member's run."""
        return -(-self.num_updates // self.shapes.log_every)

    def _whole(self) -> TrainOutput:
        return jax.tree.unflatten(jax.tree.structure(self.shapes), self.outputs)

    def member(self, place: int) -> TrainOutput:
        """One member's output, by its index in the group."""
        leaves, structure = jax.tree.flatten(self.shapes)
        pairs = zip(self.outputs, leaves, strict=True)
        return jax.tree.unflatten(structure, [from_host(x[place], shape) for x, shape in pairs])


class Overview:
    """Base of results whose text is what `rich` prints of them, and in a notebook too."""

    def _curves(self) -> str:
        """SVG of learning curves, for notebooks."""
        return ""

    def _repr_html_(self) -> str:
        style = "font:12px/1.4 monospace;margin:0;background:none;color:inherit"
        text = f'<pre style="{style}">{html.escape(str(self))}</pre>'
        return f"<div>{text}{self._curves()}</div>"

    def __str__(self) -> str:
        text = io.StringIO()
        # In a notebook rich would show it, and leave the text empty.
        Console(file=text, width=100, color_system=None, force_jupyter=False).print(self)
        return text.getvalue().rstrip()


class SweepResult(Overview):
    """The result of a sweep, on the host. Print it for an overview.

    Attributes:
        table: a row a member, as columns `[members]` by name: every swept name; `seed`;
            `final_return`, the mean over the training episodes that ended in the last tenth of the
            rows of metrics of the member's run (rounded up), each episode counted once, NaN where
            none did; `eval_return`, of its last evaluation (NaN without one; no column where no
            member is evaluated); `nonfinite_updates`, as in `Metrics`, of all rows;
            `num_timesteps`.
        groups: a `GroupResult` for each program. There is one, unless a static field, such as
            `num_envs`, was swept too.
        effort: its time and memory.
        trained: `[members]` bool, False for those that a folder of `load_sweep` doesn't have yet.
    """

    def __init__(
        self,
        plan: Plan,
        groups: list[GroupResult],
        effort: Effort,
        trained: np.ndarray | None = None,
    ) -> None:
        self.plan = plan
        self.trained = np.ones(plan.num_members, bool) if trained is None else trained
        self.groups = tuple(groups)
        self.effort = effort
        self.table = _table(plan, self.groups)

    @property
    def metrics(self) -> Metrics:
        """`Metrics` of numpy arrays `[members, num_rows]`, in the table's order.

        Raises:
            ValueError: the groups differ in their numbers of updates, or in their metrics: take
                them one by one, `result.groups[i].metrics`.
        """
        parts = [group.metrics for group in self.groups]
        kinds = {(str(jax.tree.structure(x)), x.num_episodes.shape[1]) for x in parts}
        if len(kinds) > 1:
            raise ValueError(
                "the sweep's groups differ in their numbers of updates or in what they measure: "
                "take result.groups[i].metrics, of the members result.groups[i].group.members"
            )
        order = np.argsort(np.concatenate([group.group.members for group in self.groups]))
        return jax.tree.map(lambda *xs: np.concatenate(xs)[order], *parts)

    def member(self, index: int) -> TrainOutput:
        """A member's `TrainOutput`, by its row in the table: its policy, its state (with the buffer
        only if that was kept), its metrics.

        Raises:
            MemberError: no such member, or it isn't trained yet. It is an `IndexError`.
        """
        index = self._place(index)
        if not self.trained[index]:
            raise MemberError(f"member {index} isn't trained yet")
        for group in self.groups:
            places = np.flatnonzero(group.group.members == index)
            if len(places):
                return group.member(int(places[0]))
        raise AssertionError(index)

    def _place(self, index: object) -> int:
        """A row of the table as a non-negative index. Raises MemberError, ConfigError."""
        return member_place(index, self.plan.num_members)

    def config(self, index: int) -> TrainConfig:
        """The config that trains a member alone, with `jax.random.key(seed)`."""
        combination = self._place(index) // len(self.plan.seeds)
        return configure(self.plan.config, self.plan.combinations[combination])

    def best(self, by: str = "final_return") -> Best:
        """The combination with the highest mean over its seeds, and the best of these.

        Args:
            by: a column of the table, "final_return" or "eval_return". NaN is left out of means.

        Raises:
            ConfigError: no such column, or all of it is NaN.
        """
        if by not in ("final_return", "eval_return") or by not in self.table:
            columns = [x for x in ("final_return", "eval_return") if x in self.table]
            raise ConfigError(f"by: got {by!r}, expected one of {', '.join(map(repr, columns))}")
        scores = self.table[by].reshape(-1, len(self.plan.seeds))
        ranked = ranking(scores)
        if not np.any(np.isfinite(scores)):
            raise ConfigError(f"best: no member has a {by}: no episode ended, train for longer")
        combination = ranked[0]
        mean, std = _spread(scores[combination])
        member = combination * len(self.plan.seeds) + int(np.nanargmax(scores[combination]))
        values = dict(self.plan.combinations[combination])
        return Best(values, mean, std, member, self.member(member))

    @property
    def has_returns(self) -> bool:
        """Whether an episode of any member has ended."""
        return bool(np.any(np.isfinite(self.table["final_return"])))

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Writes the table, its columns' names in the first line."""
        write_csv(self.table, path)

    def metrics_table(self) -> Columns:
        """The learning curves of all members as one long table, a row for each row of metrics, for
        `pandas.DataFrame`: columns by name `member`, the row in `table`; every swept name; `seed`;
        `update` and `timesteps`, at the row's end; and the metrics, by the names that the
        `metrics.csv` of a run has. A metric that some members lack is NaN there."""
        parts = [self._long(group) for group in self.groups]
        names = dict.fromkeys(name for part in parts for name in part)
        sizes = [len(part["member"]) for part in parts]
        whole = {
            name: np.concatenate(
                [part.get(name, np.full(n, np.nan)) for part, n in zip(parts, sizes, strict=True)]
            )
            for name in names
        }
        order = np.argsort(whole["member"], kind="stable")
        return {name: x[order] for name, x in whole.items()}

    def _long(self, result: GroupResult) -> Columns:
        """The rows of `metrics_table` of one group."""
        rows = result.metrics.num_episodes.shape[1]
        there = np.arange(rows) < result.num_rows[:, None]  # until each run was over
        members, timesteps = result.group.members, result.shapes.timesteps
        place = np.broadcast_to(members[:, None], there.shape)[there]
        columns = {"member": place}
        columns |= {name: self.table[name][place] for name in (*self.plan.names, "seed")}
        at = np.broadcast_to(timesteps, there.shape)[there]
        columns |= {"update": at // result.shapes.steps_per_update, "timesteps": at}
        return columns | {name: x[there] for name, x in by_name(result.metrics).items()}

    def write_metrics(self, path: str | os.PathLike[str]) -> None:
        """Writes `metrics_table` into a `.csv`, or a `.parquet` (`pip install 'purerl[parquet]'`).

        Raises:
            ConfigError: another suffix, or pyarrow isn't installed.
            RunError: it can't be written.
        """
        check_table_path(path)
        table, target = self.metrics_table(), check_path("path", path)
        try:
            if target.suffix.lower() == ".parquet":
                write_whole(target, lambda file: _write_parquet(table, file))
            else:
                write_csv(table, target)
        except OSError as error:
            raise RunError(f"{target} can't be written: {reason(error)}") from None

    def __rich__(self) -> Lines:
        return _overview(self)

    def __repr__(self) -> str:
        config, numbers = self.plan.config, (len(self.plan.combinations), len(self.plan.seeds))
        size = " x ".join(map(counted, numbers, ("combination", "seed")))
        facts = [card.title(config.agent, config.env.spec.name), size]
        if self.has_returns:
            best = ranking(self._scores)[0]
            mean = f"best final return {_spread(self._scores[best])[0]:.1f}"
            facts.append(f"{mean} with {_named(self.plan, best)}" if self.plan.names else mean)
        return f"SweepResult({', '.join(facts)})"

    @property
    def _scores(self) -> np.ndarray:
        """`[combinations, seeds]`, final returns."""
        return self.table["final_return"].reshape(-1, len(self.plan.seeds))

    def _curves(self) -> str:
        return draw_combinations(self.plan, self.groups, ranking(self._scores)[0])


def _named(plan: Plan, combination: int) -> str:
    """A combination's values in words."""
    values = plan.combinations[combination]
    return " ".join(f"{name}={value_text(values[name])}" for name in plan.names)


def draw_combinations(plan: Plan, groups: Sequence[GroupResult], best: int | None = None) -> str:
    """SVG of learning curves, of each combination the mean over its seeds.

    Args:
        plan: of the sweep.
        groups: of its members, zeros where one isn't trained yet: no episode of it has ended.
        best: the combination that is drawn thick; None for the one that ends highest.
    """
    x = np.linspace(0, 1, card.BINS) * max(max(group.shapes.timesteps) for group in groups)
    curves = np.full((plan.num_members, card.BINS), np.nan)
    for group in groups:
        metrics = group.metrics
        at, binned = bin_curves(
            group.shapes.timesteps, metrics.episode_return, metrics.num_episodes, card.BINS
        )
        for member, curve in zip(group.group.members, binned, strict=True):
            there = np.isfinite(curve)
            if there.any():
                curves[member] = np.interp(x, at[there], curve[there], np.nan, np.nan)
    by_seed = curves.reshape(-1, len(plan.seeds), card.BINS)
    number = np.isfinite(by_seed).sum(axis=1)
    means = np.where(number > 0, np.nansum(by_seed, axis=1) / np.maximum(number, 1), np.nan)
    if best is None:
        best = int(np.argmax(np.where(np.isfinite(means[:, -1]), means[:, -1], -np.inf)))
    seen = [i for i in range(len(means)) if np.isfinite(means[i]).any() or i == best]
    caption = "return, mean over seeds of each combination"
    if plan.names:
        caption += f"; thick: {_named(plan, best)}"
    return card.picture(x, means[seen], caption, seen.index(best))


def member_place(index: object, number: int) -> int:
    """A member of so many as a non-negative index. Raises MemberError, ConfigError."""
    if isinstance(index, bool) or not isinstance(index, (int, np.integer)):
        raise ConfigError(f"member: got {shown(index)}, expected an integer")
    if not -number <= index < number:
        raise MemberError(f"member {index} of {number}, counted from 0")
    return int(index) % number


def check_table_path(path: object) -> None:
    """Raises ConfigError unless a table can be written under that name."""
    suffix = check_path("path", path).suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise ConfigError(f"path: got {shown(path)}, expected a name that ends in .csv or .parquet")
    if suffix == ".parquet" and find_spec("pyarrow") is None:
        raise ConfigError("path: .parquet needs pyarrow: pip install 'purerl[parquet]'")


def _write_parquet(table: Columns, file: BinaryIO) -> None:
    import pyarrow
    import pyarrow.parquet

    plain = {n: x.astype(str) if x.dtype == object else x for n, x in table.items()}
    pyarrow.parquet.write_table(pyarrow.table(plain), file)


def write_csv(table: Columns, path: str | os.PathLike[str]) -> None:
    """Writes columns, with their names in the first line; a number as its shortest text."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(table)
    writer.writerows(zip(*table.values(), strict=True))
    write_whole(Path(path), lambda file: file.write(text.getvalue().encode()))


def ranking(scores: np.ndarray) -> list[int]:
    """Rows of scores `[combinations, seeds]` by their mean, the best first, NaN last."""
    means = [_spread(row)[0] for row in scores]
    return sorted(range(len(means)), key=lambda i: math.inf if math.isnan(means[i]) else -means[i])


def _spread(row: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation without NaN."""
    seen = row[np.isfinite(row)]
    if not seen.size:
        return math.nan, math.nan
    return float(seen.mean()), float(seen.std(ddof=1)) if seen.size > 1 else 0.0


def _table(plan: Plan, groups: tuple[GroupResult, ...]) -> Columns:
    seeds = len(plan.seeds)
    table = {
        name: np.repeat(column([values[name] for values in plan.combinations]), seeds)
        for name in plan.names
    }
    table["seed"] = np.tile(np.array(plan.seeds, np.int64), len(plan.combinations))
    columns: Columns = {"final_return": np.full(plan.num_members, np.nan)}
    if any(group.metrics.eval is not None for group in groups):
        columns["eval_return"] = np.full(plan.num_members, np.nan)
    for name in ("nonfinite_updates", "num_timesteps"):
        columns[name] = np.zeros(plan.num_members, np.int64)
    for group in groups:
        members, metrics = group.group.members, group.metrics
        columns["final_return"][members] = final_return(metrics, group.num_rows)
        columns["nonfinite_updates"][members] = metrics.nonfinite_updates.sum(axis=1)
        columns["num_timesteps"][members] = group.num_updates * group.shapes.steps_per_update
        if metrics.eval is not None:
            columns["eval_return"][members] = last_eval(metrics)
    return table | columns


def column(values: list[object]) -> np.ndarray:
    """A column of the table: numbers, strings, or objects where types are mixed."""
    if len({type(x) for x in values}) == 1 and isinstance(values[0], (bool, int, float, str)):
        return np.array(values)
    column = np.empty(len(values), object)
    for i, value in enumerate(values):
        column[i] = value
    return column


def last_eval(metrics: Metrics) -> np.ndarray:
    """`[S]`, the return of each member's last evaluation, NaN where there was none."""
    assert metrics.eval is not None
    return newest_return(metrics.eval)


def newest_return(episodes: Episodes | Metrics) -> np.ndarray:
    """`[S]`, each member's return in the newest of the rows in which an episode ended, NaN where
    none did."""
    returns = np.asarray(episodes.episode_return)
    there = (np.asarray(episodes.num_episodes) > 0) & np.isfinite(returns)
    last = there.shape[1] - 1 - np.argmax(there[:, ::-1], axis=1)
    return np.where(there.any(axis=1), returns[np.arange(len(last)), last], np.nan)


def _overview(result: SweepResult) -> Lines:
    """A row for each combination, over its seeds, the best first; then time and memory."""
    plan, seeds = result.plan, len(result.plan.seeds)
    shown = plan.names or ()
    columns = [Column(Text(name)) for name in shown]
    table = Table(*columns, "return", "std", "min", "max", box=None, pad_edge=False)
    evaluated = "eval_return" in result.table
    if evaluated:
        table.add_column("eval")
    skipped = result.table["nonfinite_updates"].reshape(-1, seeds).sum(axis=1)
    if skipped.any():
        table.add_column("skipped")
    for column in table.columns[len(shown) :]:
        column.justify = "right"
    scores = result.table["final_return"].reshape(-1, seeds)
    order = ranking(scores)
    for i in order[:ROWS]:
        cells: list[str | Text] = [value_text(plan.combinations[i][name]) for name in shown]
        cells += _numbers(scores[i])
        if evaluated:
            cells.append(_numbers(result.table["eval_return"].reshape(-1, seeds)[i])[0])
        if skipped.any():
            cells.append(str(skipped[i]))
        table.add_row(*cells)
    lines = [f"{counted(len(order), 'combination')} x {counted(seeds, 'seed')}"]
    lines[0] += ": final return, mean and standard deviation over seeds"
    below = [f"and {len(order) - ROWS} more"] if len(order) > ROWS else []
    return Lines(*lines, table, *below, *map(Text, _took(result)))


def _took(result: SweepResult) -> list[str]:
    effort, names = result.effort, sorted({n for g in result.groups for n in g.group.static})
    lines = []
    if len(result.groups) > 1:
        why = f"since {', '.join(names)} can't be mapped over"
        lines.append(f"{len(result.groups)} programs, one after the other, {why}")
    if effort.slices:
        steps = int(result.table["num_timesteps"].sum())
        sizes = " or ".join(str(size) for size in sorted(set(effort.slice_sizes)))
        lines.append(
            f"{counted(effort.slices, 'slice')} of {sizes} in "
            f"{counted(effort.parts, 'part')} at once, {effort.memory / 2**20:,.0f} MiB; "
            f"compiled in {effort.compile_seconds:.1f} s, trained in {effort.seconds:.1f} s"
        )
        lines.append(f"{steps:,} environment steps in all")
    return lines


def _numbers(row: np.ndarray) -> list[str]:
    seen = row[np.isfinite(row)]
    if not seen.size:
        return ["-"] * 4
    std = f"{seen.std(ddof=1):.1f}" if seen.size > 1 else "-"
    return [f"{seen.mean():.1f}", std, f"{seen.min():.1f}", f"{seen.max():.1f}"]


def value_text(value: object) -> Text:
    """A swept value in a table."""
    if isinstance(value, float):
        return Text(f"{value:.4g}")
    return Text(str(getattr(value, "__name__", value))[:40])
