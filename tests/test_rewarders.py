import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.oracles import numpy_n_step, paths

from purerl.experience.rewarders import Clip, Identity, NStep, RunningNormalize, Scale, transform
from purerl.experience.transition import Transition
from purerl.records.errors import ConfigError


def rewards(rewarder, reward, terminated=None, truncated=None):
    """What the rewarder makes of a rollout's rewards; it has no state."""
    no = np.zeros(np.shape(reward), bool)
    terminated, truncated = (no if x is None else x for x in (terminated, truncated))
    state, out = rewarder(rewarder.init(reward.shape[1]), reward, terminated, truncated)
    assert state == ()
    return out


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


def test_scale_multiplies():
    reward = np.array([[1.0, -2.0], [0.0, 4.0]], np.float32)
    np.testing.assert_array_equal(rewards(Scale(-0.5), reward), [[-0.5, 1.0], [0.0, -2.0]])


def test_clip_keeps_within_its_bounds():
    reward = np.array([[-5.0, -0.5], [0.5, 5.0]], np.float32)
    np.testing.assert_array_equal(rewards(Clip(), reward), [[-1.0, -0.5], [0.5, 1.0]])
    np.testing.assert_array_equal(rewards(Clip(low=0.0, high=3.0), reward), [[0.0, 0.0], [0.5, 3]])


def test_factors_and_bounds_are_mapped_over():
    reward = np.array([[-5.0, 5.0]], np.float32)
    scaled = jax.vmap(lambda factor: rewards(Scale(factor), reward))(jnp.array([1.0, 2.0]))
    np.testing.assert_array_equal(scaled, [[[-5.0, 5.0]], [[-10.0, 10.0]]])
    clipped = jax.vmap(lambda low: rewards(Clip(low=low), reward))(jnp.array([-3.0, 0.0]))
    np.testing.assert_array_equal(clipped, [[[-3.0, 1.0]], [[0.0, 1.0]]])


@pytest.mark.parametrize("n", [1, 3, 7])
@pytest.mark.parametrize(("factor", "gamma"), [(1.0, 0.9), (-2.0, 1.0)])
def test_n_step_is_a_plain_loop(n, factor, gamma):
    reward, _, _, terminated, truncated = paths(n, shape=(7, 4))
    nothing = np.zeros_like(reward)  # is what lies beyond the ends, of each kind
    total = numpy_n_step(reward, nothing, terminated, truncated, gamma, n)
    rewarder = NStep(n=n, factor=factor, gamma=gamma)
    out = rewards(rewarder, reward, terminated, truncated)
    np.testing.assert_allclose(out, factor * total, rtol=1e-4, atol=1e-5)
    out = rewards(rewarder.replace(normalize=True), reward, terminated, truncated)
    expected = factor * (total - total.mean()) / total.std()
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_n_step_is_cut_at_every_end():
    # One column goes on, one terminates at the second step, one is truncated there.
    reward = np.full((4, 3), 1.0, np.float32)
    reward[2:] = 100.0
    end = np.arange(4)[:, None] == 1
    terminated, truncated = end & [False, True, False], end & [False, False, True]
    out = rewards(NStep(n=3, gamma=0.5), reward, terminated, truncated)
    expected = [[26.5, 1.5, 1.5], [76.0, 1.0, 1.0], [150.0] * 3, [100.0] * 3]
    np.testing.assert_allclose(out, expected)


