"""Optimizers that a user gives: optax factories of the learning rate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from kit.environments import push_env, target_env, walk
from kit.policies import make_policy, observations
from kit.quick import quick_jit

import purerl
from purerl.agents.gradients import descend, make_optimizer

SMALL = {"num_envs": 4, "update_every": 8, "total_timesteps": 96, "update_after": 0}


def params():
    return {"params": {"w": jnp.array([1.0, -2.0]), "b": jnp.array([0.5])}}


GRADS = {"params": {"w": jnp.array([3.0, 0.0]), "b": jnp.array([-4.0])}}  # of norm 5


def test_gradients_are_clipped_before_a_users_optimizer():
    optimizer = make_optimizer(optax.sgd, 0.1, 1.0)
    moved, _ = descend(optimizer, GRADS, optimizer.init(params()), params())
    np.testing.assert_allclose(moved["params"]["w"], [1.0 - 0.1 * 3 / 5, -2.0], rtol=1e-6)
    np.testing.assert_allclose(moved["params"]["b"], [0.5 + 0.1 * 4 / 5], rtol=1e-6)


def test_weight_decay_sees_the_parameters():
    """AdamW's first step is lr (g / (|g| + eps) + decay p)."""
    factory = functools.partial(optax.adamw, weight_decay=0.5, eps=1e-8)
    optimizer = make_optimizer(factory, 0.1, 100.0)
    moved, _ = descend(optimizer, GRADS, optimizer.init(params()), params())
    np.testing.assert_allclose(
        moved["params"]["w"], [1.0 - 0.1 * (1 + 0.5), -2.0 + 0.1 * 0.5 * 2.0], rtol=1e-5
    )
    np.testing.assert_allclose(moved["params"]["b"], [0.5 - 0.1 * (-1 + 0.25)], rtol=1e-5)


def test_a_derivative_through_a_step_from_gradients_of_zero_is_finite():
    def moved(scale):
        grads = jax.tree.map(lambda x: 0.0 * scale * x, GRADS)
        optimizer = make_optimizer(optax.sgd, 0.1, 1.0)
        return descend(optimizer, grads, optimizer.init(params()), params())[0]["params"]["w"].sum()

    assert np.isfinite(jax.grad(moved)(1.0))


@pytest.mark.parametrize("name", sorted(purerl.AGENTS))
def test_every_agent_takes_one_and_its_learning_rate_is_mapped_over(name):
    cls = purerl.AGENTS[name]
    continuous = cls in (purerl.DDPG, purerl.TD3, purerl.SAC)
    env = push_env() if continuous else walk(5, limit=4)
    config = purerl.TrainConfig(
        env, cls(optimizer=functools.partial(optax.adamw, weight_decay=0.1), hidden=4)
    ).replace(total_timesteps=100_000)
    train = jax.vmap(purerl.make_train(config), (None, 0))
    out = jax.eval_shape(train, jax.random.key(0), {"lr": jnp.ones(2)})
    assert out.metrics.episode_return.shape[0] == 2


def test_a_schedule_goes_by_environment_steps():
    """A learning rate of 0 for the first 64 environment steps, two updates."""

    def factory(lr, timesteps):
        return optax.sgd(jnp.where(timesteps < 64, 0.0, lr))

    agent = purerl.PPO(optimizer=factory, hidden=4, lr=1e-2, anneal=False)
    loop = purerl.make_loop(target_env(), agent, **SMALL)
    state, step = loop.init(jax.random.key(0)), quick_jit(loop.step)
    weights = []
    for index in range(3):
        state, _ = step(state, index)
        weights.append(np.concatenate([x.ravel() for x in jax.tree.leaves(state.agent.params)]))
    np.testing.assert_array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[1], weights[2])


def test_names_are_plain_values():
    config = purerl.TrainConfig(target_env(), purerl.PPO(optimizer="rmsprop", hidden=4))
    assert config.agent.optimizer is optax.rmsprop
    assert purerl.PPO(optimizer="adam") == purerl.PPO()
    left = {**purerl.TrainConfig("CartPole-v1", config.agent).to_mapping(), "env": target_env()}
    assert left["agent"]["optimizer"] == "rmsprop"
    assert purerl.TrainConfig.from_mapping(left).agent == config.agent


def test_a_saved_policy_does_not_ask_for_its_optimizer(tmp_path):
    policy = make_policy(purerl.DQN(optimizer=lambda lr: optax.sgd(lr), hidden=4), walk())
    purerl.save_policy(policy, tmp_path / "sgd.policy")
    loaded = purerl.load_policy(tmp_path / "sgd.policy")
    obs = observations(policy.spec.observation_space, num=8)
    np.testing.assert_array_equal(loaded(obs), policy(obs))


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (optax.adamw(1e-3), "PPO.optimizer: got .*; give the factory"),
        ("adamm", "one of 'adam', 'adamw'.*did you mean 'adam'"),
        (3, "PPO.optimizer: got 3, expected a function of the learning rate"),
        (lambda lr: lr, r"optimizer: got .* expected an optax\.GradientTransformation"),
        (lambda: optax.sgd(0.1), r"optimizer: can't be made: TypeError"),
    ],
)
def test_wrong_optimizers(optimizer, message):
    with pytest.raises(purerl.ConfigError, match=message):
        purerl.TrainConfig(target_env(), purerl.PPO(optimizer=optimizer, hidden=4))
