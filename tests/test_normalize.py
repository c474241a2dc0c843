import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl.experience.normalize import init_stats, normalize, update_stats


def test_batches_add_up_to_the_whole():
    rng = np.random.default_rng(0)
    batches = [rng.normal(3.0, 5.0, (7, n, 4)).astype(np.float32) for n in (2, 11, 5)]
    stats = init_stats(jnp.zeros(4))
    for batch in batches:
        stats = update_stats(stats, jnp.asarray(batch), num_axes=2)
    everything = np.concatenate([b.reshape(-1, 4) for b in batches])
    assert float(stats.size) == len(everything)
    np.testing.assert_allclose(stats.mean, everything.mean(0), rtol=1e-4)
    np.testing.assert_allclose(stats.var, everything.var(0), rtol=1e-4)


def test_nothing_seen_changes_nothing():
    x = jnp.array([1.0, -2.0])
    np.testing.assert_allclose(normalize(init_stats(x), x), x, rtol=1e-6)


def test_normalized_data_has_mean_zero_and_deviation_one():
    x = jnp.asarray(np.random.default_rng(1).normal(100.0, 0.1, (50, 20, 3)), jnp.float32)
    stats = update_stats(init_stats(x[0, 0]), x, num_axes=2)
    y = normalize(stats, x)
    np.testing.assert_allclose(y.mean((0, 1)), 0.0, atol=1e-2)
    np.testing.assert_allclose(y.std((0, 1)), 1.0, atol=1e-2)


def test_a_constant_is_normalized_to_zero():
    x = jnp.full((5, 5, 1), 7.0)
    stats = update_stats(init_stats(x[0, 0]), x, num_axes=2)
    np.testing.assert_array_equal(normalize(stats, x), 0.0)


def test_clipping_and_pytrees():
    example = {"image": jnp.zeros((2, 2)), "speed": jnp.zeros(())}
    batch = {"image": jnp.full((3, 4, 2, 2), 200.0), "speed": jnp.arange(12.0).reshape(3, 4)}
    stats = update_stats(init_stats(example), batch, num_axes=2)
    assert jax.tree.structure(stats.mean) == jax.tree.structure(example)
    np.testing.assert_allclose(stats.mean["image"], 200.0)
    assert float(stats.mean["speed"]) == pytest.approx(5.5)
    far = normalize(stats, {"image": jnp.zeros((2, 2)), "speed": jnp.float32(1e6)})
    assert float(far["speed"]) == 10.0


@pytest.mark.parametrize("dtype", [bool, jnp.int8, jnp.uint8, jnp.int32])
def test_only_floats_are_normalised(dtype):
    """Masks, categories, pixels and counts stay what they are, whatever lies beside them."""
    whole = jnp.array([[1, 0], [1, 1]], dtype)
    obs = {"x": jnp.array([[1.0], [3.0]]), "rest": (whole, jnp.int32([4, 9]))}
    first = jax.tree.map(lambda x: x[0], obs)
    for stats in (init_stats(first), init_stats(first, first)):
        stats = update_stats(stats, obs, 1)
        assert len(jax.tree.leaves(stats.var)) == 1
        assert float(stats.size) == 2.0
        out = normalize(stats, obs)
        np.testing.assert_allclose(out["x"], [[-1.0], [1.0]], rtol=1e-5)
        for x, before in zip(out["rest"], obs["rest"], strict=True):
            assert x.dtype == before.dtype
            np.testing.assert_array_equal(x, before)
    stats = update_stats(init_stats(whole[0]), whole, 1)  # nothing to be normalised
    assert normalize(stats, whole) is whole


def float64_of(parts):
    """Mean and variance by a plain loop in float64 (Welford 1962)."""
    size, mean, spread = 0, 0.0, 0.0
    for row in np.concatenate([np.asarray(x, np.float64).reshape(-1) for x in parts]):
        size += 1
        delta = row - mean
        mean += delta / size
        spread += delta * (row - mean)
    return mean, spread / size


def seen(batches, shift=None):
    """Statistics of batches `[B, ...]`, with the first observation as the shift."""
    first = jnp.asarray(batches[0][0])
    stats = init_stats(first, first if shift is None else shift)
    for batch in batches:
        stats = update_stats(stats, jnp.asarray(batch), num_axes=1)
    return stats


@pytest.mark.parametrize("value", [5_000.1, 100.3, -0.7, 1e9, 123_456_789.0])
def test_a_constant_far_from_zero_is_normalized_to_zero(value):
    batches = [np.full((n, 1), value, np.float32) for n in (7, 1_000, 33)]
    stats = seen(batches)
    assert float(stats.var[0]) == 0.0
    np.testing.assert_array_equal(stats.mean, np.float32(value))
    assert abs(float(normalize(stats, jnp.asarray(batches[0]))[0, 0])) < 1e-3


