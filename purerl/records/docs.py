"""Docstrings of records: read field by field, and completed by those that they extend."""

import inspect
import re
import textwrap
from collections.abc import Mapping

WIDTH = 100


def documented(cls: type) -> dict[str, str]:
    """The text of each field, by name, from the docstrings of a record and of those it extends."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        for names, text in _entries(base.__doc__):
            texts |= dict.fromkeys(names, text)
    return texts


def complete(cls: type, fields: list[str]) -> str | None:
    """A record's docstring with the fields that it inherits among its attributes.

    Args:
        cls: the record.
        fields: what its constructor takes, in its order.
    """
    if cls.__doc__ is None:  # python -OO
        return None
    texts = documented(cls)
    lines = {name: texts[name] for name in fields if name in texts}
    doc = inspect.cleandoc(cls.__doc__)
    before, title, rest = doc.partition("Attributes:\n")
    after = re.split(r"\n(?=\S)", rest, maxsplit=1)[1:] if title else []
    if not title:
        before, raises, tail = doc.partition("Raises:\n")
        after = [raises + tail] if raises else []
    parts = [before.rstrip(), section("Attributes", lines) if lines else "", *after]
    return "\n\n".join(part for part in parts if part) + "\n"


def section(title: str, entries: Mapping[str, str]) -> str:
    """A section of a docstring: each name with its text, wrapped; names in a row that share a text
    are put together."""
    groups: list[tuple[str, str]] = []
    for name, text in entries.items():
        before, last = groups[-1] if groups else ("", None)
        if last == text:
            groups[-1] = f"{before}, {name}", text
        else:
            groups.append((name, text))
    wrapped = [
        textwrap.fill(
            f"{name}: {text}",
            WIDTH - 4,  # the docstring's indentation
            initial_indent=" " * 4,
            subsequent_indent=" " * 8,
            break_on_hyphens=False,
        )
        for name, text in groups
    ]
    return "\n".join([f"{title}:", *wrapped])


def _entries(doc: str | None) -> list[tuple[list[str], str]]:
    """The attributes of one docstring: their names, of which several may share a text."""
    body = inspect.cleandoc(doc or "").partition("Attributes:\n")[2]
    body = re.split(r"\n(?=\S)", body)[0]
    found = re.findall(r"^    (\w[\w, ]*): ((?:.|\n(?=     ))*)", body, re.M)
    return [(names.split(", "), " ".join(text.split())) for names, text in found]
