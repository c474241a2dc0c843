import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from kit.quick import quick_jit

from purerl.nn.distributions import Categorical, Normal, TanhNormal, draw, log_prob_of

LOGITS = jnp.array([[1.0, 2.0, -1.0], [0.0, 0.0, 0.0]])
LOC, SCALE = jnp.array([[0.3, -1.0], [2.0, 0.0]]), jnp.array([[0.5, 2.0], [1.0, 0.1]])


def test_categorical_against_scipy(key):
    d = Categorical(LOGITS)
    probs = np.asarray(jax.nn.softmax(LOGITS), np.float64)
    probs /= probs.sum(-1, keepdims=True)
    np.testing.assert_allclose(d.entropy(), [scipy.stats.entropy(p) for p in probs], rtol=1e-5)
    actions = jnp.array([2, 1])
    np.testing.assert_allclose(d.log_prob(actions), np.log([probs[0, 2], probs[1, 1]]), rtol=1e-5)
    np.testing.assert_array_equal(d.mode(), [1, 0])
    samples = np.asarray(jax.vmap(d.sample)(jax.random.split(key, 20_000)))
    assert samples.dtype == np.int32
    for row in range(2):
        counts = np.bincount(samples[:, row], minlength=3)
        assert scipy.stats.chisquare(counts, probs[row] * len(samples)).pvalue > 1e-3


def test_categorical_with_an_impossible_action():
    d = Categorical(jnp.array([0.0, -jnp.inf]))
    assert float(d.entropy()) == 0.0
    assert float(d.log_prob(jnp.int32(0))) == 0.0


def test_normal_against_scipy(key):
    d = Normal(LOC, SCALE)
    x = jnp.array([[0.1, 1.0], [1.5, 0.2]])
    reference = scipy.stats.norm(np.asarray(LOC), np.asarray(SCALE))
    np.testing.assert_allclose(d.log_prob(x), reference.logpdf(x).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(d.entropy(), reference.entropy().sum(-1), rtol=1e-5)
    np.testing.assert_array_equal(d.mode(), LOC)
    samples = np.asarray(jax.vmap(d.sample)(jax.random.split(key, 20_000)))
    for i in np.ndindex(2, 2):
        marginal = scipy.stats.norm(float(LOC[i]), float(SCALE[i]))
        assert scipy.stats.kstest(samples[(slice(None), *i)], marginal.cdf).pvalue > 1e-3


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (1.5, 0.3), (-2.0, 0.8), (0.5, 0.05)])
def test_tanh_normal_is_a_density(loc, scale):
    low, high = -2.0, 3.0
    d = TanhNormal(jnp.array([loc]), jnp.array([scale]), low, high)

    def change_of_variable(a):
        u = (a - (high + low) / 2) / ((high - low) / 2)
        slope = (high - low) / 2 * (1 - u**2)
        return scipy.stats.norm(loc, scale).logpdf(np.arctanh(u)) - np.log(slope)

    inside = np.linspace(low + 0.05, high - 0.05, 41)
    reference = change_of_variable(inside)
    seen = reference > -50  # beyond, float32 can't invert tanh, and nobody samples
    ours = jax.vmap(lambda a: d.log_prob(a[None]))(jnp.asarray(inside, jnp.float32))
    np.testing.assert_allclose(ours[seen], reference[seen], rtol=2e-3, atol=2e-3)
    mass, _ = scipy.integrate.quad(
        lambda z: (
            np.exp(change_of_variable((high + low) / 2 + (high - low) / 2 * np.tanh(z)))
            * (high - low)
            / 2
            * (1 - np.tanh(z) ** 2)
        ),
        loc - 8 * scale,
        loc + 8 * scale,
    )
    assert mass == pytest.approx(1.0, abs=1e-3)


def test_tanh_normal_samples(key):
    d = TanhNormal(LOC, SCALE, -2.0, 3.0)
    actions, log_probs = jax.vmap(d.sample_and_log_prob)(jax.random.split(key, 20_000))
    assert actions.min() >= -2.0
    assert actions.max() <= 3.0
    np.testing.assert_array_equal(
        actions[:100], jax.vmap(d.sample)(jax.random.split(key, 20_000)[:100])
    )
    exact = jax.vmap(d.log_prob)(actions)
    close = np.isclose(log_probs, exact, rtol=1e-2, atol=1e-2)
    assert close.mean() > 0.99  # where tanh isn't saturated
    # E[-log p] is the entropy: the closed form against 20,000 samples.
    np.testing.assert_allclose(d.entropy(), -log_probs.mean(0), atol=0.05)
    np.testing.assert_allclose(d.mode(), 0.5 + 2.5 * np.tanh(LOC), rtol=1e-5)


