import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.agents import act, learn
from kit.buffers import everything
from kit.environments import push_env, target_env, walk
from kit.offpolicy import GAMMA, HIGH, LOW, SPEC, BilinearCritic, LinearActor, N, T, filled
from kit.quick import quick_jit

import purerl

update = quick_jit(learn)
gradient_step, init = quick_jit(purerl.DDPG._learn), quick_jit(purerl.DDPG.init, static_argnums=2)


def ddpg(**changes):
    options = {"batch_size": 32, "gamma": GAMMA, "max_grad_norm": 1e9, **changes}
    return purerl.DDPG(actor=LinearActor, critic=BilinearCritic, **options)


def initial(agent):
    """A state whose target networks are others than its networks."""
    state, other = (init(agent, jax.random.key(i), SPEC) for i in (0, 1))
    return state.replace(target_params=other.params)


def numbers(params):
    """The actor's weight, and the critic's two."""
    actor = np.asarray(jax.tree.leaves(params["actor"])[0], np.float64)
    critic = np.asarray(jax.tree.leaves(params["critic"])[0], np.float64)
    return actor[0, 0], critic[0, 0], critic[1, 0]


def numpy_td_error(state, data):
    """y - Q(s, a) of every transition, `[T, N]`, where y = r + gamma Q'(s', mu'(s'))."""
    m, u, w = numbers(state.target_params)
    _, own_u, own_w = numbers(state.params)
    errors = np.zeros((T, N))
    for at in np.ndindex(T, N):
        s, a, s_next = (float(data[name][at][0]) for name in ("obs", "action", "next_obs"))
        beyond = u * s_next + w * s_next * np.tanh(m * s_next)
        y = data["reward"][at] + (0.0 if data["terminated"][at] else GAMMA * beyond)
        scaled = (a - (LOW + HIGH) / 2) / ((HIGH - LOW) / 2)
        errors[at] = y - (own_u * s + own_w * s * scaled)
    return errors


def test_the_target_ends_with_death_and_goes_on_beyond_a_time_limit():
    agent = ddpg()
    state = initial(agent)
    buffer, stored = filled()
    data = {name: np.asarray(x) for name, x in stored.data.items()}
    assert data["terminated"].any()
    assert data["truncated"].any()
    _, error, losses = gradient_step(agent, state, everything(buffer, stored), purerl.Clock())
    expected = numpy_td_error(state, data)
    np.testing.assert_allclose(error, expected.reshape(-1), rtol=1e-4, atol=1e-4)
    assert float(losses["value_loss"]) == pytest.approx(0.5 * np.mean(expected**2), rel=1e-4)


def test_gradients_are_the_closed_form():
    """Adam's first moment is 0.1 of the gradient."""
    agent = ddpg()
    state = initial(agent)
    buffer, stored = filled()
    after, _, losses = gradient_step(agent, state, everything(buffer, stored), purerl.Clock())
    data = {name: np.asarray(x) for name, x in stored.data.items()}
    s, a = data["obs"][..., 0], data["action"][..., 0]
    m, u, w = numbers(state.params)
    squashed = np.tanh(m * s)
    actor = -np.mean(w * s * (1 - squashed**2) * s)
    found = 10 * after.actor_opt[1][0].mu
    assert float(found[0]) == pytest.approx(actor, rel=1e-3)
    assert float(losses["policy_loss"]) == pytest.approx(-np.mean(u * s + w * s * squashed), 1e-4)
    error, scaled = -numpy_td_error(state, data), (a - 1.0) / 2.0
    critic = [np.mean(error * s), np.mean(error * s * scaled)]
    found = 10 * after.critic_opt[1][0].mu
    np.testing.assert_allclose(found, critic, rtol=1e-3)


def test_importance_weights_weigh_the_critics_loss_only():
    agent = ddpg()
    state = initial(agent)
    buffer, stored = filled()
    batch = everything(buffer, stored)
    weight = jnp.linspace(0.0, 1.0, T * N)
    _, error, losses = gradient_step(agent, state, {**batch, "weight": weight}, purerl.Clock())
    _, _, plain = gradient_step(agent, state, batch, purerl.Clock())
    expected = 0.5 * np.mean(np.asarray(weight) * np.asarray(error) ** 2)
    assert float(losses["value_loss"]) == pytest.approx(expected, rel=1e-4)
    assert float(losses["policy_loss"]) == float(plain["policy_loss"])


