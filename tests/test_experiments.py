"""The tour of the system says what it should; the other studies at least are complete programs."""

import ast
import importlib.util
import inspect
import json
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
    with pytest.MonkeyPatch.context() as patch:  # one imports another
        patch.syspath_prepend(EXPERIMENTS)
        spec.loader.exec_module(module)
    return module


def test_the_tour_uses_every_name_and_every_argument():
    source = (EXPERIMENTS / "seed_system.py").read_text()
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    given = {keyword.arg for call in calls for keyword in call.keywords}
    arguments = set(inspect.signature(purerl.make_loop).parameters) - {"env", "agent", "buffer"}
    assert arguments - given <= {
        "eval_env",
        "log",
        "normalize_obs",
        "normalize_reward",
        "remember_action",
        "resets",
        "stop_at_return",
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


@pytest.mark.slow
def test_results_are_measured_once_and_written_where_they_belong(tmp_path, capsys):
    results = load("results")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{results.BEGIN}\nold\n{results.END}\nafter\n")
    arguments = {"only": ["CartPole-v1 ppo"], "num_seeds": 3, "scale": 0.3}
    (first,) = results.main(**arguments, out=tmp_path / "out", readme=readme)
    assert (first.env, first.agent) == ("CartPole-v1", "ppo")
    assert first.training.shape == first.greedy.shape == first.steps.shape == (3,)
    # Of 30,000 steps: greedy policies are far better than the training's average.
    assert np.all(first.greedy > 100)
    assert np.all(first.greedy <= 500)
    text = readme.read_text()
    assert text.startswith(f"before\n{results.BEGIN}\n| environment | agent |")
    assert text.endswith(f"{results.END}\nafter\n")
    assert "| CartPole-v1 | ppo |" in text
    assert "old" not in text
    assert (tmp_path / "out" / "CartPole-v1.png").stat().st_size > 10_000
    assert "| CartPole-v1 |" in (tmp_path / "out" / "results.md").read_text()

    (again,) = results.main(**arguments, out=tmp_path / "out", readme=readme)
    np.testing.assert_array_equal(again.training, first.training)
    np.testing.assert_array_equal(again.greedy, first.greedy)
    assert again.seconds == first.seconds  # nothing was trained

    with pytest.raises(SystemExit, match="no preset has Nothing"):
        results.main(["Nothing"], out=tmp_path / "none")


@pytest.mark.slow
def test_the_score_of_defaults(tmp_path, capsys, monkeypatch):
    defaults = load("defaults")
    monkeypatch.setattr(defaults, "KINDS", {"ppo": {"Catch-bsuite": (40_000, 1.0)}})
    out = tmp_path / "scores.json"
    defaults.main(["ppo"], 3, {"lr": 2e-3}, out)
    kept = json.loads(out.read_text())
    # Random actions miss the ball mostly; what has learned catches it always.
    assert -0.8 < kept["random"]["Catch-bsuite"] < -0.2
    np.testing.assert_allclose(kept["scores"]["ppo"]["Catch-bsuite"], 1.0, atol=0.1)
    defaults.main(["ppo"], 3, {"lr": 0.0}, out)  # it can't learn, and its mode is one way to go
    assert all(x < 0.6 for x in json.loads(out.read_text())["scores"]["ppo"]["Catch-bsuite"])
    assert "of 3 runs collapsed" in capsys.readouterr().out
    assert [defaults.field(x) for x in ("lr=0.1", "hidden=[8]", "activation=relu")] == [
        ("lr", 0.1), ("hidden", [8]), ("activation", "relu")]  # fmt: skip


def test_figures_of_results():
    results = load("results")
    steps = np.array([40_000.0, np.nan, 20_000.0, 30_000.0])
    returns = np.array([1.0, 100.0, 200.0, 500.0])
    made = results.Result("CartPole-v1", "ppo", 500_000, returns, returns, steps, 12.3)
    row = dict(zip(results.COLUMNS, made.row(), strict=True))
    assert row["training"].startswith("150.0 (")  # of the middle two
    assert row["training"].endswith("[1.0]")
    assert row["reached"] == "475: 30,000 (3 of 4)"
    never = made._replace(steps=np.array([np.nan, np.nan, np.nan, 20_000.0])).row()
    assert "475: never (1 of 4)" in never


def test_the_best_returns_that_are_possible():
    """By dynamic programming over what a player can know, and the steps that are left."""
    published = load("results").PUBLISHED

    # Two arms that pay with 0.1 and 0.9: all that counts is the evidence for one of them, which
    # any pull moves by one, and the likelier arm is the best to pull.
    value = dict.fromkeys(range(-101, 102), 0.0)
    for _ in range(100):
        later = value
        value = dict.fromkeys(later, 0.0)
        for evidence in range(101):
            best = 9.0**evidence / (1.0 + 9.0**evidence)
            pays = 0.9 * best + 0.1 * (1.0 - best)
            up, down = later[evidence + 1], later[abs(evidence - 1)]
            value[evidence] = pays * (1.0 + up) + (1.0 - pays) * down
    assert f"{value[0]:.1f} at best" in published["BernoulliBandit-misc"]

    lake = "SFFFFHFHFFFHHFFG"
    moves = [(0, -1), (1, 0), (0, 1), (-1, 0)]

    def after(place, move):
        row, column = place // 4 + moves[move % 4][0], place % 4 + moves[move % 4][1]
        return 4 * min(max(row, 0), 3) + min(max(column, 0), 3)

    value = np.zeros(16)
    for _ in range(100):
        reached = np.array([x == "G" for x in lake]) + value
        value = np.array(
            [
                0.0
                if lake[place] in "HG"
                else max(
                    np.mean([reached[after(place, action + slip)] for slip in (-1, 0, 1)])
                    for action in range(4)
                )
                for place in range(16)
            ]
        )
    assert published["FrozenLake-misc"] == f"{value[0]:.3f} at best"


def test_a_table_keeps_the_rows_of_presets_that_were_not_measured_again():
    results = load("results")
    row = ["1", "2", "3", "4", "", "6", ""]
    old, gone, new = (("Breakout-MinAtar", "ppo", *row), ("No-v1", "ppo", *row),
                      ("CartPole-v1", "ppo", *row))  # fmt: skip
    had = results.table([gone, old, ("CartPole-v1", "ppo", *row[:-1], "of before")])
    assert results.merge([new], had) == [new, old]  # in the presets' order
    assert results.merge([new], results.table([])) == [new]
