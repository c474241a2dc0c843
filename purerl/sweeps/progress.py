"""Progress of sweeps and searches, in a notebook or on the terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from purerl.runs.console import lasting_console
from purerl.runs.progress import LiveBar, in_notebook, is_watched


class Notify(Protocol):
    """Takes the phase, such as "compiling", how many are done, and a function that draws their
    learning curves as SVG, which is called where they are shown."""

    def __call__(
        self, phase: str, number: int, draw: Callable[[], str] | None = None, /
    ) -> None: ...


@contextmanager
def progress(
    total: int, verbose: bool | None, kind: str = "sweep", noun: str = "agents"
) -> Iterator[Notify]:
    """Shows progress: in a notebook a bar and curves, on a terminal a bar on stderr, elsewhere a
    line for each report if verbose.

    Args:
        total: how many agents (or trials) there are.
        verbose: as of `sweep`.
        kind, noun: of what, in words.

    Yields:
        `report(phase, number)`, see `Notify`.
    """
    if verbose is not False and (is_watched() or (verbose and in_notebook())):
        live = LiveBar(total, kind, noun)

        def show(phase: str, number: int, draw: Callable[[], str] | None = None, /) -> None:
            live(phase, number, draw and draw())

        yield show
        return
    console = lasting_console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(f"{{task.completed}} of {{task.total}} {noun}"),
        TimeRemainingColumn(),
    )
    off = verbose is False or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=off) as bar:
        task = bar.add_task(kind, total=total)

        def report(phase: str, number: int, draw: Callable[[], str] | None = None, /) -> None:
            del draw
            bar.update(task, description=phase, completed=number)
            if off and verbose:
                console.print(f"{kind}: {phase}, {number} of {total} {noun}")

        yield report
