"""Where the command prints: a terminal that may take ASCII alone, or be gone."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from purerl.runs.console import LastingFile


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Standard output and error that outlive their terminal, and spell out what its encoding
    hasn't."""
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
    """A console whose texts are printed as they are: brackets in them are no markup."""
    # With its file, whose encoding it asks for; without, it takes UTF-8 for granted.
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
