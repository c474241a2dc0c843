"""What ships as good is complete, and is found."""

import json
import sys

import pytest

import purerl
from purerl.envs import suites
from purerl.records.files import sealed
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


CODE = {
    "evaluations": 'eval_env = "evil_code:E"',
    "evaluations, a table": 'eval_env = {name = "evil_code:E", gravity = 1.0}',
    "a default": 'defaults = {eval_env = "evil_code:E", agent = {name = "ppo"}}',
    "another name": 'env_id = "evil_code:E"',
    "in place of parameters": 'env = "evil_code:E"',
}


@pytest.mark.parametrize("kind", CODE)
def test_code_that_only_a_file_names_is_not_imported(kind, command, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil_code.py").write_text("E = 3")
    file = tmp_path / "best.toml"
    file.write_text(f'["CartPole-v1".ppo]\neval_every = 1\n{CODE[kind]}\n')
    with pytest.raises(purerl.ConfigError) as caught:
        purerl.preset(file)
    code, _, err = command("train", "--preset", file, "--total-timesteps", 64)
    assert (code, err.count("\n")) == (2, 1)
    assert "evil_code" not in sys.modules
    if kind.startswith("eval"):
        assert "names evil_code:E as its eval_env, which is code; give it too" in str(caught.value)
        with pytest.raises(purerl.ConfigError, match="got 3, expected a name"):
            purerl.preset(file, eval_env="evil_code:E")
        assert "evil_code" in sys.modules
        sys.modules.pop("evil_code")


def test_code_that_only_a_config_or_a_sweeps_folder_names_is_not_imported(
    command, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil_code.py").write_text("E = 3")
    agent = 'agent = {name = "ppo"}'
    inner = f'{{eval_env = "evil_code:E", {agent}}}'
    file = tmp_path / "config.toml"
    for defaults in (inner, f"{{defaults = {inner}, {agent}}}"):
        file.write_text(f'env = "CartPole-v1"\neval_every = 1\ndefaults = {defaults}\n')
        code, _, err = command("train", "--config", file, "--total-timesteps", 64)
        assert (code, err.count("\n")) == (2, 1)
        assert "defaults: no field '" in err
    plain = {"names": ["env"], "seeds": [0], "keep_buffer": False, "config": {}}
    file.write_text('env = "CartPole-v1"')
    for name in ("env", "eval_env"):
        for value in ("evil_code:E", {"name": "evil_code:E", "gravity": 1.0}):
            about = {**plain, "names": [name], "combinations": [{name: value}]}
            (tmp_path / "sweep.json").write_text(json.dumps(sealed(about)))
            with pytest.raises(purerl.RunError, match=f"has {name}=evil_code:E, which is code"):
                purerl.load_sweep(tmp_path)
    assert "evil_code" not in sys.modules