def normal_mean(fn, loc, scale):
    """E[fn(x)] of a normal x, by a sum over 40,000 points in double precision."""
    z = np.linspace(-9.0, 9.0, 40_001)
    density = scipy.stats.norm.pdf(z) * (z[1] - z[0])
    return np.sum(density * fn(loc + scale * z, z))


@pytest.mark.parametrize("scale", [1e-8, 0.01, 0.3, 1.0, 3.0, 7.39, 30.0])
def test_the_entropy_of_tanh_normal(scale):
    """And its derivatives, up to and beyond what an actor's scale is clipped to."""

    def entropy(loc, scale):
        return TanhNormal(loc[None], scale[None], -2.0, 3.0).entropy()

    both = quick_jit(jax.value_and_grad(entropy, (0, 1)))

    def log_slope(x, _):
        return np.log(2.5) - 2.0 * (np.logaddexp(x, -x) - np.log(2.0))

    for loc in (-20.0, -4.0, -0.5, 0.0, 1.0, 8.0, 20.0):
        inputs = [np.float32(x) for x in (loc, scale)]
        value, (by_loc, by_scale) = both(*inputs)
        loc, exact = (float(x) for x in inputs)
        expected = scipy.stats.norm(0, exact).entropy() + normal_mean(log_slope, loc, exact)
        assert float(value) == pytest.approx(expected, abs=1e-4)
        slope = normal_mean(lambda x, z: -2.0 * np.tanh(x), loc, exact)
        assert float(by_loc) == pytest.approx(slope, abs=1e-4)
        slope = 1.0 / exact + normal_mean(lambda x, z: -2.0 * z * np.tanh(x), loc, exact)
        assert float(by_scale) == pytest.approx(slope, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("loc", [-15.0, 0.0, 8.0])
def test_what_is_drawn_keeps_its_probability_where_tanh_is_saturated(loc, key):
    d = TanhNormal(jnp.full((4000, 1), loc), jnp.full((4000, 1), 0.5), -2.0, 3.0)
    drawn = draw(d, key)
    x = np.asarray(drawn["pre_action"], np.float64)[:, 0]
    log_slope = np.log(2.5) - 2.0 * (np.logaddexp(x, -x) - np.log(2.0))
    expected = scipy.stats.norm(loc, 0.5).logpdf(x) - log_slope
    np.testing.assert_allclose(log_prob_of(d, drawn), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(drawn["action"], d.sample(key))
    for other in (Normal(d.loc, d.scale), Categorical(d.loc)):
        drawn = draw(other, key)
        assert set(drawn) == {"action"}
        np.testing.assert_array_equal(log_prob_of(other, drawn), other.log_prob(drawn["action"]))


def test_tanh_normal_is_finite_on_its_bounds():
    d = TanhNormal(jnp.zeros(1), jnp.ones(1), -1.0, 1.0)
    for action in (-1.0, 1.0):
        value, grad = jax.value_and_grad(lambda a: d.log_prob(a[None]))(jnp.float32(action))
        assert np.isfinite(value)
        assert np.isfinite(grad)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_actions_of_any_shape(shape, key):
    for d in (
        Normal(jnp.zeros((5, *shape)), jnp.ones((5, *shape)), len(shape)),
        TanhNormal(jnp.zeros((5, *shape)), jnp.ones((5, *shape)), event_ndim=len(shape)),
    ):
        action, log_prob = d.sample_and_log_prob(key)
        assert action.shape == (5, *shape)
        assert log_prob.shape == d.entropy().shape == d.log_prob(action).shape == (5,)


def test_distributions_are_pytrees(key):
    def make(loc):
        return Normal(loc, jnp.ones(2))

    outs = jax.jit(jax.vmap(make))(jnp.zeros((4, 2)))
    assert jax.vmap(lambda d: d.sample(key))(outs).shape == (4, 2)
