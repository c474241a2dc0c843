"""Figures of sweeps: final returns and learning curves, by hyperparameter."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from purerl.plots import figures
from purerl.plots.figures import GREY, Path_
from purerl.plots.levels import Levels, make_levels, swept
from purerl.plots.runs import plot_curves
from purerl.records.errors import ConfigError
from purerl.runs.curves import Curves
from purerl.statistics import bootstrap_interval, iqm
from purerl.sweeps.result import SweepResult, ranking

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

# Most learning curves in one panel.
MOST_CURVES = 8
# Largest side of a heat map whose cells have their numbers written in.
MOST_CELLS = 16
# Panels of slices in a row.
SLICES = 4


def plot_sweep(
    result: SweepResult,
    names: str | Sequence[str] | None = None,
    path: Path_ | None = None,
    *,
    title: str | None = None,
) -> "Figure":
    """The final return (that of `SweepResult.table`) against hyperparameters.

    Of one: the interquartile mean over seeds, with its 95 % bootstrap interval, and each seed as a
    point; the axis is logarithmic where the values span a factor of ten. Of two: the interquartile
    mean as a heat map, or, where the values were drawn, as points. Of more: `plot_slices`. Other
    swept names are pooled with the seeds.

    Args:
        result: of `purerl.sweep`.
        names: swept names, of two the second for the y-axis; None for all.
        path: where the figure is written, a PNG, PDF or SVG file by its suffix; None for nowhere.
        title: above the figure.

    Raises:
        ConfigError: a name that wasn't swept, nothing was swept, no member has a final return,
            unknown suffix.
        RunError: the file can't be written.
    """
    figures.check_path(path)
    chosen = swept(result, names)
    if len(chosen) > 2:
        return plot_slices(result, chosen, path, title=title)
    scores = _scores(result, "plot_sweep")
    levels = [make_levels(result, name) for name in chosen]
    others = [name for name in result.plan.names if name not in chosen]
    over = " and ".join(["seeds", *others])
    if len(levels) == 1:
        figure = figures.new_figure(6.4, 4.2, title)
        _draw_one(figure.add_subplot(), levels[0], scores, over)
    else:
        figure = _draw_two(levels[0], levels[1], scores, over, title)
    return figures.save(figure, path)


def plot_slices(
    result: SweepResult,
    names: str | Sequence[str] | None = None,
    path: Path_ | None = None,
    *,
    title: str | None = None,
) -> "Figure":
    """A panel for each swept name: the final returns against its values, all other names pooled
    with the seeds; in each the best combination is circled.

    Args:
        result: of `purerl.sweep`.
        names: swept names; None for all.
        path, title: as of `plot_sweep`.

    Raises:
        ConfigError: a name that wasn't swept, nothing was swept, no member has a final return,
            unknown suffix.
        RunError: the file can't be written.
    """
    figures.check_path(path)
    levels = [make_levels(result, name) for name in swept(result, names)]
    scores = _scores(result, "plot_slices")
    rows = -(-len(levels) // SLICES)
    columns = -(-len(levels) // rows)
    figure = figures.new_figure(max(5.0, 3.4 * columns), 0.6 + 3.1 * rows, title)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    best = ranking(scores)[0]
    for panel, level in zip(panels, levels, strict=False):
        _draw_slice(panel, level, scores, best)
    figures.tidy(panels[0], "points: combinations, means over seeds; line:\ntheir interquartile "
                 "mean; circle: the best")  # fmt: skip
    for panel in panels[::columns]:
        panel.set_ylabel("final return")
    for panel in panels[len(levels) :]:
        panel.set_visible(False)
    return figures.save(figure, path)


def _scores(result: SweepResult, what: str) -> np.ndarray:
    """Final returns `[C, S]`. Raises ConfigError where there is none."""
    scores = result.table["final_return"].reshape(len(result.plan.combinations), -1)
    if not np.any(np.isfinite(scores)):
        raise ConfigError(f"{what}: no member has a final return, train for longer")
    return scores


def _draw_slice(axes: "Axes", levels: Levels, scores: np.ndarray, best: int) -> None:
    """Means over seeds of all combinations against one field's values."""
    at = np.arange(len(levels.texts)) if levels.numbers is None else levels.numbers
    known = np.isfinite(scores).any(axis=1)
    means = np.full(len(scores), np.nan)
    means[known] = np.nanmean(scores[known], axis=1)
    by_level, _, _ = _by_level(means[:, None], levels.places, len(at))
    line = "-" if levels.numbers is not None else ""
    axes.plot(at, by_level, line, marker="D", color=figures.COLORS[0], linewidth=2, zorder=5)
    axes.margins(x=0.1)
    points: dict[str, Any] = {
        "s": 26,
        "color": figures.COLORS[1],
        "edgecolors": "white",
        "linewidths": 0.5,
    }
    axes.scatter(at[levels.places], means, zorder=4, **points)
    place = at[levels.places[best]]
    axes.plot(place, means[best], "o", markersize=12, mfc="none", color=figures.COLORS[2])
    figures.tidy(axes)
    figures.write_numbers(axes.yaxis)
    _number_axis(axes.set_xscale, axes.xaxis, levels)
    axes.set_xlabel(levels.name, parse_math=False)


