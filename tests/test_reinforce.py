import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.agents import after_a_rollout, learn
from kit.environments import reward_forever, walk
from kit.networks import LinearActor, kernel
from kit.quick import quick_jit

import purerl

quick_update = quick_jit(learn)


class LinearCritic(purerl.Critic):
    @nn.compact
    def create_network(self, obs):
        return nn.Dense(1, use_bias=False, kernel_init=nn.initializers.constant(3.0))(obs)


def reinforce(**changes):
    plain = {"normalize_advantage": False, "max_grad_norm": 1e9, "entropy_beta": 0.0, "gamma": 0.9}
    options = plain | changes
    return purerl.REINFORCE(n_episodes=4, episode_length=8, actor=LinearActor, **options)


def update(agent, state, buffer, stored):
    return quick_update(agent, state, buffer, stored, jax.random.key(1))


def ascent(before, after):
    """The gradient that an update followed: Adam's first moment is 0.1 of it, and it descends."""
    assert before.actor_opt[1][0].mu.max() == 0.0
    return -10.0 * np.asarray(after.actor_opt[1][0].mu)


def reward_to_go(data, gamma, beyond=0.0):
    """Each environment's first episode, one step after the other."""
    out = np.zeros_like(data["reward"])
    for env in range(out.shape[1]):
        steps = [t for t in range(len(out)) if data["valid"][t, env]]
        to_go = 0.0 if data["terminated"][steps[-1], env] else beyond
        for t in reversed(steps):
            to_go = data["reward"][t, env] + gamma * to_go
            out[t, env] = to_go
    return out


def gradient(state, data, weight):
    """Of a linear softmax policy: the mean over valid steps of (onehot - pi) obs weight."""
    weights = kernel(state.actor_params)
    terms = []
    for t, env in zip(*np.nonzero(data["valid"]), strict=True):
        obs = data["obs"][t, env]
        probs = np.exp(obs @ weights) / np.exp(obs @ weights).sum()
        onehot = np.eye(len(probs))[data["action"][t, env]]
        terms.append(np.outer(obs, onehot - probs) * weight[t, env])
    return np.mean(terms, axis=0)


@pytest.fixture(scope="module")
def walked():
    state, buffer, stored = after_a_rollout(reinforce(), walk(3))
    return state, buffer, stored, jax.tree.map(np.asarray, stored.data)


@pytest.mark.parametrize("gamma", [0.9, 0.5, 1.0])
def test_the_gradient_is_the_closed_form(walked, gamma):
    state, buffer, stored, data = walked
    after, _, _ = update(reinforce(), state, buffer.replace(gamma=gamma), stored)
    expected = gradient(state, data, reward_to_go(data, gamma))
    np.testing.assert_allclose(ascent(state, after), np.ravel(expected), rtol=1e-4, atol=1e-5)


def test_without_discount_the_weight_is_the_plain_sum_of_what_is_to_come(walked):
    state, buffer, stored, data = walked
    to_go = np.zeros((8, 4), np.float32)
    to_go[:3] = [[6.0], [5.0], [3.0]]
    np.testing.assert_array_equal(reward_to_go(data, 1.0)[data["valid"]], to_go[data["valid"]])
    after, _, _ = update(reinforce(), state, buffer.replace(gamma=1.0), stored)
    expected = gradient(state, data, to_go)
    np.testing.assert_allclose(ascent(state, after), np.ravel(expected), rtol=1e-4, atol=1e-5)


def test_the_run_gives_the_buffer_its_discount(walked):
    assert walked[1].gamma == 0.9


def test_what_follows_the_first_end_changes_nothing():
    agent = reinforce(
        baseline=True,
        critic=LinearCritic,
        train_v_iters=7,
        normalize_advantage=True,
        entropy_beta=0.1,
    )
    state, buffer, stored = after_a_rollout(agent, walk(3))
    after, _, losses = update(agent, state, buffer, stored)
    assert int(after.critic_opt[1][0].count) == agent.train_v_iters == 7
    assert int(after.actor_opt[1][0].count) == 1
    late = ~stored.data["valid"]
    np.testing.assert_array_equal(late, np.tile(np.arange(8)[:, None] >= 3, (1, 4)))
    other = {
        **stored.data,
        "reward": jnp.where(late, 1e3, stored.data["reward"]),
        "action": jnp.where(late, 1 - stored.data["action"], stored.data["action"]),
        "obs": jnp.where(late[..., None], 7.0, stored.data["obs"]),
    }
    again, _, same = update(agent, state, buffer, stored._replace(data=other))
    for x, y in zip(*map(jax.tree.leaves, ((after, losses), (again, same))), strict=True):
        np.testing.assert_array_equal(x, y)


def test_advantages_are_standardised_over_valid_steps(walked):
    state, buffer, stored, data = walked
    after, _, _ = update(reinforce(normalize_advantage=True), state, buffer, stored)
    to_go, valid = reward_to_go(data, 0.9), data["valid"]
    weight = (to_go - to_go[valid].mean()) / to_go[valid].std()
    expected = gradient(state, data, weight)
    np.testing.assert_allclose(ascent(state, after), np.ravel(expected), rtol=1e-3, atol=1e-5)