@pytest.mark.parametrize("tau", [1.0, 0.0, 0.3])
def test_target_networks_move_by_tau(tau):
    agent = ddpg(tau=tau, lr=0.1)
    state = initial(agent)
    after, _, _ = gradient_step(agent, state, everything(*filled()), purerl.Clock())
    trees = (after.params, state.target_params, after.target_params)
    for new, old, found in zip(*map(jax.tree.leaves, trees), strict=True):
        mixed = tau * np.asarray(new) + (1 - tau) * np.asarray(old)
        assert np.abs(new - old).max() > 1e-3
        np.testing.assert_allclose(found, mixed, rtol=1e-5, atol=1e-6)


def test_target_networks_start_as_copies():
    state = ddpg().init(jax.random.key(0), SPEC)
    for x, y in zip(*map(jax.tree.leaves, (state.params, state.target_params)), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({"lr": 1e-2}, (1e-2, 1e-2)),
        ({"lr": 1e-2, "actor_lr": 0.0}, (0.0, 1e-2)),
        ({"lr": 1e-2, "critic_lr": 0.0}, (1e-2, 0.0)),
        ({"actor_lr": 1e-3, "critic_lr": 1e-1}, (1e-3, 1e-1)),
    ],
)
def test_actor_and_critic_have_learning_rates_of_their_own(rates, expected):
    """Adam's first step is as long as its learning rate."""
    agent = ddpg(**rates)
    state = initial(agent)
    after, _, _ = gradient_step(agent, state, everything(*filled()), purerl.Clock())
    for name, length in zip(("actor", "critic"), expected, strict=True):
        new, old = (jax.tree.leaves(x.params[name])[0] for x in (after, state))
        assert float(jnp.abs(new - old).max()) == pytest.approx(length, rel=1e-2)


@pytest.mark.parametrize("gradient_steps", [1, 5])
def test_an_update_makes_its_gradient_steps(gradient_steps):
    agent = ddpg(gradient_steps=gradient_steps)
    buffer, stored = filled()
    after, _, _ = update(agent, initial(agent), buffer, stored, jax.random.key(3))
    assert int(after.actor_opt[1][0].count) == gradient_steps
    assert int(after.critic_opt[1][0].count) == gradient_steps


@pytest.mark.parametrize("n_step", [1, 3])
def test_errors_go_back_as_priorities(n_step):
    agent = ddpg(gradient_steps=1, batch_size=8, n_step=n_step)
    state = initial(agent)
    buffer, stored = filled(priority_sampling=True)
    _, after, _ = update(agent, state, buffer, stored, jax.random.key(3))
    assert not stored.data["td_error"].any()
    errors = np.asarray(after.data["td_error"])
    drawn = errors != 0.0
    assert 3 < drawn.sum() <= 8
    if n_step == 1:
        data = {name: np.asarray(x) for name, x in stored.data.items()}
        expected = numpy_td_error(state, data)
        np.testing.assert_allclose(errors[drawn], expected[drawn], rtol=1e-3, atol=1e-4)
    priority = (np.abs(errors) + 1e-6) ** 0.6
    leaves = np.asarray(buffer.read(after)["priority"])
    np.testing.assert_allclose(leaves[drawn], priority[drawn], rtol=1e-4)
    np.testing.assert_array_equal(leaves[~drawn], 1.0)
    assert float(stored.max_priority) == 1.0
    assert float(after.max_priority) == pytest.approx(priority[drawn].max(), rel=1e-4)
    assert float(after.max_priority) > 1.0


def test_without_priorities_the_buffer_stays_as_it_is():
    agent = ddpg()
    buffer, stored = filled()
    _, after, _ = update(agent, initial(agent), buffer, stored, jax.random.key(3))
    for x, y in zip(*map(jax.tree.leaves, (stored, after)), strict=True):
        np.testing.assert_array_equal(x, y)


def test_the_buffer_holds_the_noisy_action_inside_its_bounds():
    agent = purerl.DDPG(actor=LinearActor, batch_size=8)
    noise = purerl.GaussianNoise(sigma=0.7)
    loop = purerl.make_loop(
        target_env(0.0, 0.1, ()),
        agent,
        num_envs=64,
        update_every=8,
        update_after=0,
        total_timesteps=5_000,
        noise=noise,
    )

    @quick_jit
    def play(key):
        state = loop.init(key)
        key = jax.random.fold_in(key, 1)
        _, transitions, *_ = loop.play(state.agent, state.rollout, None, key, jnp.int32(0))
        stored = loop.buffer.push(state.buffer, transitions)
        return act(agent.policy(state.agent), jnp.ones((1, 1)))[0], transitions, stored

    clean, transitions, stored = play(jax.random.key(0))
    action = np.asarray(stored.data["action"][:8])
    np.testing.assert_array_equal(action, transitions.action)
    assert 0.0 < float(clean[0]) < 0.1
    assert action.min() == 0.0
    assert action.max() == np.float32(0.1)
    inside = (action > 0.0) & (action < 0.1)
    assert len(np.unique(action[inside])) == inside.sum() > 50
    # The reward tells what the environment got: the same.
    reward = -(((action - 0.075) / 0.1) ** 2)
    np.testing.assert_allclose(stored.data["reward"][:8], reward, atol=1e-5)


