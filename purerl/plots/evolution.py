"""The figure of a population: return curves, and hyperparameters over steps by fitness."""

from typing import TYPE_CHECKING

import numpy as np

from purerl.plots import figures
from purerl.plots.figures import GREY, Path_
from purerl.records.draws import LogUniform
from purerl.records.errors import ConfigError, shown
from purerl.statistics import bin_curves
from purerl.sweeps.evolution import EvolveResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

LINEAGE = figures.COLORS[2]


def plot_evolution(
    result: EvolveResult, path: Path_ | None = None, *, title: str | None = None
) -> "Figure":
    """The training of a population: in the first panel the return of every place over steps, in
    another for each hyperparameter its values over steps, coloured by the fitness at the end of the
    interval. The lineage of the best member is drawn over them, in red.

    An axis of values is logarithmic where they were drawn from `LogUniform`. Steps are those of one
    member.

    Args:
        result: of `purerl.evolve`.
        path: where the figure is written, a PNG, PDF or SVG file by its suffix; None for nowhere.
        title: above the figure.

    Raises:
        ConfigError: no member has a fitness, unknown suffix.
        RunError: the file can't be written.
    """
    figures.check_path(path)
    if not isinstance(result, EvolveResult):
        raise ConfigError(f"result: got {shown(result)}, expected the result of purerl.evolve")
    if not result.has_fitness:
        raise ConfigError("plot_evolution: no member has a fitness, train for longer")
    number = len(result.names)
    figure = figures.new_figure(7.2, 3.0 + 1.9 * number, title)
    heights = [1.5, *[1.0] * number]
    panels = figure.subplots(1 + number, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    _draw_returns(panels[0], result)
    scale = _scale(result)
    for axes, name in zip(panels[1:], result.names, strict=True):
        _draw_values(axes, result, name, scale)
    panels[-1].set_xlabel("environment steps of a member")
    panels[-1].set_xlim(0, result.steps[-1])
    figures.write_numbers(panels[-1].xaxis)
    figure.align_ylabels(panels)
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(ScalarMappable(scale, "viridis"), ax=list(panels[1:]), label="fitness")
    figures.write_numbers(bar.ax.yaxis)
    return figures.save(figure, path)


def _scale(result: EvolveResult) -> "Normalize":
    """From fitness to colours. The worst tenth has one colour, since a few early returns may lie
    far below all others."""
    from matplotlib.colors import Normalize

    fitness = result.history.fitness
    low, high = np.quantile(fitness[np.isfinite(fitness)], [0.1, 1.0])
    return Normalize(low, high if high > low else low + 1.0, clip=True)


def _draw_returns(axes: "Axes", result: EvolveResult) -> None:
    metrics, best = result.metrics, result.best()
    x, curves = bin_curves(result.output.timesteps, metrics.episode_return, metrics.num_episodes)
    for curve in curves:
        axes.plot(x, curve, color=GREY, linewidth=0.7, alpha=0.5)
    own = best.output.metrics
    returns, num_episodes = own.episode_return[None], own.num_episodes[None]
    _, (curve,) = bin_curves(result.output.timesteps, returns, num_episodes)
    axes.plot(x, curve, color=LINEAGE, linewidth=1.8)
    replaced = result.history.parents[1:] != np.arange(result.evolution.population)
    caption = (
        f"{result.evolution.population} members, red: the lineage of the best, member "
        f"{best.member}; {int(replaced.sum())} times a member was replaced"
    )
    axes.set_ylabel("return")
    figures.write_numbers(axes.yaxis)
    figures.tidy(axes, caption)


def _draw_values(axes: "Axes", result: EvolveResult, name: str, scale: "Normalize") -> None:
    """A segment for each member and interval, and the lineage of the best as a line."""
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection

    values, fitness = result.history.values[name], result.history.fitness
    steps, (number, size) = result.steps, values.shape
    starts, stops = (np.repeat(x, size) for x in (steps[:-1], steps[1:]))
    at = values.ravel()
    segments = np.stack([np.stack([starts, at], 1), np.stack([stops, at], 1)], 1)
    order = np.argsort(np.nan_to_num(fitness.ravel(), nan=-np.inf), kind="stable")  # best on top
    colors = colormaps["viridis"].with_extremes(bad="0.8")
    lines = LineCollection(list(segments[order]), cmap=colors, norm=scale, linewidths=2.2)
    lines.set_array(np.ma.masked_invalid(fitness.ravel()[order]))
    axes.add_collection(lines)
    line = result.lineage(result.best().member)
    axes.step(
        steps,
        [*values[np.arange(number), line], values[-1, line[-1]]],
        where="post",
        color=LINEAGE,
        linewidth=1.0,
    )
    if isinstance(result.evolution.space[name], LogUniform):
        axes.set_yscale("log")
        bounds = result.evolution.space[name]
        figures.write_decades(axes.yaxis, bounds.high / bounds.low)
    else:
        figures.write_numbers(axes.yaxis)
    axes.autoscale_view()
    axes.set_ylabel(name, parse_math=False)
    figures.tidy(axes)
