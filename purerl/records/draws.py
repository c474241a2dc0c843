"""Distributions of numbers: of hyperparameters in a sweep, of an environment's parameters."""

import dataclasses
import math
import re
import tomllib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purerl.records.errors import ConfigError, shown, suggest
from purerl.records.types import Plain


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Floats between two bounds, all equally likely.

    Attributes:
        low, high: the bounds.

    Raises:
        ConfigError: the bounds are not finite, or not in this order.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        name, bounds = type(self).__name__, (self.low, self.high)
        number = (int, float, np.integer, np.floating)
        if any(isinstance(x, bool) or not isinstance(x, number) for x in bounds):
            raise ConfigError(f"{name}: got {shown(bounds)}, expected two floats")
        if any(abs(x) > float(np.finfo(np.float32).max) for x in bounds):
            raise ConfigError(f"{name}: got {shown(bounds)}, expected finite bounds")
        if not (all(map(math.isfinite, bounds)) and self.low < self.high):
            raise ConfigError(f"{name}: got {bounds}, expected finite bounds, low < high")
        for name, bound in zip(("low", "high"), bounds, strict=True):
            object.__setattr__(self, name, float(bound))

    def draw(self, rng: np.random.Generator, count: int) -> list[float]:
        """`count` values, drawn on the host."""
        values: list[float] = rng.uniform(self.low, self.high, count).tolist()
        return values

    def sample(self, key: jax.Array) -> jax.Array:
        """One value, `[]` float32, drawn inside a program."""
        return jax.random.uniform(key, (), jnp.float32, self.low, self.high)

    def __str__(self) -> str:
        return f"uniform({self.low}, {self.high})"


@dataclasses.dataclass(frozen=True)
class LogUniform(Uniform):
    """Floats between two positive bounds, their logarithms all equally likely."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low <= 0:
            raise ConfigError(f"LogUniform: got {(self.low, self.high)}, expected low > 0")

    def draw(self, rng: np.random.Generator, count: int) -> list[float]:
        drawn = np.exp(rng.uniform(np.log(self.low), np.log(self.high), count))
        values: list[float] = np.clip(drawn, self.low, self.high).tolist()
        return values

    def sample(self, key: jax.Array) -> jax.Array:
        low, high = np.float32(self.low), np.float32(self.high)
        drawn = jax.random.uniform(key, (), jnp.float32, math.log(low), math.log(high))
        return jnp.clip(jnp.exp(drawn), low, high)

    def __str__(self) -> str:
        return f"log_{super().__str__()}"


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of a few values of any kind, all equally likely.

    Raises:
        ConfigError: there are no options, or they aren't a sequence.
    """

    options: Sequence[object]

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(list_values("Choice", self.options)))

    def draw(self, rng: np.random.Generator, count: int) -> list[object]:
        """`count` values, drawn on the host."""
        return [self.options[i] for i in rng.integers(len(self.options), size=count)]

    def sample(self, key: jax.Array) -> jax.Array:
        """One value, `[]` float32, drawn inside a program; the options have to be numbers."""
        place = jax.random.randint(key, (), 0, len(self.options))
        return jnp.asarray(self.options, jnp.float32)[place]

    def __str__(self) -> str:
        return f"choice({', '.join(map(str, self.options))})"


DISTRIBUTIONS: dict[str, Callable[..., Uniform | Choice]] = {
    "uniform": Uniform,
    "log_uniform": LogUniform,
    "choice": lambda *options: Choice(options),
}


def distribution(text: str) -> Uniform | Choice:
    """A distribution from text such as `uniform(0, 1)`, its `str`.

    Raises:
        ConfigError: the text isn't of this form.
    """
    match = re.fullmatch(r"(\w+)\((.*)\)", text.strip())
    if match is None:
        raise ConfigError(f"got {shown(text)}, expected uniform(a, b) or the like")
    word, arguments = match[1], [x.strip() for x in match[2].split(",") if x.strip()]
    if word not in DISTRIBUTIONS:
        raise ConfigError(f"no {word!r}; {suggest(word, DISTRIBUTIONS)}")
    try:
        return DISTRIBUTIONS[word](*map(_value, arguments))
    except TypeError:
        raise ConfigError(f"got {shown(text)}, expected two bounds") from None


def _value(text: str) -> Plain:
    """A value parsed as TOML; a bare word is a string."""
    if text.lower() == "none":
        return None
    try:
        return tomllib.loads(f"value = {text.lower() if text in ('True', 'False') else text}")[
            "value"
        ]
    except tomllib.TOMLDecodeError:
        return text


def list_values(what: str, values: object) -> list[Any]:
    """A list of Python values. Raises ConfigError unless it is a sequence of at least one."""
    if isinstance(values, (np.ndarray, jax.Array)):
        if values.ndim != 1:
            raise ConfigError(f"{what}: got an array of shape {values.shape}, expected [values]")
        values = np.asarray(values).tolist()
    if not isinstance(values, (Sequence, range)) or isinstance(values, (str, bytes)):
        raise ConfigError(f"{what}: got {shown(values)}, expected a sequence of values")
    if not values:
        raise ConfigError(f"{what}: got no values, expected at least one")
    return [x.item() if isinstance(x, np.generic) else x for x in values]