def test_actions_are_drawn_from_the_action_space_until_update_after():
    """24 steps of 64 environments in each rollout, of which three come before update_after."""
    spec = push_env().spec._replace(action_space=purerl.Box([-1.0, 0.0], [3.0, 0.1]))
    env = push_env()._replace(spec=spec, step=lambda key, x, a: push_env().step(key, x, a[:1]))
    options = {"num_envs": 64, "update_every": 24, "total_timesteps": 20_000}
    loop = purerl.make_loop(env, purerl.DDPG(batch_size=8), update_after=2 * 1536 + 1, **options)
    assert loop.first_update == 2

    @quick_jit
    def play(key, index):
        state = loop.init(key)
        _, transitions, *_ = loop.play(state.agent, state.rollout, None, key, index)
        return transitions.action

    def quantiles(index):
        actions = np.asarray(play(jax.random.key(1), index)).reshape(-1, 2)
        return np.quantile(actions, [0.0, 0.25, 0.5, 0.75, 1.0], axis=0)

    for index in (0, 2):
        found = quantiles(index)
        np.testing.assert_allclose(found[:, 0], [-1, 0, 1, 2, 3], atol=0.15)
        np.testing.assert_allclose(found[:, 1], [0, 0.025, 0.05, 0.075, 0.1], atol=0.005)
    later = quantiles(3)
    assert later[3, 0] - later[1, 0] < 1.0  # the policy near the middle, and its noise
    # Not where nothing is waited for, and not of agents that explore otherwise.
    ddpg = purerl.make_loop(push_env(), purerl.DDPG(), update_after=0, **options)
    dqn = purerl.make_loop(walk(), purerl.DQN(), update_after=3_000, **options)
    assert ddpg.random_rollouts == dqn.random_rollouts == 0


def test_the_policy_stays_inside_its_bounds_and_has_no_chance_in_it():
    agent = purerl.DDPG()
    state = agent.init(jax.random.key(0), target_env(0.0, 0.1, ()).spec)
    state = state.replace(params=jax.tree.map(lambda x: 10 * x, state.params))
    obs = jnp.linspace(-5.0, 5.0, 101)[:, None]
    action, _ = act(agent.policy(state), obs)
    assert action.shape == (101,)
    assert 0.0 <= action.min() < action.max() <= np.float32(0.1)
    sampled, _ = act(agent.policy(state, sample=True), obs, jax.random.key(1))
    np.testing.assert_array_equal(action, sampled)
    acted, _ = act(agent.acting(state, purerl.Clock()), obs, jax.random.key(2))
    np.testing.assert_array_equal(action, acted)


def test_value_is_q_of_the_policys_action():
    agent = ddpg()
    state = initial(agent)
    s = np.array([-1.0, 0.5, 2.0])
    m, u, w = numbers(state.params)
    expected = u * s + w * s * np.tanh(m * s)
    found = agent.value(state, (), jnp.asarray(s, jnp.float32)[:, None])
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_it_explores_by_default():
    loop = purerl.make_loop(target_env(), purerl.DDPG(), total_timesteps=5_000)
    assert isinstance(loop.noise, purerl.GaussianNoise)
    assert loop.update_every == 1
    assert loop.buffer.gamma == 0.99


def test_actors_and_critics_of_another_kind_are_refused():
    normal = type("Random", (purerl.DefaultActor,), {"distribution": purerl.Normal})
    with pytest.raises(purerl.ConfigError, match=r"Random.distribution: got Normal, expected None"):
        purerl.TrainConfig(target_env(), purerl.DDPG(actor=normal))
    with pytest.raises(purerl.ConfigError, match=r"DDPG.critic: got a V critic"):
        purerl.DDPG(critic=purerl.DefaultCritic)
    with pytest.raises(purerl.ConfigError, match="DDPG is for continuous actions"):
        purerl.DDPG().init(jax.random.key(0), walk().spec)


def test_buffers_of_another_kind_are_refused():
    options = {"num_envs": 8, "update_every": 4, "total_timesteps": 5_000}
    with pytest.raises(purerl.ConfigError, match=r"Buffer.maxlen: got 16, expected at least 32"):
        purerl.make_loop(target_env(), purerl.DDPG(), purerl.Buffer(maxlen=16), **options)
    with pytest.raises(purerl.ConfigError, match=r"Buffer.lam: DDPG uses no GAE"):
        purerl.make_loop(target_env(), purerl.DDPG(), purerl.Buffer(lam=0.9), **options)
