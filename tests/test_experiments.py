"""The tour of the system says what it should; the other studies at least are complete programs."""

import ast
import importlib.util
import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purerl

EXPERIMENTS = pathlib.Path(__file__).parent.parent / "experiments"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tour_uses_every_name_and_every_argument():
    source = (EXPERIMENTS / "seed_system.py").read_text()
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    given = {keyword.arg for call in calls for keyword in call.keywords}
    arguments = set(inspect.signature(purerl.make_loop).parameters) - {"env", "agent", "buffer"}
    assert arguments - given <= {
        "eval_env",
        "normalize_obs",
        "normalize_reward",
        "remember_action",
        "resets",
    }
    assert {"maxlen", "priority_sampling", "gamma", "lam"} <= given
    used = set(re.findall(r"purerl\.(\w+)", source))
    assert {"Buffer", "run", "Actor", "Critic", "REINFORCE", "ActorCritic", "PPO", "DDPG"} <= used


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tour(capsys):
    results = load("seed_system").main()
    lines = capsys.readouterr().out.splitlines()
    for chapter in ("buffer", "run", "networks", "REINFORCE", "ActorCritic", "PPO", "DDPG"):
        assert any(line.startswith(chapter) for line in lines), chapter
    assert len(results) >= 7
    entries = "obs action reward next_obs terminated truncated episode value advantage"
    for entry in [*entries.split(), "reward_to_go", "td_error", "log_prob"]:
        assert any(line.startswith(f"buffer: entry {entry} ") for line in lines), entry
    curves = [re.search(r"return (\S+) at first, (\S+) at the end", line) for line in lines]
    returns = np.array([[float(x) for x in curve.groups()] for curve in curves if curve])
    assert len(returns) >= 5
    assert np.all(returns[:, 1] > returns[:, 0])


def test_the_agent_to_copy_from_trains_with_its_temperature_mapped_over():
    agent = load("own_agent").AWR()
    config = purerl.TrainConfig("CartPole-v1", agent, num_envs=2, update_every=4)
    train = jax.vmap(purerl.make_train(config), (None, 0))
    out = jax.eval_shape(train, jax.random.key(0), {"temperature": jnp.ones(3)})
    assert out.metrics.losses["policy_loss"].shape[0] == 3
    assert set(out.metrics.losses) == {"loss", "policy_loss", "value_loss"}


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.py")), ids=lambda path: path.stem)
def test_every_experiment_says_its_command(path):
    module = ast.parse(path.read_text())
    assert f"python experiments/{path.name}" in (ast.get_docstring(module) or "")
    assert hasattr(load(path.stem), "main")
