"""Terminal output: a live view of training, the learning curve, and final metrics."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Self

import jax
import numpy as np
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from purerl.experience.metrics import Metrics
from purerl.records.files import counted
from purerl.runs.report import Report, latest, live_numbers, live_speed
from purerl.training import card
from purerl.training.config import TrainConfig
from purerl.training.train import TrainOutput


class LastingFile:
    """A text file on a terminal that may be closed: from then on writes are silently dropped.

    Training outlives its terminal (`nohup`, a lost connection), where every write then fails.

    Args:
        file: such as standard output.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, text: str) -> int:
        """Writes, while there is a terminal."""
        with self._lost_with_the_terminal():
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes, while there is a terminal."""
        with self._lost_with_the_terminal():
            self._file.flush()

    @contextlib.contextmanager
    def _lost_with_the_terminal(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            # All later output of the process is dropped, too.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for file in {self._file, sys.stdout, sys.stderr}:
                with contextlib.suppress(OSError, ValueError, AttributeError):
                    _replace_dead(file.fileno(), nowhere)
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _replace_dead(descriptor: int, other: int) -> None:
    try:
        os.write(descriptor, b"")
    except OSError:
        os.dup2(other, descriptor)


def lasting_console(*, stderr: bool = False) -> Console:
    """A console on standard output or standard error that outlives the terminal."""
    file: Any = LastingFile(sys.stderr if stderr else sys.stdout)
    return Console(file=file, highlight=False)


class console_sink:  # noqa: N801 - called as a function
    """Shows the progress of training: a bar, steps a second, time left, return over seeds, losses.

    In a pipe it prints the beginning of the run and its duration only. To be used in a `with`
    statement.

    Args:
        config: of the run.
        seeds: a number of seeds, or the seeds.
        folder: the run's, for display.
        console: where to; None for standard output.
    """

    def __init__(
        self,
        config: TrainConfig,
        seeds: int | Sequence[int] | None = 1,
        folder: Path | str | None = None,
        console: Console | None = None,
    ) -> None:
        self.console = console or lasting_console()
        self.config, self.folder = config, folder
        self.num_seeds = 1 if seeds is None else seeds if isinstance(seeds, int) else len(seeds)
        self.first: Report | None = None
        self.last: Report | None = None
        self._screen: Live | None = None

    def __enter__(self) -> Self:
        loop = self.config.make_loop()
        self.console.print(
            f"[bold]{escape(self.config.env.spec.name)}[/], {type(loop.agent).__name__}, "
            f"{counted(self.num_seeds, 'seed')}: {card.plan(loop)}"
            + (f" -> {escape(str(self.folder))}/" if self.folder else ""),
            soft_wrap=True,
            markup=True,
            emoji=False,
        )
        if self.console.is_terminal:
            columns = (BarColumn(24), TextColumn("{task.percentage:>3.0f}%"), TimeRemainingColumn())
            self._bar = Progress(TextColumn("{task.description}"), *columns)
            self._task = self._bar.add_task("compiling", total=loop.num_updates, start=False)
            self._screen = Live(self._bar, console=self.console, transient=True)
            self._screen.start()
        return self

    def __call__(self, report: Report) -> None:
        if self.first is None:
            self.first = report
            said = f"compiled in {report.compile_seconds:.1f} s"
            if report.start:
                said += f", going on after {report.start * report.steps_per_update:,} steps"
            self.console.print(said)
        self.last = report
        if self._screen is not None:
            if report.start == self.first.start:
                self._bar.start_task(self._task)
            self._bar.update(self._task, completed=report.stop, description="training ")
            self._screen.update(self._panel(report))

    def _panel(self, report: Report) -> Table:
        """The bar, and below it the numbers of the last report."""
        line: list[str | Text] = [f"{self.speed:,.0f} steps/s", *live_numbers(report)]
        if report.metrics.nonfinite_updates.any():
            skipped = int(report.metrics.nonfinite_updates.sum())
            line.append(Text(f"{skipped} updates skipped", "red"))
        grid = Table.grid()
        grid.add_row(self._bar)
        grid.add_row(Text("   ").join(map(_text, line)))
        return grid

    @property
    def speed(self) -> float:
        """Environment steps a second, over all seeds."""
        return live_speed(self.first, self.last)

    def __exit__(self, *error: object) -> None:
        if self._screen is not None:
            with contextlib.suppress(Exception):
                self._screen.stop()
            self._screen = None
        if self.last is not None:
            self.console.print(
                f"trained in {self.last.seconds:.1f} s: {self.speed:,.0f} steps/s over all seeds"
            )


def show_curve(console: Console, metrics: Metrics, timesteps: np.ndarray, rows: int = 20) -> None:
    """Prints the learning curve as a table, and the final metrics. A seed whose run has ended
    counts with its last values.

    Args:
        console: where to.
        metrics: of numpy arrays, `[S, n]` or `[n]`.
        timesteps: `[n]`, environment steps of each seed after each row of metrics.
        rows: rows in the table, at most.
    """
    returns = np.atleast_2d(np.asarray(metrics.episode_return))
    num_rows = returns.shape[1]
    edges = np.array_split(np.arange(num_rows), max(1, min(rows, num_rows)))
    told: list[dict[str, np.ndarray]] = []
    for part in edges:
        before = told[-1] if told else None
        told.append(latest(_part(metrics, part)._replace(before=before)))
    per_seed = [part["episode_return"] for part in told]
    seen = np.concatenate(per_seed) if per_seed else np.zeros(0)
    seen = seen[np.isfinite(seen)]
    if not seen.size:
        console.print("no episode ended: the return is not known; train for longer")
        return
    low, high = min(0.0, float(np.min(seen))), max(0.0, float(np.max(seen)))
    curve = Table("steps", "return", "min", "max", "", box=None, pad_edge=False)
    for column in curve.columns[:4]:
        column.justify = "right"
    for part, values in zip(edges, per_seed, strict=True):
        steps, known = f"{timesteps[part[-1]]:,}", values[np.isfinite(values)]
        if known.size:
            filled = round(40 * (known.mean() - low) / (high - low or 1.0))
            cells = (f"{x:.1f}" for x in (known.mean(), known.min(), known.max()))
            curve.add_row(steps, *cells, ("#" if console.options.ascii_only else "█") * filled)
        else:
            curve.add_row(steps, "-", "-", "-", "")
    console.print(curve)
    _show_end(console, told[-1], metrics)


def _show_end(console: Console, end: dict[str, np.ndarray], metrics: Metrics) -> None:
    table = Table("at the end", "mean over seeds", "min", "max", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    shown = {"return": end["episode_return"], "episode length": end["episode_length"]}
    shown |= {name: end[f"info/{name}"] for name in metrics.info}
    shown |= {name: end[name] for name in metrics.losses}
    shown |= {name: end[f"log/{name}"] for name in metrics.log}
    if metrics.eval is not None:
        evaluated = np.atleast_2d(metrics.eval.episode_return)
        lasts = [seed[np.isfinite(seed)][-1:] for seed in evaluated]
        shown["evaluation's return"] = np.concatenate(lasts)
        seen = np.where(np.isfinite(evaluated), evaluated, -np.inf).max(axis=1, initial=-np.inf)
        shown["best evaluation's return"] = seen
    for name, values in shown.items():
        known = values[np.isfinite(values)]
        if known.size:
            numbers = (f"{x:.4g}" for x in (known.mean(), known.min(), known.max()))
            table.add_row(_text(name.replace("_", " ")), *numbers)
    console.print(table)


def solved_text(out: TrainOutput, stop_at_return: float) -> str:
    """When `stop_at_return` was reached, in words."""
    assert out.solved_at is not None
    steps = np.atleast_1d(out.solved_at)
    reached = steps[steps >= 0]
    if not reached.size:
        return f"not solved: the return {stop_at_return:g} was not reached"
    when = f"{reached.min():,}"
    if reached.max() > reached.min():
        when = f"{when} to {reached.max():,}"
    seeds = f" by {len(reached)} of {len(steps)} seeds" if len(steps) > 1 else ""
    return f"solved at step {when}{seeds}: return {stop_at_return:g} or more"


def _part(metrics: Metrics, part: np.ndarray) -> Report:
    """A report of some rows of metrics."""
    start, stop = int(part[0]), int(part[-1]) + 1
    own = jax.tree.map(lambda x: np.asarray(x)[..., start:stop], metrics)
    return Report(start, stop, stop, 1, own, 0.0, 0.0)


def _text(x: str | Text) -> Text:
    """Text without markup."""
    return Text(x) if isinstance(x, str) else x
