"""Errors, and the words of their messages."""

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
    """A value that a user gave can't be used: says which, what it was and what is allowed."""


class MemberError(ConfigError, IndexError):
    """There is no such member: says how many there are."""


class RunError(Error, RuntimeError):
    """A run's folder can't be written or read: says which file, why, and what is still good.

    Attributes:
        output: from `fit`, after training has begun: a `TrainOutput` of the updates so far.
    """

    output: Any = None


def shown(value: Any, most: int = 200) -> str:
    """A value in one line of limited length, whatever its `repr` does."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an integer of 5,000 digits, a class whose repr is broken
        text = f"a {type(value).__name__} that can't be printed"
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 4 :]}"


@contextlib.contextmanager
def sentence(what: str, kind: Callable[[str], Exception] = ConfigError) -> Iterator[None]:
    """Puts what a user's code raises into one sentence, with its traceback as the cause; purerl's
    errors are sentences already."""
    try:
        yield
    except Error:
        raise
    except Exception as error:
        raise kind(f"{what}: {raised(error)}") from error


def raised(error: BaseException) -> str:
    """An error of a user's code in one line: its kind, the line it came from, and its words."""
    words = " ".join((str(error).strip().splitlines() or [""])[0].split())[:300]
    return f"{type(error).__name__}{_line_of(error)}" + (f": {words}" if words else "")


def _line_of(error: BaseException) -> str:
    """Where in a user's files it was raised; empty where that is in none of them."""
    here = os.path.dirname(os.path.dirname(__file__)) + os.sep  # the package
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        theirs = f"{os.sep}site-packages{os.sep}" in frame.filename or frame.filename[:1] == "<"
        if not theirs and not frame.filename.startswith(here):
            return f" in {os.path.basename(frame.filename)}, line {frame.lineno}"
    return ""


def suggest(word: Any, known: Iterable[str]) -> str:
    """The rest of an error message: the nearest right spelling, or else every right one."""
    known = [str(name) for name in known]
    word = str(word).lower()
    meant = (*ALIASES.get(word, ()), HINTS.get(word))
    near = [name for name in known if name in meant]
    # Spelled wrong, a field's name; or else one of its aliases.
    for lowered in ({name.lower(): name for name in known}, aliases_of(known)):
        if not near:
            close = difflib.get_close_matches(word, lowered, n=3, cutoff=0.6)
            near = list(dict.fromkeys(lowered[name] for name in close))
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return f"known: {', '.join(known)}"
