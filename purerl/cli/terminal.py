"""Output of the command, to a terminal that may lack Unicode, or be closed."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from purerl.runs.console import LastingFile


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Makes standard output and error outlive their terminal, and escape characters that its
    encoding lacks."""
    before: tuple[Any, Any] = sys.stdout, sys.stderr
    for stream in before:
        if getattr(stream, "errors", None) in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = (x and LastingFile(x) for x in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def new_console() -> Console:
    """A console that prints texts as they are, brackets included."""
    # Without `file` it would assume UTF-8.
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
