"""A policy apart from its run: the same actions, and one at a time outside of JAX."""

import functools

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.environments import dict_env, discrete_env, push_env, target_env, walk
from kit.policies import AGENTS, make_policy, observations, trained
from kit.quick import quick_jit, quick_programs

import purerl
from purerl.training.policy import Interface

SMALL = {"num_envs": 2, "update_every": 8, "total_timesteps": 32}


class Far(purerl.Actor):
    """Three half ranges beyond the middle."""

    @nn.compact
    def create_network(self, obs):
        bias = self.param("bias", nn.initializers.constant(3.0), (self.action_dim,))
        return jnp.broadcast_to(bias, (obs.shape[0], self.action_dim))


def test_it_plays_in_gymnasium():
    policy = trained().policy
    env = gymnasium.make("CartPole-v1")
    obs, _ = env.reset(seed=0)
    for _ in range(5):
        action = policy.step(obs)
        assert type(action) is int
        assert action == int(policy(jnp.asarray(obs)[None])[0])
        obs, *_ = env.step(action)


@pytest.mark.parametrize("name", AGENTS)
def test_it_acts_as_the_agent_with_its_whole_state(name):
    agent, env = AGENTS[name][0], AGENTS[name][1]()
    state = quick_jit(lambda key: agent.init(key, env.spec))(jax.random.key(0))
    policy = purerl.Policy(agent, agent.for_acting(state), None, Interface(env.spec))
    obs, key = observations(env.spec.observation_space), jax.random.key(2)

    has_value = name != "reinforce, continuous"  # which has no baseline

    def results(act, value):
        return act(obs), act(obs, key), value(obs) if has_value else 0

    found = quick_jit(lambda policy: results(policy, policy.value))(policy)

    def choose(state, obs, key=None):
        return agent.policy(state, sample=key is not None).step((), obs, key)[1]

    expected = quick_jit(
        lambda state: results(
            functools.partial(choose, state), lambda obs: agent.value(state, (), obs)
        )
    )(state)
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_array_equal(x, y)
    paths = [
        jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(policy.state)
    ]
    assert paths
    assert not [path for path in paths if "opt" in path or "target" in path]
    assert len(jax.tree.leaves(policy)) < len(jax.tree.leaves((agent, state)))


def test_actions_are_what_the_loop_hands_to_the_environment():
    config = purerl.TrainConfig(target_env(-2.0, 4.0), purerl.PPO(actor=Far), **SMALL)
    state = config.agent.init(jax.random.key(0), config.env.spec)
    policy = purerl.Policy(config.agent, state, None, Interface(config.env.spec))
    obs = jnp.ones((5, 1))
    own = policy(obs)
    assert own.min() > 4.0
    np.testing.assert_array_equal(policy.act(obs), config.make_loop().action_map(own))
    action = policy.step(np.ones(1))
    assert isinstance(action, np.ndarray)
    assert action.dtype == np.float32
    np.testing.assert_array_equal(action, [4.0])


def test_an_action_processor_goes_along():
    config = purerl.TrainConfig(
        push_env(), action_processor=lambda a: jnp.tanh(a) / 2, max_episode_steps=4, **SMALL
    )
    out = jax.eval_shape(purerl.make_train(config), jax.random.key(0))
    spec = config.make_loop().env.spec
    assert out.policy.interface == Interface(spec, config.action_processor, (4, 1))
    assert out.policy.spec.max_episode_steps == 4
    policy = make_policy(config.agent, config.env, action_processor=config.action_processor)
    obs = jnp.array([[0.3], [-0.8]])
    expected = np.tanh(np.asarray(policy(obs))) / 2
    np.testing.assert_allclose(policy.act(obs), expected, rtol=1e-6)
    np.testing.assert_allclose(policy.step(obs[0]), expected[0], rtol=1e-5)


def test_step_samples_where_a_key_is_given():
    policy = trained().policy
    keys = jax.random.split(jax.random.key(0), 60)
    assert {policy.step(np.zeros(4), key) for key in keys} == {0, 1}
    assert len({policy.step(np.zeros(4)) for _ in range(5)}) == 1


traces = []


class Counted(purerl.Actor):
    """Notes when it is traced."""

    @nn.compact
    def create_network(self, obs):
        traces.append(obs.shape)
        return nn.Dense(self.action_dim)(obs)


@pytest.fixture(scope="module")
def outs():
    """Of three runs."""
    with quick_programs():
        config = purerl.TrainConfig(walk(), purerl.PPO(actor=Counted), **SMALL)
        return purerl.fit(config, seeds=3)


def test_one_compilation_for_all_steps(outs):
    traces.clear()
    for member in (0, 1, 0):
        out = outs.member(member)
        for dtype in (np.float32, np.float64, np.float32):
            out.policy.step(np.zeros(2, dtype))
    assert traces == [(1, 2)]


def test_discrete_and_pytree_observations():
    policy = make_policy(purerl.DQN(), discrete_env())
    batch = policy(jnp.arange(3))
    assert [policy.step(i) for i in range(3)] == batch.tolist()
    assert policy.step(np.int64(2)) == int(batch[2])

    policy = make_policy(purerl.PPO(), dict_env(), normalize_obs=True)
    one = {"x": np.array([0.5]), "sign": np.array(1)}
    batch = {"x": jnp.array([[0.5]]), "sign": jnp.array([1])}
    np.testing.assert_array_equal(policy.step(one), policy.act(batch)[0])
    jitted = jax.jit(lambda policy: policy.act(batch))(policy)  # hashes what is static in it
    np.testing.assert_allclose(jitted, policy.act(batch), rtol=1e-6)
    with pytest.raises(purerl.ConfigError, match=r"^obs: no 'sign', expected 'x', 'sign'$"):
        policy.step({"x": np.array([0.5])})


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        (np.zeros(3), r"obs: got float64 of shape \(3,\), .*CartPole-v1, of shape \(4,\)$"),
        (np.zeros((1, 4)), r"for a batch, call the policy itself"),
        (np.int64(2), "a category is one-hot here"),
        ({"x": np.zeros(4)}, "obs: got dict, expected one observation of CartPole-v1"),
        ("left", "obs: got str"),
        (None, "obs: got NoneType"),
    ],
)
def test_wrong_observations(obs, message):
    with pytest.raises(purerl.ConfigError, match=message):
        trained().policy.step(obs)


def test_several_runs(outs):
    obs = jnp.ones((4, 2))
    for use in (outs.policy, outs.policy.act, outs.policy.value):
        with pytest.raises(ValueError, match=r"of \(3,\) runs: choose one by out.member\(i\)"):
            use(obs)
    with pytest.raises(ValueError, match="choose one"):
        outs.policy.step(np.ones(2))
    values = jax.vmap(lambda policy: policy.value(obs))(outs.policy)
    same = jax.vmap(lambda out: out.policy.value(obs))(outs)
    np.testing.assert_array_equal(values, same)
    one = outs.member(1).policy
    np.testing.assert_allclose(one.value(obs), values[1], rtol=1e-5)
    assert one.step(np.ones(2)) == int(one(jnp.ones((1, 2)))[0])


def test_it_goes_through_jit_whole_or_as_a_function():
    policy, obs = trained().policy, jax.random.normal(jax.random.key(0), (50, 4))
    expected = policy(obs)
    np.testing.assert_array_equal(jax.jit(policy)(obs), expected)
    np.testing.assert_array_equal(jax.jit(lambda p, obs: p(obs))(policy, obs), expected)
    assert 0 < expected.sum() < 50