def test_equal_rewards_are_normalised_to_zero():
    out = rewards(NStep(n=1, gamma=0.9, normalize=True), np.full((3, 2), 2.0, np.float32))
    np.testing.assert_array_equal(out, 0.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Clip(low=1.0, high=0.5), "Clip.low: got 1.0, expected at most high=0.5"),
        (lambda: Clip(low=2.0), "Clip.low"),
        (lambda: Scale(), "Scale.factor: missing"),
        (lambda: Scale(float("nan")), "Scale.factor: got nan"),
        (lambda: NStep(), "NStep.n: missing"),
        (lambda: NStep(n=0), "NStep.n: got 0"),
        (lambda: NStep(n=2, gamma=1.1), "NStep.gamma: got 1.1"),
        (
            lambda: NStep(n=5).check_run(num_envs=2, update_every=3),
            "NStep.n: got 5, expected at most update_every=3",
        ),
        (
            lambda: NStep(n=1, normalize=True).check_run(num_envs=1, update_every=1),
            "NStep.normalize: got True, expected False for rollouts of one transition",
        ),
    ],
)
def test_what_a_rewarder_can_not_be(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_n_step_may_look_ahead_a_whole_rollout():
    NStep(n=3).check_run(num_envs=2, update_every=3)


def test_running_normalize_withstands_a_reward_out_of_bounds():
    rng = np.random.default_rng(0)
    reward = rng.normal(2.0, 3.0, (50, 4)).astype(np.float32)
    flawed = reward.copy()
    flawed[20, 1] = 1.9e19
    no = jnp.zeros((50, 4), bool)
    rewarder = RunningNormalize(gamma=0.99)
    state, scaled = rewarder(rewarder.init(4), jnp.asarray(flawed), no, no)
    clean, expected = rewarder(rewarder.init(4), jnp.asarray(reward), no, no)
    assert int(state.stats.left_out) == 1
    np.testing.assert_allclose(state.stats.var, clean.stats.var, rtol=0.05)
    rest = flawed < 1e6
    np.testing.assert_allclose(scaled[rest], np.asarray(expected)[rest], rtol=0.05)
    assert float(scaled[20, 1]) == 10.0


def test_running_normalize_leaves_behind_what_was_abandoned():
    """Episodes that are broken off by a reset or by a gap, and steps that aren't valid."""
    rng = np.random.default_rng(0)
    rewarder = RunningNormalize(gamma=0.9)
    state = rewarder.init(3)
    expected = []
    number = np.zeros(3, np.int32)
    for _ in range(4):
        reward = rng.normal(2.0, 3.0, (6, 3)).astype(np.float32)
        terminated = rng.random((6, 3)) < 0.2
        episode = np.zeros((6, 3), np.int32)
        valid = np.ones((6, 3), bool)
        for n in range(3):
            discounted, over = 0.0, False
            for t in range(6):
                episode[t, n], valid[t, n] = number[n], not over
                discounted = 0.9 * discounted + reward[t, n]
                if not over:
                    expected.append(discounted)
                if terminated[t, n]:
                    discounted, over, number[n] = 0.0, True, number[n] + 1
            if not terminated[-1, n]:
                number[n] += 1  # the next rollout begins with a reset
        no = np.zeros_like(terminated)
        state, scaled = rewarder(state, jnp.asarray(reward), terminated, no, valid, episode)
        np.testing.assert_allclose(scaled, np.clip(reward / np.std(expected), -10, 10), rtol=1e-4)


def test_n_step_is_normalised_by_what_is_valid():
    reward, _, _, terminated, truncated = paths(2, shape=(7, 4))
    valid = np.cumsum(terminated | truncated, axis=0) - (terminated | truncated) == 0
    total = numpy_n_step(reward, np.zeros_like(reward), terminated, truncated, 0.9, 2)
    rewarder = NStep(n=2, gamma=0.9, normalize=True)
    _, out = rewarder((), reward, terminated, truncated, jnp.asarray(valid))
    expected = (total - total[valid].mean()) / total[valid].std()
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_a_rewarder_gets_what_it_asks_for():
    def plain(state, reward, terminated, truncated):
        return state, reward + 1.0

    def asking(state, reward, terminated, truncated, *, valid, episode):
        return state, jnp.where(valid, episode, -1.0)

    names = {name: jnp.zeros((2, 1)) for name in Transition._fields}
    names["valid"] = jnp.array([[True], [False]])
    transitions = Transition(**{**names, "episode": jnp.array([[3], [4]])})
    np.testing.assert_array_equal(transform(plain, (), transitions)[1], [[1], [1]])
    np.testing.assert_array_equal(transform(asking, (), transitions)[1], [[3], [-1]])
