"""Progress of sweeps and searches on the terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from purerl.runs.console import lasting_console

Notify = Callable[[str, int], None]


@contextmanager
def progress(
    total: int, verbose: bool | None, kind: str = "sweep", noun: str = "agents"
) -> Iterator[Notify]:
    """Shows progress on stderr: a bar on a terminal, elsewhere a line for each report if verbose.

    Args:
        total: how many agents (or trials) there are.
        verbose: as of `sweep`.
        kind, noun: of what, in words.

    Yields:
        `report(phase, number)`: the phase, such as "compiling", and how many are done.
    """
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

        def report(phase: str, number: int) -> None:
            bar.update(task, description=phase, completed=number)
            if off and verbose:
                console.print(f"{kind}: {phase}, {number} of {total} {noun}")

        yield report