def plot_sweep_curves(
    result: SweepResult,
    names: str | Sequence[str] | None = None,
    path: Path_ | None = None,
    *,
    title: str | None = None,
) -> "Figure":
    """A learning curve for each value of a swept name, or for each combination of values; of more
    than eight the best, by the interquartile mean of their final returns, in descending order.

    Args:
        result: of `purerl.sweep`.
        names: swept names; None for all. Others are pooled with the seeds.
        path, title: as of `plot_sweep`.

    Raises:
        ConfigError: a name that wasn't swept, nothing was swept, members to be pooled differ in
            their steps, unknown suffix.
        RunError: the file can't be written.
    """
    figures.check_path(path)
    levels = [make_levels(result, name) for name in swept(result, names)]
    kinds, places = np.unique([x.places for x in levels], axis=1, return_inverse=True)
    runs = []
    for i, kind in enumerate(kinds.T):
        name = ", ".join(f"{x.name}={x.texts[j]}" for x, j in zip(levels, kind, strict=True))
        combinations = np.flatnonzero(places.ravel() == i)
        seeds = len(result.plan.seeds)
        members = (combinations[:, None] * seeds + np.arange(seeds)).ravel()
        runs.append(member_curves(result, name, members))
    runs = [run for run in runs if np.any(run.num_episodes > 0)]
    if not runs:
        raise ConfigError("plot_sweep_curves: no episode ended, train for longer")
    note = None
    if len(runs) > MOST_CURVES:
        note = f"the best {MOST_CURVES} of {len(kinds.T)}, by their final returns"
        order = np.argsort([-iqm(run.final_returns) for run in runs], kind="stable")  # NaN is last
        runs = [runs[i] for i in order[:MOST_CURVES]]
    return plot_curves(runs, path, title=title, note=note)


def _draw_one(axes: "Axes", levels: Levels, scores: np.ndarray, over: str) -> None:
    at = np.arange(len(levels.texts)) if levels.numbers is None else levels.numbers
    means, lows, highs = _by_level(scores, levels.places, len(at))
    color, point = figures.COLORS[0], figures.COLORS[1]
    if scores.size > len(at):
        axes.scatter(
            np.repeat(at[levels.places], scores.shape[1]),
            scores.ravel(),
            s=24,
            color=point,
            edgecolors="white",
            linewidths=0.5,
            zorder=4,
        )
        caption = f"points: single agents; line: interquartile mean over {over},\n"
        if levels.numbers is not None and len(at) > 1:
            axes.fill_between(at, lows, highs, color=color, alpha=0.2, linewidth=0)
            caption += "band: 95 % bootstrap interval"
        else:
            bars = (means - lows, highs - means)
            axes.errorbar(at, means, bars, fmt="none", ecolor=color, capsize=4)
            caption += "bars: 95 % bootstrap interval"
    else:
        caption = "one agent of each value, no interval"
    axes.plot(at, means, color=color, marker="o", linewidth=2, markersize=6, zorder=3)
    missing = [text for text, mean in zip(levels.texts, means, strict=True) if np.isnan(mean)]
    if missing:
        caption += f"\nno final return: {', '.join(missing[:5])}"
        caption += ", ..." if len(missing) > 5 else ""
    axes.set_ylabel("final return")
    figures.write_numbers(axes.yaxis)
    figures.tidy(axes, caption)
    _number_axis(axes.set_xscale, axes.xaxis, levels)
    axes.set_xlabel(levels.name)


def _draw_two(x: Levels, y: Levels, scores: np.ndarray, over: str, title: str | None) -> "Figure":
    shape = (len(y.texts), len(x.texts))
    cells, _, _ = _by_level(scores, y.places * shape[1] + x.places, shape[0] * shape[1])
    cells = cells.reshape(shape)
    single = scores.shape[1] == 1 and len(set(zip(x.places, y.places, strict=True))) == len(scores)
    caption = f"interquartile mean of the final returns over {over}"
    caption = "final return of one agent each" if single else caption
    drawn = x.numbers is not None and y.numbers is not None
    if drawn and np.isfinite(cells).sum() < cells.size / 2:
        figure = figures.new_figure(6.4, 4.8, title)
        axes = figure.add_subplot()
        shown = _draw_points(axes, x, y, cells)
        caption += "; the circle: the highest"
    else:
        width = min(14.0, max(5.6, 0.75 * shape[1] + 2.2))
        height = min(14.0, max(3.6, 0.5 * shape[0] + 1.6))
        figure = figures.new_figure(width, height, title)
        axes = figure.add_subplot()
        shown = _draw_cells(axes, x, y, cells)
    axes.set(xlabel=x.name, ylabel=y.name)
    axes.set_title(caption, loc="left", fontsize=9, color=GREY, parse_math=False)
    figures.write_numbers(figure.colorbar(shown, ax=axes, label="final return").ax.yaxis)
    return figure


