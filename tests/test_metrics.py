import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl.experience.metrics import Count, Metrics, Row, no_episodes, summarize


def test_each_ended_episode_counts_once():
    returns = jnp.array([[1.0, 5.0], [2.0, 9.0], [3.0, 7.0]])
    lengths = jnp.array([[1, 10], [2, 20], [3, 30]])
    ended = jnp.array([[False, True], [True, False], [False, True]])
    stats = summarize(returns, lengths, ended)
    assert stats.num_episodes == 3
    assert stats.num_episodes.dtype == jnp.int32
    seen = [float(x) for x in stats[:6]]
    np.testing.assert_allclose(seen, [(5 + 2 + 7) / 3, 2, 7, (10 + 2 + 30) / 3, 2, 30], rtol=1e-6)


def test_no_episode_is_nan_and_zero():
    ended = jnp.zeros((3, 2), bool)
    for stats in (summarize(jnp.ones((3, 2)), jnp.ones((3, 2), jnp.int32), ended), no_episodes()):
        assert stats.num_episodes == 0
        assert all(np.isnan(x) for x in stats[:6])
    for x, y in zip(summarize(ended, ended, ended), no_episodes(), strict=True):
        assert x.dtype == y.dtype  # the two branches of one cond


def random_metrics(rng, share):
    """Metrics of one update, of the episodes that are returned beside them."""
    count = rng.integers(0, 4) if rng.random() < share else 0
    returns, lengths = rng.normal(50.0, 20.0, count), rng.integers(1, 90, count)
    padded = np.zeros((2, 4), np.float32)
    padded[:, :count] = returns, lengths
    episodes = summarize(padded[0], padded[1].astype(np.int32), np.arange(4) < count)
    loss = float(rng.normal()) if rng.random() < 0.7 else np.nan
    evaluated = no_episodes()
    if rng.random() < 0.3:
        evaluated = summarize(
            rng.normal(size=2).astype(np.float32), np.ones(2, int), np.ones(2, bool)
        )
    metrics = Metrics(
        **episodes._asdict(),
        losses={"loss": jnp.float32(loss), "never": jnp.float32(jnp.nan)},
        nonfinite_updates=jnp.int32(rng.random() < 0.2),
        eval=evaluated,
    )
    return metrics, returns, lengths


@pytest.mark.parametrize(("seed", "share"), [(0, 1.0), (1, 0.3), (2, 0.0)])
def test_a_row_of_many_updates_counts_each_episode_once(seed, share):
    rng = np.random.default_rng(seed)
    updates = [random_metrics(rng, share) for _ in range(9)]
    row = Row.start(updates[0][0])
    add = jax.jit(lambda row, new: row.add(new))
    for metrics, _, _ in updates:
        row = add(row, metrics)
    out = row.end()
    for place, name in ((1, "episode_return"), (2, "episode_length")):
        seen = np.concatenate([update[place] for update in updates])
        assert out.num_episodes == len(seen)
        for reduce, field in ((np.mean, ""), (np.min, "_min"), (np.max, "_max")):
            expected = reduce(seen) if len(seen) else np.nan
            np.testing.assert_allclose(getattr(out, name + field), expected, rtol=1e-5)
    every = [metrics for metrics, _, _ in updates]
    losses = np.array([float(metrics.losses["loss"]) for metrics in every])
    np.testing.assert_allclose(out.losses["loss"], np.nanmean(losses), rtol=1e-5)
    assert np.isnan(out.losses["never"])
    assert int(out.nonfinite_updates) == sum(int(x.nonfinite_updates) for x in every)
    evaluated = [metrics.eval for metrics in every if metrics.eval.num_episodes > 0]
    last = evaluated[-1] if evaluated else no_episodes()
    for got, expected in zip(out.eval, last, strict=True):
        np.testing.assert_array_equal(got, expected)
    assert jax.tree.structure(out) == jax.tree.structure(every[0])
    for got, expected in zip(jax.tree.leaves(out), jax.tree.leaves(every[0]), strict=True):
        assert got.dtype == expected.dtype


@pytest.mark.parametrize("start", [0, 2**30 - 2, 2**31 - 3, 2**40 + 5, 2**59])
def test_counts_are_exact(start):
    count, expected = Count.of(start), start
    plus = jax.jit(Count.plus)
    for step in (1, 2, 0, 2**30, 7):
        count, expected = plus(count, step), expected + step
        assert int(count) == expected
        assert float(count.as_float()) == pytest.approx(expected, rel=1e-6)
        assert bool(count.at_least(expected))
        assert not bool(count.at_least(expected + 1))
        assert bool(count.at_least(max(expected - 1, 0)))
        for divisor in (1, 2, 3, 10, 1_000_003, 2**30):
            divides = count.divides(divisor, 2**60)
            assert bool(divides) == (expected % divisor == 0)
    many = jax.vmap(Count.of(start).plus)(jnp.arange(3))
    assert np.asarray(many).tolist() == [start, start + 1, start + 2]
