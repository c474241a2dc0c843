import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.quick import quick_jit

from purerl.agents.noise import GaussianNoise, NoiseState, OrnsteinUhlenbeckNoise
from purerl.records.errors import ConfigError

BOTH = [GaussianNoise(sigma=0.3, mean=0.5), OrnsteinUhlenbeckNoise(sigma=0.3, mean=0.5)]


@functools.partial(quick_jit, static_argnums=(1, 2, 3))
def path(noise, num_steps, num_envs, action_shape=()):
    """The noise of every step, `[T, N, *action_shape]`."""

    def step(state, key):
        return noise.step(state, key)

    state = noise.init(num_envs, action_shape)
    return jax.lax.scan(step, state, jax.random.split(jax.random.key(0), num_steps))[1]


@pytest.mark.parametrize(("mean", "sigma"), [(0.0, 0.1), (-1.0, 2.0), (0.5, 0.0)])
def test_gaussian_noise_has_its_mean_and_deviation(mean, sigma):
    drawn = np.asarray(path(GaussianNoise(mean=mean, sigma=sigma), 500, 40))
    count = drawn.size
    assert abs(drawn.mean() - mean) <= 5 * sigma / np.sqrt(count)
    assert drawn.std() == pytest.approx(sigma, rel=5 / np.sqrt(2 * count))
    following = np.mean((drawn[1:] - mean) * (drawn[:-1] - mean))
    assert abs(following) <= 5 * sigma**2 / np.sqrt(count)


@pytest.mark.parametrize(
    ("theta", "sigma", "dt", "mean"),
    [(0.15, 0.2, 1.0, 0.0), (0.5, 1.0, 0.1, 2.0), (1.0, 0.3, 1.0, -0.5), (3.0, 1.0, 1.0, 0.0)],
)
def test_ornstein_uhlenbeck_noise_is_the_exact_process(theta, sigma, dt, mean):
    num_envs, settled = 20_000, 120  # the slowest forgets e^-12 of its start
    noise = OrnsteinUhlenbeckNoise(theta=theta, sigma=sigma, dt=dt, mean=mean)
    drawn = np.asarray(path(noise, 130, num_envs), np.float64)
    stationary = sigma**2 / (2 * theta)
    five = 5 / np.sqrt(num_envs)  # five standard errors
    # It starts at the mean: the variance grows from 0 to the stationary one.
    for k in (1, 2, 5, settled):
        variance = stationary * (1 - np.exp(-2 * theta * dt * k))
        assert drawn[k - 1].var() == pytest.approx(variance, rel=five * np.sqrt(2))
        assert abs(drawn[k - 1].mean() - mean) < five * np.sqrt(variance)
    for k in (1, 2, 5, 10):
        correlation = np.corrcoef(drawn[settled - 1], drawn[settled - 1 + k])[0, 1]
        assert abs(correlation - np.exp(-theta * dt * k)) < five


@pytest.mark.parametrize("noise", [GaussianNoise(), OrnsteinUhlenbeckNoise(theta=3.0)])
def test_environments_and_actions_have_noise_of_their_own(noise):
    drawn = np.asarray(path(noise, 2_000, 3, (2,))).reshape(2_000, 6)
    correlation = np.corrcoef(drawn.T) - np.eye(6)
    assert np.abs(correlation).max() < 5 / np.sqrt(2_000)


@pytest.mark.parametrize("noise", BOTH)
def test_noise_starts_at_the_mean_with_scale_one(noise):
    state = noise.init(3, (2,))
    np.testing.assert_array_equal(state.value, np.full((3, 2), 0.5))
    np.testing.assert_array_equal(state.scale, np.ones(3))


def test_the_scale_shrinks_the_noise_and_not_the_process():
    noise = OrnsteinUhlenbeckNoise()
    state = NoiseState(jnp.full((3, 2), 0.5), jnp.array([1.0, 0.5, 0.0]))
    state, drawn = noise.step(state, jax.random.key(0))
    np.testing.assert_array_equal(drawn, state.value * np.array([[1.0], [0.5], [0.0]]))
    assert (np.asarray(state.value) != 0.5).all()
    np.testing.assert_array_equal(state.scale, [1.0, 0.5, 0.0])


@pytest.mark.parametrize("noise", BOTH)
@pytest.mark.parametrize(("decay", "floor"), [(0.5, 0.2), (1.0, 0.0), (0.9, 0.0)])
def test_noise_starts_anew_where_an_episode_ended(noise, decay, floor):
    noise = noise.replace(noise_decay=decay, min_scale=floor)
    restart = quick_jit(lambda noise, state, ended: noise.restart(state, ended))
    rng = np.random.default_rng(0)
    state, scale = noise.init(3, (2,)), np.ones(3)
    for _ in range(12):
        value = rng.normal(size=(3, 2)).astype(np.float32)
        ended = rng.random(3) < [0.0, 0.5, 1.0]
        state = restart(noise, state._replace(value=jnp.asarray(value)), ended)
        for env in range(3):
            if ended[env]:
                value[env] = 0.5  # the mean
                scale[env] = max(scale[env] * decay, floor)
        np.testing.assert_array_equal(state.value, value)
        np.testing.assert_allclose(state.scale, scale, rtol=1e-5)
    assert scale[0] == 1.0
    assert scale[2] == pytest.approx(max(decay**12, floor))


@pytest.mark.parametrize("noise", BOTH)
def test_every_float_is_mapped_over(noise):
    def program(noise):
        state = noise.restart(noise.init(3, (2,)), jnp.array([True, False, True]))
        state, drawn = noise.step(state, jax.random.key(1))
        return noise.step(state, jax.random.key(2)), drawn

    leaves, shape = jax.tree.flatten(noise.replace(noise_decay=0.9, min_scale=0.1))
    assert len(leaves) == len(noise.__dict__)  # all of its fields
    halves = [jnp.array([x, x / 2]) for x in leaves]
    together = quick_jit(jax.vmap(program))(jax.tree.unflatten(shape, halves))
    one = quick_jit(program)
    for member in range(2):
        alone = one(jax.tree.unflatten(shape, [x[member] for x in halves]))
        jax.tree.map(
            lambda x, y, m=member: np.testing.assert_allclose(x[m], y, rtol=1e-5), together, alone
        )


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (GaussianNoise, {"sigma": -0.1}, "GaussianNoise.sigma: got -0.1, expected a float >= 0"),
        (GaussianNoise, {"noise_decay": 0.0}, "noise_decay: got 0.0, expected a float > 0"),
        (GaussianNoise, {"noise_decay": 1.1}, "noise_decay: got 1.1"),
        (GaussianNoise, {"min_scale": -0.1}, "min_scale: got -0.1"),
        (GaussianNoise, {"min_scale": 2.0}, "min_scale: got 2.0"),
        (GaussianNoise, {"mean": float("inf")}, "mean: got inf"),
        (GaussianNoise, {"theta": 1.0}, "GaussianNoise: no field 'theta'"),
        (OrnsteinUhlenbeckNoise, {"theta": 0.0}, "theta: got 0.0, expected a float > 0"),
        (OrnsteinUhlenbeckNoise, {"dt": -1.0}, "dt: got -1.0, expected a float > 0"),
        (OrnsteinUhlenbeckNoise, {"sigma": "0.2"}, "sigma: got '0.2'"),
        (OrnsteinUhlenbeckNoise, {"sgima": 0.2}, "no field 'sgima'; did you mean 'sigma'"),
    ],
)
def test_what_a_noise_can_not_be(kind, fields, message):
    with pytest.raises(ConfigError, match=message):
        kind(**fields)
