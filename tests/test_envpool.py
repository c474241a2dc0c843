"""EnvPool behind the same loop: episodes end where they end, and follow from the run's key."""

import sys
import types

import gymnasium
import jax
import numpy as np
import pytest
from kit.agents import Tiny

import purerl
from purerl.envs import vector_env
from purerl.envs.registry import plain_env

pytestmark = pytest.mark.usefixtures("quick_programs")

LENGTH = 3


class FakePool:
    """As EnvPool's: an episode that is over would begin anew in the next step, which would ignore
    the action. Observations are the episode's name, drawn by the environment's seed, and the
    time; episodes die if the last action is 1, and are cut if it is 0."""

    single_observation_space = gymnasium.spaces.Box(0.0, np.inf, (2,), np.float64)
    single_action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, opened, num_envs, env_seed=None, max_episode_steps=LENGTH, gain=1.0):
        self.opened = opened
        opened.append(self)
        self.config = {"max_episode_steps": max_episode_steps}
        self.draws = [np.random.default_rng(seed) for seed in env_seed or range(num_envs)]
        self.limit, self.gain = max_episode_steps, gain
        self.obs, self.over = np.zeros((num_envs, 2)), np.zeros(num_envs, bool)

    def reset(self, ids=None):
        ids = np.arange(len(self.obs)) if ids is None else ids
        for i in ids:
            self.obs[i] = self.draws[i].random(), 0
        self.over[ids] = False
        return self.obs[ids], {}

    def step(self, action):
        assert action.dtype == np.int64
        assert not self.over.any()
        self.obs[:, 1] += 1
        self.over = self.obs[:, 1] >= self.limit
        died = self.over & (action == 1)
        info = {"score": 2.0 * self.obs[:, 1], "players": {"env_id": np.arange(len(self.obs))}}
        return self.obs, self.gain * self.obs[:, 1], died, self.over & ~died, info

    def close(self):
        self.opened.remove(self)


@pytest.fixture
def library(monkeypatch):
    """Stands for the package; the pools that are open."""
    opened = []

    def make_gymnasium(name, num_envs, **options):
        return FakePool(opened, num_envs, **options)

    fake = types.SimpleNamespace(list_all_envs=lambda: ["Count-v0"], make_gymnasium=make_gymnasium)
    monkeypatch.setitem(sys.modules, "envpool", fake)
    return opened


@pytest.mark.parametrize("limit", [None, 2])
def test_steps_are_those_of_the_pool(library, limit):
    env = purerl.make("envpool/Count-v0", gain=10.0, metrics=["score"])
    env = env if limit is None else purerl.time_limit(env, limit)
    length = limit or LENGTH
    assert env.spec.max_episode_steps == length
    assert len(library) == 0  # the one whose spaces were asked for has ended its threads
    many, num_steps = vector_env(env, 2), 8
    keys = jax.random.split(jax.random.key(0), (num_steps + 1, 2))
    actions = jax.random.randint(jax.random.key(1), (num_steps, 2), 0, 2)

    def body(state, inputs):
        state, timestep = many.step(inputs[0], state, inputs[1])
        return state, (timestep, state.obs)

    @jax.jit
    def play():
        obs, state = many.reset(keys[0])
        return obs, jax.lax.scan(body, state, (keys[1:], actions))[1]

    first, (timestep, after) = jax.tree.map(np.asarray, play())
    assert len(library) == 1
    ends = np.arange(1, num_steps + 1) % length == 0
    np.testing.assert_array_equal(timestep.terminated, ends[:, None] & (actions == 1))
    np.testing.assert_array_equal(timestep.truncated, ends[:, None] & (actions == 0))
    time = np.arange(num_steps) % length + 1
    np.testing.assert_array_equal(timestep.obs[..., 1], np.stack([time] * 2, axis=1))
    np.testing.assert_array_equal(timestep.reward, 10 * timestep.obs[..., 1])
    np.testing.assert_array_equal(timestep.info["score"], 2 * timestep.obs[..., 1])
    np.testing.assert_array_equal(after[..., 1], np.where(ends, 0, time)[:, None] * np.ones(2))
    seeds = jax.vmap(lambda k: jax.random.bits(k, (), np.uint32))(keys[0]) >> 1
    names = np.array([np.random.default_rng(int(s)).random(9) for s in seeds], np.float32)
    acted_on = np.concatenate([first[None], after])[..., 0]
    np.testing.assert_array_equal(acted_on, names[:, np.arange(num_steps + 1) // length].T)


def test_it_is_trained_in(library):
    config = purerl.TrainConfig(
        env="envpool/Count-v0", agent=Tiny(), num_envs=2, update_every=4, total_timesteps=16
    )
    assert plain_env(config.env) == "envpool/Count-v0"
    out = purerl.fit(config)
    assert int(out.metrics.num_episodes.sum()) == 4
    purerl.check_env("envpool/Count-v0", num_steps=8)
    played = purerl.evaluate(config.env, lambda obs, key: np.ones(len(obs), int), jax.random.key(0),
                             3, 10)  # fmt: skip
    assert float(played.episode_return) == 6.0


def test_mistakes(library, monkeypatch):
    for use, message in (
        (lambda: purerl.make("envpool/Cont-v0"), "no environment 'Cont-v0'; did you mean 'Count"),
        (lambda: purerl.make("envpool/Count-v0", tpyo=1), "envpool/Count-v0 can't be made: .*tpyo"),
        (lambda: purerl.make("envpool/Count-v0", metrics="score"), "expected names, such as"),
    ):
        with pytest.raises(purerl.ConfigError, match=message):
            use()
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(purerl.ConfigError, match=r"pip install 'purerl\[envpool\]'"):
        purerl.make("envpool/Count-v0")


@pytest.mark.filterwarnings("ignore:.*precision lowered by casting:UserWarning")
def test_envpool_itself():
    """Pendulum, whose episodes have 200 steps: the same seeds, the same episodes."""
    pytest.importorskip("envpool")
    env = purerl.make("envpool/Pendulum-v1", max_episode_steps=5)
    many = vector_env(env, 2)

    @jax.jit
    def play(key):
        def body(state, key):
            state, timestep = many.step(jax.random.split(key), state, np.zeros((2, 1)))
            return state, timestep

        _, state = many.reset(jax.random.split(key))
        return jax.lax.scan(body, state, jax.random.split(key, 12))[1]

    one, again, other = (jax.tree.map(np.asarray, play(jax.random.key(x))) for x in (0, 0, 1))
    np.testing.assert_array_equal(one.obs, again.obs)
    assert not np.allclose(one.obs, other.obs)
    np.testing.assert_array_equal(np.flatnonzero(one.truncated[:, 0]), [4, 9])
    assert not one.terminated.any()
