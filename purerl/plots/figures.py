"""Common parts of all figures: styles of runs, numbers on axes, legends, saving.

Figures are made without `matplotlib.pyplot`, so that the user's backend and open figures stay
unchanged.
"""

import io
import os
import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from purerl.records import fields
from purerl.records.errors import ConfigError, RunError
from purerl.records.files import reason, write_whole
from purerl.training.card import engineering

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Path_ = str | os.PathLike[str]

SUFFIXES = (".png", ".pdf", ".svg")
# Distinct for the colour-blind, and in grey by luminance (CIE L* 20, 72, 40, 62, 51, 30).
COLORS = ("#0b2a6f", "#e8a33d", "#b3292f", "#3aa6a0", "#bd5291", "#71207f")
LINES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "0.35"


def style(number: int) -> dict[str, Any]:
    """Colour, line and marker of a run by its number; the first 210 all differ."""
    return {
        "color": COLORS[number % len(COLORS)],
        "linestyle": LINES[number % len(LINES)],
        "marker": MARKERS[number % len(MARKERS)],
    }


def new_figure(width: float, height: float, title: str | None) -> "Figure":
    """An empty figure of a size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from purerl.plots.shown import ShownFigure

    figure = ShownFigure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)  # type: ignore[union-attr,call-arg]
    if title is not None:
        figure.suptitle(textwrap.fill(title, int(10 * width)), fontsize=12, parse_math=False)
    return figure


def tidy(axes: "Axes", caption: str | None = None, grid: str = "y") -> None:
    """Removes needless lines from a panel, and writes its caption above it."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, linewidth=0.5, alpha=0.5)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    if caption:
        axes.set_title(caption, loc="left", fontsize=9, color=GREY, parse_math=False)


def write_numbers(axis: "Axis") -> None:
    """Writes an axis's numbers by `engineering`, where it spans a thousand or more."""
    from matplotlib.ticker import FuncFormatter

    def write(value: float, _: object = None) -> str:
        low, high = axis.get_view_interval()
        if abs(high - low) >= 1000:
            return engineering(value)
        return f"{value:,.10g}".replace("-", "\N{MINUS SIGN}", 1)

    axis.set_major_formatter(FuncFormatter(write))


def write_decades(axis: "Axis", span: float) -> None:
    """Writes a logarithmic axis, of values that span a factor, in plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    subs = (1, 2, 5) if span < 50 else (1, 3) if span < 5000 else (1,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: engineering(value)))
    axis.set_minor_formatter(NullFormatter())


def legend(figure: "Figure", handles: Sequence["Artist"], names: Sequence[str], width: int) -> None:
    """Adds a legend below the panels, and makes the figure higher by it.

    Args:
        figure: the figure.
        handles, names: of the runs.
        width: characters that fit side by side.
    """
    names = [textwrap.fill(name, 60) for name in names]
    longest = max(len(line) for name in names for line in name.splitlines())
    columns = max(1, min(len(names), width // (longest + 8)))
    made = figure.legend(
        handles,
        ["-"] * len(names),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=9,
        handlelength=3.2,
    )
    rows = -(-sum(name.count("\n") + 1 for name in names) // columns)
    figure.set_figheight(figure.get_figheight() + 0.19 * (rows - 1))
    for text, name in zip(made.get_texts(), names, strict=True):
        text.set(text=name, parse_math=False)  # a name may begin with _, which hides it else


def distinct(names: Sequence[str]) -> list[str]:
    """Names, with numbers where several are equal."""
    count, seen = Counter(names), Counter[str]()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(f"{name} #{seen[name]}" if count[name] > 1 else name)
    return numbered


def check_path(path: Path_ | None) -> None:
    """Raises ConfigError unless a figure can be saved under that name."""
    if path is not None and fields.check_path("path", path).suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"path: got {os.fspath(path)!r}, expected a name that ends in "
            f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        )


def save(figure: "Figure", path: Path_ | None) -> "Figure":
    """Writes a figure, whole or not at all, in the format of the suffix; None writes nothing.

    Raises:
        RunError: it can't be written.
    """
    check_path(path)
    if path is None:
        return figure
    target = fields.check_path("path", path)
    drawn = io.BytesIO()
    figure.savefig(drawn, format=target.suffix.lower()[1:], dpi=160)
    try:
        write_whole(target, lambda file: file.write(drawn.getbuffer()))
    except OSError as error:
        raise RunError(f"{target} can't be written: {reason(error)}") from None
    return figure
