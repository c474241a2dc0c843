import jax
import jax.numpy as jnp
import numpy as np
from kit.environments import faulty, reward_forever, walk
from kit.trees import assert_equal

import purerl
from purerl.envs import Box, Discrete, Env, EnvSpec, TimeStep
from purerl.training.evaluate import evaluate


def zeros(obs, key):
    return jnp.zeros(obs.shape[0], jnp.int32)


def test_episodes_end_by_themselves():
    stats = evaluate(walk(3), zeros, jax.random.key(0), 5, 100)
    assert int(stats.num_episodes) == 5
    assert float(stats.episode_return) == 6.0
    assert float(stats.episode_length) == 3.0


def test_the_step_limit_counts_what_was_reached():
    stats = evaluate(reward_forever(50), zeros, jax.random.key(0), 4, 7)
    assert float(stats.episode_return_min) == float(stats.episode_return_max) == 7.0
    assert int(stats.num_episodes) == 4


def uneven():
    """Episodes of 1 to 8 steps, drawn at the reset; reward 1; a step beyond would cost 100."""

    def reset(key):
        left = jax.random.randint(key, (), 1, 9)
        return left.astype(jnp.float32)[None], left

    def step(key, left, action):
        reward = jnp.where(left > 0, 1.0, -100.0)
        left = left - 1
        obs = left.astype(jnp.float32)[None]
        return left, TimeStep(obs, reward, left <= 0, jnp.bool_(False), {})

    return Env(reset, step, EnvSpec("uneven", Box(-9.0, 9.0, (1,)), Discrete(2)))


def test_what_comes_after_an_episode_does_not_count():
    stats = evaluate(uneven(), zeros, jax.random.key(0), 64, 100)
    assert float(stats.episode_return) == float(stats.episode_length)
    assert float(stats.episode_return_min) == 1.0
    assert float(stats.episode_return_max) == 8.0


def test_the_policy_gets_a_new_key_each_step():
    seen = []

    def policy(obs, key):
        jax.debug.callback(lambda k: seen.append(tuple(np.asarray(k))), jax.random.key_data(key))
        return zeros(obs, key)

    evaluate(walk(6), policy, jax.random.key(0), 2, 100)
    jax.effects_barrier()
    assert len(set(seen)) == 6


def test_jit_and_vmap():
    keys = jax.random.split(jax.random.key(0), 3)
    stats = jax.jit(jax.vmap(lambda key: evaluate(uneven(), zeros, key, 8, 100)))(keys)
    alone = [evaluate(uneven(), zeros, key, 8, 100).episode_return for key in keys]
    np.testing.assert_allclose(stats.episode_return, alone)


def test_a_policy_from_outside(cartpole):
    def push_right(obs, key):
        return jnp.ones(obs.shape[0], jnp.int32)

    stats = purerl.evaluate(cartpole, push_right, jax.random.key(0), 10, 500)
    assert 8 <= float(stats.episode_length) <= 11


def test_a_policy_plays_its_mode(cartpole):
    """As `eval_every` and `purerl eval` do; by `Policy.act`, which is given a key, it samples."""
    out = purerl.fit(purerl.TrainConfig(cartpole, purerl.PPO(hidden=(4,)), 64, update_every=8))
    key = jax.random.key(0)
    by_mode = purerl.evaluate(cartpole, out.policy.acting(), key, 10, 50)
    assert_equal(purerl.evaluate(cartpole, out.policy, key, 10, 50), by_mode)
    sampled = purerl.evaluate(cartpole, out.policy.acting(sample=True), key, 10, 50)
    assert_equal(purerl.evaluate(cartpole, out.policy.act, key, 10, 50), sampled)
    assert float(sampled.episode_length) != float(by_mode.episode_length)


def test_an_episode_that_is_broken_off_does_not_count(key):
    """Of 40 walks of three steps some meet NaN, or an infinite reward."""
    stats = jax.jit(lambda key: evaluate(faulty(walk(3), 0.2), zeros, key, 40, 100))(key)
    assert 5 < int(stats.num_episodes) < 35
    assert float(stats.episode_return_min) == float(stats.episode_return_max) == 6.0
    assert float(stats.episode_length) == 3.0
