"""Where the command prints: a terminal that may take ASCII alone, or be gone."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console


class Lasting:
    """A stream of text that goes on without a reader: after the terminal has hung up, what is
    written is lost, and the process isn't.

    Args:
        stream: standard output or standard error.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes a text."""
        with self._hung_up():
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hands over what was written."""
        with self._hung_up():
            self._stream.flush()

    @contextlib.contextmanager
    def _hung_up(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            # What the stream still holds, and what is written at the process' end, goes nowhere.
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Standard output and error that outlive their terminal, and spell out what its encoding
    hasn't."""
    before = sys.stdout, sys.stderr
    for stream in before:
        if getattr(stream, "errors", None) in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.stdout, sys.stderr = (x and Lasting(x) for x in before)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def new_console() -> Console:
    """A console whose texts are printed as they are: brackets in them are no markup."""
    # With its file, whose encoding it asks for; without, it takes UTF-8 for granted.
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
