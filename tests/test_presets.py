"""What ships as good is complete, and is found."""

import pytest

import purerl
from purerl.envs import suites
from purerl.training.presets import find_preset, list_presets

PRESETS = [(env, agent) for env, agents in list_presets().items() for agent in agents]


@pytest.mark.parametrize(("env", "agent"), PRESETS)
def test_each_makes_a_config(env, agent):
    if "/" in env and not suites.installed(env.partition("/")[0]):
        pytest.skip(f"{env.partition('/')[0]} isn't installed")
    config = purerl.preset(env, agent)
    assert config.env.spec.name == env
    assert type(config.agent) is purerl.AGENTS[agent]
    for name, value in list_presets()[env][agent].get("agent", {}).items():
        assert getattr(config.agent, name) == (tuple(value) if isinstance(value, list) else value)
    assert purerl.preset(env, agent, total_timesteps=7_000).total_timesteps == 7_000


def test_one_that_there_is_not():
    with pytest.raises(purerl.ConfigError, match="with 'ddpg'; there are those of ppo, rein"):
        purerl.preset("CartPole-v1", "ddpg")
    with pytest.raises(purerl.ConfigError, match=r"did you mean .*'CartPole-v1'"):
        purerl.preset("CartPole-v2", "ppo")
    assert find_preset("CartPole-v1", "ddpg") == {}


def test_what_is_found_is_a_copy():
    find_preset("Pendulum-v1", "ppo")["agent"]["gamma"] = 0.0
    assert find_preset("Pendulum-v1", None)["agent"]["gamma"] == 0.95
