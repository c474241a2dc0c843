"""Results in a notebook: a card in HTML, with learning curves as inline SVG.

Lines and letters have the color of the notebook's text, so that a card reads in light and dark.
"""

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from purerl.experience.metrics import Metrics
from purerl.records.files import counted
from purerl.records.types import PyTree
from purerl.statistics import bin_curves, iqm
from purerl.training.loop import Loop

# Of the picture and of the frame in it, in pixels.
WIDTH, HEIGHT = 480, 216
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 22, 38
COLOR = "#3d8bdb"  # reads on white and on black
BINS = 80
# Most curves that are drawn one by one.
THIN_LINES = 16


def is_known(tree: PyTree) -> bool:
    """Whether all leaves are numbers at hand: none is traced, a shape alone, donated to another
    program, or on another host."""

    def known(x: object) -> bool:
        if isinstance(x, jax.core.Tracer):
            return False
        if isinstance(x, jax.Array):
            return not x.is_deleted() and x.is_fully_addressable
        return isinstance(x, (np.ndarray, np.generic, bool, int, float))

    return all(map(known, jax.tree.leaves(tree)))


def title(agent: object, env: str) -> str:
    """What was trained."""
    return f"{type(agent).__name__} on {env}"


def plan(loop: Loop) -> str:
    """The size of a run in words."""
    total = loop.num_updates * loop.steps_per_update
    return (
        f"{loop.num_updates:,} updates of {loop.num_envs} environments x {loop.update_every} "
        f"steps, {total:,} steps each"
    )


def members(shape: Sequence[int]) -> list[str]:
    """How many runs, with the axes `shape`, in words; nothing for one without an axis."""
    if len(shape) < 2:
        return [counted(size, "run") for size in shape]
    return [f"{' x '.join(map(str, shape))} runs"]


def spread(x: np.ndarray) -> str:
    """Mean and range of the finite numbers, in words; empty if there are none."""
    known = x[np.isfinite(x)]
    if not known.size:
        return ""
    text = f"{known.mean():.1f}"
    return text if known.size < 2 else f"{text} ({known.min():.1f} to {known.max():.1f})"


def card(name: str, facts: Iterable[str], *parts: str) -> str:
    """HTML of a result.

    Args:
        name: in bold.
        facts: below it, in words.
        parts: HTML below these, such as a picture.
    """
    line = html.escape(" · ".join(facts))
    return (
        f'<div style="font:13px/1.5 system-ui,sans-serif;max-width:{WIDTH}px">'
        f"<b>{html.escape(name)}</b><br/>{line}{''.join(parts)}</div>"
    )


def bar(share: float) -> str:
    """HTML of a bar, filled up to a share from 0 to 1."""
    shape = "height:6px;border-radius:3px"
    return (
        f'<div style="{shape};background:rgba(128,128,128,.3);margin:6px 0">'
        f'<div style="{shape};background:{COLOR};width:{100 * share:.1f}%"></div></div>'
    )


def table(rows: Iterable[tuple[str, str]]) -> str:
    """HTML of names and values, a row each."""
    style = 'style="text-align:left;padding:1px 12px 1px 0"'
    lines = (
        f"<tr><td {style}>{html.escape(name)}</td><td {style}>{html.escape(value)}</td></tr>"
        for name, value in rows
    )
    return f'<table style="font:inherit;margin:4px 0">{"".join(lines)}</table>'


def curves_of(metrics: Metrics, timesteps: np.ndarray) -> str:
    """The learning curves of a run, or of several: the interquartile mean, and each of few.

    Args:
        metrics: `[..., n]`, of numpy arrays.
        timesteps: `[n]`.
    """
    returns, episodes = flat(metrics)
    if not np.any(episodes > 0):
        return ""
    return returns_over(timesteps, returns, episodes)


def returns_over(timesteps: np.ndarray, returns: np.ndarray, episodes: np.ndarray) -> str:
    """As `curves_of`, from `timesteps` `[n]`, `returns` and numbers of `episodes` `[S, n]`."""
    x, curves = bin_curves(timesteps, returns, episodes, BINS)
    others = "" if len(curves) <= THIN_LINES else ", and the middle half of them"
    over = f": interquartile mean over {len(curves)} runs{others}" if len(curves) > 1 else ""
    return picture(x, curves, f"return{over}")


def flat(metrics: Metrics) -> tuple[np.ndarray, np.ndarray]:
    """Returns and numbers of episodes `[S, n]`, of all axes of runs as one."""
    *axes, rows = np.shape(metrics.num_episodes)
    shape = math.prod(axes), rows
    return (
        np.asarray(metrics.episode_return).reshape(shape),
        np.asarray(metrics.num_episodes).reshape(shape),
    )


