"""What an environment is outside of the loop: its dtypes, its pickle, its form in files."""

import argparse
import functools
import json
import multiprocessing
import pickle
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments.bsuite.deep_sea import DeepSea
from gymnax.environments.classic_control.cartpole import CartPole, EnvParams
from gymnax.wrappers import LogWrapper
from kit.agents import Tiny
from kit.environments import walk
from kit.policies import make_policy
from kit.quick import quick_jit
from kit.trees import assert_equal

import purerl
from purerl.cli.playing import environment
from purerl.envs import Box, Discrete, Env, EnvSpec, TimeStep, as_env
from purerl.envs.base import EnvSource, typed
from purerl.training.describe import describe, differences

pytestmark = pytest.mark.usefixtures("quick_programs")

SMALL = {"num_envs": 2, "update_every": 4, "total_timesteps": 24}


def retyped(*, reward=jnp.float32, end=jnp.bool_, obs=jnp.float32, space=None):
    """Episodes of three steps with reward 1, in dtypes of choice."""

    def reset(key):
        return obs(jnp.ones(2)), jnp.int32(0)

    def step(key, time, action):
        time = time + 1
        ends = end(time >= 3), end(False)
        return time, TimeStep(obs(jnp.ones(2)), reward(1), *ends, {})

    space = Box(0.0, 1.0, (2,)) if space is None else space
    return Env(reset, step, EnvSpec("retyped", space, Discrete(2)))


def played(env):
    """Rewards and ends of ten steps, as the loop has them, and what was learned from."""
    options = {"rewarder": purerl.Scale(0.1), "skip_frames": 2, "max_episode_steps": 5}
    run = quick_jit(lambda key: purerl.run(env, Tiny(), key=key, **SMALL, **options))
    state, metrics = run(jax.random.key(0))
    return state.buffer.data, metrics


def test_rewards_and_ends_have_one_dtype_whatever_an_environment_gives():
    expected, metrics = played(retyped())
    np.testing.assert_allclose(metrics.episode_return[1:], 3.0)
    ints = {"reward": jnp.int32, "end": jnp.int32, "obs": jnp.int32}
    bools = {"reward": jnp.bool_, "end": jnp.float32, "obs": jnp.bool_}
    python = {"reward": int, "end": lambda x: x if hasattr(x, "dtype") else bool(x)}
    for changes in (ints, bools, python):
        env = retyped(**changes)
        data, other = played(env)
        for name, x in expected.items():
            assert data[name].dtype == x.dtype
            np.testing.assert_array_equal(data[name], x)
        np.testing.assert_array_equal(metrics.episode_return, other.episode_return)
        # Where there is no loop around it, too.
        gym = purerl.to_gymnasium(env, num_envs=2)
        gym.reset(seed=0)
        ends = [gym.step(np.zeros(2, np.int32))[2].tolist() for _ in range(4)]
        assert ends == [[False] * 2, [False] * 2, [True] * 2, [False] * 2]


def test_dtypes_that_are_right_cost_nothing():
    env = retyped()
    args = jax.random.key(0), jnp.int32(0), jnp.int32(0)
    assert str(jax.make_jaxpr(typed(env).step)(*args)) == str(jax.make_jaxpr(env.step)(*args))
    assert typed(typed(env)) == typed(env) or typed(env).step.__self__.env is env
    once = typed(env)
    assert typed(once) is once


def test_observations_are_cast_where_nothing_is_lost():
    pixels = Box(0, 255, (2,), jnp.uint8)
    counts = Box(0, 255, (2,), jnp.int32)
    for given, space in ((jnp.uint8, counts), (jnp.int32, None), (jnp.bfloat16, None)):
        env = typed(retyped(obs=given, space=space))
        obs, state = env.reset(jax.random.key(0))
        after = env.step(jax.random.key(0), state, jnp.int32(0))[1].obs
        assert obs.dtype == after.dtype == env.spec.observation_space.dtype
    for given, space, words in (
        (jnp.float32, counts, "observations of float32, expected int32"),
        (jnp.int32, pixels, "observations of int32, expected uint8"),
    ):
        with pytest.raises(purerl.ConfigError, match=words):
            purerl.run(retyped(obs=given, space=space), Tiny(), key=jax.random.key(0), **SMALL)


def final(config):
    out = quick_jit(purerl.make_train(config))(jax.random.key(0))
    return jax.tree.map(np.asarray, (out.state.agent, out.metrics))


def train_in_child(config, queue):
    queue.put(final(config))


PLAIN = {"agent": Tiny(), "num_envs": 2, "update_every": 8, "total_timesteps": 32}


