"""The figure of a search: importance, the best trials' curves, a slice for each field."""

from typing import TYPE_CHECKING

import numpy as np

from purerl.plots import figures
from purerl.plots.figures import GREY, Path_
from purerl.records.draws import Choice, LogUniform
from purerl.records.errors import ConfigError, shown
from purerl.sweeps.tuned import TuneResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Learning curves, and slices in a row.
CURVES, COLUMNS = 5, 4


def plot_tune(
    result: TuneResult, path: Path_ | None = None, *, title: str | None = None
) -> "Figure":
    """A search in one figure: the importance of each field, learning curves of the best trials, and
    for each field a slice, all trials' scores against their values.

    Args:
        result: of `purerl.tune`.
        path: where the figure is written, a PNG, PDF or SVG file by its suffix; None for nowhere.
        title: above the figure.

    Raises:
        ConfigError: no trial has a score, unknown suffix.
        RunError: the file can't be written.
    """
    figures.check_path(path)
    if not isinstance(result, TuneResult):
        raise ConfigError(f"result: got {shown(result)}, expected a TuneResult: purerl.tune(...)")
    if not np.any(np.isfinite(result.table["score"])):
        raise ConfigError("plot_tune: no trial has a score, train for longer")
    names = [*result.importance, *(x for x in result.names if x not in result.importance)]
    rows = -(-len(names) // COLUMNS)
    columns = -(-len(names) // rows)
    figure = figures.new_figure(12.0, 3.6 + 2.7 * rows, title)
    parts = figure.subfigures(2, 1, squeeze=False, height_ratios=[3.6, 2.7 * rows])
    above, below = parts[:, 0]
    left, right = above.subplots(1, 2, width_ratios=[1, 2])
    _draw_importance(left, result, names)
    _draw_curves(right, result)
    panels = below.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for panel, name in zip(panels, names, strict=False):
        _draw_slice(panel, result, name)
    caption = "dark: trained to the end; grey: left on a rung before; circle: the winner"
    figures.tidy(panels[0], caption)
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    return figures.save(figure, path)


def _draw_importance(axes: "Axes", result: TuneResult, names: list[str]) -> None:
    shares = [result.importance.get(name, 0.0) for name in names]
    axes.barh(range(len(names)), shares, color=figures.COLORS[0])
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    caption = "importance, by PED-ANOVA" if result.importance else "too few trials"
    figures.tidy(axes, caption, grid="x")


def _draw_curves(axes: "Axes", result: TuneResult) -> None:
    for place, trial in enumerate(result.ranked()[:CURVES]):
        style = {**figures.style(place), "marker": None}
        axes.plot(*trial.outcome.curve, label=f"trial {trial.number}: {trial.score:.4g}", **style)
    axes.set(xlabel="environment steps", ylabel="return")
    figures.write_numbers(axes.xaxis)
    figures.write_numbers(axes.yaxis)
    axes.legend(frameon=False, fontsize=9, loc="best")
    figures.tidy(axes, "the best trials with their scores, means over seeds")


def _draw_slice(axes: "Axes", result: TuneResult, name: str) -> None:
    """Scores against a field's values, the trials that left earlier paler."""
    values, table = [x.values[name] for x in result.trials], result.table
    draw = result.space[name]
    if isinstance(draw, Choice):
        words = [str(getattr(x, "__name__", x)) for x in draw.options]
        places = [_place(draw, value) for value in values]
        # Beside each other, in an order that no chance decides.
        at = np.array(places) + 0.25 * (np.arange(len(places)) % 7 - 3) / 3
        axes.set_xticks(range(len(words)), [word[:12] for word in words])
        axes.set_xlim(-0.5, len(words) - 0.5)
    else:
        at = np.array(values, np.float64)
        if isinstance(draw, LogUniform):
            axes.set_xscale("log")
            figures.write_decades(axes.xaxis, 100 * draw.high / draw.low)  # the panel is narrow
    for rung in range(1, result.num_rungs + 1):
        chosen = table["rungs"] == rung
        color = figures.COLORS[0] if rung == result.num_rungs else GREY
        axes.scatter(
            at[chosen],
            table["score"][chosen],
            s=26,
            color=color,
            alpha=1.0 if rung == result.num_rungs else 0.2 + 0.4 * rung / result.num_rungs,
            edgecolors="white",
            linewidths=0.5,
        )
    best = result.best
    if best is not None:
        place = [x.number for x in result.trials].index(best.number)
        axes.plot(at[place], best.score, "o", markersize=12, mfc="none", color=figures.COLORS[2])
    figures.tidy(axes)
    figures.write_numbers(axes.yaxis)
    axes.set_xlabel(name, parse_math=False)
    if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
        axes.set_ylabel("score")


def _place(draw: Choice, value: object) -> int:
    """The index of an option."""
    same = (x is value or (type(x) is type(value) and bool(x == value)) for x in draw.options)
    return next(i for i, equal in enumerate(same) if equal)
