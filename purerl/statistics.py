"""Statistics of few seeds: robust means with their intervals, and comparisons. Plain numpy.

After Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice".
Scores are an array `[S, ...]` over seeds; for several environments a list of such arrays, one
each. A seed without a score has NaN.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from purerl.records.errors import ConfigError, shown
from purerl.records.fields import INT64, check_count

Scores = np.ndarray | Sequence[ArrayLike]
Seed = np.random.Generator | int
Interval = tuple[np.ndarray, np.ndarray]

# Largest array of the bootstrap, in numbers; more are computed in chunks.
CHUNK = 2**21


class Estimate(NamedTuple):
    """A statistic, and the two ends of its confidence interval; arrays of equal shapes."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def iqm(scores: ArrayLike, axis: int | None = None) -> np.ndarray:
    """The interquartile mean: the mean of the middle half of the scores.

    Of n scores, n // 4 are left out at each end, as by `scipy.stats.trim_mean` with 0.25: none of
    fewer than four, and where n is no multiple of four somewhat more than half of them count. NaN
    is left out first.

    Args:
        scores: `[...]`.
        axis: the axis that is reduced; None for all.

    Returns:
        float64, NaN where there is no score.
    """
    ordered = np.sort(np.asarray(scores, np.float64), axis)  # NaN comes last
    axis = -1 if axis is None else axis
    count = np.sum(~np.isnan(ordered), axis, keepdims=True)
    shape = np.ones(ordered.ndim, int)
    shape[axis] = -1
    place = np.arange(ordered.shape[axis]).reshape(shape)
    cut = count // 4
    middle = (place >= cut) & (place < count - cut)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN that is wanted
        return np.sum(ordered, axis, where=middle) / np.squeeze(count - 2 * cut, axis)


