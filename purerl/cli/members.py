"""`--member`: which agents of a sweep's folder a command takes."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from purerl.cli.flags import literal
from purerl.records.errors import ConfigError, RunError, suggest
from purerl.runs.view import marker_of
from purerl.sweeps.result import SweepResult, value_text
from purerl.sweeps.view import read_sweep

MEMBER_BEST = "best"


def add_member_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--member`."""
    parser.add_argument(
        "--member",
        default=MEMBER_BEST,
        metavar="WHICH",
        help="of a sweep: best (default), a row of its table, or values: lr=1e-3,seed=0",
    )


def read_members(folder: Path, which: str, env: str | None) -> tuple[SweepResult, list[int]]:
    """A sweep, and the members of it that `--member` chooses, the best first.

    Raises:
        ConfigError: none is like that, or it isn't trained yet.
        RunError: as from `read_sweep`.
    """
    if marker_of(folder) is None:
        raise ConfigError(f"--member: got {which!r}, but {folder} is no sweep's folder")
    try:
        result = read_sweep(folder, env)
    except ConfigError as error:
        if str(error).startswith("--"):
            raise
        raise RunError(f"{folder}: {error}") from None
    places = _chosen(result, which)
    trained = [i for i in places if result.trained[i]]
    if not trained:
        raise RunError(f"--member: {which!r} isn't trained yet in {folder}")
    returns = np.nan_to_num(result.table["final_return"], nan=-np.inf)
    return result, sorted(trained, key=lambda i: -returns[i])


def _chosen(result: SweepResult, which: str) -> Sequence[int]:
    """Members by their row in the table, or by their values in it."""
    number = result.plan.num_members
    if which == MEMBER_BEST:
        best, seeds = result.best().member, len(result.plan.seeds)
        return range(best // seeds * seeds, best // seeds * seeds + seeds)
    index = literal(which)
    if type(index) is int:
        if not 0 <= index < number:
            raise ConfigError(f"--member: got {index}, expected 0 to {number - 1}, rows of table")
        return [index]
    known = ["seed", *result.plan.names]
    left = np.ones(number, bool)
    for part in which.split(","):
        name, sign, text = part.partition("=")
        name = name.strip().replace("-", "_")
        if not sign or name not in known:
            hint = suggest(name, known) if sign else "expected best, a row, or NAME=VALUE,..."
            raise ConfigError(f"--member: got {part!r}; {hint}")
        column = result.table[name]
        same = np.array([_same(value, text.strip()) for value in column])
        if not same.any():
            there = ", ".join(dict.fromkeys(str(value_text(_plain(x))) for x in column))
            raise ConfigError(f"--member: no {name}={text.strip()}; there are {there[:200]}")
        left &= same
    if not left.any():
        raise ConfigError(f"--member: no member has {which}")
    return np.flatnonzero(left).tolist()


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value


def _same(value: object, text: str) -> bool:
    """Whether a value is what a text says; numbers to the digits that tables print."""
    value, said = _plain(value), literal(text)
    if isinstance(value, float) and isinstance(said, (int, float)):
        return bool(np.isclose(value, said, rtol=1e-3, atol=0.0))
    return bool(value == said) or str(value_text(value)) == text


def combination_label(result: SweepResult, index: int) -> str:
    """The values of a member's combination in words."""
    values = {name: _plain(result.table[name][index]) for name in result.plan.names}
    return ", ".join(f"{name}={value_text(x)}" for name, x in values.items()) or "seeds"


def member_label(result: SweepResult, index: int) -> str:
    """A member's values in words."""
    seed = f"seed={result.table['seed'][index]}"
    return f"{combination_label(result, index)}, {seed}" if result.plan.names else seed
