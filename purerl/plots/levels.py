"""Swept values as the axis of a figure."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from purerl.plots import figures
from purerl.records.errors import ConfigError, shown, suggest
from purerl.sweeps.result import SweepResult


class Levels(NamedTuple):
    """The values of one swept name.

    Attributes:
        name: the swept name.
        texts: each value in short, numbers in ascending order, others in order of appearance.
        numbers: `[L]` float64; None where a value is no number.
        places: `[C]`, the index of each combination's value.
    """

    name: str
    texts: list[str]
    numbers: np.ndarray | None
    places: np.ndarray

    @property
    def logarithmic(self) -> bool:
        """Whether they span a factor of ten."""
        return (
            self.numbers is not None
            and self.numbers[0] > 0
            and bool(self.numbers[-1] / self.numbers[0] >= 10 * (1 - 1e-9))
        )


def swept(result: SweepResult, names: str | Sequence[str] | None) -> list[str]:
    """The chosen names, in their order; for None all swept ones.

    Raises:
        ConfigError: nothing was swept, or a name wasn't.
    """
    if not hasattr(result, "plan"):
        raise ConfigError(f"result: got {shown(result)}, expected a SweepResult: purerl.sweep(...)")
    known = list(result.plan.names)
    if not known:
        raise ConfigError("names: nothing was swept, there are only seeds: use plot_curves")
    chosen = known if names is None else [names] if isinstance(names, str) else list(names)
    for name in chosen:
        if name not in known:
            raise ConfigError(f"names: {name!r} was not swept; {suggest(str(name), known)}")
    if not chosen or len(set(chosen)) < len(chosen):
        raise ConfigError(f"names: got {chosen}, expected swept names, each once")
    return chosen


def make_levels(result: SweepResult, name: str) -> Levels:
    """The levels of a swept name."""
    values = [combination[name] for combination in result.plan.combinations]
    keys = [repr(value) for value in values]  # a value may be of any kind
    first = {key: values[keys.index(key)] for key in keys}
    numeric = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in first.values())
    order = sorted(first, key=lambda key: first[key]) if numeric else list(first)
    texts = figures.distinct([_text(first[key]) for key in order])
    numbers = np.array([first[key] for key in order], np.float64) if numeric else None
    return Levels(name, texts, numbers, np.array([order.index(key) for key in keys]))


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    text = str(getattr(value, "__name__", value))
    return text if len(text) <= 24 else text[:21] + "..."
