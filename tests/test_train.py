import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.agents import Tiny
from kit.environments import pytree_env, target_env
from kit.quick import quick_jit
from kit.trees import assert_close

import purerl
from purerl.training.train import TrainOutput

SMALL = {"num_envs": 4, "update_every": 8, "total_timesteps": 96}


def make(env="CartPole-v1", agent=None, **changes):
    config = purerl.TrainConfig(env=env, agent=agent or purerl.PPO(), **{**SMALL, **changes})
    return purerl.make_train(config)


def test_timesteps_are_rounded_up_and_told(key):
    out = quick_jit(make(target_env(), Tiny(), total_timesteps=100))(key)
    assert out.num_updates == 4
    assert out.num_timesteps == 128
    np.testing.assert_array_equal(out.timesteps, [32, 64, 96, 128])
    assert out.metrics.episode_return.shape == (4,)


def test_a_key_decides_everything(key):
    train = quick_jit(make())
    first, again, other = train(key), train(key), train(jax.random.key(1))
    assert_close(first.state.agent.params, again.state.agent.params, 0)
    leaves = zip(
        jax.tree.leaves(first.state.agent.params),
        jax.tree.leaves(other.state.agent.params),
        strict=True,
    )
    assert not all(np.array_equal(a, b) for a, b in leaves)
    assert not np.array_equal(first.state.buffer.data["obs"], other.state.buffer.data["obs"])


def test_one_trace_for_a_whole_sweep_and_each_member_as_alone():
    """Within 1e-4 after 3 updates (48 gradient steps): batched products add in another order, and
    training amplifies what that changes, so nobody can promise more for long runs."""
    train = make(target_env())
    chex.clear_trace_counter()
    once = chex.assert_max_traces(train, n=1)
    keys = jax.random.split(jax.random.key(0), 3)
    lrs, gammas = jnp.array([1e-4, 3e-3]), jnp.array([0.9, 0.99])
    sweep = quick_jit(jax.vmap(jax.vmap(once, (0, None)), (None, 0)))
    outs = sweep(keys, {"lr": lrs, "gamma": gammas})
    sweep(jax.random.split(jax.random.key(1), 3), {"lr": 2 * lrs, "gamma": gammas})
    assert outs.metrics.losses["loss"].shape == (2, 3, 3)
    alone = quick_jit(train)
    for i in range(2):
        for j in range(3):
            one = alone(keys[j], {"lr": lrs[i], "gamma": gammas[i]})
            assert_close(outs.member(i, j).state.agent.params, one.state.agent.params, 1e-4)
            assert_close(outs.member(i, j).metrics, one.metrics, 1e-3)
    # And alone with a hyperparameter is alone with an agent that has it.
    agent = purerl.PPO(lr=float(lrs[1]), gamma=float(gammas[1]))
    same = quick_jit(make(target_env(), agent))(keys[2])
    assert_close(outs.member(1, 2).state.agent.params, same.state.agent.params, 1e-4)


@pytest.mark.parametrize(
    ("hyperparams", "message"),
    [
        ({"learnin_rate": 1e-3}, "PPO has no 'learnin_rate'; did you mean 'lr'"),
        ({"gama": 0.9}, "did you mean 'gamma'"),
        ({"K_epochs": 3}, "PPO.K_epochs is static"),
        ({"lr": -1.0}, r"PPO.lr: got -1.0, expected a float >= 0"),
        ({"lr": jnp.ones(3)}, r"shape \(3,\).*jax.vmap"),
        ({"lr": "fast"}, "got 'fast'"),
    ],
)
def test_wrong_hyperparameters(hyperparams, message):
    with pytest.raises(purerl.ConfigError, match=message):
        make()(jax.random.key(0), hyperparams)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (0, r"key: got 0, expected a typed key: jax.random.key\(seed\)"),
        (np.zeros(2, np.uint32), r"got uint32 \(2,\), expected a typed key"),
        (jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 5)), r"5 keys.*jax.vmap"),
    ],
)
def test_wrong_keys(key, message):
    with pytest.raises(purerl.ConfigError, match=message):
        make()(key)


