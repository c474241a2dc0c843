import jax
import jax.numpy as jnp
import numpy as np
from kit.environments import walk
from kit.quick import quick_jit

import purerl
from purerl.training.rollout import init_rollout, rollout


def play(num_steps, state=None, seed=1, env=None, num_envs=3):
    env = purerl.vector_env(walk(5, limit=4) if env is None else env, num_envs)
    agent = purerl.PPO()
    acting = agent.acting(agent.init(jax.random.key(0), env.spec), purerl.Clock())
    state = init_rollout(env, acting, jax.random.key(7), num_envs) if state is None else state

    @quick_jit
    def steps(state, key):
        return rollout(env, acting, state, key, num_steps)

    return steps(state, jax.random.key(seed))


def test_transitions_tell_what_happened():
    state, transitions, episodes = play(10)
    np.testing.assert_array_equal(transitions.obs[:, 0, 1], np.arange(10) % 4)
    np.testing.assert_array_equal(transitions.next_obs[:, 0, 1], np.arange(10) % 4 + 1)
    np.testing.assert_array_equal(transitions.reward[:, 0], np.arange(10) % 4 + 1)
    np.testing.assert_array_equal(np.flatnonzero(transitions.truncated[:, 1]), [3, 7])
    assert not transitions.terminated.any()
    np.testing.assert_array_equal(transitions.episode[:, 2], np.arange(10) // 4)
    # The successor belongs to the same episode, also where the environment was then reset.
    np.testing.assert_array_equal(transitions.next_obs[..., 0], transitions.obs[..., 0])
    assert transitions.extras["value"].shape == transitions.extras["log_prob"].shape == (10, 3)
    assert int(episodes.num_episodes) == 6
    assert float(episodes.episode_return) == 1 + 2 + 3 + 4
    assert float(episodes.episode_length) == 4
    np.testing.assert_array_equal(state.length, 2)
    np.testing.assert_array_equal(state.returns, 3.0)
    np.testing.assert_array_equal(state.episode, 2)


def test_episodes_go_on_from_rollout_to_rollout():
    state, first, _ = play(3)
    _, second, episodes = play(3, state)
    np.testing.assert_array_equal(second.obs[0, :, 0], first.next_obs[-1, :, 0])
    assert float(episodes.episode_return) == 10.0
    assert float(episodes.episode_length) == 4.0


def test_log_probs_and_values_are_those_of_the_moment():
    _, transitions, _ = play(6)
    agent = purerl.PPO()
    state = agent.init(jax.random.key(0), walk().spec)
    flat = transitions.obs.reshape(-1, 2)
    value = agent.value(state, (), flat).reshape(6, 3)
    np.testing.assert_allclose(transitions.extras["value"], value, rtol=1e-5, atol=1e-6)
    d = state.actor.apply(state.params["actor"], flat)
    log_prob = d.log_prob(transitions.action.reshape(-1)).reshape(6, 3)
    np.testing.assert_allclose(transitions.extras["log_prob"], log_prob, rtol=1e-5, atol=1e-6)


def test_environments_and_steps_draw_their_own_numbers():
    _, transitions, _ = play(40, num_envs=40)
    names = np.unique(transitions.obs[..., 0])
    assert len(names) == 40 * 10
    actions = np.asarray(transitions.action)
    assert 0.4 < actions.mean() < 0.6
    assert len(np.unique(actions, axis=0)) > 30  # no two steps alike
    assert len(np.unique(actions, axis=1)) > 30


def test_info_and_bandits():
    # Episodes of one step: every transition ends one.
    _, transitions, episodes = play(5, env=walk(1))
    assert transitions.terminated.all()
    assert int(episodes.num_episodes) == 15
    assert jnp.unique(transitions.obs[..., 0]).size == 15
