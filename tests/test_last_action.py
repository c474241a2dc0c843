"""The last action and the last reward as part of observations, in training and outside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.environments import dict_env, discrete_env, image_env, locks, push_env, seen_as
from kit.quick import quick_jit
from kit.recurrent import lever_env
from kit.trees import assert_equal

import purerl

pytestmark = pytest.mark.usefixtures("compile_once")

LEVERS = purerl.TrainConfig(
    env=lever_env(),
    agent=purerl.PPO(network="gru", hidden=(16,), lr=5e-3, share_network=True),
    num_envs=32,
    update_every=12,
    total_timesteps=32 * 12 * 60,
    remember_action=True,
    eval_every=60,
)


@pytest.fixture(scope="module")
def out():
    return quick_jit(purerl.make_train(LEVERS))(jax.random.key(0))


def test_what_was_done_and_what_came_of_it(out):
    """The first pull is a guess, 0.5 on average; the next five follow from its reward."""
    assert float(out.metrics.episode_return[-5:].mean()) > 4.8
    assert float(out.metrics.eval.episode_return[-1]) > 4.0
    blind = LEVERS.replace(remember_action=False, eval_every=None)
    blind = quick_jit(purerl.make_train(blind))(jax.random.key(0))
    assert abs(float(blind.metrics.episode_return[-5:].mean()) - 3.0) < 0.4
    obs = np.zeros(1)
    assert blind.policy.with_last(obs) is obs


def test_outside_of_training(out, tmp_path):
    policy, env = out.policy, lever_env()
    remembered = purerl.remember_action(env)
    episodes = purerl.evaluate(remembered, policy.acting(), jax.random.key(1), 50, 9)
    assert 5.2 < float(episodes.episode_return) < 5.8
    with pytest.raises(purerl.ConfigError, match=r"purerl.remember_action.*policy.with_last"):
        purerl.evaluate(env, policy.acting(), jax.random.key(1), 50, 9)
    total, length = purerl.render(policy, env, tmp_path / "a.gif")
    assert total >= 5.0
    assert length == 6
    for made in (env, remembered):
        returns, _ = purerl.evaluate_in_gymnasium(policy, purerl.to_gymnasium(made), 8)
        assert set(returns) <= {5.0, 6.0}
    purerl.save_policy(policy, tmp_path / "a.policy")
    loaded = purerl.load_policy(tmp_path / "a.policy")
    game = purerl.to_gymnasium(env)
    obs, memory, action, reward = game.reset(seed=0)[0], loaded.memory(), None, 0.0
    for _ in range(6):
        seen = loaded.with_last(obs, action, reward)
        ours, _ = policy.step(seen, memory=memory)
        action, memory = loaded.step(seen, memory=memory)
        assert action == ours
        obs, reward, over, *_ = game.step(action)
    assert over
    assert reward == 1.0


@pytest.mark.parametrize("make", [discrete_env, dict_env, image_env, push_env, locks])
def test_observations_of_any_kind(make):
    """Each observation is what was seen, and beside it the action before and its reward."""
    env = make()
    wrapped = purerl.remember_action(env)
    purerl.check_env(wrapped)
    space, inside = env.spec.action_space, isinstance(env.spec.observation_space, dict)
    (obs, state), (plain, inner) = (e.reset(jax.random.key(0)) for e in (wrapped, env))
    encoded, reward = np.zeros(space.num_outputs), 0.0
    for i in range(3):
        rest = {n: x for n, x in obs.items() if not n.startswith("last_")}
        assert_equal(rest if inside else rest["obs"], plain)
        np.testing.assert_array_equal(obs["last_action"], encoded)
        assert float(obs["last_reward"][0]) == reward
        key = jax.random.key(i)
        action = wrapped.spec.random_action(key, obs)
        np.testing.assert_array_equal(action, env.spec.random_action(key, plain))
        state, timestep = wrapped.step(key, state, action)
        inner, expected = env.step(key, inner, action)
        obs, plain, reward = timestep.obs, expected.obs, float(expected.reward)
        encoded = space.encode(action[None])[0]


def test_names_that_are_taken():
    env = seen_as(
        push_env(), lambda x: {"last_reward": x}, {"last_reward": purerl.Box(-9, 9, (1,))}
    )
    with pytest.raises(purerl.ConfigError, match="have an entry 'last_reward' already"):
        purerl.remember_action(env)
    assert jnp.isfinite(env.reset(jax.random.key(0))[0]["last_reward"]).all()
