"""Metrics of a run, reduced inside the scan to one number a row."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from purerl.accelerator.devices import Devices

_BITS = 30
_MOST = 2**31 - 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Count:
    """A count that may exceed 2**31, exact up to 2**60: high * 2**30 + low.

    On the host `int(count)` is its value, and `np.asarray(count)` an int64 array of many.

    Attributes:
        high, low: `[]` int32, low < 2**30.
    """

    high: jax.Array
    low: jax.Array

    @classmethod
    def of(cls, number: "Count | jax.Array | int") -> "Count":
        """A count from an integer, an int32 array, or a count."""
        if isinstance(number, Count):
            return number
        high, low = number >> _BITS, number & (2**_BITS - 1)
        return cls(jnp.asarray(high, jnp.int32), jnp.asarray(low, jnp.int32))

    def plus(self, number: jax.Array | int) -> "Count":
        """The sum with a number up to 2**30."""
        low = self.low + number
        return Count(self.high + (low >> _BITS), low & (2**_BITS - 1))

    def at_least(self, number: int) -> jax.Array:
        """`[]` bool, whether the count is at least a number."""
        high, low = divmod(number, 2**_BITS)
        reached: jax.Array = (self.high > high) | ((self.high == high) & (self.low >= low))
        return reached

    def divides(self, divisor: int, most: int) -> jax.Array:
        """`[]` bool, whether a divisor up to 2**30 divides the count, which is at most `most`."""
        rest = self.low % divisor
        for bit in range((most >> _BITS).bit_length()):
            part = jnp.where((self.high >> bit) & 1 > 0, pow(2, _BITS + bit, divisor), 0)
            rest = (rest + part) % divisor
        return rest == 0

    def as_float(self) -> jax.Array:
        """`[]` float32, the count rounded."""
        return self.high.astype(jnp.float32) * float(2**_BITS) + self.low.astype(jnp.float32)

    def __int__(self) -> int:
        return int(np.asarray(self))

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        high, low = (np.asarray(x).astype(np.int64) for x in (self.high, self.low))
        return np.asarray((high << _BITS) + low, np.int64 if dtype is None else dtype)


class Episodes(NamedTuple):
    """Returns and lengths of completed episodes.

    NaN if there are none (see `missing`); each episode has the same weight, whatever its length.

    Attributes:
        episode_return, episode_return_min, episode_return_max: `[]` float32, undiscounted sums of
            the environment's rewards, before any rewarder: mean, minimum, maximum.
        episode_length, episode_length_min, episode_length_max: `[]` float32, in steps.
        num_episodes: `[]` int32, the number of episodes.
        info: `[]` float32 by name, for each of `EnvSpec.metrics` the mean of its value in
            `TimeStep.info` over the last steps of the episodes.
    """

    episode_return: jax.Array
    episode_return_min: jax.Array
    episode_return_max: jax.Array
    episode_length: jax.Array
    episode_length_min: jax.Array
    episode_length_max: jax.Array
    num_episodes: jax.Array
    info: dict[str, jax.Array] = {}  # noqa: RUF012 - never mutated


class Metrics(NamedTuple):
    """A row of metrics: of one update, or of the `log_every` updates of the row.

    As a result of `train` each has a leading axis `[num_rows]`.

    Attributes:
        episode_return, ... num_episodes: of training episodes, as in `Episodes`.
        losses: the agent's losses and diagnostics by name, `[]` float32: the mean over the updates
            in which they are finite.
        nonfinite_updates: `[]` int32, the number of updates that were skipped because of NaN or
            infinity from the environment or in the agent, or that left values beyond 1e15 out of
            running statistics.
        eval: `Episodes` of the last evaluation in the row, NaN and 0 in a row without one; None for
            a run without evaluation.
        info: of training episodes, as in `Episodes`.
        log: `[]` float32 by name, what the run's `log` returns: the mean over the steps of an
            update of its finite values, and over the updates in which there are any.
    """

    episode_return: jax.Array
    episode_return_min: jax.Array
    episode_return_max: jax.Array
    episode_length: jax.Array
    episode_length_min: jax.Array
    episode_length_max: jax.Array
    num_episodes: jax.Array
    losses: dict[str, jax.Array]
    nonfinite_updates: jax.Array
    eval: Episodes | None
    info: dict[str, jax.Array] = {}  # noqa: RUF012
    log: dict[str, jax.Array] = {}  # noqa: RUF012


def missing() -> float:
    """The value of an unknown number: NaN; infinity under `jax_debug_nans`, which raises an error
    for every NaN in a program's result (read when a program is traced)."""
    settings: Any = jax.config  # JAX 0.10 doesn't declare its settings' types
    return math.inf if settings.jax_debug_nans else math.nan


