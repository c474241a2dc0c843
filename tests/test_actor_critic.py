import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.agents import act, after_a_rollout, learn
from kit.environments import push_env, walk
from kit.networks import LinearActor, LinearQ, LinearQs, LinearV, kernel
from kit.oracles import numpy_gae, numpy_lambda_return
from kit.quick import quick_jit

import purerl

T, N, GAMMA, LAM = 9, 4, 0.9, 0.7
quick_update = quick_jit(learn)
quick_act = quick_jit(lambda agent, state, *rest: act(agent.acting(state, purerl.Clock()), *rest))
init = quick_jit(purerl.ActorCritic.init, static_argnums=2)
SPEC = walk().spec


CRITICS = [LinearV, LinearQ, LinearQs]


def actor_critic(**changes):
    options = {
        "actor": LinearActor,
        "critic": LinearV,
        "gamma": GAMMA,
        "lam": LAM,
        "entropy_beta": 0.0,
        "max_grad_norm": 1e9,
        "normalize_advantage": False,
        "train_v_iters": 1,
        **changes,
    }
    return purerl.ActorCritic(n_episodes=N, episode_length=T, **options)


def made_up(agent):
    """An agent, and a rollout with ends of both kinds, in the middle and in the last row."""
    rng = np.random.default_rng(0)
    state = init(agent, jax.random.key(0), SPEC)
    terminated = rng.random((T, N)) < 0.2
    truncated = (rng.random((T, N)) < 0.2) & ~terminated
    terminated[-1, 0], truncated[-1, 0] = True, False
    terminated[-1, 1], truncated[-1, 1] = False, True
    terminated[-1, 2], truncated[-1, 2] = False, False
    ended = terminated | truncated
    obs = rng.normal(size=(T + 1, N, 2))
    elsewhere = rng.normal(size=(T, N, 2))
    next_obs = np.where(ended[..., None], elsewhere, obs[1:])
    flat = jnp.asarray(obs[:-1].reshape(-1, 2), jnp.float32)
    action, extras = quick_act(agent, state, flat, jax.random.key(1))
    data = {
        "obs": flat.reshape(T, N, 2),
        "action": action.reshape(T, N),
        "reward": jnp.asarray(rng.normal(size=(T, N)), jnp.float32),
        "next_obs": jnp.asarray(next_obs, jnp.float32),
        "terminated": jnp.asarray(terminated),
        "truncated": jnp.asarray(truncated),
        "valid": jnp.ones((T, N), bool),
        "value": extras["value"].reshape(T, N),
    }
    stored = purerl.BufferState(data, jnp.int32(0), jnp.int32(T), (), jnp.float32(1))
    return state, purerl.Buffer(maxlen=T * N, gamma=GAMMA, lam=LAM), stored


def update(agent, state, buffer, stored):
    return quick_update(agent, state, buffer, stored, jax.random.key(2))


def moment(opt_state):
    """The gradient that Adam saw first: 0.1 of it is the first moment."""
    return 10.0 * np.asarray(opt_state[1][0].mu)


def policy_probs(state, obs):
    logits = obs @ kernel(state.actor_params)
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def numpy_v(state, obs):
    """V(s) of a V critic; the mean of Q over the policy of a Q critic."""
    value = obs @ kernel(state.critic_params)
    return (policy_probs(state, obs) * value).sum(-1) if state.is_q else value[..., 0]


def numpy_q(state, obs, action):
    value = obs @ kernel(state.critic_params)
    return np.take_along_axis(value, action[..., None], -1)[..., 0]


def policy_ascent(state, data, weight):
    """Mean of (onehot - pi) obs weight."""
    onehot = np.eye(2)[data["action"]]
    terms = data["obs"][..., None] * (onehot - policy_probs(state, data["obs"]))[..., None, :]
    return (terms * weight[..., None, None]).mean((0, 1))


@pytest.mark.parametrize(
    ("critic", "is_q"),
    [
        (None, False),
        (LinearV, False),
        (LinearQ, True),
        (LinearQs, True),
        (purerl.DefaultCritic, False),
        (purerl.DefaultQCritic, True),
        (purerl.DefaultQNetwork, True),
    ],
)
def test_the_kind_follows_from_the_critic(critic, is_q):
    agent = actor_critic(critic=critic)
    assert agent.init(jax.random.key(0), walk().spec).is_q == is_q