def test_a_config_pickles_and_trains_to_the_same_bits():
    configs = [
        purerl.TrainConfig(env="CartPole-v1", skip_frames=2, max_episode_steps=9, **PLAIN),
        purerl.TrainConfig(env=LogWrapper(CartPole()), buffer=purerl.Buffer(), **PLAIN),
    ]
    for config in configs:
        there = pickle.loads(pickle.dumps(config))
        assert_equal(final(config), final(there))
        assert there.env.spec == config.env.spec


@pytest.mark.parametrize("agent", list(purerl.agents.AGENTS.values()))
def test_every_agent_pickles_in_a_config(agent):
    continuous = agent in (purerl.DDPG, purerl.TD3, purerl.SAC)
    name = "Pendulum-v1" if continuous else "CartPole-v1"
    options = {"normalize_obs": True, "normalize_reward": True, "total_timesteps": 50_000}
    config = purerl.TrainConfig(env=name, agent=agent(), **options)
    assert pickle.loads(pickle.dumps(config)).to_mapping() == config.to_mapping()
    assert pickle.loads(pickle.dumps(config)).env.spec.source == EnvSource(name)


@pytest.mark.parametrize("env", ["CartPole-v1", (DeepSea(), None), LogWrapper(CartPole())])
def test_every_form_of_an_environment_pickles(env):
    env = as_env(env)
    for made in (env, purerl.vectorize(purerl.auto_reset(purerl.time_limit(env, 3)))):
        assert pickle.loads(pickle.dumps(made)).spec == made.spec


def test_a_spawned_process_takes_a_config():
    config = purerl.TrainConfig(env="CartPole-v1", **PLAIN)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=train_in_child, args=(config, queue))
    process.start()
    there = queue.get(timeout=240)
    process.join()
    assert_equal(there, final(config))


LIGHT = (CartPole(), EnvParams(gravity=1.0))


def twice(env):
    """An environment of a user's, round another's functions, under its spec."""

    def step(key, state, action):
        state, timestep = env.step(key, state, action)
        return state, timestep._replace(reward=2.0 * timestep.reward)

    return Env(env.reset, step, env.spec)


CART = purerl.make("CartPole-v1")


@pytest.mark.parametrize(
    "env",
    [
        LogWrapper(CartPole()),
        purerl.envs.gymnax_env(*LIGHT, name="light"),
        twice(CART),
        purerl.time_limit(CART, 100),
        purerl.action_repeat(CART, 2),
        CART._replace(spec=CART.spec._replace(max_episode_steps=100)),
        DeepSea(action_mapping_key=jax.random.key(3)),
        walk(),
    ],
)
def test_only_what_a_name_makes_has_a_plain_form(env):
    config = purerl.TrainConfig(env=env, **PLAIN)
    with pytest.raises(purerl.ConfigError, match="has no plain form, which only an environment"):
        config.to_mapping()


def test_what_a_name_makes_is_its_name():
    config = purerl.TrainConfig(env=purerl.make("Acrobot-v1"), total_timesteps=1000)
    assert config.to_mapping() == config.replace(env="Acrobot-v1").to_mapping()
    assert config.to_mapping()["env"] == "Acrobot-v1"
    assert purerl.TrainConfig.from_mapping(config.to_mapping()).env.spec == config.env.spec


def test_a_registered_factory_may_return_what_counts_as_an_environment():
    purerl.register("a-gymnax-cartpole", CartPole)
    config = purerl.TrainConfig(env="a-gymnax-cartpole", total_timesteps=1000)
    assert config.env.spec == CART.spec
    assert config.to_mapping()["env"] == "a-gymnax-cartpole"
    purerl.register("nothing", lambda: None)
    with pytest.raises(purerl.ConfigError, match="env: got None, expected a name"):
        purerl.make("nothing")


class Windy(NamedTuple):
    strength: float


def wind(strength, where=(1.0, 2.0)):
    """An environment of functions that are jitted, partial, and methods."""

    @jax.jit
    def step(key, state, action, where=where):
        return state, TimeStep(state + strength, jnp.float32(0), state > 3, jnp.bool_(False), {})

    class Start:
        def __init__(self):
            self.where, self.notes, self.wind = jnp.zeros(100), [], Windy(strength)

        def reset(self, key):
            return jnp.zeros(()), jnp.zeros(())

    spec = EnvSpec("wind", Box(0.0, 9.0, ()), Discrete(2))
    return Env(Start().reset, functools.partial(step, where=where), spec)


