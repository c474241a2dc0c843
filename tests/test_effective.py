"""Defaults that hold: a folder has the values in force, so that another version's don't matter."""

import json
import tomllib

import pytest
from kit.runs import stop_at

import purerl
from purerl.agents import RunDefaults
from purerl.cli import Parser
from purerl.cli.flags import add_config_flags, config_from
from purerl.runs import fit as runs_fit
from purerl.runs.folder import config_text
from purerl.training.describe import describe
from purerl.training.effective import describe_in_force, filled
from purerl.training.train import program_key

CONFIGS = {
    "ppo": ("CartPole-v1", purerl.PPO(), {}),
    "gru": ("CartPole-v1", purerl.PQN(network="gru"), {"num_envs": 32}),
    "ddpg": ("Pendulum-v1", purerl.DDPG(), {}),
    "dqn": ("CartPole-v1", purerl.DQN(), {"buffer": purerl.Buffer(priority_sampling=True)}),
    "sac": ("Pendulum-v1", purerl.SAC(hidden=(8,)), {"normalize_reward": True}),
    "reinforce": ("CartPole-v1", purerl.REINFORCE(), {}),
}


def plain(description):
    return json.loads(json.dumps(description))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_has_the_values_in_force_and_gives_the_same_run(name):
    env, agent, options = CONFIGS[name]
    config = purerl.TrainConfig(env, agent, **options)
    text = config_text(config)
    read = purerl.TrainConfig.from_mapping(tomllib.loads(text))
    assert describe_in_force(read) == describe_in_force(config)
    assert (read.agent.hidden, read.agent.activation) != (None, None)
    one, other = config.make_loop(), read.make_loop()
    sizes = ("num_envs", "update_every", "first_update", "random_rollouts", "buffer", "noise")
    for field in (*sizes, "wait_end_path", "resets", "rewarder", "num_updates"):
        assert getattr(one, field) == getattr(other, field), field
    # What is written in a folder by now is one program; what was before is the same run.
    assert program_key(read) == program_key(purerl.TrainConfig.from_mapping(tomllib.loads(text)))
    assert plain(filled(plain(describe(config)), config)) == plain(describe_in_force(config))
    # A field that came later was its default before, whatever it is now.
    described = plain(describe_in_force(config))
    earlier = {name: x for name, x in described.items() if name not in ("eval_sample", "log")}
    earlier["agent"] = {name: x for name, x in described["agent"].items() if name != "gamma"}
    other = config.replace(agent=config.agent.replace(gamma=0.5), eval_sample=True)
    assert plain(filled(earlier, other)) == described


def test_networks_of_the_file_are_those_of_the_run():
    shapes = []
    config = purerl.TrainConfig("Pendulum-v1", purerl.SAC())
    for made in (config, purerl.TrainConfig.from_mapping(tomllib.loads(config_text(config)))):
        loop = made.make_loop()
        shapes.append(str(loop.agent.make(None, purerl.DefaultActor, loop.env.spec)))
    assert shapes[0] == shapes[1]


def small(**changes):
    options = {"total_timesteps": 128, "num_envs": None, "update_every": 4} | changes
    return purerl.TrainConfig("CartPole-v1", purerl.PPO(hidden=(2,), K_epochs=1), **options)


def begun(folder, config):
    with pytest.raises(purerl.Interrupted):
        purerl.fit(config, folder, callback=stop_at(2), report_every=0.0)
    return json.loads((folder / "run.json").read_text())["config"]


def test_another_version_s_defaults_make_no_other_run(tmp_path, compile_once, monkeypatch):
    config = small()
    there = begun(tmp_path / "run", config)
    assert (there["num_envs"], there["agent"]["batch_size"]) == (8, 8)
    with monkeypatch.context() as earlier:  # as a version before this one has written it
        earlier.setattr(runs_fit, "describe_in_force", describe)
        assert begun(tmp_path / "old", config)["num_envs"] is None
    for folder in ("run", "old"):
        with pytest.raises(purerl.ConfigError, match=r"config.num_envs is 8 there, got 16"):
            purerl.fit(small(num_envs=16), tmp_path / folder)
    # Named or not, they are the same.
    assert purerl.fit(small(num_envs=8), tmp_path / "old").num_updates == 4
    monkeypatch.setattr(purerl.PPO, "run_defaults", RunDefaults(num_envs=16))
    with pytest.raises(purerl.ConfigError, match=r"config.num_envs is 8 there, got 16"):
        purerl.fit(config, tmp_path / "run")
    read = purerl.TrainConfig.from_mapping(
        tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    )
    assert purerl.fit(read, tmp_path / "run").num_updates == 4


def config_of(*argv):
    parser = Parser()
    parser.add_argument("env", nargs="?")
    add_config_flags(parser, argv)
    return config_from(parser.parse(list(argv)))[0]


def test_defaults_in_a_file_hold_for_their_agent_and_rollout(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text(config_text(purerl.TrainConfig("CartPole-v1", purerl.PPO(lr=0.5))))
    options = ("--config", str(file))
    assert (same := config_of(*options)).agent.batch_size == 256
    assert (same.num_envs, same.agent.hidden, same.agent.lr) == (8, (64, 64), 0.5)
    assert config_of(*options, "--num-envs", "16").agent.batch_size is None
    assert config_of(*options, "--minibatch-size", "64").agent.batch_size == 64
    other = config_of(*options, "--agent", "dqn")
    assert (other.num_envs, other.update_every, other.agent) == (None, None, purerl.DQN())
    file.write_text("defaults = 3\nenv = 'CartPole-v1'")
    with pytest.raises(purerl.ConfigError, match="defaults: got 3, expected a table"):
        config_of(*options)