@pytest.mark.parametrize("critic", CRITICS)
def test_act_records_the_value_of_what_it_did(critic):
    state, _, stored = made_up(actor_critic(critic=critic))
    obs, action = np.asarray(stored.data["obs"]), np.asarray(stored.data["action"])
    expected = numpy_q(state, obs, action) if state.is_q else numpy_v(state, obs)
    np.testing.assert_allclose(stored.data["value"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("critic", CRITICS)
def test_value_is_the_mean_over_the_policy(critic):
    agent = actor_critic(critic=critic)
    state, _, stored = made_up(agent)
    obs = stored.data["obs"][0]
    expected = numpy_v(state, np.asarray(obs))
    np.testing.assert_allclose(agent.value(state, (), obs), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("critic", "normalize"),
    [(LinearV, False), (LinearV, True), (LinearQ, False), (LinearQs, True)],
)
def test_both_gradients_are_plain_loops(critic, normalize):
    agent = actor_critic(critic=critic, normalize_advantage=normalize)
    state, buffer, stored = made_up(agent)
    after, stored, losses = update(agent, state, buffer, stored)
    data = {name: np.asarray(x) for name, x in stored.data.items()}
    value, next_value = (numpy_v(state, data[name]) for name in ("obs", "next_obs"))
    ends = data["terminated"], data["truncated"]
    if state.is_q:
        predicted = numpy_q(state, data["obs"], data["action"])
        advantage = predicted - value
    else:
        predicted = value
        advantage = numpy_gae(data["reward"], value, next_value, *ends, GAMMA, LAM)
    if normalize:
        advantage = (advantage - advantage.mean()) / advantage.std()
    expected = policy_ascent(state, data, advantage)
    np.testing.assert_allclose(-moment(after.actor_opt), expected.ravel(), rtol=1e-3, atol=1e-5)

    error = predicted - numpy_lambda_return(data["reward"], next_value, *ends, GAMMA, LAM)
    assert float(losses["value_loss"]) == pytest.approx(0.5 * np.mean(error**2), rel=1e-4)
    feature = np.eye(2)[data["action"]] if state.is_q else np.ones((T, N, 1))
    terms = data["obs"][..., None] * feature[..., None, :] * error[..., None, None]
    np.testing.assert_allclose(
        moment(after.critic_opt), terms.mean((0, 1)).ravel(), rtol=1e-3, atol=1e-5
    )


def test_after_several_steps_a_critic_that_takes_the_action_is_as_one_that_returns_all():
    results = []
    for critic in (LinearQ, LinearQs):
        agent = actor_critic(critic=critic, train_v_iters=5)
        state, buffer, stored = made_up(agent)
        after, _, losses = update(agent, state, buffer, stored)
        assert int(after.critic_opt[1][0].count) == 5
        assert int(after.actor_opt[1][0].count) == 1
        results.append((after.actor_params, after.critic_params, losses))
    for x, y in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_the_critic_has_a_learning_rate_of_its_own():
    """Adam's first step is as long as its learning rate."""

    def lengths(**rates):
        agent = actor_critic(**rates)
        state, buffer, stored = made_up(agent)
        after, _, _ = update(agent, state, buffer, stored)
        return [
            np.abs(kernel(getattr(after, name)) - kernel(getattr(state, name))).max()
            for name in ("actor_params", "critic_params")
        ]

    assert lengths(lr=1e-2) == pytest.approx([1e-2, 1e-2], rel=1e-2)
    assert lengths(lr=1e-2, critic_lr=1e-1) == pytest.approx([1e-2, 1e-1], rel=1e-2)
    assert lengths(lr=0.0, critic_lr=1e-1) == pytest.approx([0.0, 1e-1], rel=1e-2)
    assert lengths(lr=1e-2, critic_lr=0.0) == pytest.approx([1e-2, 0.0], rel=1e-2)


def test_learning_rates_go_down_to_zero():
    def step(progress, **changes):
        optimizer = actor_critic(**changes)._optimizer(1.0, purerl.Clock(progress=progress))
        updates, _ = optimizer.update({"w": jnp.ones(1)}, optimizer.init({"w": jnp.ones(1)}))
        return -float(updates["w"][0])

    assert [step(p) for p in (0.0, 0.5, 0.9)] == pytest.approx([1.0, 0.5, 0.1], rel=1e-3)
    assert step(0.5, anneal=False) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("critic", [LinearV, LinearQ])
def test_in_whole_episodes_what_follows_the_end_changes_nothing(critic):
    agent = actor_critic(critic=critic, normalize_advantage=True, entropy_beta=0.1)
    state, buffer, stored = after_a_rollout(agent, walk(3), wait_end_path=True)
    late = ~stored.data["valid"]
    np.testing.assert_array_equal(late, np.tile(np.arange(T)[:, None] >= 3, (1, N)))
    other = {
        **stored.data,
        "reward": jnp.where(late, 1e3, stored.data["reward"]),
        "action": jnp.where(late, 1 - stored.data["action"], stored.data["action"]),
        "obs": jnp.where(late[..., None], 7.0, stored.data["obs"]),
    }
    after, _, losses = update(agent, state, buffer, stored)
    again, _, same = update(agent, state, buffer, stored._replace(data=other))
    for x, y in zip(*map(jax.tree.leaves, ((after, losses), (again, same))), strict=True):
        np.testing.assert_array_equal(x, y)


def test_by_default_environments_go_on_from_rollout_to_rollout():
    run = quick_jit(
        lambda key: purerl.run(walk(5), actor_critic(), key=key, total_timesteps=2 * T * N)
    )
    data = run(jax.random.key(0))[0].buffer.data
    assert data["valid"].all()
    time = (T + np.arange(T)) % 5
    np.testing.assert_array_equal(data["obs"][..., 1], np.tile(time[:, None], (1, N)))


def test_over_continuous_actions_a_q_critic_is_averaged_by_sampling():
    agent = actor_critic(critic=LinearQ, num_samples=20_000)
    state = agent.init(jax.random.key(0), push_env().spec)
    obs = jnp.array([[0.5], [-1.0]])
    mean_q = agent._mean_q(state, obs, jax.random.key(1))
    # Q is linear in the action, so its mean is Q of the mean, in units of half the range.
    mean = np.asarray(obs) @ kernel(state.actor_params)
    expected = (np.asarray(obs) @ kernel(state.critic_params) * mean)[:, 0]
    np.testing.assert_allclose(mean_q, expected, atol=0.05)
    np.testing.assert_allclose(agent.value(state, (), obs), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_envs": 5}, "num_envs: got 5, expected 4.*ActorCritic.n_episodes"),
        ({"update_every": 8}, "update_every: got 8, expected 9.*ActorCritic.episode_length"),
        ({"noise": purerl.GaussianNoise()}, "noise: got"),
        ({"buffer": purerl.Buffer(maxlen=72)}, "Buffer.maxlen: got 72, expected 36"),
    ],
)
def test_what_contradicts_the_paths_is_refused(options, message):
    with pytest.raises(purerl.ConfigError, match=message):
        purerl.make_loop(walk(3), actor_critic(), total_timesteps=360, **options)
