"""Progress of training in a notebook: a bar, numbers and learning curves, updated in place."""

import html
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from purerl.records.files import counted
from purerl.runs.console import console_sink
from purerl.runs.report import Report, live_numbers, live_speed
from purerl.runs.sinks import Sink
from purerl.training import card
from purerl.training.config import TrainConfig

# Points of curves that are kept: of more, neighbours are merged.
MOST_POINTS = 1_000
# Of the parameters that papermill gives a notebook, if it is asked to.
INJECTED = "PAPERMILL_OUTPUT_PATH"


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook. IPython is asked only if it is running."""
    return getattr(_shell(), "kernel", None) is not None


def is_watched() -> bool:
    """Whether this process is the kernel of a notebook, and not under papermill, as far as that can
    be known: by the paths that it injects, or by its command line (on Linux)."""
    if not in_notebook() or INJECTED in getattr(_shell(), "user_ns", {}):
        return False
    parent = os.environ.get("JPY_PARENT_PID", "0")
    try:
        words = Path(f"/proc/{parent}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return True
    return not any(os.path.basename(word) == b"papermill" for word in words)


def _shell() -> Any:
    return getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()


class LiveHtml:
    """HTML in the output of a notebook's cell, which each call replaces."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, page: str, text: str) -> None:
        """Shows HTML, or the text where a front end has none."""
        from IPython.display import display

        data = {"text/html": page, "text/plain": text}
        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)


class notebook_sink:  # noqa: N801 - called as a function
    """Shows the progress of training in a notebook: a bar, steps a second, time left, the return
    over seeds, losses, learning curves.

    Args:
        config: of the run.
        seeds: the run's.
        past: reports of the updates in earlier processes.
    """

    def __init__(
        self, config: TrainConfig, seeds: Sequence[int], past: Iterable[Report] = ()
    ) -> None:
        name = card.title(config.agent, config.env.spec.name)
        self._title = f"{name}, {counted(len(seeds), 'seed')}"
        self._plan, self._curves, self._live = card.plan(config.make_loop()), _Curves(), LiveHtml()
        self._first: Report | None = None
        self._last: Report | None = None
        for report in past:
            self._curves.add(report)
        self._show("compiling", 0.0)

    def __call__(self, report: Report) -> None:
        if self._first is None:
            self._first = report
        self._last = report
        self._curves.add(report)
        share, speed = report.stop / report.num_updates, live_speed(self._first, report)
        left = (report.num_updates - report.stop) * report.steps_per_update * len(report.seeds)
        words = [f"{share:.0%}", f"{speed:,.0f} steps/s", f"{duration(left / speed)} left"]
        self._show(" · ".join([*words, *live_numbers(report)]), share)

    def close(self) -> None:
        """Shows how long it took."""
        last = self._last
        if last is None:
            self._show("nothing was trained", 0.0)
            return
        share = last.stop / last.num_updates
        words = "trained" if share == 1 else f"stopped at {share:.0%}, after"
        took = f"{words} {'in ' * (share == 1)}{duration(last.seconds)}"
        speed = f"{live_speed(self._first, last):,.0f} steps/s over all seeds"
        self._show(f"{took} · {speed}", share)

    def _show(self, words: str, share: float) -> None:
        parts = card.bar(share), f"<div>{html.escape(words)}</div>", self._curves.svg()
        page = card.card(self._title, [self._plan], *parts)
        self._live.show(page, f"{self._title}: {words}")


class _Curves:
    """Returns over time, in memory that doesn't grow."""

    def __init__(self) -> None:
        self._x = np.zeros(0, np.int64)
        self._returns = self._episodes = np.zeros((1, 0))

    def add(self, report: Report) -> None:
        """Adds the rows of a report."""
        x = report.columns()["timesteps"][0]
        returns, episodes = card.flat(report.metrics)
        if not len(self._x):
            self._returns = self._episodes = np.zeros((len(returns), 0))
        self._x = np.concatenate([self._x, x])
        self._returns = np.concatenate([self._returns, returns], axis=1)
        self._episodes = np.concatenate([self._episodes, episodes], axis=1)
        while len(self._x) > MOST_POINTS:
            self._halve()

    def _halve(self) -> None:
        """Merges neighbours, each episode counted once."""
        starts = np.arange(0, len(self._x), 2)
        sums = np.where(self._episodes > 0, self._returns, 0.0) * self._episodes
        total, count = (np.add.reduceat(z, starts, axis=1) for z in (sums, self._episodes))
        self._x = self._x[np.minimum(starts + 1, len(self._x) - 1)]
        self._returns = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        self._episodes = count

    def svg(self) -> str:
        """The curves as SVG; empty before an episode has ended."""
        if not np.any(self._episodes > 0):
            return ""
        return card.returns_over(self._x, self._returns, self._episodes)


class _Entered:
    """A `console_sink` that is entered here, and left when `fit` closes it."""

    def __init__(self, sink: console_sink) -> None:
        self._sink = sink.__enter__()

    def __call__(self, report: Report) -> None:
        self._sink(report)

    def close(self) -> None:
        self._sink.__exit__()


def progress_sinks(
    verbose: bool | None,
    config: TrainConfig,
    seeds: Sequence[int],
    folder: Path | None,
    past: Iterable[Report],
) -> list[Sink]:
    """What shows the progress of a run here: a notebook's view, that of a terminal, or nothing.

    Args:
        verbose: as of `fit`.
        config, seeds, folder: of the run.
        past: reports of the updates in earlier processes.
    """
    if verbose is False or not (verbose or is_watched()):
        return []
    if in_notebook():
        return [notebook_sink(config, seeds, past)]
    return [_Entered(console_sink(config, seeds, folder))]


def duration(seconds: float) -> str:
    """Seconds in words: `12 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class LiveBar:
    """A bar in a notebook, over how many of a number are done.

    Args:
        total: the number.
        kind, noun: of what, in words.
    """

    def __init__(self, total: int, kind: str, noun: str) -> None:
        self._total, self._kind, self._noun = total, kind, noun
        self._live, self._began = LiveHtml(), time.perf_counter()
        self._curves = ""
        self._begun_at: int | None = None  # done before this process

    def __call__(self, phase: str, number: int, curves: str | None = None) -> None:
        """Shows a phase, how many are done, and perhaps new curves as SVG."""
        if self._begun_at is None:
            self._begun_at = number
        self._curves = self._curves if curves is None else curves
        elapsed = time.perf_counter() - self._began
        words = [phase, f"{number} of {self._total} {self._noun}"]
        if number == self._total:
            words[0] = f"{phase}, in {duration(elapsed)}"
        elif done := number - self._begun_at:
            words.append(f"{duration(elapsed / done * (self._total - number))} left")
        line = " · ".join(words)
        parts = card.bar(number / max(self._total, 1)), self._curves
        self._live.show(card.card(self._kind, [line], *parts), f"{self._kind}: {line}")