def summarize(
    returns: jax.Array,
    lengths: jax.Array,
    ended: jax.Array,
    info: Mapping[str, jax.Array] | None = None,
) -> Episodes:
    """Statistics over the steps that ended an episode.

    Args:
        returns: `[...]` float32, the episode's return up to and including each step.
        lengths: `[...]` int32, the episode's length up to and including each step.
        ended: `[...]` bool, whether the episode ended at the step.
        info: `[...]` numbers by name, the `EnvSpec.metrics` of each step.
    """
    info = {name: x.astype(jnp.float32) for name, x in (info or {}).items()}
    # Two reductions for all statistics, instead of one for each.
    both = jnp.stack([returns, lengths.astype(jnp.float32)])
    axes = tuple(range(1, both.ndim))
    summed = jnp.stack([*both, jnp.ones_like(returns), *info.values()])
    total = jnp.sum(jnp.where(ended, summed, 0.0), axes)
    ends = jnp.min(jnp.where(ended, jnp.concatenate([both, -both]), jnp.inf), axes)
    count = total[2]
    low_return, low_length, high_return, high_length = jnp.where(count > 0, ends, missing())
    means = jnp.where(count > 0, total / jnp.maximum(count, 1), missing())
    mean_return, mean_length, _, *mean_info = means
    return Episodes(
        *(mean_return, low_return, -high_return),
        *(mean_length, low_length, -high_length),
        num_episodes=count.astype(jnp.int32),
        info=dict(zip(info, mean_info, strict=True)),
    )


def pool(episodes: Episodes, devices: Devices) -> Episodes:
    """The statistics over all devices' episodes, from those of each device."""
    if devices.count == 1:
        return episodes
    info = episodes.info
    means = jnp.stack([episodes.episode_return, episodes.episode_length, *info.values()])
    lows = jnp.stack([episodes.episode_return_min, episodes.episode_length_min])
    highs = jnp.stack([episodes.episode_return_max, episodes.episode_length_max])
    seen = episodes.num_episodes > 0
    sums = jnp.where(seen, means * episodes.num_episodes.astype(jnp.float32), 0.0)
    sums, count = devices.sum((sums, episodes.num_episodes))
    ends = jnp.where(seen, jnp.concatenate([lows, -highs]), jnp.inf)
    ends = devices.min(ends)
    all_means = sums / jnp.maximum(count, 1).astype(jnp.float32)
    both = jnp.concatenate([ends[:2], -ends[2:], all_means])
    both = jnp.where(count > 0, both, missing())
    low_return, low_length, high_return, high_length, mean_return, mean_length, *mean_info = both
    return Episodes(
        *(mean_return, low_return, high_return),
        *(mean_length, low_length, high_length),
        count,
        dict(zip(info, mean_info, strict=True)),
    )


