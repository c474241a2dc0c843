import jax.numpy as jnp
import numpy as np

from purerl.rewarders import Identity, RunningNormalize


def test_identity():
    reward, no = jnp.arange(6.0).reshape(3, 2), jnp.zeros((3, 2), bool)
    assert Identity()((), reward, no, no)[1] is reward


def test_running_normalize_is_a_plain_loop():
    rng = np.random.default_rng(0)
    rewarder = RunningNormalize(gamma=0.9)
    state = rewarder.init(4)
    discounted, seen = np.zeros(4), []
    for _ in range(3):  # the discounted return goes on from rollout to rollout
        reward = rng.normal(2.0, 3.0, (6, 4)).astype(np.float32)
        terminated, truncated = rng.random((2, 6, 4)) < 0.15
        state, scaled = rewarder(state, jnp.asarray(reward), terminated, truncated)
        for t in range(6):
            discounted = 0.9 * discounted + reward[t]
            seen.append(discounted.copy())
            discounted = np.where(terminated[t] | truncated[t], 0.0, discounted)
        expected = np.clip(reward / np.std(seen), -10, 10)
        np.testing.assert_allclose(scaled, expected, rtol=1e-4)
        np.testing.assert_allclose(state.discounted, discounted, rtol=1e-4, atol=1e-5)


def test_running_normalize_keeps_the_sign_and_clips():
    no = jnp.zeros((2, 1), bool)
    rewarder = RunningNormalize(gamma=0.9, clip=0.5)
    _, scaled = rewarder(rewarder.init(1), jnp.array([[-5.0], [9.0]]), no, no)
    np.testing.assert_allclose(scaled, [[-0.5], [0.5]])