def bootstrap_interval(
    statistic: Callable[..., ArrayLike],
    scores: Scores,
    *,
    num_samples: int = 2000,
    confidence: float = 0.95,
    rng: Seed = 0,
) -> Interval:
    """A confidence interval by the stratified bootstrap, percentile method.

    Seeds are drawn with replacement, each with all its scores, and from each environment as many as
    it has. With very few seeds the interval is too narrow, since they cover too little of the
    spread over seeds; a single one says nothing of it, and there is no interval.

    Args:
        statistic: called as `statistic(x, axis=1)` with `x` `[n, S, ...]`, the seeds of all
            environments in one axis, to reduce that axis; such as `iqm` or `numpy.mean`. Its NaNs
            are left out.
        scores: `[S, ...]`, such as final returns `[S]` or curves `[S, U]`; or a list of arrays
            `[S_e, ...]`, one for each environment.
        num_samples: number of bootstrap samples.
        confidence: between 0 and 1.
        rng: a `numpy.random.Generator`, or its seed.

    Returns:
        The low and the high ends, `[...]` float64 each; NaN where the statistic is, and where no
        environment has the scores of two seeds.

    Raises:
        ConfigError: no scores, incompatible shapes, or an argument out of its range.
    """
    _check(num_samples, confidence, rng)
    if not callable(statistic):
        raise ConfigError(f"statistic: got {shown(statistic)}, expected a function such as iqm")
    strata = _strata(scores)
    shape = strata[0].shape[1:]
    columns = [x.reshape(len(x), -1) for x in strata]
    seeds = np.random.default_rng(rng).integers(2**63, size=len(strata))
    number, width = columns[0].shape[1], max(1, CHUNK // num_samples)
    ends = np.full((2, number), np.nan)
    for start in range(0, number, width):
        # Each block draws from the same seeds anew, so that a curve's points stay together.
        block = [x[:, start : start + width] for x in columns]
        drawn = _distribution(statistic, block, seeds, num_samples)
        ends[:, start : start + width] = _quantiles(drawn, confidence)
    ends[:, ~np.any([np.sum(~np.isnan(x), axis=0) > 1 for x in columns], axis=0)] = np.nan
    return ends[0].reshape(shape), ends[1].reshape(shape)


def probability_of_improvement(
    x: Scores,
    y: Scores,
    *,
    num_samples: int = 2000,
    confidence: float = 0.95,
    rng: Seed = 0,
) -> Estimate:
    """The probability that a run of X scores higher than one of Y, a tie being half: the mean over
    environments of Mann and Whitney's U / (m n).

    Args:
        x, y: `[m]` and `[n]` scores, or lists of them, one for each environment, in the same
            order. NaN is left out.
        num_samples, confidence, rng: as of `bootstrap_interval`; runs of X and Y are drawn
            independently.

    Returns:
        The ends of the interval are NaN where X or Y has a single run in each environment.

    Raises:
        ConfigError: no scores, unequal numbers of environments, or as `bootstrap_interval`.
    """
    _check(num_samples, confidence, rng)
    xs, ys = _seen(x), _seen(y)
    if len(xs) != len(ys):
        raise ConfigError(f"y: got {len(ys)} environments, expected {len(xs)}, as many as of x")
    rng = np.random.default_rng(rng)
    value, drawn = 0.0, np.zeros(num_samples)
    for a, b in zip(xs, ys, strict=True):
        better = (a[:, None] > b) + 0.5 * (a[:, None] == b)
        value += better.mean() / len(xs)
        # Counts of the draws suffice: the mean doesn't depend on their order.
        of_a = rng.multinomial(len(a), np.full(len(a), 1 / len(a)), num_samples)
        of_b = rng.multinomial(len(b), np.full(len(b), 1 / len(b)), num_samples)
        drawn += np.sum((of_a @ better) * of_b, axis=1) / better.size / len(xs)
    ends = _quantiles(drawn[:, None], confidence)[:, 0]
    if any(all(len(runs) == 1 for runs in of_all) for of_all in (xs, ys)):
        ends = np.full(2, np.nan)
    return Estimate(np.asarray(value), *ends)


def performance_profile(
    scores: Scores,
    thresholds: ArrayLike,
    *,
    num_samples: int = 2000,
    confidence: float = 0.95,
    rng: Seed = 0,
) -> Estimate:
    """The share of runs that score above each threshold, the mean over environments.

    Args:
        scores: `[S]`, or a list of them, one for each environment. NaN is left out.
        thresholds: `[T]`.
        num_samples, confidence, rng: as of `bootstrap_interval`.

    Returns:
        Arrays `[T]`.

    Raises:
        ConfigError: as `bootstrap_interval`.
    """
    strata, thresholds = _seen(scores), np.asarray(thresholds, np.float64)
    if thresholds.ndim != 1:
        raise ConfigError(f"thresholds: got shape {thresholds.shape}, expected [T]")
    mean_size = sum(map(len, strata)) / len(strata)
    # With these weights the mean over all runs is the mean over environments of their means.
    above = [(x[:, None] > thresholds) * (mean_size / len(x)) for x in strata]
    options = {"num_samples": num_samples, "confidence": confidence, "rng": rng}
    interval = bootstrap_interval(np.mean, above, **options)  # type: ignore[arg-type]
    return Estimate(np.concatenate(above).mean(axis=0), *interval)


def bin_curves(
    x: ArrayLike, returns: ArrayLike, num_episodes: ArrayLike, num_bins: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """Bins curves: the mean return of the episodes of each bin, without gaps.

    Each episode counts once. A bin in which a seed ended no episode has the seed's value of the
    bin before; NaN before its first episode.

    Args:
        x: `[U]`, environment steps or seconds after each update.
        returns: `[S, U]`, mean return of the episodes that ended in each update, NaN where none.
        num_episodes: `[S, U]`, number of episodes that ended.
        num_bins: number of bins, of equally many updates; at most U are made.

    Returns:
        x at the bins' ends, `[bins]`, and the curves, `[S, bins]` float64.
    """
    updates = np.shape(returns)[1]
    edges = np.linspace(0, updates, min(num_bins, updates) + 1).round().astype(int)
    total, count = _totals(returns, num_episodes)
    total, count = (np.add.reduceat(z, edges[:-1], axis=1) for z in (total, count))
    return np.asarray(x)[edges[1:] - 1], carried(_ratio(total, count))


def carried(values: np.ndarray) -> np.ndarray:
    """Values `[S, U]` with the newest one before in place of NaN, which stays where there is
    none."""
    there = np.where(np.isnan(values), 0, np.arange(values.shape[1]))
    return np.take_along_axis(values, np.maximum.accumulate(there, axis=1), axis=1)


def final_returns(
    returns: ArrayLike, num_episodes: ArrayLike, num_updates: ArrayLike | None = None
) -> np.ndarray:
    """Each seed's mean return over the last tenth of its updates, or rows of metrics (rounded up),
    each episode counted once.

    Args:
        returns, num_episodes: `[S, U]`, as of `bin_curves`.
        num_updates: `[S]`, updates of the U that each seed ran; None for all.

    Returns:
        `[S]` float64, NaN where no episode ended.
    """
    seeds, updates = np.shape(returns)
    stop = np.full(seeds, updates) if num_updates is None else np.asarray(num_updates)
    start = stop - -(-stop // 10)
    update = np.arange(updates)
    counted = (update >= start[:, None]) & (update < stop[:, None])
    return mean_returns(returns, np.where(counted, num_episodes, 0))


def mean_returns(returns: ArrayLike, num_episodes: ArrayLike) -> np.ndarray:
    """Each seed's mean return over all of its updates, or rows of metrics, each episode counted
    once.

    Args:
        returns, num_episodes: `[S, U]`, as of `bin_curves`.

    Returns:
        `[S]` float64, NaN where no episode ended.
    """
    total, count = _totals(returns, num_episodes)
    return _ratio(total.sum(axis=1), count.sum(axis=1))


def _totals(returns: ArrayLike, num_episodes: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the episodes' returns, and the numbers of these episodes."""
    returns = np.asarray(returns, np.float64)
    count = np.where(np.isfinite(returns), num_episodes, 0)
    return np.where(count > 0, returns, 0.0) * count, count


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _distribution(
    statistic: Callable[..., ArrayLike],
    strata: list[np.ndarray],
    seeds: np.ndarray,
    num_samples: int,
) -> np.ndarray:
    """The statistic `[num_samples, C]` of bootstrap samples of strata `[S_e, C]`."""
    rngs = [np.random.default_rng(seed) for seed in seeds]  # so that chunks don't change the draws
    size = max(1, CHUNK // sum(x.size for x in strata))
    parts = []
    for start in range(0, num_samples, size):
        count = min(size, num_samples - start)
        drawn = [
            x[rng.integers(len(x), size=(count, len(x)))]
            for rng, x in zip(rngs, strata, strict=True)
        ]
        parts.append(np.asarray(statistic(np.concatenate(drawn, axis=1), axis=1)))
    return np.concatenate(parts)


def _quantiles(drawn: np.ndarray, confidence: float) -> np.ndarray:
    """Both ends `[2, C]` of the central interval of `[n, C]`, NaN left out."""
    shares = np.array([0.5 - confidence / 2, 0.5 + confidence / 2])
    ends = np.quantile(drawn, shares, axis=0)
    for column in np.flatnonzero(np.isnan(ends[0])):
        known = drawn[~np.isnan(drawn[:, column]), column]
        ends[:, column] = np.quantile(known, shares) if known.size else np.nan
    return ends


def _strata(scores: Scores) -> list[np.ndarray]:
    """Scores as a list of arrays, one for each environment. Raises ConfigError."""
    several = isinstance(scores, (list, tuple)) and any(np.ndim(x) > 0 for x in scores)
    try:
        strata = [np.asarray(x, np.float64) for x in (scores if several else [scores])]
    except (ValueError, TypeError):
        raise ConfigError(f"scores: got {shown(scores)}, expected arrays of numbers") from None
    if any(x.ndim == 0 or not len(x) for x in strata):
        raise ConfigError("scores: got no scores, expected at least one seed of each environment")
    if len({x.shape[1:] for x in strata}) > 1:
        shapes = ", ".join(str(x.shape) for x in strata)
        raise ConfigError(f"scores: got shapes {shapes}, which may differ in their first axis only")
    return strata


def _seen(scores: Scores) -> list[np.ndarray]:
    """Scores `[S]` of each environment, without NaN."""
    strata = _strata(scores)
    if strata[0].ndim > 1:
        raise ConfigError(
            f"scores: got shape {strata[0].shape}, expected [S], or a list of them, one an "
            "environment"
        )
    return _strata([x[~np.isnan(x)] for x in strata])


def _check(num_samples: int, confidence: float, rng: object) -> None:
    check_count("num_samples", num_samples)
    if not isinstance(rng, np.random.Generator):
        check_count("rng", rng, at_least=0, at_most=INT64)
    if not isinstance(confidence, (int, float, np.floating)) or not 0 < confidence < 1:
        raise ConfigError(f"confidence: got {shown(confidence)}, expected a number between 0 and 1")
