"""SAC against loops over single numbers: soft targets, the reparameterised policy, the
temperature."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.agents import learn
from kit.buffers import everything
from kit.environments import push_env
from kit.offpolicy import (
    CENTER,
    GAMMA,
    HALF,
    HIGH,
    LOW,
    SPEC,
    BilinearCritic,
    doubles,
    filled,
    rows,
)
from kit.quick import quick_jit

import purerl

KEY = jax.random.key(3)
DRAWS = jax.random.split(KEY)  # for the successors' actions, and for the policy's
update = quick_jit(learn)
gradient_step, init = quick_jit(purerl.SAC._learn), quick_jit(purerl.SAC.init, static_argnums=2)


class GaussianActor(purerl.Actor):
    """Mean m s, and log standard deviation k s."""

    @nn.compact
    def create_network(self, obs):
        kernel = self.param("kernel", nn.initializers.normal(0.5), (2, 1))
        return obs * kernel[0], obs * kernel[1]


def sac(**changes):
    options = {"gamma": GAMMA, "max_grad_norm": 1e9, "lr": 0.1, "alpha": 0.3, **changes}
    return purerl.SAC(actor=GaussianActor, critic=BilinearCritic, batch_size=32, **options)


def initial(agent):
    """A state whose target critics are others than its critics."""
    state, other = (init(agent, jax.random.key(i), SPEC) for i in (0, 1))
    return state.replace(target_params=other.target_params)


def step(agent, state):
    return gradient_step(agent, state, everything(*filled()), KEY, purerl.Clock())


def numpy_policy(kernel, obs, key):
    """Scaled actions and their log densities, `[T N]`: a = tanh(x), x normal, by the change of
    variables."""
    noise = np.asarray(jax.random.normal(key, (len(obs), 1)), np.float64)[:, 0]
    actions, log_probs = np.zeros(len(obs)), np.zeros(len(obs))
    for i, s in enumerate(obs):
        std = np.exp(kernel[1, 0] * s)
        x = kernel[0, 0] * s + std * noise[i]
        actions[i] = np.tanh(x)
        log_density = -0.5 * noise[i] ** 2 - np.log(std * np.sqrt(2 * np.pi))
        log_probs[i] = log_density + 2 * np.log(np.cosh(x))
    return actions, log_probs


def numpy_lower(critics, obs, action):
    """min(Q1, Q2), `[T N]`, of scaled actions."""
    return np.min([u * obs + w * obs * action for u, w in critics[..., 0]], axis=0)


def test_critics_learn_from_the_soft_lower_target():
    agent = sac()
    state, data = initial(agent), rows(filled()[1])
    after, error, losses = step(agent, state)
    obs, action, next_obs, reward, terminated = data
    a, log_prob = numpy_policy(doubles(state.params["actor"]), next_obs, DRAWS[0])
    beyond = numpy_lower(doubles(state.target_params), next_obs, a) - 0.3 * log_prob
    y = reward + np.where(terminated, 0.0, GAMMA * beyond)
    features = np.stack([obs, obs * (action - CENTER) / HALF], axis=-1)
    q = doubles(state.params["critic"])[..., 0] @ features.T
    np.testing.assert_allclose(error, np.abs(y - q).max(axis=0), rtol=1e-4, atol=1e-4)
    assert float(losses["value_loss"]) == pytest.approx(np.mean((y - q) ** 2), rel=1e-4)
    grads = np.mean((q - y)[..., None] * features, axis=1)
    found = 10 * after.opt_states["critic"][1][0].mu  # Adam's first moment is 0.1 of the gradient
    np.testing.assert_allclose(found.reshape(2, 2), grads, rtol=1e-3, atol=1e-4)


def test_the_actor_descends_the_reparameterised_loss():
    """By central differences of alpha log pi(a | s) - min(Q1(s, a), Q2(s, a)), in float64."""
    agent = sac()
    state, obs = initial(agent), rows(filled()[1])[0]
    after, _, losses = step(agent, state)
    critics, kernel = doubles(after.params["critic"]), doubles(state.params["actor"])

    def loss(kernel):
        a, log_prob = numpy_policy(kernel, obs, DRAWS[1])
        return np.mean(0.3 * log_prob - numpy_lower(critics, obs, a))

    assert float(losses["policy_loss"]) == pytest.approx(loss(kernel), rel=1e-4)
    log_prob = numpy_policy(kernel, obs, DRAWS[1])[1]
    assert float(losses["entropy"]) == pytest.approx(-np.mean(log_prob), rel=1e-4)
    shifts = 1e-5 * np.eye(2)[..., None]
    expected = [(loss(kernel + shift) - loss(kernel - shift)) / 2e-5 for shift in shifts]
    found = 10 * after.opt_states["actor"][1][0].mu
    np.testing.assert_allclose(found, expected, rtol=2e-3)


@pytest.mark.parametrize("target_entropy", [None, 5.0])
def test_the_temperature_moves_towards_the_target_entropy(target_entropy):
    agent = sac(alpha=None, init_alpha=0.3, target_entropy=target_entropy)
    state = initial(agent)
    after, _, losses = step(agent, state)
    assert float(losses["alpha"]) == pytest.approx(0.3, rel=1e-5)
    expected = float(losses["entropy"]) - (-1.0 if target_entropy is None else target_entropy)
    assert abs(expected) > 0.1
    assert float(10 * after.opt_states["alpha"][1][0].mu[0]) == pytest.approx(expected, rel=1e-3)
    moved = float(after.params["alpha"] - state.params["alpha"])
    assert moved == pytest.approx(-0.1 * np.sign(expected), rel=1e-3)  # Adam's step, as long as lr
    fixed, _, _ = step(sac(), initial(sac()))
    for name in ("actor", "critic"):  # with the same temperature the rest is the same
        np.testing.assert_allclose(
            doubles(after.params[name]), doubles(fixed.params[name]), rtol=1e-5
        )


def test_nothing_depends_on_the_units_of_the_action():
    """Actions a thousand times smaller make the same agent."""
    agent, batch = sac(alpha=None), everything(*filled())
    small = SPEC._replace(action_space=purerl.Box(LOW / 1024, HIGH / 1024, (1,)))
    one, other = (
        gradient_step(agent, init(agent, KEY, spec), x, KEY, purerl.Clock())
        for spec, x in ((SPEC, batch), (small, {**batch, "action": batch["action"] / 1024}))
    )
    for x, y in zip(*(jax.tree.leaves((o[0].params, o[2])) for o in (one, other)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_numbers_without_a_range_do_not_count_in_the_target_entropy():
    agent = purerl.SAC()
    space = purerl.Box([-2.0, 0.5, -1.0], [2.0, 0.5, 3.0])
    free = purerl.Box([-2.0, -1.0], [2.0, 3.0])
    draws = np.random.default_rng(0).normal(size=1_000_000)
    entropy = np.mean(0.5 * np.log(2 * np.pi) + 0.5 * draws**2 - 2 * np.log(np.cosh(draws)))
    assert float(agent._target_entropy(free)) == -2.0
    assert float(agent._target_entropy(space)) == pytest.approx(entropy - 2.0, abs=5e-3)


def test_mode_samples_and_the_soft_value():
    agent = sac()
    state = initial(agent)
    s = np.array([-1.0, 0.5, 2.0])
    obs = jnp.asarray(s, jnp.float32)[:, None]
    kernel, critics = (doubles(state.params[name]) for name in ("actor", "critic"))
    _, mode, _ = agent.policy(state).step((), obs, None)
    np.testing.assert_allclose(mode[:, 0], CENTER + HALF * np.tanh(kernel[0, 0] * s), rtol=1e-5)
    samples = [
        acting.step((), obs, DRAWS[1])[1]
        for acting in (agent.policy(state, sample=True), agent.acting(state, purerl.Clock()))
    ]
    expected, _ = numpy_policy(kernel, s, DRAWS[1])
    for action in samples:
        np.testing.assert_allclose(action[:, 0], CENTER + HALF * expected, rtol=1e-4)
    many = np.repeat(s, 20_000)
    entropy = -numpy_policy(kernel, many, KEY)[1].reshape(3, -1).mean(1)
    value = numpy_lower(critics, s, np.tanh(kernel[0, 0] * s)) + 0.3 * entropy
    np.testing.assert_allclose(agent.value(state, (), obs), value, atol=2e-2)


def test_an_update_makes_its_gradient_steps_and_targets_follow():
    agent = sac(gradient_steps=3, alpha=None, tau=0.3)
    after, _, _ = update(agent, initial(agent), *filled(), KEY)
    assert {int(x[1][0].count) for x in after.opt_states.values()} == {3}
    agent = sac(tau=0.3)
    state = initial(agent)
    after, _, _ = step(agent, state)
    new, old, found = map(
        doubles, (after.params["critic"], state.target_params, after.target_params)
    )
    np.testing.assert_allclose(found, 0.3 * new + 0.7 * old, rtol=1e-5)


def test_it_explores_by_itself_and_noise_comes_on_top():
    options = {"total_timesteps": 5_000}
    loop = purerl.make_loop(push_env(), purerl.SAC(), **options)
    assert loop.noise is None
    assert (loop.random_rollouts, loop.num_envs, loop.update_every) == (1_000, 1, 1)
    noise = purerl.OrnsteinUhlenbeckNoise()
    assert purerl.make_loop(push_env(), purerl.SAC(), noise=noise, **options).noise is noise


def test_actions_without_bounds_are_refused():
    space = purerl.Box(-np.inf, np.inf, (1,))
    env = push_env()._replace(spec=push_env().spec._replace(action_space=space))
    with pytest.raises(purerl.ConfigError, match="SAC is for actions with finite bounds, and push"):
        purerl.TrainConfig(env, purerl.SAC())
