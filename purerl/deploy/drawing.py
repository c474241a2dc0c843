"""One moment of an environment as a picture, drawn with Pillow.

An environment whose spec has `draw` is drawn by that. Classic control environments are drawn from
their states, in the proportions of Gymnasium's pictures; everything else is drawn as the agent sees
it, from the observation: images as grids, numbers as bars.
"""

import colorsys
import functools
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, SupportsFloat

import jax
import numpy as np

from purerl.envs.base import EnvSpec
from purerl.records.types import PyTree

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from PIL.ImageDraw import ImageDraw as Brush
    from PIL.ImageFont import FreeTypeFont, ImageFont

WIDTH, HEIGHT, TITLE = 400, 260, 28
OVER = 2  # oversampling: drawn larger by this factor, then scaled down, for smooth edges
INK, FAINT, BLUE, RED, WOOD = "#222222", "#c8c8c8", "#3465a4", "#c0392b", "#ca9865"
Points = Iterable[tuple[float, float]]
Color = str | tuple[int, ...]
MOST_BARS = 64
FAR = 10_000.0


def draw(spec: EnvSpec, state: PyTree, obs: PyTree, steps: int, total: float) -> "Picture":
    """A picture of an environment.

    Args:
        spec: its spec.
        state: its state.
        obs: `[*obs_shape]`, the observation of that state.
        steps: how many steps the episode has taken, for the title.
        total: its return so far, for the title.

    Returns:
        A `PIL.Image` of 400 x 288 pixels; of `spec.draw`'s, 400 wide and as high as its proportions
        want, but for the title.
    """
    from PIL import Image, ImageDraw

    inner = _innermost(state)
    own = None if spec.draw is None else spec.draw(inner)
    height = HEIGHT if own is None else _height(own)
    image = Image.new("RGB", (OVER * WIDTH, OVER * (TITLE + height)), "white")
    canvas = _Canvas(ImageDraw.Draw(image))
    draw_state = _DRAWERS.get(spec.name)
    if own is not None:
        _paste(image, own, height)
    elif draw_state is not None and hasattr(inner, draw_state[0]):
        draw_state[1](canvas, inner)
    else:
        _draw_observation(canvas, obs)
    canvas.title(f"{spec.name}   step {steps}   return {total:.5g}")
    return image.reduce(OVER)