def test_memory_does_not_grow_with_the_budget():
    def memory(num_updates):
        train = make(
            "CartPole-v1", num_envs=64, update_every=64, total_timesteps=4096 * num_updates
        )
        return quick_jit(train).lower(jax.random.key(0)).compile().memory_analysis()

    short, long = memory(5), memory(500)
    metrics = len(jax.tree.leaves(jax.eval_shape(make(), jax.random.key(0)).metrics))
    per_update = 4 * metrics
    assert long.output_size_in_bytes - short.output_size_in_bytes == 495 * per_update
    # Beyond the metrics: nothing but the scan's index, 4 bytes an update, and some alignment.
    grown = long.temp_size_in_bytes - short.temp_size_in_bytes
    assert grown <= 495 * (per_update + 8) + 65_536
    assert grown < short.temp_size_in_bytes / 10


def test_policy_and_value_of_an_output(key):
    out = quick_jit(make(normalize_obs=True))(key)
    obs = jax.random.normal(key, (6, 4))
    action = out.policy(obs)
    assert action.shape == (6,)
    assert out.value(obs).shape == (6,)
    shift, scale = out.state.obs_stats.mean, np.sqrt(out.state.obs_stats.var + 1e-8)
    seen = np.clip((obs - shift) / scale, -10, 10)
    np.testing.assert_allclose(
        out.value(obs), out.agent.value(out.state.agent, (), seen), rtol=1e-4
    )
    assert set(np.unique(out.policy(jnp.zeros((500, 4)), key))) == {0, 1}  # samples
    assert len(np.unique(out.policy(jnp.zeros((500, 4))))) == 1  # the mode


def test_outputs_of_many_runs():
    train = make()
    outs = quick_jit(jax.vmap(train))(jax.random.split(jax.random.key(0), 2))
    assert isinstance(outs, TrainOutput)
    assert outs.num_updates == 3
    obs = jnp.zeros((5, 4))
    with pytest.raises(ValueError, match=r"choose one by out.member\(i\)"):
        outs.policy(obs)
    values = jax.vmap(lambda out: out.value(obs))(outs)
    assert values.shape == (2, 5)
    np.testing.assert_allclose(outs.member(1).value(obs), values[1], rtol=1e-4, atol=1e-6)


def test_members_are_counted_as_python_does(key):
    """What there is not is in the table of bad inputs."""
    train = quick_jit(jax.vmap(jax.vmap(make(target_env(), Tiny()), (0, None)), (None, 0)))
    outs = train(jax.random.split(key, 3), {"lr": jnp.array([0.1, 0.2])})
    for index, same in (((1, 2), (1, 2)), ((-1, -1), (1, 2)), ((np.int64(0), -3), (0, 0))):
        member, expected = outs.member(*index), jax.tree.map(lambda x, at=same: x[at], outs)
        assert_close(member.state.agent, expected.state.agent, 0)
    assert outs.member(1, 2).policy.step(np.ones(1)).shape == (1,)
    with pytest.raises(purerl.ConfigError, match=r"got \(1\), expected 2 integers: .*\(2, 3\)"):
        outs.member(1)
    with pytest.raises(IndexError, match=r"got \(1, 3\), but the runs have the shape \(2, 3\)"):
        outs.member(1, 3)


def test_a_mapping_will_do(key):
    train = purerl.make_train({"env": "CartPole-v1", "agent": {"name": "ppo", "lr": 1e-2}, **SMALL})
    assert float(quick_jit(train)(key).agent.lr) == pytest.approx(1e-2)


def test_pytree_observations_are_learned_from(key):
    out = quick_jit(make(pytree_env(), normalize_obs=True, eval_every=1))(key)
    assert out.value({"name": jnp.zeros((5, 1)), "time": jnp.zeros(5)}).shape == (5,)
    assert np.isfinite(out.metrics.losses["loss"]).all()
