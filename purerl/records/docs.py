"""Docstrings of records: parsed field by field, and completed from their base classes."""

import inspect
import re
import textwrap
from collections.abc import Mapping

WIDTH = 100


def documented(cls: type) -> dict[str, str]:
    """The text of each field, by name, from the docstrings of a record and of its bases."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        for names, text in _entries(base.__doc__):
            texts |= dict.fromkeys(names, text)
    return texts


def complete(cls: type, fields: list[str]) -> str | None:
    """A record's docstring, with its inherited fields among the attributes.

    Args:
        cls: the record.
        fields: the arguments of its constructor, in order.
    """
    if cls.__doc__ is None:  # python -OO
        return None
    here = {name for names, _ in _entries(cls.__doc__) for name in names}
    texts = documented(cls)
    missing = {name: texts[name] for name in fields if name in texts and name not in here}
    if not missing:
        return cls.__doc__
    doc, inherited = inspect.cleandoc(cls.__doc__), section("Attributes", missing)
    for title in ("Attributes:\n", "Raises:\n"):
        before, found, after = doc.partition(title)
        if found:
            between = "\n" if title in inherited else f"\n\n{title}"
            return f"{before}{inherited}{between}{after}\n"
    return f"{doc}\n\n{inherited}\n"


def section(title: str, entries: Mapping[str, str]) -> str:
    """A section of a docstring: each name with its text, wrapped; consecutive names with the same
    text share an entry."""
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
    """The entries of a docstring's attributes: one or more names, and their text."""
    body = inspect.cleandoc(doc or "").partition("Attributes:\n")[2]
    body = re.split(r"\n(?=\S)", body)[0]
    found = re.findall(r"^    (\w[\w, ]*): ((?:.|\n(?=     ))*)", body, re.M)
    return [(names.split(", "), " ".join(text.split())) for names, text in found]