@pytest.mark.parametrize(
    ("level", "spread", "dtype"), [(5_000.0, 0.01, np.float32), (-100.0, 1e-3, np.float32)]
)
def test_small_differences_far_from_zero_are_kept(level, spread, dtype):
    rng = np.random.default_rng(0)
    batches = [(level + spread * rng.normal(size=(n, 1))).astype(dtype) for n in (50, 8, 300)]
    stats = seen(batches)
    mean, var = float64_of(batches)
    every = np.concatenate(batches)
    expected = (every.astype(np.float64) - mean) / np.sqrt(var + 1e-8)
    np.testing.assert_allclose(normalize(stats, jnp.asarray(every)), expected, atol=2e-3)
    np.testing.assert_allclose(stats.var, var, rtol=1e-3)


def test_a_million_updates_are_right_to_a_thousandth():
    """Each adds a millionth, and less, to numbers that float32 keeps to a ten-millionth; the data
    moves, so that what is lost is missed."""
    num_updates, size = 1_000_000, 8
    start = seen([np.full((1,), 300.0, np.float32)])

    @jax.jit
    def many(key):
        def step(stats, i):
            share = i / num_updates
            noise = jax.random.normal(jax.random.fold_in(key, i), (size,))
            batch = 300.0 + share + (0.1 + share) * noise
            return update_stats(stats, batch, num_axes=1), (batch.sum(), ((batch - 300) ** 2).sum())

        return jax.lax.scan(step, start, jnp.arange(num_updates))

    stats, (sums, squares) = many(jax.random.key(0))
    total = num_updates * size + 1
    mean = (np.asarray(sums, np.float64).sum() + 300.0) / total
    var = np.asarray(squares, np.float64).sum() / total - (mean - 300.0) ** 2
    assert float(stats.size) == total - 1 or float(stats.size) == total
    np.testing.assert_allclose(float(stats.offset), mean - 300.0, rtol=1e-3)
    np.testing.assert_allclose(float(stats.var), var, rtol=1e-3)


def test_what_is_seen_one_by_one_counts_beyond_what_float32_counts():
    """2**24 + 1 is no float32: of 100,000 more all have to be in size, mean and variance."""
    old = 2**24
    stats = init_stats(jnp.float32(0.0))._replace(size=jnp.float32(old), var=jnp.float32(1.0))
    stats = stats._replace(offset=jnp.float32(0.0))

    @jax.jit
    def many(stats):
        return jax.lax.fori_loop(
            0, 100_000, lambda _, stats: update_stats(stats, jnp.full(1, 3.0), 1), stats
        )

    stats = many(stats)
    new = 100_000
    mean = 3.0 * new / (old + new)
    var = (old + 9.0 * new) / (old + new) - mean**2
    assert float(stats.size) + float(stats.lost[0]) == old + new
    np.testing.assert_allclose(float(stats.offset), mean, rtol=1e-4)
    np.testing.assert_allclose(float(stats.var), var, rtol=1e-4)


@pytest.mark.parametrize("value", [1e16, -1.9e19, 3e38, np.inf, np.nan])
def test_a_number_out_of_bounds_stays_out_and_is_counted(value):
    rng = np.random.default_rng(0)
    fine = [rng.normal(2.0, 3.0, (40, 2)).astype(np.float32) for _ in range(4)]
    flawed = [x.copy() for x in fine]
    flawed[1][7, 0] = flawed[3][0, 0] = value
    stats, clean = seen(flawed), seen(fine)
    for leaf in jax.tree.leaves(stats):
        assert np.isfinite(leaf).all()
    assert int(stats.left_out) == 2
    assert int(clean.left_out) == 0
    np.testing.assert_allclose(stats.var, clean.var, rtol=0.05)
    np.testing.assert_array_equal(stats.var[1], clean.var[1])
    # And as the first of all, where the shift comes from.
    flawed[0][0, 0] = value
    assert np.isfinite(normalize(seen(flawed), jnp.asarray(fine[0]))).all()
    np.testing.assert_allclose(seen(flawed).var, clean.var, rtol=0.1)


def test_only_what_is_valid_counts():
    rng = np.random.default_rng(0)
    x = {"a": rng.normal(5.0, 2.0, (6, 4, 3)), "b": rng.normal(0.0, 1.0, (6, 4))}
    x = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), x)
    valid = rng.random((6, 4)) < 0.4
    stats = init_stats(jax.tree.map(lambda x: x[0, 0], x))
    stats = update_stats(stats, x, 2, valid=jnp.asarray(valid))
    assert float(stats.size) == valid.sum()
    for name in x:
        chosen = np.asarray(x[name], np.float64)[valid]
        np.testing.assert_allclose(stats.mean[name], chosen.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(stats.var[name], chosen.var(0), rtol=1e-4)
