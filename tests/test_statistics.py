"""Against scipy, closed forms, and plain loops."""

import numpy as np
import pytest
import scipy.stats

import purerl
from purerl import statistics
from purerl.statistics import (
    bin_curves,
    bootstrap_interval,
    final_returns,
    iqm,
    performance_profile,
    probability_of_improvement,
)

nan = np.nan


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 11, 40])
def test_iqm_is_scipys_trimmed_mean(rng, count):
    scores = rng.standard_cauchy((count, 3, 2))
    np.testing.assert_allclose(iqm(scores, axis=0), scipy.stats.trim_mean(scores, 0.25, axis=0))
    moved = np.moveaxis(scores, 0, 1)
    np.testing.assert_allclose(iqm(moved, axis=1), scipy.stats.trim_mean(scores, 0.25, axis=0))
    np.testing.assert_allclose(iqm(moved, axis=-2), iqm(moved, axis=1))
    np.testing.assert_allclose(iqm(scores), scipy.stats.trim_mean(scores.ravel(), 0.25))


def test_iqm_leaves_nan_out(rng):
    scores = rng.normal(size=(9, 30))
    scores[rng.random(scores.shape) < 0.4] = nan
    scores[:, 0] = nan
    expected = [scipy.stats.trim_mean(x[~np.isnan(x)], 0.25) for x in scores.T[1:]]
    got = iqm(scores, axis=0)
    assert np.isnan(got[0])
    np.testing.assert_allclose(got[1:], expected)


def test_iqm_withstands_infinity_at_the_ends():
    assert iqm([-np.inf, 1, 2, np.inf]) == 1.5


def scipys(statistic, scores, seed=0):
    found = scipy.stats.bootstrap(
        (scores,),
        statistic,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(seed),
    )
    return found.confidence_interval


@pytest.mark.parametrize("statistic", [iqm, np.mean])
def test_the_interval_is_scipys(rng, statistic):
    scores = rng.exponential(size=12)
    low, high = bootstrap_interval(statistic, scores, num_samples=20_000)
    expected = scipys(lambda x, axis: statistic(x, axis=axis), scores)
    # The ends' own standard error, by how far scipy's are from each other, is about 0.005.
    np.testing.assert_allclose([low, high], expected, atol=0.025 * (high - low))


def test_the_interval_of_a_mean_is_the_normal_one(rng):
    scores = rng.normal(size=400)
    low, high = bootstrap_interval(np.mean, scores, confidence=0.9, num_samples=20_000)
    half = 1.6449 * scores.std() / 20
    np.testing.assert_allclose(
        [low, high], scores.mean() + half * np.array([-1, 1]), atol=0.04 * half
    )


def test_the_interval_of_two_seeds_is_known():
    # The mean of two draws from {0, 1} is 0, 1/2, 1 with shares 1/4, 1/2, 1/4.
    scores = np.array([0.0, 1.0])
    assert bootstrap_interval(np.mean, scores, confidence=0.6) == (0, 1)
    assert bootstrap_interval(np.mean, scores, confidence=0.4) == (0.5, 0.5)


@pytest.mark.parametrize("of_each", [False, True])
def test_one_seed_has_no_interval(of_each):
    """What it says of the spread over seeds is nothing, not that there is none."""
    one = np.array([[3.0, 4.0]])
    scores = [one, one + 2] if of_each else one
    assert np.isnan(bootstrap_interval(iqm, scores)).all()


def test_one_seed_with_a_score_has_no_interval():
    curves = np.array([[3.0, 4.0, nan], [nan, 6.0, nan]])
    low, high = bootstrap_interval(iqm, curves)
    assert np.isnan([low[0], high[0], low[2], high[2]]).all()
    assert (low[1], high[1]) == (4.0, 6.0)
    profile = performance_profile([3.0], [2.0, 4.0])
    assert profile.value.tolist() == [1.0, 0.0]
    assert np.isnan([profile.low, profile.high]).all()


@pytest.mark.parametrize("turned", [False, True])
def test_one_seed_of_either_side_has_no_interval_of_improvement(turned):
    pair = ([[1.0, 2.0], [0.0, 1.0]], [[0.0], [5.0]])
    got = probability_of_improvement(*(reversed(pair) if turned else pair))
    assert got.value == 0.5
    assert np.isnan([got.low, got.high]).all()


