import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl.normalize import init_stats, normalize, update_stats


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


def test_clipping_integers_and_pytrees():
    example = {"image": jnp.zeros((2, 2), jnp.uint8), "speed": jnp.zeros(())}
    batch = {
        "image": jnp.full((3, 4, 2, 2), 200, jnp.uint8),
        "speed": jnp.arange(12.0).reshape(3, 4),
    }
    stats = update_stats(init_stats(example), batch, num_axes=2)
    assert jax.tree.structure(stats.mean) == jax.tree.structure(example)
    np.testing.assert_allclose(stats.mean["image"], 200.0)
    assert float(stats.mean["speed"]) == pytest.approx(5.5)
    far = normalize(stats, {"image": jnp.zeros((2, 2), jnp.uint8), "speed": jnp.float32(1e6)})
    assert float(far["speed"]) == 10.0
    assert far["image"].dtype == jnp.float32
