"""Policies in Gymnasium's environments, and environments for what is written for Gymnasium."""

import functools
import sys

import gymnasium
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from kit.environments import dict_env, discrete_env, push_env, walk
from kit.policies import make_policy, trained

import purerl
from purerl import Box
from purerl.deploy.gymnasium_classes import _first, as_gymnasium_space


def test_saved_and_exported_policies_score_the_same(tmp_path):
    policy = trained().policy
    purerl.save_policy(policy, tmp_path / "policy")
    purerl.export_policy(policy, tmp_path / "policy.stablehlo", batch=1)
    exported = jax.export.deserialize(bytearray((tmp_path / "policy.stablehlo").read_bytes()))
    call = jax.jit(exported.call)
    played = functools.partial(
        purerl.evaluate_in_gymnasium, env="CartPole-v1", num_episodes=3, seed=4
    )
    returns, lengths = played(policy)
    assert returns.tolist() == lengths.tolist()  # reward 1 a step
    assert len(set(lengths.tolist())) > 1
    for other in (
        purerl.load_policy(tmp_path / "policy"),
        lambda obs: int(call(obs[None])[0]),
    ):
        np.testing.assert_array_equal(played(other), (returns, lengths))
    # As a plain loop has it.
    env = gymnasium.make("CartPole-v1")
    obs, _ = env.reset(seed=5)
    over, total = False, 0.0
    while not over:
        action = int(policy(jnp.asarray(obs)[None])[0])
        obs, reward, terminated, truncated, _ = env.step(action)
        over, total = terminated or truncated, total + reward
    assert total == returns[1]


def test_evaluation_stops_at_its_limit():
    _, lengths = purerl.evaluate_in_gymnasium(trained().policy, "CartPole-v1", 2, max_steps=3)
    assert lengths.tolist() == [3, 3]


def test_continuous_actions_in_gymnasium():
    policy = make_policy(purerl.PPO(), purerl.make("Pendulum-v1"))
    returns, lengths = purerl.evaluate_in_gymnasium(policy, "Pendulum-v1", 1)
    assert lengths.tolist() == [200]
    assert -2000 < returns[0] < 0


def test_wrong_environments():
    policy = trained().policy
    with pytest.raises(purerl.ConfigError, match=r"no environment 'CartPol-v1'; did you mean"):
        purerl.evaluate_in_gymnasium(policy, "CartPol-v1")
    with pytest.raises(purerl.ConfigError, match=r"its actions are Discrete\(3\), expected"):
        purerl.evaluate_in_gymnasium(policy, "Acrobot-v1")
    with pytest.raises(purerl.ConfigError, match=r"its actions are Box\(.*expected the policy's"):
        purerl.evaluate_in_gymnasium(policy, "Pendulum-v1")
    for options, message in (
        ({"num_envs": 0}, "num_envs: got 0, expected an integer >= 1"),
        ({"num_envs": 2.0}, "num_envs: got 2.0"),
        ({"render_mode": "human"}, "render_mode: got 'human', expected 'rgb_array' or None"),
    ):
        with pytest.raises(purerl.ConfigError, match=message):
            purerl.to_gymnasium(walk(), **options)


def test_without_gymnasium(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    for use in (
        lambda: purerl.evaluate_in_gymnasium(lambda obs: 0, "CartPole-v1"),
        lambda: purerl.to_gymnasium(walk()),
    ):
        with pytest.raises(purerl.ConfigError, match=r"pip install 'purerl\[gymnasium\]'"):
            use()


@pytest.mark.filterwarnings("ignore:.*symmetric and normalized")
@pytest.mark.filterwarnings("ignore:.*infinity. This is probably too")
@pytest.mark.parametrize(
    "env", [walk(3), push_env(), dict_env(), discrete_env()], ids=lambda env: env.spec.name
)
def test_gymnasiums_own_check(env):
    check_env(purerl.to_gymnasium(env))


def test_a_known_environment_as_gymnasiums():
    env = purerl.to_gymnasium("CartPole-v1", render_mode="rgb_array")
    check_env(env)
    assert env.action_space == gymnasium.spaces.Discrete(2)
    frame = env.render()
    assert frame.shape == (288, 400, 3)
    assert frame.dtype == np.uint8
    returns, _ = purerl.evaluate_in_gymnasium(trained().policy, env, 2)
    assert returns.min() >= 8


def test_an_episode():
    env = purerl.to_gymnasium(purerl.time_limit(walk(3), 2))
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)
    obs, info = env.reset(seed=1)
    assert obs[1] == 0
    assert info == {}
    obs, reward, terminated, truncated, info = env.step(np.int64(1))
    assert (obs[1], reward, terminated, truncated, info) == (1.0, 1.0, False, False, {})
    assert env.step(0)[2:4] == (False, True)
    name = obs[0]
    others = [env.reset()[0][0] for _ in range(3)]
    assert len({name, *others}) == 4  # another episode each time
    assert env.reset(seed=1)[0][0] == name
    with pytest.raises(purerl.ConfigError, match=r"action: got shape \(1,\), expected \(\)"):
        env.step([1])