def test_the_entropy_bonus_is_the_gradient_of_the_entropy(walked):
    state, buffer, stored, data = walked
    plain, bonus = (
        ascent(state, update(reinforce(entropy_beta=beta), state, buffer, stored)[0])
        for beta in (0.0, 0.5)
    )
    weights = kernel(state.actor_params)

    def entropy(weights):
        logits = data["obs"][data["valid"]] @ weights
        probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        return -(probs * np.log(probs)).sum(-1).mean()

    numeric = np.zeros_like(weights)
    for at in np.ndindex(*weights.shape):
        shift = np.zeros_like(weights)
        shift[at] = 1e-5
        numeric[at] = (entropy(weights + shift) - entropy(weights - shift)) / 2e-5
    np.testing.assert_allclose(bonus - plain, np.ravel(0.5 * numeric), rtol=1e-3, atol=1e-5)


def test_the_gradient_is_clipped_by_its_norm(walked):
    state, buffer, stored, _ = walked
    after, _, losses = update(reinforce(max_grad_norm=1e-3), state, buffer, stored)
    assert float(losses["grad_norm"]) > 1e-2
    assert np.linalg.norm(ascent(state, after)) == pytest.approx(1e-3, rel=1e-3)


def test_the_baseline_is_subtracted_and_stands_for_what_is_cut_off():
    """Reward 1 at each of 8 steps; beyond them V = 3 with a baseline, and nothing without."""
    for baseline, beyond in ((True, 3.0), (False, 0.0)):
        critic = LinearCritic if baseline else None
        agent = reinforce(baseline=baseline, critic=critic, train_v_iters=1)
        state, buffer, stored = after_a_rollout(agent, reward_forever(100))
        data = jax.tree.map(np.asarray, stored.data)
        assert data["valid"].all()
        assert data["truncated"][-1].all()
        after, _, losses = update(agent, state, buffer, stored)
        left = 8 - np.arange(8)
        to_go = ((1 - 0.9**left) / (1 - 0.9) + 0.9**left * beyond)[:, None] + np.zeros((8, 4))
        expected = gradient(state, data, to_go - beyond)
        np.testing.assert_allclose(ascent(state, after), np.ravel(expected), rtol=1e-4, atol=1e-5)
        if baseline:
            loss = 0.5 * np.mean((to_go - 3.0) ** 2)
            assert float(losses["value_loss"]) == pytest.approx(loss, rel=1e-5)


def test_a_time_limit_inside_the_rollout_is_bootstrapped_too():
    agent = reinforce(baseline=True, critic=LinearCritic)
    state, buffer, stored = after_a_rollout(agent, reward_forever(5))
    data = jax.tree.map(np.asarray, stored.data)
    np.testing.assert_array_equal(data["valid"], np.tile(np.arange(8)[:, None] < 5, (1, 4)))
    after, _, _ = update(agent, state, buffer, stored)
    expected = gradient(state, data, reward_to_go(data, 0.9, beyond=3.0) - 3.0)
    np.testing.assert_allclose(ascent(state, after), np.ravel(expected), rtol=1e-4, atol=1e-5)


def test_value_is_that_of_the_baseline():
    obs, key = jnp.array([[2.0, 1.0]]), jax.random.key(0)
    agent = reinforce(baseline=True, critic=LinearCritic)
    np.testing.assert_allclose(agent.value(agent.init(key, walk().spec), (), obs), [9.0], rtol=1e-6)
    agent = reinforce()
    with pytest.raises(NotImplementedError, match="without baseline=True"):
        agent.value(agent.init(key, walk().spec), (), obs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wait_end_path": False}, "wait_end_path: got False, expected True"),
        ({"num_envs": 5}, "num_envs: got 5, expected 4.*REINFORCE.n_episodes"),
        ({"update_every": 9}, "update_every: got 9, expected 8.*REINFORCE.episode_length"),
        ({"noise": purerl.GaussianNoise()}, "noise: got"),
        ({"buffer": purerl.Buffer(maxlen=64)}, "Buffer.maxlen: got 64, expected 32"),
        ({"buffer": purerl.Buffer(priority_sampling=True)}, "Buffer.priority_sampling: got True"),
    ],
)
def test_what_contradicts_the_episodes_is_refused(options, message):
    with pytest.raises(purerl.ConfigError, match=message):
        purerl.make_loop(walk(3), reinforce(), total_timesteps=320, **options)
    purerl.make_loop(walk(3), reinforce(), total_timesteps=320, num_envs=4, update_every=8)


def test_critics_that_make_no_baseline_are_refused():
    with pytest.raises(purerl.ConfigError, match=r"REINFORCE.critic: is the baseline"):
        reinforce(critic=LinearCritic)
    for critic in (purerl.DefaultQCritic, purerl.DefaultQNetwork):
        agent = reinforce(baseline=True, critic=critic)
        with pytest.raises(purerl.ConfigError, match="is a Q critic, expected"):
            agent.init(jax.random.key(0), walk().spec)