def test_environments_are_drawn_from_apart(rng):
    # Far apart and without spread of their own: whatever is drawn, the mean stays.
    low, high = bootstrap_interval(np.mean, [np.zeros(3), np.full(3, 100.0)])
    assert low == high == 50
    joined = bootstrap_interval(np.mean, np.repeat([0.0, 100.0], 3))
    assert joined[1] - joined[0] > 50
    # With spread, the variance of the joined mean is the sum of the parts'.
    a, b = rng.normal(size=200), rng.normal(scale=3, size=100)
    low, high = bootstrap_interval(np.mean, [a, b], num_samples=20_000)
    std = np.sqrt(200 * a.var() + 100 * b.var()) / 300
    assert high - low == pytest.approx(2 * 1.96 * std, rel=0.04)


def test_seeds_are_drawn_whole():
    # Two curves that mirror each other: a seed's points taken apart would not sum to 0.
    curve = np.arange(-3.0, 4.0)
    scores = np.stack([curve, -curve, np.zeros(7)])
    seen = []

    def spread(x, axis):
        seen.append(x)
        return np.mean(x, axis=axis)

    bootstrap_interval(spread, scores, num_samples=50)
    assert np.all(np.isin(np.concatenate(seen)[..., 0], scores[:, 0]))
    np.testing.assert_array_equal(np.concatenate(seen)[..., 0], -np.concatenate(seen)[..., -1])


def test_chunks_change_nothing(rng, monkeypatch):
    strata = [rng.normal(size=(5, 3, 7)), rng.normal(size=(2, 3, 7))]
    whole = bootstrap_interval(iqm, strata, num_samples=301, rng=3)
    assert whole[0].shape == (3, 7)
    sizes = []

    def watched(x, axis):
        sizes.append(x.size)
        return iqm(x, axis=axis)

    monkeypatch.setattr(statistics, "CHUNK", 1300)
    np.testing.assert_array_equal(
        bootstrap_interval(watched, strata, num_samples=301, rng=3), whole
    )
    assert max(sizes) <= 1300
    other = bootstrap_interval(iqm, strata, num_samples=301, rng=4)
    assert not np.array_equal(other, whole)


def test_the_generator_goes_on(rng):
    scores = rng.normal(size=9)
    first = bootstrap_interval(iqm, scores, rng=rng, num_samples=100)
    assert bootstrap_interval(iqm, scores, rng=rng, num_samples=100) != first


def test_the_interval_leaves_nan_out():
    scores = np.array([[nan, nan], [nan, 2.0], [nan, 4.0]])
    low, high = bootstrap_interval(iqm, scores)
    np.testing.assert_array_equal(low, [nan, 2])
    np.testing.assert_array_equal(high, [nan, 4])


@pytest.mark.parametrize("sizes", [(1, 1), (3, 8), (20, 13)])
def test_improvement_is_mann_and_whitneys(rng, sizes):
    x, y = (rng.integers(6, size=n).astype(float) for n in sizes)  # with ties
    u = scipy.stats.mannwhitneyu(x, y).statistic
    got = probability_of_improvement(x, y)
    assert got.value == pytest.approx(u / (len(x) * len(y)))
    if sizes == (1, 1):
        assert np.isnan([got.low, got.high]).all()
    else:
        assert got.low <= got.value <= got.high
    back = probability_of_improvement(y, x)
    assert back.value == pytest.approx(1 - got.value)


def test_improvements_interval_is_a_loops(rng):
    x, y = rng.normal(size=6), rng.normal(0.5, size=9)
    drawn = []
    for _ in range(8000):
        a, b = rng.choice(x, 6), rng.choice(y, 9)
        drawn.append(scipy.stats.rankdata([*a, *b])[:6].sum() / 54 - 21 / 54)
    expected = np.quantile(drawn, [0.1, 0.9])
    got = probability_of_improvement(x, y, confidence=0.8, num_samples=8000)
    np.testing.assert_allclose([got.low, got.high], expected, atol=0.02)


