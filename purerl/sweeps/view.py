"""A sweep on the screen."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.console import Group
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from purerl.records.files import counted
from purerl.runs.console import lasting_console
from purerl.sweeps.result import SweepResult, ranking

Report = Callable[[str, int], None]
ROWS = 20


def overview(result: SweepResult) -> Any:
    """Combinations with their seeds put together, the best first, and what the sweep took."""
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
        cells: list[Any] = [_text(plan.combinations[i][name]) for name in shown]
        cells += _numbers(scores[i])
        if evaluated:
            cells.append(_numbers(result.table["eval_return"].reshape(-1, seeds)[i])[0])
        if skipped.any():
            cells.append(str(skipped[i]))
        table.add_row(*cells)
    lines = [f"{counted(len(order), 'combination')} x {counted(seeds, 'seed')}"]
    lines[0] += ": final return, mean and standard deviation over seeds"
    below = [f"and {len(order) - ROWS} more"] if len(order) > ROWS else []
    return Group(*lines, table, *below, *map(Text, _took(result)))


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
            f"{counted(effort.slices, 'slice')} of {sizes} over "
            f"{counted(effort.devices, 'device')}, {effort.memory / 2**20:,.0f} MiB on each; "
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


def _text(value: Any) -> Text:
    if isinstance(value, float):
        return Text(f"{value:.4g}")
    return Text(str(getattr(value, "__name__", value))[:40])


@contextmanager
def progress(num_members: int, verbose: bool | None) -> Iterator[Report]:
    """Shows how far a sweep is, on stderr: a bar on a terminal; elsewhere a line a slice, if
    verbose.

    Yields:
        `report(what, members)`: what goes on, and how many members are done.
    """
    console = lasting_console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed} of {task.total} agents"),
        TimeRemainingColumn(),
    )
    off = verbose is False or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=off) as bar:
        task = bar.add_task("sweep", total=num_members)

        def report(what: str, members: int) -> None:
            bar.update(task, description=what, completed=members)
            if off and verbose:
                console.print(f"sweep: {what}, {members} of {num_members} agents")

        yield report