def picture(x: np.ndarray, curves: np.ndarray, caption: str, best: int | None = None) -> str:
    """SVG of curves.

    Args:
        x: `[n]`, environment steps.
        curves: `[S, n]`, NaN where they have no value: drawn thin, or more than 16 as the band of
            their middle half.
        caption: above the picture.
        best: the curve that is drawn thick; None for the interquartile mean.
    """
    if not np.any(np.isfinite(curves)):
        return ""
    thick = iqm(curves, axis=0) if best is None else curves[best]
    few = len(curves) <= THIN_LINES
    drawn = [thick, *(curves if few else middle_half(curves))]
    known = np.concatenate([y[np.isfinite(y)] for y in drawn])
    frame = _Frame(float(x[-1]), *_margins(float(known.min()), float(known.max())))
    parts = [frame.axes(caption)]
    if not few:
        parts.append(frame.band(x, *drawn[1:]))
    elif len(curves) > 1:
        parts += [frame.line(x, y, 1, 0.35) for y in curves if np.any(np.isfinite(y))]
    parts.append(frame.line(x, thick, 2.2, 1))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'style="display:block;width:100%;max-width:{WIDTH}px;margin-top:6px" role="img" '
        f'font-family="system-ui,sans-serif" font-size="11" fill="currentColor">'
        f"<title>{html.escape(caption)}</title>{''.join(parts)}</svg>"
    )


def middle_half(curves: np.ndarray) -> np.ndarray:
    """The quartiles `[2, n]` of curves; NaN where none has a value."""
    there = np.isfinite(curves).any(axis=0)
    quartiles = np.full((2, len(there)), np.nan)
    quartiles[:, there] = np.nanquantile(curves[:, there], [0.25, 0.75], axis=0)
    return quartiles


def _margins(low: float, high: float) -> tuple[float, float]:
    margin = 0.05 * (high - low) or max(1.0, 0.05 * abs(high))
    return low - margin, high + margin


class _Frame:
    """The frame of a picture: numbers to pixels."""

    def __init__(self, right: float, low: float, high: float) -> None:
        self.right, self.low, self.high = max(right, 1.0), low, high

    def at(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Pixels of points."""
        across = LEFT + (WIDTH - LEFT - RIGHT) * x / self.right
        down = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - self.low) / (self.high - self.low)
        return across, down

    def line(self, x: np.ndarray, y: np.ndarray, width: float, opacity: float) -> str:
        """A curve, from its first value on."""
        there = np.isfinite(y)
        points = self._points(x[there], y[there])
        if there.sum() == 1:
            (place,) = points
            return f'<circle cx="{place[0]}" cy="{place[1]}" r="{width}" fill="{COLOR}"/>'
        return (
            f'<polyline points="{_words(points)}" fill="none" stroke="{COLOR}" '
            f'stroke-width="{width}" stroke-opacity="{opacity}" stroke-linejoin="round"/>'
        )

    def band(self, x: np.ndarray, low: np.ndarray, high: np.ndarray) -> str:
        """The area between two curves."""
        there = np.isfinite(low) & np.isfinite(high)
        x, low, high = x[there], low[there], high[there]
        around = self._points(np.concatenate([x, x[::-1]]), np.concatenate([low, high[::-1]]))
        return f'<polygon points="{_words(around)}" fill="{COLOR}" fill-opacity="0.25"/>'

    def axes(self, caption: str) -> str:
        """Lines at round numbers, the numbers, and words."""
        parts = []
        for y in ticks(self.low, self.high):
            _, down = self.at(0.0, y)
            parts.append(
                f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down:.1f}" y2="{down:.1f}" '
                'stroke="currentColor" stroke-opacity="0.18"/>'
                f'<text x="{LEFT - 6}" y="{down + 4:.1f}" text-anchor="end">{engineering(y)}</text>'
            )
        for x in ticks(0.0, self.right):
            across, _ = self.at(x, 0.0)
            parts.append(
                f'<text x="{across:.1f}" y="{HEIGHT - 21}" text-anchor="middle">'
                f"{engineering(x)}</text>"
            )
        words = f'<text x="{LEFT}" y="12" opacity="0.75">{html.escape(caption)}</text>'
        end = f'x="{WIDTH - RIGHT}" y="{HEIGHT - 5}" text-anchor="end" opacity="0.75"'
        return f"{''.join(parts)}{words}<text {end}>environment steps</text>"

    def _points(self, x: np.ndarray, y: np.ndarray) -> list[tuple[float, float]]:
        across, down = (np.round(z, 1).tolist() for z in self.at(x, y))
        return list(zip(across, down, strict=True))


def _words(points: list[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between two, at most so many."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(x * power for x in (1, 2, 5, 10, 20) if (high - low) / (x * power) <= most)
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step) + 1)]


def engineering(value: float) -> str:
    """A number in engineering notation: 1500 is 1.5k. Below 1000 it is written out."""
    if not math.isfinite(value) or abs(value) < 1000:
        return f"{value:g}".replace("-", "\N{MINUS SIGN}", 1)
    power = min(int(math.log10(abs(value)) / 3 + 1e-9), 4)
    return f"{value / 1000**power:g}{'kMGT'[power - 1]}".replace("-", "\N{MINUS SIGN}", 1)
