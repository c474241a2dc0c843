"""Progress of a sweep on the terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from purerl.runs.console import lasting_console

Notify = Callable[[str, int], None]


@contextmanager
def progress(num_members: int, verbose: bool | None) -> Iterator[Notify]:
    """Shows the progress of a sweep on stderr: a bar on a terminal, elsewhere a line for each slice
    if verbose.

    Yields:
        `report(phase, members)`: the phase, such as "compiling", and how many members are done.
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

        def report(phase: str, members: int) -> None:
            bar.update(task, description=phase, completed=members)
            if off and verbose:
                console.print(f"sweep: {phase}, {members} of {num_members} agents")

        yield report