def _height(picture: np.ndarray) -> int:
    """The height of a picture that is as wide as others, at most twice the width."""
    rows, columns = picture.shape[:2]
    return min(max(round(WIDTH * rows / columns), HEIGHT // 4), 2 * WIDTH)


def _paste(image: "Picture", picture: np.ndarray, height: int) -> None:
    """Puts `[H, W, 3]` uint8 under the title, in the middle, as large as fits."""
    from PIL import Image

    rows, columns = picture.shape[:2]
    scale = OVER * min(WIDTH / columns, height / rows)
    size = round(scale * columns), round(scale * rows)
    smooth = Image.Resampling.NEAREST if scale > OVER else Image.Resampling.BILINEAR
    left, top = (OVER * WIDTH - size[0]) // 2, OVER * TITLE + (OVER * height - size[1]) // 2
    image.paste(Image.fromarray(picture).resize(size, smooth), (left, top))


class _Canvas:
    """Draws in units of final pixels, from the upper left corner under the title."""

    def __init__(self, draw: "Brush") -> None:
        self._draw = draw

    def line(self, points: Points, color: str, width: float = 1.0) -> None:
        self._draw.line(self._scaled(points), color, round(OVER * width), joint="curve")

    def polygon(self, points: Points, color: Color) -> None:
        self._draw.polygon(self._scaled(points), color)

    def box(self, left: float, top: float, right: float, bottom: float, color: Color) -> None:
        if right > left and bottom > top:
            self._draw.rectangle(self._scaled([(left, top), (right, bottom)]), color)

    def disc(self, x: float, y: float, radius: float, color: str) -> None:
        self._draw.ellipse(
            self._scaled([(x - radius, y - radius), (x + radius, y + radius)]), color
        )

    def rod(
        self, x: float, y: float, angle: float, length: float, width: float, color: str
    ) -> tuple[float, float]:
        """A rod from a joint, at an angle from straight up, clockwise; returns its other end."""
        end = x + length * math.sin(angle), y - length * math.cos(angle)
        self.line([(x, y), end], color, width)
        for joint in ((x, y), end):
            self.disc(joint[0], joint[1], width / 2, color)
        return end

    def text(self, x: float, y: float, text: str, size: int, color: str = INK) -> None:
        self._draw.text((OVER * x, OVER * (y + TITLE)), text, color, _font(OVER * size))

    def title(self, text: str) -> None:
        self.box(0, -TITLE, WIDTH, -1, "#eeeeee")
        self.text(8, -TITLE + 6, text, 14)

    def _scaled(self, points: Points) -> list[tuple[float, float]]:
        return [(OVER * float(x), OVER * (float(y) + TITLE)) for x, y in points]


def _number(x: SupportsFloat) -> float:
    """A finite number, so that a state with NaN or infinity can be drawn too."""
    return float(np.clip(np.nan_to_num(float(x)), -FAR, FAR))


@functools.cache
def _font(size: int) -> "FreeTypeFont | ImageFont":
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _innermost(state: PyTree) -> PyTree:
    """The state inside time limits and other wrappers."""
    while hasattr(state, "env"):
        state = state.env
    return state


def _draw_cartpole(canvas: _Canvas, state: PyTree) -> None:
    scale = WIDTH / 4.8  # the track is as wide as where episodes end, 2.4 either way
    x, ground = WIDTH / 2 + _number(state.x) * scale, 200.0
    canvas.line([(0, ground), (WIDTH, ground)], INK)
    canvas.box(x - 25, ground - 15, x + 25, ground + 15, INK)
    canvas.rod(x, ground - 12, _number(state.theta), scale, 9, WOOD)
    canvas.disc(x, ground - 12, 4, "#8184cb")


def _draw_pendulum(canvas: _Canvas, state: PyTree) -> None:
    x, y, torque = WIDTH / 2, HEIGHT / 2, _number(state.last_u)
    # The angle is from straight up, counterclockwise.
    canvas.rod(x, y, -_number(state.theta), 100, 18, "#cd4d4d")
    canvas.disc(x, y, 5, INK)
    canvas.text(10, HEIGHT - 24, f"torque {torque:+.2f}", 12)
    ends = sorted((x, x + 40 * torque))
    canvas.box(ends[0], HEIGHT - 20, ends[1], HEIGHT - 10, BLUE if torque > 0 else RED)


def _draw_acrobot(canvas: _Canvas, state: PyTree) -> None:
    scale = HEIGHT / 4.4
    x, y = WIDTH / 2, HEIGHT / 2
    first = math.pi - _number(state.joint_angle1)  # from hanging down, counterclockwise
    canvas.line([(0, y - scale), (WIDTH, y - scale)], RED)  # the goal: one link above the joint
    elbow = canvas.rod(x, y, first, scale, 10, "#00a3a3")
    canvas.rod(elbow[0], elbow[1], first - _number(state.joint_angle2), scale, 10, "#00cccc")
    for joint in ((x, y), elbow):
        canvas.disc(joint[0], joint[1], 5, "#cccc00")


def _draw_mountain_car(canvas: _Canvas, state: PyTree, goal: float) -> None:
    left, right = -1.2, 0.6
    scale = WIDTH / (right - left)

    def at(position: float) -> tuple[float, float]:
        height = 0.45 * math.sin(3 * position) + 0.55
        return (position - left) * scale, HEIGHT - 15 - 0.9 * scale * height

    canvas.line([at(x) for x in np.linspace(left, right, 100)], INK, 2)
    (x, y), pole = at(goal), 32
    canvas.line([(x, y), (x, y - pole)], INK)
    canvas.polygon([(x, y - pole), (x + 16, y - pole + 6), (x, y - pole + 12)], "#cccc00")
    position = _number(state.position)
    (x, y), slope = at(position), math.atan(0.9 * 1.35 * math.cos(3 * position))
    along, up = (math.cos(slope), -math.sin(slope)), (-math.sin(slope), -math.cos(slope))

    def corner(forward: float, above: float) -> tuple[float, float]:
        return (
            x + forward * along[0] + above * up[0],
            y + forward * along[1] + above * up[1],
        )

    canvas.polygon([corner(-16, 5), corner(16, 5), corner(16, 17), corner(-16, 17)], BLUE)
    for forward in (-9, 9):
        wheel = corner(forward, 5)
        canvas.disc(wheel[0], wheel[1], 5, INK)


def _draw_observation(canvas: _Canvas, obs: PyTree) -> None:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(obs)]
    images = [leaf for leaf in leaves if leaf.ndim in (2, 3) and leaf.size > 1]
    if images:
        _draw_grid(canvas, images[0])
        return
    _draw_bars(canvas, np.concatenate([leaf.ravel().astype(np.float64) for leaf in leaves]))


def _draw_grid(canvas: _Canvas, image: np.ndarray) -> None:
    """`[height, width]` or `[height, width, channels]`, a cell each."""
    colors = _colors(image)
    rows, columns = colors.shape[:2]
    cell = min((WIDTH - 20) / columns, (HEIGHT - 20) / rows)
    left, top = (WIDTH - cell * columns) / 2, (HEIGHT - cell * rows) / 2
    gap = 1.0 if cell >= 6 else 0.0  # lines between cells, where there is room
    canvas.box(left - 1, top - 1, left + cell * columns + 1, top + cell * rows + 1, "#333333")
    for row in range(rows):
        for column in range(columns):
            x, y = left + cell * column, top + cell * row
            color = tuple(int(value) for value in colors[row, column])
            canvas.box(x, y, x + cell - gap, y + cell - gap, color)


def _colors(image: np.ndarray) -> np.ndarray:
    """`[height, width, 3]` uint8. Grey and RGB bytes are kept; otherwise each channel has a color,
    and a cell has the color of its last channel that isn't 0."""
    image = image[..., None] if image.ndim == 2 else image
    channels = image.shape[-1]
    if image.dtype == np.uint8 and channels in (1, 3):
        return np.broadcast_to(image, (*image.shape[:2], 3))
    values: np.ndarray = np.nan_to_num(image.astype(np.float64))
    low, high = min(values.min(), 0.0), values.max()
    values = (values - low) / (high - low) if high > low else np.zeros_like(values)
    colors = np.zeros((*image.shape[:2], 3))
    for channel in range(channels):
        hue = (0.08 + channel / channels) % 1.0
        color = np.array(colorsys.hsv_to_rgb(hue, 0.0 if channels == 1 else 0.75, 1.0))
        weight = values[..., channel, None]
        colors = (1.0 - weight) * colors + weight * color
    return np.round(255 * colors).astype(np.uint8)


def _draw_bars(canvas: _Canvas, values: np.ndarray) -> None:
    """A bar for each number, up or down from 0; beyond 1 the scale is compressed."""
    shown = np.nan_to_num(values[:MOST_BARS])
    step = (WIDTH - 40) / max(len(shown), 1)
    middle, reach = HEIGHT / 2, HEIGHT / 2 - 36
    # Linear up to 1, compressed beyond: a bar shows sign and size, and stays inside.
    heights = np.sign(shown) * np.where(
        np.abs(shown) <= 1, 0.6 * np.abs(shown), 1 - 0.4 / np.maximum(np.abs(shown), 1e-9)
    )
    canvas.line([(20, middle), (WIDTH - 20, middle)], FAINT)
    for i, (value, height) in enumerate(zip(shown, heights, strict=True)):
        left, right = 20 + step * (i + 0.15), 20 + step * (i + 0.85)
        end = middle - reach * height
        canvas.box(left, min(middle, end), right, max(middle, end), BLUE if value > 0 else RED)
        if step >= 34:
            canvas.text(left, HEIGHT - 22, f"{round(value, 2) + 0.0:.2f}", 11)


# By the environment's name: an attribute that its states have, and the function that draws one.
_DRAWERS: dict[str, tuple[str, Callable[[_Canvas, PyTree], None]]] = {
    "CartPole-v1": ("theta", _draw_cartpole),
    "Pendulum-v1": ("last_u", _draw_pendulum),
    "Acrobot-v1": ("joint_angle1", _draw_acrobot),
    "MountainCar-v0": ("position", functools.partial(_draw_mountain_car, goal=0.5)),
    "MountainCarContinuous-v0": (
        "position",
        functools.partial(_draw_mountain_car, goal=0.45),
    ),
}