class Mean(NamedTuple):
    """Running means by name, each over the updates in which its value is finite.

    Attributes:
        value: `[]` float32 by name, 0 before the first finite one.
        known: `[]` int32 by name, the number of updates in it.
    """

    value: dict[str, jax.Array]
    known: dict[str, jax.Array]

    @classmethod
    def start(cls, names: Iterable[str]) -> Self:
        """Means of no update."""
        return cls(*(dict.fromkeys(names, zero) for zero in (jnp.float32(0), jnp.int32(0))))

    def add(self, new: Mapping[str, jax.Array]) -> Self:
        """The means with one more update."""
        values, known = {}, {}
        for name, x in new.items():
            finite = jnp.isfinite(x)
            known[name] = self.known[name] + finite.astype(jnp.int32)
            old = self.value[name]
            step = (x - old) / jnp.maximum(known[name], 1).astype(jnp.float32)
            values[name] = old + jnp.where(finite, step, 0.0)
        return type(self)(values, known)

    def end(self) -> dict[str, jax.Array]:
        """The means; NaN where there was none (see `missing`)."""
        return {n: jnp.where(self.known[n] > 0, x, missing()) for n, x in self.value.items()}


class Row(NamedTuple):
    """An accumulator of the updates' metrics for one row.

    Attributes:
        metrics: of the updates so far, without losses and `log`.
        losses, log: their means.
    """

    metrics: Metrics
    losses: Mean
    log: Mean

    @classmethod
    def start(cls, like: Metrics) -> Self:
        """An empty row, with the names and structure of `like`."""
        metrics = no_metrics(like)._replace(losses={}, log={})
        return cls(metrics, Mean.start(like.losses), Mean.start(like.log))

    def add(self, new: Metrics) -> Self:
        """The row with one more update."""
        old, last = self.metrics, self.metrics.eval
        if old.eval is not None and new.eval is not None:
            there = new.eval.num_episodes > 0
            last = jax.tree.map(lambda x, y: jnp.where(there, x, y), new.eval, old.eval)
        skipped = old.nonfinite_updates + new.nonfinite_updates
        episodes = _together(_episodes(old), _episodes(new))
        metrics = Metrics(**episodes._asdict(), losses={}, nonfinite_updates=skipped, eval=last)
        return type(self)(metrics, self.losses.add(new.losses), self.log.add(new.log))

    def end(self) -> Metrics:
        """The metrics of the row."""
        return self.metrics._replace(losses=self.losses.end(), log=self.log.end())


def _episodes(metrics: Metrics) -> Episodes:
    return Episodes(*(getattr(metrics, name) for name in Episodes._fields))


def _together(a: Episodes, b: Episodes) -> Episodes:
    """The statistics over both."""
    count = a.num_episodes + b.num_episodes
    share = b.num_episodes.astype(jnp.float32) / jnp.maximum(count, 1).astype(jnp.float32)

    def known(both: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.where(a.num_episodes > 0, jnp.where(b.num_episodes > 0, both, x), y)

    def mean(x: jax.Array, y: jax.Array) -> jax.Array:
        return known(x + share * (y - x), x, y)

    def least(x: jax.Array, y: jax.Array) -> jax.Array:
        return known(jnp.minimum(x, y), x, y)

    def most(x: jax.Array, y: jax.Array) -> jax.Array:
        return known(jnp.maximum(x, y), x, y)

    return Episodes(
        mean(a.episode_return, b.episode_return),
        least(a.episode_return_min, b.episode_return_min),
        most(a.episode_return_max, b.episode_return_max),
        mean(a.episode_length, b.episode_length),
        least(a.episode_length_min, b.episode_length_min),
        most(a.episode_length_max, b.episode_length_max),
        jnp.where(count < 0, _MOST, count),  # saturates instead of overflowing
        {name: mean(x, b.info[name]) for name, x in a.info.items()},
    )


def no_metrics(like: Metrics) -> Metrics:
    """Metrics of no update, with the names and structure of `like`."""
    return Metrics(
        **no_episodes(like.info)._asdict(),
        losses=dict.fromkeys(like.losses, jnp.float32(missing())),
        nonfinite_updates=jnp.int32(0),
        eval=None if like.eval is None else no_episodes(like.info),
        log=dict.fromkeys(like.log, jnp.float32(missing())),
    )


def no_episodes(info: Iterable[str] = ()) -> Episodes:
    """Statistics of no episodes; `info` has the names of `EnvSpec.metrics`."""
    none = jnp.float32(missing())
    return Episodes(none, none, none, none, none, none, jnp.int32(0), dict.fromkeys(info, none))