# In the last one, episodes end at different times.
@pytest.mark.parametrize("make", [walk, push_env, dict_env, discrete_env])
def test_a_vector_plays_what_single_environments_play(make):
    num, env = 3, make()
    vector = purerl.to_gymnasium(env, num)
    assert vector.metadata["autoreset_mode"] == gymnasium.vector.AutoresetMode.SAME_STEP
    singles = [purerl.to_gymnasium(env) for _ in range(num)]
    obs, _ = vector.reset(seed=9)
    same = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    for i, single in enumerate(singles):
        jax.tree.map(lambda x, y, i=i: same(x[i], y), obs, single.reset(seed=9 + i)[0])
    vector.action_space.seed(0)
    ended = went_on = 0
    for _ in range(13):
        action = vector.action_space.sample()
        obs, rewards, terminated, truncated, info = vector.step(action)
        assert vector.observation_space.contains(obs)
        for i, single in enumerate(singles):
            last, reward, *ends, _ = single.step(action[i])
            same(rewards[i], reward)
            assert [terminated[i], truncated[i]] == ends
            if any(ends):
                ended += 1
                assert info["_final_obs"][i]
                jax.tree.map(same, info["final_obs"][i], last)
                last, _ = single.reset()
            elif "final_obs" in info:
                went_on += 1
                assert not info["_final_obs"][i]
                assert info["final_obs"][i] is None
            jax.tree.map(lambda x, y, i=i: same(x[i], y), obs, last)
    assert ended >= 2 * num
    assert (went_on > 0) == (make is discrete_env)


def test_resets_in_a_row_have_keys_of_their_own(key):
    """Not one that the reset before has split from its own, as one that draws parameters does."""
    base, seen = walk(3), []

    def reset(key):
        seen.append([x.tobytes() for x in jax.random.key_data(jnp.stack([key, *split(key)]))])
        return base.reset(key)

    def split(key):
        return jax.random.split(key, 3)

    env = base._replace(reset=reset)
    again, *_ = _first(env, key)
    _first(env, again)
    assert seen[1][0] not in seen[0]


def test_what_a_step_tells():
    base = walk(2)

    def step(key, state, action):
        state, timestep = base.step(key, state, action)
        return state, timestep._replace(info={"twice": 2 * timestep.reward})

    vector = purerl.to_gymnasium(base._replace(step=step), 2, render_mode="rgb_array")
    vector.reset(seed=[3, 4])
    *_, info = vector.step([0, 0])
    assert info["twice"].tolist() == [2.0, 2.0]
    assert info["_twice"].tolist() == [True, True]
    assert "final_info" not in info
    *_, info = vector.step([0, 0])
    assert info["final_info"]["twice"].tolist() == [4.0, 4.0]
    assert info["_final_info"].tolist() == [True, True]
    assert info["_twice"].tolist() == [False, False]  # the new episodes have told nothing
    assert [frame.shape for frame in vector.render()] == 2 * [(288, 400, 3)]


def test_seeds_of_a_vector():
    vector = purerl.to_gymnasium(walk(), 3)
    with pytest.raises(purerl.ConfigError, match="seed: got 2, expected one for each of 3"):
        vector.reset(seed=[1, 2])
    with pytest.raises(purerl.ConfigError, match="reset_mask"):
        vector.reset(options={"reset_mask": np.ones(3, bool)})
    names = vector.reset(seed=[5, 5, 6])[0][:, 0]
    assert names[0] == names[1] != names[2]
    assert vector.reset(seed=4)[0][1, 0] == names[0]
    seen = [vector.reset()[0][:, 0].tolist() for _ in range(3)]
    assert len({*names.tolist(), *seen[0], *seen[1], *seen[2]}) == 2 + 9


def test_spaces():
    assert as_gymnasium_space(Box(-1, 300, (2,), int)) == gymnasium.spaces.Box(
        -1, 300, (2,), np.int32
    )
    unbounded = as_gymnasium_space(Box(-np.inf, np.inf, (2,), int))
    assert unbounded.low.tolist() == 2 * [np.iinfo(np.int32).min]
    assert unbounded.high.tolist() == 2 * [np.iinfo(np.int32).max]
    parts = as_gymnasium_space((purerl.Discrete(3), [Box(0, 1, ())]))
    assert parts[0] == gymnasium.spaces.Discrete(3)
    assert parts[1][0].shape == ()
    with pytest.raises(purerl.ConfigError, match="observations are a set"):
        as_gymnasium_space({1, 2})
