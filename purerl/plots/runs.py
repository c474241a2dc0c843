"""Figures of runs: learning curves, and comparisons of final returns.

After Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice".
"""

import itertools
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from purerl.plots import figures
from purerl.plots.figures import Path_
from purerl.records.errors import ConfigError, shown, suggest
from purerl.records.files import counted
from purerl.runs.curves import Curves
from purerl.statistics import (
    bootstrap_interval,
    iqm,
    performance_profile,
    probability_of_improvement,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

X_LABELS = {"steps": "environment steps", "seconds": "wall-clock time (s)"}
Y_LABELS = {"return": "return of training episodes", "eval_return": "return of evaluations"}
# Most seeds that are drawn one by one.
THIN_LINES = 16


def plot_curves(
    curves: Curves | Sequence[Curves],
    path: Path_ | None = None,
    *,
    x: str = "steps",
    y: str = "return",
    title: str | None = None,
    note: str | None = None,
) -> "Figure":
    """Learning curves: of each run the interquartile mean over its seeds, with its 95 % bootstrap
    interval as a band; of a single run its seeds too, as thin lines, where they are few.

    Seeds in which no episode has ended yet don't count in the mean.

    Args:
        curves: one run, or several of one environment.
        path: where the figure is written, a PNG, PDF or SVG file by its suffix; None for nowhere.
        x: over "steps" of each seed, or over "seconds" of training.
        y: the "return" of training episodes, "eval_return" of evaluations, or one of the
            environment's metrics, as "info/success" (see `EnvSpec.metrics`), or of the run's `log`,
            as "log/speed"; or its name alone.
        title: above the figure.
        note: a line below the title.

    Returns:
        A figure without a backend.

    Raises:
        ConfigError: no runs, a run without an episode, invalid `x` or `y`, a run without known
            seconds, unknown suffix.
        RunError: the file can't be written.
    """
    figures.check_path(path)
    runs = _runs(curves)
    if x not in X_LABELS:
        raise ConfigError(f"x: got {x!r}; {suggest(str(x), X_LABELS)}")
    unknown = [run.name for run in runs if run.seconds is None]
    if x == "seconds" and unknown:
        raise ConfigError(f"x: got 'seconds', but they aren't known of {unknown[0]!r}")
    runs = _of_metric(runs, y)
    banded = any(run.num_seeds > 1 for run in runs)
    caption = "interquartile mean over seeds, band: 95 % bootstrap interval" if banded else None
    figure = figures.new_figure(6.8, 4.4, title)
    axes = figure.add_subplot()
    figures.tidy(axes, "\n".join(line for line in (note, caption) if line))
    lines = [_draw_curve(axes, run, i, len(runs), x) for i, run in enumerate(runs)]
    axes.set(xlabel=X_LABELS[x], ylabel=Y_LABELS.get(y, y.rpartition("/")[2]))
    axes.set_xlim(left=0)
    for axis in (axes.xaxis, axes.yaxis):
        figures.write_numbers(axis)
    seeds = [counted(run.num_seeds, "seed") for run in runs]
    seeds = [_without_interval(x, run.num_seeds) for x, run in zip(seeds, runs, strict=True)]
    names = figures.distinct([run.name for run in runs])
    names = [f"{name} ({count})" for name, count in zip(names, seeds, strict=True)]
    figures.legend(figure, lines, names, width=90)
    return figures.save(figure, path)


def _of_metric(runs: list[Curves], y: object) -> list[Curves]:
    """Curves of y in place of returns. Raises ConfigError where a run doesn't have it."""
    if not isinstance(y, str):
        raise ConfigError(f"y: got {shown(y)}, expected 'return', or the name of a metric")
    return runs if y == "return" else [run.of_metric(y) for run in runs]


def _draw_curve(axes: "Axes", run: Curves, number: int, of: int, x: str) -> "Line2D":
    at = run.timesteps if x == "steps" else run.seconds
    assert at is not None
    at, curves = run.binned(at)
    style = figures.style(number)
    if run.num_seeds > 1:
        low, high = bootstrap_interval(iqm, curves)
        axes.fill_between(
            at, low, high, color=style["color"], alpha=min(0.22, 0.6 / of), linewidth=0
        )
    if of == 1 and 1 < run.num_seeds <= THIN_LINES:
        axes.plot(at, curves.T, color=style["color"], linewidth=0.6, alpha=0.4)
    # Markers of different runs are shifted against each other.
    every = max(1, len(at) // 8)
    (line,) = axes.plot(
        at,
        iqm(curves, axis=0),
        linewidth=2,
        markersize=6,
        zorder=3,
        markeredgecolor="white",
        markeredgewidth=0.6,
        markevery=(number * every // of, every),
        **style,
    )
    return line


def plot_comparison(
    curves: Sequence[Curves],
    path: Path_ | None = None,
    *,
    y: str = "return",
    title: str | None = None,
) -> "Figure":
    """A comparison of final returns: means over the last tenth of the updates, each episode counted
    once. Of evaluations (`y="eval_return"`) means of the newest one there, update by update.

    Three panels, all with 95 % bootstrap intervals: each run's interquartile mean over seeds; the
    share of its seeds above each return; for each pair of runs, how likely a seed of the one ends
    higher than one of the other. Seeds without an episode in the end don't count.

    Args:
        curves: runs of one environment.
        path, y, title: as of `plot_curves`.

    Raises:
        ConfigError: no runs, a run without an episode in the end, invalid `y`, unknown suffix.
        RunError: the file can't be written.
    """
    figures.check_path(path)
    runs = _of_metric(_runs(curves), y)
    scores = [run.final_returns for run in runs]
    for run, x in zip(runs, scores, strict=True):
        if not np.any(np.isfinite(x)):
            raise ConfigError(
                f"{run.name}: no episode ended in the last tenth of the updates, train for longer"
            )
    scores = [x[np.isfinite(x)] for x in scores]
    pairs = list(itertools.combinations(range(len(runs)), 2))
    names = figures.distinct([run.name for run in runs])
    counts = [
        counted(len(x), "seed") if len(x) == run.num_seeds else f"{len(x)} of {run.num_seeds} seeds"
        for x, run in zip(scores, runs, strict=True)
    ]
    counts = [_without_interval(n, len(x)) for n, x in zip(counts, scores, strict=True)]
    labels = [f"{_wrapped(name)}\n({n})" for name, n in zip(names, counts, strict=True)]
    lines = max(label.count("\n") for label in labels)
    heights = [max(3.0, (0.3 + 0.15 * lines) * len(runs) + 1.4)]
    heights += [(0.25 + 0.13 * lines) * len(pairs) + 1.2] * bool(pairs)
    figure = figures.new_figure(8.6, sum(heights) + 0.35 * (title is not None), title)
    parts = figure.subfigures(len(heights), squeeze=False, height_ratios=heights)[:, 0]
    left, right = parts[0].subplots(1, 2)
    word = y.rpartition("/")[2].replace("_", " ")
    _draw_intervals(left, scores, labels, word)
    _draw_profiles(right, scores, word)
    if pairs:
        _draw_pairs(parts[1].subplots(), scores, names, pairs)
    return figures.save(figure, path)


def _draw_intervals(axes: "Axes", scores: list[np.ndarray], labels: list[str], word: str) -> None:
    for i, x in enumerate(scores):
        low, high = bootstrap_interval(iqm, x)
        style = figures.style(i)
        axes.plot(x, np.full(len(x), i), "|", color=style["color"], markersize=6, alpha=0.5)
        _bar(axes, low, high, i, style["color"])
        axes.plot(iqm(x), i, color=style["color"], marker=style["marker"], markersize=7)
    axes.set_yticks(range(len(scores)), labels, fontsize=9, parse_math=False)
    axes.set_ylim(len(scores) - 0.4, -0.6)
    axes.set_xlabel(f"final {word}")
    axes.margins(x=0.08)
    figures.write_numbers(axes.xaxis)
    figures.tidy(axes, "interquartile mean, 95 % bootstrap interval;\nthin marks: seeds", grid="x")


def _draw_profiles(axes: "Axes", scores: list[np.ndarray], word: str) -> None:
    low, high = min(map(np.min, scores)), max(map(np.max, scores))
    margin = 0.05 * (high - low) or max(1.0, 0.05 * abs(high))
    thresholds = np.linspace(low - margin, high + margin, 201)
    for i, x in enumerate(scores):
        style, share = figures.style(i), performance_profile(x, thresholds)
        axes.fill_between(
            thresholds,
            share.low,
            share.high,
            step="post",
            color=style["color"],
            alpha=0.4 / (1 + len(scores)),
            linewidth=0,
        )
        axes.plot(
            thresholds,
            share.value,
            drawstyle="steps-post",
            linewidth=2,
            markersize=5,
            markevery=(i * 40 // len(scores), 40),
            **style,
        )
    axes.set(xlabel=f"{word} R", ylabel="share of seeds above R", ylim=(-0.03, 1.03))
    axes.set_xlim(thresholds[0], thresholds[-1])
    figures.write_numbers(axes.xaxis)
    figures.tidy(axes, "performance profile of the final returns,\n95 % bootstrap interval")


def _draw_pairs(
    axes: "Axes", scores: list[np.ndarray], names: list[str], pairs: list[tuple[int, int]]
) -> None:
    for row, (i, j) in enumerate(pairs):
        chance = probability_of_improvement(scores[i], scores[j])
        _bar(axes, chance.low, chance.high, row, figures.COLORS[0])
        axes.plot(chance.value, row, "o", color=figures.COLORS[0], markersize=6)
        axes.annotate(
            f"{chance.value:.2f}",
            (float(chance.value), row),
            (0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.2},
        )
    axes.axvline(0.5, color=figures.GREY, linewidth=1, linestyle="--", zorder=0.5)
    limits = (len(pairs) - 0.4, -0.8)
    ticks = range(len(pairs))
    axes.set_yticks(ticks, [_wrapped(names[i]) for i, _ in pairs], fontsize=9, parse_math=False)
    axes.set(xlim=(-0.04, 1.04), ylim=limits, xlabel="probability")
    caption = (
        "how likely a seed of the run to the left ends higher than one of the run to the right"
    )
    figures.tidy(axes, caption + ", 95 % interval", grid="x")
    right = axes.twinx()
    right.set_yticks(ticks, [_wrapped(names[j]) for _, j in pairs], fontsize=9, parse_math=False)
    right.set_ylim(limits)
    right.spines[["top", "right"]].set_visible(False)
    for side in (axes, right):
        side.tick_params(axis="y", length=0)


def _bar(axes: "Axes", low: np.ndarray, high: np.ndarray, row: int, color: str) -> None:
    axes.plot([low, high], [row, row], color=color, linewidth=5, alpha=0.4, solid_capstyle="butt")


def _without_interval(text: str, num_seeds: int) -> str:
    """How many seeds, in words, and that one alone has no interval."""
    return text if num_seeds > 1 else f"{text}, no interval"


def _wrapped(name: str) -> str:
    return textwrap.fill(name, 28)


def _runs(curves: Curves | Sequence[Curves]) -> list[Curves]:
    """The runs, all of which have something to show."""
    several = isinstance(curves, Sequence)
    if not several and not isinstance(curves, Curves):
        raise ConfigError(f"curves: got {shown(curves)}, expected Curves, or several of them")
    runs = [curves] if isinstance(curves, Curves) else list(curves)
    if not runs:
        raise ConfigError("curves: got none, expected at least one run")
    for run in runs:
        if not isinstance(run, Curves):
            raise ConfigError(
                f"curves: got {type(run).__name__}, expected Curves: Curves.of(name, out), or "
                "read_run(path)"
            )
        if not np.any((np.asarray(run.num_episodes) > 0) & np.isfinite(run.returns)):
            raise ConfigError(f"{run.name}: no episode ended, train for longer")
    return runs