def test_specs_are_equal_wherever_they_come_from():
    spec = walk().spec
    assert spec == spec._replace(source=EnvSource("walk"))
    assert hash(spec) == hash(spec._replace(source=EnvSource("walk")))
    assert spec != spec._replace(name="another")
    both = spec._replace(observation_space={"a": Box(0, 1, ()), "b": (Discrete(2),)})
    assert hash(both) == hash(both._replace(name="walk"))
    assert CART.spec.source == EnvSource("CartPole-v1")
    assert purerl.make("DeepSea-bsuite", size=5).spec.source == EnvSource(
        "DeepSea-bsuite", (("size", 5),)
    )


def test_identities_tell_parameters_apart_and_not_processes():
    def of(env):
        return json.loads(json.dumps(describe(as_env(env))))

    assert list(differences(of("CartPole-v1"), of(LIGHT))) == [
        "dynamics.params.gravity is 9.8 there, got 1.0"
    ]
    assert of((CartPole(), EnvParams())) == of("CartPole-v1")
    assert of(LogWrapper(CartPole())) == of(LogWrapper(CartPole())) != of(CartPole())
    many = [DeepSea(size=9, action_mapping_key=jax.random.key(i)) for i in (0, 0, 1)]
    assert of(many[0]) == of(many[1]) != of(many[2])
    limits = [purerl.time_limit(CART, n) for n in (7, 8)]
    assert of(limits[0]) != of(limits[1])
    purerl.register("walk-of-a-length", lambda length=3: walk(length))
    assert of(purerl.make("walk-of-a-length", length=3)) == of("walk-of-a-length")
    assert of(purerl.make("walk-of-a-length", length=4)) != of("walk-of-a-length")
    # What a user's own functions have from outside counts, and not how they were made.
    assert of(twice(CART)) == of(twice(CART)) != of(twice(as_env(LIGHT)))
    assert of(walk(3)) == of(walk(3)) != of(walk(4))
    assert of(walk(3, limit=9)) == of(walk(3, limit=9)) != of(walk(4, limit=9))
    assert of(wind(0.1)) == of(wind(0.1)) != of(wind(0.2))
    knot = CartPole()
    knot.me = [knot]
    for env in ("FourRooms-misc", LogWrapper(CartPole()), knot):
        assert "0x" not in json.dumps(of(env))


def test_a_file_says_that_the_environment_is_not_in_it(tmp_path):
    config = purerl.TrainConfig(env=LogWrapper(CartPole()), **PLAIN)
    purerl.fit(config, tmp_path / "run")
    text = (tmp_path / "run" / "config.toml").read_text()
    assert "Not in this file, since it has no form there: env" in text
    assert "CartPole" not in text
    purerl.fit(config, tmp_path / "run")  # goes on


def test_a_policy_knows_whether_a_name_makes_its_environment(tmp_path):
    def source(env):
        config = purerl.TrainConfig(env=env, max_episode_steps=9, **PLAIN)
        return config.make_loop().env.spec.source

    assert source("CartPole-v1") == source(CART) == EnvSource("CartPole-v1")
    light = EnvSource("CartPole-v1", (("gravity", 1.0),))
    assert source(LIGHT) == light
    assert source(twice(CART)) is None
    known = (CART, EnvSource("CartPole-v1")), (as_env(LIGHT), light)
    for env, expected in (*known, (as_env(LogWrapper(CartPole())), None)):
        policy = make_policy(purerl.PPO(hidden=(4,)), env)
        purerl.save_policy(policy, tmp_path / "policy")
        policy = purerl.load_policy(tmp_path / "policy")
        assert policy.spec.source == expected
    with pytest.raises(purerl.ConfigError, match=r"in a .* that no name makes"):
        environment(policy, argparse.Namespace(env=None))


class Pair(NamedTuple):
    position: jax.Array
    time: jax.Array


def pairs():
    """`walk` with observations in a NamedTuple."""
    base = walk(3)

    def reset(key):
        obs, state = base.reset(key)
        return Pair(obs[:1], obs[1]), state

    def step(key, state, action):
        state, timestep = base.step(key, state, action)
        obs = timestep.obs
        return state, timestep._replace(obs=Pair(obs[:1], obs[1]))

    space = Pair(Box(0.0, 1.0, (1,)), Box(0.0, 3.0, ()))
    return Env(reset, step, EnvSpec("pairs", space, Discrete(2)))


def test_observations_that_no_file_takes_are_refused_before_training(tmp_path):
    config = purerl.TrainConfig(env=pairs(), **PLAIN)
    out = purerl.fit(config)  # without files it trains
    assert out.policy.step(Pair(np.zeros(1), np.float32(0.0))) in (0, 1)
    with pytest.raises(purerl.ConfigError, match="observation_space: a Pair can't be saved"):
        purerl.fit(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
