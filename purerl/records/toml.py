"""Plain values as TOML, which has no null: None is the word "none"."""

import os
import tomllib
from collections.abc import Mapping

import tomli_w

from purerl.records.files import read_text, reason
from purerl.records.types import Plain


def to_toml(mapping: Mapping[str, Plain]) -> str:
    """Plain values as TOML."""
    return tomli_w.dumps(_without_none(mapping))


def from_toml(file: str | os.PathLike[str]) -> dict[str, Plain]:
    """The values in a TOML file.

    Raises:
        ValueError: it isn't TOML.
        OSError: it can't be read.
    """
    try:
        found: dict[str, Plain] = _with_none(tomllib.loads(read_text(file)))
        return found
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{os.fspath(file)} is no TOML file: {reason(error)}") from None


def _without_none(value: Plain) -> Plain:
    if isinstance(value, Mapping):
        return {name: _without_none(x) for name, x in value.items()}
    return "none" if value is None else value


def _with_none(value: Plain) -> Plain:
    if isinstance(value, dict):
        return {name: _with_none(x) for name, x in value.items()}
    return None if value == "none" else value
