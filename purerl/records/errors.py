"""Errors, and how their messages are put together."""

import contextlib
import difflib
import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from purerl.records.aliases import ALIASES, HINTS, aliases_of


class Error(Exception):
    """Base of every error that the library raises on purpose."""


class ConfigError(Error, ValueError):
    """A user's value can't be used: the message has its name, the value, and the allowed ones."""


class MemberError(ConfigError, IndexError):
    """There is no such member: the message has the number of members."""


class RunError(Error, RuntimeError):
    """A run's folder can't be written or read: the message has the file and the reason.

    Attributes:
        output: from `fit`, after training has begun: a `TrainOutput` of the updates so far.
    """

    output: Any = None


def shown(value: object, most: int = 200) -> str:
    """A value in one line of limited length, whatever its `repr` does."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an integer of 5,000 digits, a class whose repr is broken
        text = f"a {type(value).__name__} that can't be printed"
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 4 :]}"


@contextlib.contextmanager
def sentence(what: str, kind: Callable[[str], Exception] = ConfigError) -> Iterator[None]:
    """Turns an exception of a user's code into a one-line error, with the exception as its cause;
    purerl's errors pass unchanged."""
    try:
        yield
    except Error:
        raise
    except Exception as error:
        raise kind(f"{what}: {raised(error)}") from error


def raised(error: BaseException) -> str:
    """An error of a user's code in one line: its type, the line that raised it, its message."""
    words = " ".join((str(error).strip().splitlines() or [""])[0].split())[:300]
    return f"{type(error).__name__}{_line_of(error)}" + (f": {words}" if words else "")


def _line_of(error: BaseException) -> str:
    """The line of a user's file that raised an error; empty if it was raised elsewhere."""
    here = os.path.dirname(os.path.dirname(__file__)) + os.sep  # the package
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        theirs = f"{os.sep}site-packages{os.sep}" in frame.filename or frame.filename[:1] == "<"
        if not theirs and not frame.filename.startswith(here):
            return f" in {os.path.basename(frame.filename)}, line {frame.lineno}"
    return ""


def suggest(word: object, known: Iterable[str]) -> str:
    """The end of an error message: the known name that another library's stands for and its unit,
    else the closest known names, or else all of them."""
    known, text = [str(name) for name in known], str(word).lower().replace("-", "_")
    kin, unit = HINTS.get(text, ("", ""))
    if kin in known:
        return f"here it is {kin!r}, {unit}"
    near = [name for name in known if name in ALIASES.get(text, ())]
    # A misspelled field, or else a misspelled alias.
    for lowered in ({name.lower(): name for name in known}, aliases_of(known)):
        if not near:
            close = difflib.get_close_matches(text, lowered, n=3, cutoff=0.6)
            near = list(dict.fromkeys(lowered[name] for name in close))
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return f"known: {', '.join(known)}"