def test_improvement_is_averaged_over_environments(rng):
    xs, ys = [rng.normal(size=4), rng.normal(size=9)], [rng.normal(size=5), rng.normal(size=2)]
    alone = [probability_of_improvement(x, y).value for x, y in zip(xs, ys, strict=True)]
    assert probability_of_improvement(xs, ys).value == pytest.approx(np.mean(alone))
    sure = probability_of_improvement([[1.0, 2.0], [0.0, nan]], [[0.0], [5.0, 6.0]])
    assert (sure.value, sure.low, sure.high) == (0.5, 0.5, 0.5)


def test_a_profile_counts_runs_above(rng):
    scores, thresholds = rng.integers(5, size=10).astype(float), np.linspace(-1, 6, 15)
    got = performance_profile(np.append(scores, nan), thresholds)
    np.testing.assert_allclose(got.value, [np.mean(scores > t) for t in thresholds])
    # What is drawn above a threshold is binomial.
    at = 6
    share = np.mean(scores > thresholds[at])
    assert 0 < share < 1
    expected = scipy.stats.binom.ppf([0.025, 0.975], 10, share) / 10
    np.testing.assert_allclose([got.low[at], got.high[at]], expected, atol=0.1)
    assert got.low[0] == 1
    assert got.high[-1] == 0


def test_a_profile_is_averaged_over_environments():
    got = performance_profile([[1.0, 1.0, 1.0], [0.0]], [0.5])
    np.testing.assert_allclose([got.value, got.low, got.high], 0.5)


def curves_by_loops(x, returns, num_episodes, edges):
    curves = np.full((len(returns), len(edges) - 1), nan)
    for seed in range(len(returns)):
        last = nan
        for i in range(len(edges) - 1):
            episodes = []
            for update in range(edges[i], edges[i + 1]):
                episodes += [returns[seed, update]] * num_episodes[seed, update]
            last = np.mean(episodes) if episodes else last
            curves[seed, i] = last
    return x[np.array(edges[1:]) - 1], curves


def test_bins_count_each_episode_once(rng):
    num_episodes = rng.integers(4, size=(3, 23)) * (rng.random((3, 23)) < 0.5)
    num_episodes[0, :9] = 0
    returns = np.where(num_episodes > 0, rng.normal(size=(3, 23)), nan)
    x = np.arange(1, 24) * 128
    edges = [round(23 * i / 6) for i in range(7)]
    got = bin_curves(x, returns, num_episodes, 6)
    expected = curves_by_loops(x, returns, num_episodes, edges)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b)
    assert np.isnan(got[1]).any()
    for a, b in zip(
        bin_curves(x, returns, num_episodes),
        curves_by_loops(x, returns, num_episodes, range(24)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b)


def test_final_returns_are_of_the_last_tenth():
    returns = np.arange(21.0)[None].repeat(3, 0)
    num_episodes = np.ones((3, 21), int)
    num_episodes[0, 19] = 3
    num_episodes[2, 18:] = 0
    got = final_returns(returns, num_episodes)
    np.testing.assert_allclose(got, [(18 + 3 * 19 + 20) / 5, 19, nan])
    got = final_returns(returns, num_episodes, np.array([21, 10, 18]))
    np.testing.assert_allclose(got, [(18 + 3 * 19 + 20) / 5, 9, 16.5])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_interval(iqm, []), "scores: got no scores"),
        (lambda: bootstrap_interval(iqm, [np.ones((2, 3)), np.ones((2, 4))]), "first axis only"),
        (lambda: bootstrap_interval(iqm, [1.0], num_samples=0), "num_samples: got 0"),
        (lambda: bootstrap_interval(iqm, [1.0], confidence=95), "confidence: got 95"),
        (lambda: probability_of_improvement([1.0], [nan]), "scores: got no scores"),
        (lambda: probability_of_improvement([[1.0], [2.0]], [1.0]), "y: got 1 environments"),
        (lambda: performance_profile([1.0], 0.5), r"thresholds: got shape \(\)"),
        (lambda: performance_profile(np.ones((2, 2)), [0.5]), r"shape \(2, 2\), expected \[S\]"),
    ],
)
def test_bad_arguments_are_told(call, message):
    with pytest.raises(purerl.ConfigError, match=message):
        call()