def _draw_cells(axes: "Axes", x: Levels, y: Levels, cells: np.ndarray) -> "ScalarMappable":
    axes.set_facecolor("0.9")
    low, high = np.nanmin(cells), np.nanmax(cells)
    shown = axes.imshow(cells, origin="lower", aspect="auto", cmap="viridis")
    for levels, axis in ((x, axes.xaxis), (y, axes.yaxis)):
        every = -(-len(levels.texts) // MOST_CELLS)
        axis.set_ticks(range(0, len(levels.texts), every), levels.texts[::every])
        for label in axis.get_ticklabels():
            label.set_parse_math(False)
    if max(map(len, x.texts)) > 7:
        axes.tick_params(axis="x", labelrotation=30)
    if max(cells.shape) <= MOST_CELLS:
        for (i, j), value in np.ndenumerate(cells):
            dark = (value - low) <= 0.55 * (high - low)
            color = GREY if np.isnan(value) else "white" if dark else "black"
            axes.text(j, i, _number(value), ha="center", va="center", color=color, fontsize=9)
    return shown


def _draw_points(axes: "Axes", x: Levels, y: Levels, cells: np.ndarray) -> "ScalarMappable":
    assert x.numbers is not None
    assert y.numbers is not None
    rows, columns = np.nonzero(np.isfinite(cells))
    values = cells[rows, columns]
    shown = axes.scatter(
        x.numbers[columns],
        y.numbers[rows],
        c=values,
        s=70,
        cmap="viridis",
        edgecolors=GREY,
        linewidths=0.5,
    )
    best = int(np.argmax(values))
    at = (x.numbers[columns[best]], y.numbers[rows[best]])
    axes.plot(*at, "o", markersize=14, markerfacecolor="none", color=figures.COLORS[2])
    figures.tidy(axes, grid="both")
    for scale, axis, levels in ((axes.set_xscale, axes.xaxis, x), (axes.set_yscale, axes.yaxis, y)):
        _number_axis(scale, axis, levels)
    return shown


def _number_axis(set_scale: Callable[[str], None], axis: "Axis", levels: Levels) -> None:
    """Sets ticks at the values, where these are few and not too close."""
    if levels.numbers is None:
        axis.set_ticks(range(len(levels.texts)), levels.texts)
        for label in axis.get_ticklabels():
            label.set(parse_math=False, rotation=30 if max(map(len, levels.texts)) > 10 else 0)
        return
    places = np.log(levels.numbers) if levels.logarithmic else levels.numbers
    gaps = np.diff(places) / max(np.ptp(places), 1e-300)
    if levels.logarithmic:
        set_scale("log")
    if len(places) <= 8 and np.all(gaps > 0.09):
        axis.set_ticks(levels.numbers, levels.texts)
        axis.set_ticks([], minor=True)
    elif levels.logarithmic:
        figures.write_decades(axis, levels.numbers[-1] / levels.numbers[0])
    else:
        figures.write_numbers(axis)


def _by_level(
    scores: np.ndarray, places: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Interquartile means and intervals, `[count]` each, of scores `[C, S]` pooled by place; no
    interval, NaN, of a single one."""
    ends = np.full((3, count), np.nan)
    for place in np.unique(places):
        # Drawn from all at once: what else was swept is part of the spread, as the seeds are.
        pooled = scores[places == place].ravel()
        ends[:, place] = iqm(pooled), *bootstrap_interval(iqm, pooled)
    return ends[0], ends[1], ends[2]


def member_curves(result: SweepResult, name: str, members: np.ndarray) -> Curves:
    """Curves of some members, as seeds of one run. Raises ConfigError where their steps differ.

    Args:
        result: of `purerl.sweep`.
        name: the label in legends.
        members: `[S]`, rows of the table.
    """
    parts = []
    for group in result.groups:
        places = np.flatnonzero(np.isin(group.group.members, members))
        if len(places):
            run = dataclasses.replace(
                Curves.of(name, group.metrics, 1), timesteps=group.shapes.timesteps
            )
            parts.append((run, places, group.num_rows[places]))
    timesteps = parts[0][0].timesteps
    if any(not np.array_equal(run.timesteps, timesteps) for run, _, _ in parts):
        static = sorted({x for group in result.groups for x in group.group.static})
        raise ConfigError(
            f"names: members with {name} differ in their steps; name {' and '.join(static)} too"
        )
    return Curves(
        name,
        timesteps,
        np.concatenate([run.returns[places] for run, places, _ in parts]),
        np.concatenate([run.num_episodes[places] for run, places, _ in parts]),
        num_updates=np.concatenate([num_rows for _, _, num_rows in parts]),
        info=_shared([{n: x[places] for n, x in run.info.items()} for run, places, _ in parts]),
        log=_shared([{n: x[places] for n, x in run.log.items()} for run, places, _ in parts]),
    )


def _shared(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Metrics that all parts have, `[S, U]` by name."""
    names = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def _number(value: float) -> str:
    """A number with three digits, from 100 on as an integer."""
    if np.isnan(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
