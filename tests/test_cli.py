"""The command: what it says, what it makes, and how it answers mistakes."""

import csv
import io
import json
import os
import pathlib
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.quick import quick_programs
from kit.trees import assert_equal
from rich.console import Console

import purerl
from purerl.cli import COMMANDS, Parser, _importing_from_here, listing, sweeping, training
from purerl.cli.flags import add_config_flags, config_from, list_flags, literal
from purerl.cli.terminal import lasting_output, new_console
from purerl.experience.metrics import Metrics
from purerl.records.files import sealed, unsealed
from purerl.runs.checkpoint import RunFolder
from purerl.runs.console import console_sink, show_curve
from purerl.runs.folder import read_summary
from purerl.runs.report import Report
from purerl.runs.view import RunView

QUICK = ("--total-timesteps", "4096", "--update-every", "32", "--no-tensorboard")


def config_of(*argv):
    parser = Parser()
    parser.add_argument("env", nargs="?")
    add_config_flags(parser, argv)
    return config_from(parser.parse(list(argv)))


def test_train_shows_a_curve_and_leaves_a_folder(command):
    argv = ("train", "CartPole-v1", "--seeds", "5,6,7", "--eval-every", 4, "--num-envs", 8, *QUICK)
    code, out, err = command(*argv)
    assert (code, err) == (0, "")
    assert "preset for CartPole-v1 and ppo: " in out
    assert "CartPole-v1, PPO, 3 seeds: 16 updates of 8 environments x 32 steps" in out
    rows = re.findall(r"^ *([\d,]+) +([\d.]+) +([\d.]+) +([\d.]+) ", out, re.M)
    assert [int(row[0].replace(",", "")) for row in rows] == [256 * n for n in range(1, 17)]
    for _, mean, low, high in rows:
        assert float(low) <= float(mean) <= float(high)
    for name in ("return", "episode length", "entropy", "approx kl", "evaluation's return"):
        assert re.search(rf"^{name} ", out, re.M)
    assert re.search(r"^compiled in [\d.]+ s", out, re.M)
    assert re.search(r"trained in [\d.]+ s: [\d,]+ steps/s", out)
    folder = pathlib.Path("runs/CartPole-v1-ppo-1")
    assert f"all of it is in {folder}/" in out
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.toml", "metrics.csv", "summary.json", "curve.png", "policies"}
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")

    # What is shown and written is what `fit` gives.
    changes = {"total_timesteps": 4096, "num_envs": 8, "update_every": 32, "eval_every": 4}
    config = purerl.preset("CartPole-v1", **changes)
    returns = np.asarray(purerl.fit(config, seeds=[5, 6, 7]).metrics.episode_return)
    mean = re.search(r"^return +([\d.]+)", out, re.M)
    newest = [seed[np.isfinite(seed)][-1] for seed in returns]
    assert float(mean[1]) == pytest.approx(np.mean(newest), rel=1e-3)
    with (folder / "metrics.csv").open() as file:
        assert len(list(csv.reader(file))) == 1 + 16 * 3
    assert tomllib.loads((folder / "config.toml").read_text())["update_every"] == 32


def test_no_episode_ended(command):
    argv = ("train", "Pendulum-v1", "--no-preset", "--total-timesteps", 64, "--no-tensorboard")
    code, out, _ = command(*argv)
    assert code == 0
    assert "no episode ended" in out


def test_videos_in_tensorboard(command, monkeypatch):
    given = []
    monkeypatch.setattr(training, "tensorboard_sink", lambda *x, **y: given.append(y) or print)
    small = ("--num-envs", 4, "--update-every", 8, "--total-timesteps", 32, "--hidden", 4)
    argv = ("train", "CartPole-v1", "--no-preset", *small, "--render-every")
    assert command(*argv, 20)[0] == 0
    assert given == [{"render_every": 20}]
    code, _, err = command(*argv, 0)
    assert (code, err) == (2, "purerl: --render-every: got 0, expected an integer >= 1\n")
    code, _, err = command(*argv, 20, "--no-tensorboard")
    assert (code, err.count("\n")) == (2, 1)
    assert "--render-every: is for TensorBoard and W&B, and got --no-tensorboard" in err
    host = [x.replace("CartPole-v1", "gymnasium/CartPole-v1") for x in map(str, argv)]
    code, _, err = command(*host, 20)
    assert code == 2
    assert "--render-every: is for environments in JAX" in err


@pytest.mark.slow
def test_interrupt_resume_eval_export_plot(command, monkeypatch):
    real = training.fit

    def interrupted(*args, callback, **options):
        def and_stop(report):
            if report.stop >= 3:
                os.kill(os.getpid(), signal.SIGINT)

        return real(*args, callback=[*callback, and_stop], **options)

    with monkeypatch.context() as patch:
        patch.setattr(training, "fit", interrupted)
        argv = ("train", "CartPole-v1", "--seeds", 2, "--report-every", 0, *QUICK[:-1])
        code, out, err = command(*argv)
    assert (code, err) == (130, "")
    assert "interrupted after 768 steps of each seed, which are saved; to continue" in out
    assert "purerl resume runs/CartPole-v1-ppo-1" in out
    folder = pathlib.Path("runs/CartPole-v1-ppo-1")
    assert json.loads((folder / "summary.json").read_text())["finished"] is False

    code, out, err = command("resume")
    assert (code, err) == (0, "")
    assert "going on after 768 steps" in out
    assert list((folder / "tensorboard").glob("seed-1/events*"))
    config = purerl.TrainConfig("CartPole-v1", total_timesteps=4096, update_every=32)
    whole = purerl.fit(config, seeds=2)
    obs = jnp.ones((3, 4))
    policy = purerl.load_policy(folder / "policies" / "seed-1.policy")
    np.testing.assert_array_equal(policy(obs), whole.member(1).policy(obs))

    code, out, _ = command("eval", folder, "--episodes", 5, "--json")
    rows = json.loads(out)
    assert [row["policy"] for row in rows] == ["seed-0", "seed-1"]
    for row in rows:
        assert row["return_mean"] == row["length_mean"]  # a reward of 1 for each step
        assert row["return_min"] <= row["return_mean"] <= row["return_max"]
    code, out, _ = command("eval", folder / "policies" / "seed-1.policy", "--episodes", 5)
    assert f"{rows[1]['return_mean']:.1f}" in out
    code, out, _ = command("eval", "--of", 1, "--episodes", 5, "--sample", "--json")
    assert json.loads(out)[0]["return_mean"] != rows[1]["return_mean"]

    assert command("export", "--of", 1)[0] == 0
    exported = jax.export.deserialize(bytearray((folder / "policy.stablehlo").read_bytes()))
    np.testing.assert_array_equal(exported.call(obs), policy.act(obs))
    assert command("render", "--max-steps", 20)[0] == 0
    assert (folder / "episode.gif").read_bytes().startswith(b"GIF")
    (folder / "curve.png").unlink()
    assert command("plot")[0] == 0
    assert command("plot", folder, folder, "--out", "two.pdf", "--x", "seconds")[0] == 0
    assert pathlib.Path("two.pdf").read_bytes().startswith(b"%PDF")
    assert (folder / "curve.png").exists()


def test_sweep_shows_the_best_and_leaves_a_table(command):
    code, out, err = command(
        *("sweep", "CartPole-v1", "--grid", "lr=0.0,1e-3", "--seeds", 2),
        *("--total-timesteps", 2048, "--update-every", 32, "--run-dir", "swept"),
        *("--metrics", "curves.csv"),
    )
    assert (code, err) == (0, "")
    with open("swept/table.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(float(r["lr"]), int(r["seed"])) for r in rows] == [
        (0, 0),
        (0, 1),
        (1e-3, 0),
        (1e-3, 1),
    ]
    assert pathlib.Path("swept/sweep.png").exists()
    assert re.search(r"lr", out)
    # Its best agents can be had, and its curve drawn among those of runs.
    returns = {(float(r["lr"]), int(r["seed"])): float(r["final_return"]) for r in rows}
    lr = max((0, 1e-3), key=lambda lr: np.mean([returns[lr, seed] for seed in (0, 1)]))
    seed = max((0, 1), key=lambda seed: returns[lr, seed])
    code, out, _ = command("render", "swept", "--max-steps", 3)
    assert code == 0
    assert f"swept: the best of the sweep, lr={lr:.4g}, seed {seed}\n" in out
    code, out, _ = command("eval", "swept", "--episodes", 2)
    assert code == 0
    assert re.search(rf"best of the sweep, lr={lr:.4g}\n(.*\n)+seed-0 .*\nseed-1 ", out)
    best = purerl.load_policy(f"swept/best/policies/seed-{seed}.policy")
    assert float(best.agent.lr) == np.float32(lr)
    curves = purerl.read_run("swept")
    assert curves.name == f"PPO on CartPole-v1, best: lr={lr:.4g}"
    assert curves.final_returns[seed] == pytest.approx(returns[lr, seed], rel=1e-5)
    pathlib.Path("notes").mkdir()
    code, out, err = command("plot", "swept", "notes", "--out", "all.png")
    assert (code, out) == (0, "all.png\n")
    assert err.startswith("purerl: left out: notes is no run's folder")
    assert command("plot", "swept", "nowhere", "--out", "all.png")[0] == 1
    code, _, err = command("resume", "swept")
    assert (code, "purerl sweep continues it" in err) == (1, True)
    members_are_chosen(command, returns)
    shutil.rmtree("swept/best")  # as a kill leaves it
    code, _, err = command("eval", "swept")
    assert (code, "swept holds a sweep without a best agent" in err) == (1, True)
    assert command("export", "swept", "--member", "0", "--out", "one.stablehlo")[0] == 0


def members_are_chosen(command, returns):
    """Of the sweep in `swept`, with these final returns by learning rate and seed."""
    with open("curves.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["member"]) for row in rows] == sorted(8 * [0, 1, 2, 3])
    assert {(row["lr"], row["seed"], row["timesteps"]) for row in rows[-8:]} == {
        ("0.001", "1", str(256 * (i + 1))) for i in range(8)
    }
    before = contents("swept")
    code, out, _ = command("eval", "swept", "--member", "lr=1e-3", "--episodes", 2, "--json")
    assert code == 0
    order = sorted((1, 0), key=lambda seed: -returns[1e-3, seed])
    assert [x["policy"] for x in json.loads(out)] == [f"lr=0.001, seed={x}" for x in order]
    code, out, _ = command("render", "swept", "--member", 1, "--max-steps", 3, "--out", "a.gif")
    assert (code, "swept: lr=0, seed=1\n" in out) == (0, True)
    assert command("plot", "swept", "--member", "lr=0", "--out", "a.png")[0] == 0
    assert command("plot", "swept", "--slices", "--out", "b.png")[0] == 0
    for which, message in (
        ("4", "got 4, expected 0 to 3"),
        ("lr=2", "no lr=2; there are 0, 0.001"),
        ("rl=2", "known: seed, lr"),
        ("worst", "expected best, a row, or NAME=VALUE"),
    ):
        code, _, err = command("eval", "swept", "--member", which)
        assert (code, message in err) == (2, True), err
    code, _, err = command("eval", "swept", "--member", "0", "--of", "1")
    assert (code, "takes the seed" in err) == (2, True)
    assert contents("swept") == before


def test_a_sweep_that_is_interrupted_names_its_folder(command, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeping, "sweep", interrupted)
    code, out, err = command("sweep", "CartPole-v1", "--grid", "lr=0.0,1e-3")
    assert (code, err) == (130, "")
    line = "sweep CartPole-v1 --grid lr=0.0,1e-3 --run-dir runs/CartPole-v1-ppo-sweep-1"
    assert f"to continue:\n  purerl {line}\n" in out
    assert f"to continue:\n  purerl {line}\n" in command(*line.split())[1]


def test_lists(command):
    code, out, _ = command("envs")
    assert code == 0
    for name in purerl.env_names():
        assert name in out
    assert re.search(r"CartPole-v1 +\(4,\) +Discrete\(2\) +500", out)
    assert re.search(r"MNISTBandit-bsuite +it wants to", out)
    _, out, _ = command("envs", "CartPole-v1")
    assert "CartPole-v1: observations Box(4,), actions Discrete(2), time limit 500\n" in out
    assert re.search(r"--env.gravity +9.8 +hyperparameter", out)
    _, out, _ = command("agents")
    assert all(name in out for name in purerl.AGENTS)
    _, out, _ = command("agents", "dqn")
    assert "--target-update-every" in out
    assert re.search(r"--hidden +64,64 ", out)
    _, out, _ = command("agents", "ppo", "--env", "CartPole-v1")
    in_force = {"num-envs": "8", "batch-size": "128", "total-timesteps": "100000,"}
    for word, value in in_force.items():
        assert re.search(rf"--{word} +{value}", out), word
    _, out, _ = command("presets", "Pendulum-v1")
    assert "normalize_obs=True" in out
    assert "Acrobot" not in out


def test_bench_measures(command):
    argv = ("bench", "CartPole-v1", "--total-timesteps", 1024, "--repeats", 2)
    code, out, _ = command(*argv)
    assert code == 0
    assert re.search(r"PPO, 1 seed: [\d,]+ steps/s over all seeds \(median of 2", out)


OWN = """
import jax.numpy as jnp, purerl
def make():
    env = purerl.make("CartPole-v1")
    return env
def broken():
    env = purerl.make("CartPole-v1")
    return env._replace(reset=lambda key: (jnp.zeros(3), env.reset(key)[1]))
"""


def test_an_environment_of_ones_own(command, monkeypatch):
    pathlib.Path("mine.py").write_text(OWN)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    # As of the installed command: the working directory is not on the path.
    here = ("", str(pathlib.Path.cwd()))
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in here])
    assert command("check-env", "mine:make")[:2] == (
        0,
        "mine:make is right: observations Box(4,), actions Discrete(2), time limit 500\n",
    )
    for quick in ((), ("--quick",)):
        code, _, err = command("check-env", "mine:broken", *quick)
        assert code == 1
        assert "mine:broken: reset: the observation has shape (3,)" in err
        assert err.count("\n") == 1
    code, _, err = command("train", "mine:broken")  # as `check-env` has it
    assert (code, err.count("\n")) == (1, 1)
    assert "reset: the observation has shape (3,)" in err
    assert command("train", "mine:make", "--run-dir", "own", *QUICK)[0] == 0
    code, _, err = command("eval", "own")  # a folder doesn't say which code is run
    assert (code, err) == (2, "purerl: --env: expected --env mine:make, whose code is yours\n")
    assert command("eval", "own", "--env", "mine:make", "--episodes", 2)[0] == 0
    code, _, err = command("resume", "own")
    assert (code, err) == (
        2,
        "purerl: --env: expected --env mine:make, whose code this run needs\n",
    )
    assert command("resume", "own", "--env", "mine:make")[0] == 0
    # Killed, its policy comes out of the checkpoint, which takes the environment.
    forget_the_end("own")
    code, _, err = command("eval", "own")
    assert (code, err) == (2, "purerl: --env: expected --env mine:make, whose code is yours\n")
    assert command("eval", "own", "--env", "mine:make", "--episodes", 2)[0] == 0
    assert "" not in sys.path


def forget_the_end(folder):
    """A run's folder as a kill leaves it: without what is written at the end."""
    folder = pathlib.Path(folder)
    (folder / "summary.json").unlink()
    shutil.rmtree(folder / "policies")


def test_code_that_a_file_names_is_not_run(command, monkeypatch):
    module = "import pathlib; pathlib.Path('it_ran').touch()\nfrom mine_too import make\n"
    pathlib.Path("bomb.py").write_text(module)
    pathlib.Path("c.toml").write_text('env = "bomb:make"\n')
    pathlib.Path("d.toml").write_text('env_name = "bomb:make"\n')  # under an alias
    monkeypatch.syspath_prepend(str(pathlib.Path.cwd()))
    for line in (
        "train --config d.toml",
        "train --config c.toml",
        "bench --config c.toml",
        "sweep --grid lr=1,2 --config c.toml",
    ):
        code, _, err = command(*line.split())
        assert code == 2
        expected = "ENV: missing, expected bomb:make on the command line as well: "
        assert expected in err
    assert not pathlib.Path("it_ran").exists()
    code, _, err = command("train", "bomb:make", "--config", "c.toml")
    assert (code, pathlib.Path("it_ran").exists()) == (2, True)
    assert "can't import 'bomb'" in err


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a small run of two seeds."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    options = {"num_envs": 8, "update_every": 32, "eval_every": 3, "eval_max_episodes": 2}
    config = purerl.TrainConfig("CartPole-v1", purerl.PPO(hidden=(4,)), 1024, **options)
    with quick_programs():
        purerl.fit(config, folder, seeds=[3, 5])
    return folder


@pytest.fixture
def ran(finished, tmp_path, monkeypatch):
    """A copy of it, in the folder where `command` runs."""
    monkeypatch.chdir(tmp_path)
    return pathlib.Path(shutil.copytree(finished, tmp_path / "ran")).relative_to(tmp_path)


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in pathlib.Path(folder).rglob("*")}


def test_a_config_file_that_says_another_length_is_not_believed(command, ran):
    text = (ran / "config.toml").read_text()
    (ran / "config.toml").write_text(
        text.replace("total_timesteps = 1024", "total_timesteps = 9024")
    )
    code, _, err = command("resume", ran)
    assert code != 0
    assert "total_timesteps=9024, and the run 1024: --total-timesteps N says" in err


def test_resume_where_the_optimizers_state_has_empty_arrays(command, tmp_path):
    """REINFORCE without a baseline: Adam of no parameters."""
    agent = purerl.REINFORCE(hidden=(4,), n_episodes=4, episode_length=32)
    config = purerl.TrainConfig("CartPole-v1", agent, total_timesteps=1024)

    def stop(report):
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(purerl.Interrupted):
        purerl.fit(config, tmp_path / "run", seeds=1, callback=stop)
    code, out, err = command("resume", "run", "--no-tensorboard")
    assert (code, err) == (0, "")
    assert "all of it is in run" in out


def test_a_run_on_its_way_is_read(command, ran):
    policies = RunView(ran).policies([3, 5])
    bests, returns = RunView(ran).policies([3, 5], best=True), RunView(ran).best_returns()
    assert [int(x.num_updates) for x in (policies[5], bests[5])] == [4, 3]
    curves = purerl.read_run(ran)
    best = RunView(ran).best_seed()
    forget_the_end(ran)
    with RunFolder(ran, keep=3):  # as the process that trains there holds it
        before = contents(ran)
        found = RunView(ran).policies([3, 5])
        assert_equal(RunView(ran).policies([3, 5], best=True)[5].state, bests[5].state)
        assert_equal(purerl.load_run(ran).member(1).best_policy.state, bests[5].state)
        assert RunView(ran).best_returns() == returns
        assert contents(ran) == before
        assert command("eval", ran, "--of", 5, "--episodes", 2)[0] == 0
        assert command("plot", ran)[1] == "ran/curve.png\n"
        assert command("export", ran)[1] == "ran/policy.stablehlo\n"
    for seed, policy in policies.items():
        assert found[seed].interface == policy.interface
        for x, y in zip(*map(jax.tree.leaves, (found[seed], policy)), strict=True):
            np.testing.assert_array_equal(x, y)
    again = purerl.read_run(ran)
    assert again.name == curves.name == "PPO on CartPole-v1"
    np.testing.assert_array_equal(again.returns, curves.returns)
    assert RunView(ran).best_seed() == best


def test_policies_of_an_interrupted_run_that_went_on_are_of_its_checkpoint(ran):
    policy = purerl.load_policy(ran / "policies" / "seed-3.policy")
    summary(reached_update=2)(ran)
    for file in (ran / "policies").iterdir():
        file.write_text("older")
    (found,) = RunView(ran).policies([3]).values()
    for x, y in zip(*map(jax.tree.leaves, (found, policy)), strict=True):
        np.testing.assert_array_equal(x, y)


def test_what_is_missing_is_said(command, ran):
    forget_the_end(ran)
    text = (ran / "config.toml").read_text()
    (ran / "config.toml").write_text(text.replace("gamma = 0.99", "gamma = 0.5"))
    code, _, err = command("eval", ran)
    assert code == 1
    assert "isn't all in its config.toml (agent.gamma is 0.99 there, got 0.5)" in err
    shutil.rmtree(ran / "checkpoints")
    code, _, err = command("eval", ran)
    assert (code, err) == (
        1,
        "purerl: ran has no policies and no checkpoint yet: purerl resume ran trains and writes "
        "them\n",
    )
    (ran / "metrics.csv").unlink()
    code, _, err = command("plot", ran)
    assert code == 1
    assert "ran has no metrics.csv: nothing was reported yet" in err


def summary(**changes):
    def change(folder):
        file = folder / "summary.json"
        file.write_text(json.dumps(sealed(unsealed(file.read_text()) | changes)))

    return change


def run_json(**changes):
    def change(folder):
        forget_the_end(folder)
        file = folder / "run.json"
        file.write_text(json.dumps(sealed(unsealed(file.read_text()) | changes)))

    return change


def put(name, text):
    return lambda folder: (folder / name).write_text(text)


def pipe(name):
    def change(folder):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def alone(change):
    """Of a folder without run.json, whose time limit and frame skip are taken where it is there."""

    def change_all(folder):
        (folder / "run.json").unlink()
        change(folder)

    return change_all


def swapped(file):
    """The text with the returns of the two seeds exchanged."""
    text = file.read_text()
    first, second = json.loads(text)["final_return"]["by_seed"]
    return text.replace(str(first), "@").replace(str(second), str(first)).replace("@", str(second))


WRONG = {
    "a list": put("summary.json", "[]"),
    "a number": put("summary.json", "7"),
    "deep": put("summary.json", "[" * 100_000),
    "no UTF-8": lambda folder: (folder / "summary.json").write_bytes(b"\xff\xfe{"),
    "seeds": summary(seeds=["3", None]),
    "no seeds": summary(seeds=[]),
    "seeds, a number": summary(seeds=5),
    "returns": summary(final_return=3),
    "fewer returns": summary(final_return={"by_seed": [1.0]}),
    "returns of words": summary(final_return={"by_seed": ["a", "b"]}),
    "agent": summary(agent=3),
    "env": summary(env=None),
    "run's seeds": run_json(seeds="abc"),
    "run's hyperparams": run_json(hyperparams=3),
    "run's config": run_json(config=[1]),
    "run's env": run_json(config={"env": 3, "agent": "PPO"}),
    "checksum": lambda folder: put("summary.json", swapped(folder / "summary.json"))(folder),
    "run, a list": put("run.json", "[]"),
    "summary, a pipe": pipe("summary.json"),
    "config, a pipe": alone(pipe("config.toml")),
    "config": alone(put("config.toml", "env = ")),
    "frames": alone(put("config.toml", 'skip_frames = "two"')),
    "limit": alone(put("config.toml", "max_episode_steps = 0")),
    "policy": put("policies/seed-3.policy", "hello"),
    "policy, a pipe": pipe("policies/seed-3.policy"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_folders_of_wrong_types(kind, command, ran):
    WRONG[kind](ran)
    code, _, err = command("render", ran, "--max-steps", 3)
    assert code in (1, 2)
    assert err.startswith("purerl: ")
    assert err.count("\n") == 1
    assert "TRACEBACK" not in err
    if kind.startswith("run"):
        code, _, err = command("resume", ran)
        assert code in (1, 2)
        assert (err.count("\n"), "TRACEBACK" in err) == (1, False)


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(command, ran):
    for name in ("config.toml", "run.json"):
        pipe(name)(ran)
        code, _, err = command("resume", ran)
        assert code == 1
        assert (err.count("\n"), "it is a pipe" in err) == (1, True)
    pipe("summary.json")(ran)
    with pytest.raises(purerl.RunError, match="it is a pipe"):
        read_summary(ran)
    pipe("metrics.csv")(ran)
    metrics = quick_metrics([1.0])
    with pytest.raises(purerl.RunError, match="it is a pipe"):
        purerl.csv_sink(ran / "metrics.csv")(Report(1, 2, 2, 8, metrics, 1.0, 1.0))


def test_strays_are_nobodys_policies(command, ran):
    for name in ("seed-x.policy", "seed-99.policy", "seed-.policy", "notes.txt"):
        (ran / "policies" / name).write_text("hello")
    (ran / "policies" / "seed-4.policy").mkdir()
    code, out, _ = command("eval", ran, "--episodes", 2, "--json")
    assert code == 0
    assert [row["policy"] for row in json.loads(out)] == ["seed-3", "seed-5"]


@pytest.mark.parametrize("known", ["run.json", "summary.json"])
def test_damaged_metrics_are_no_curves(known, ran):
    """Digits that became others, and rows that are gone, also where the end is not the newest."""
    curves = purerl.read_run(ran)
    good = (ran / "metrics.csv").read_text()
    if known == "summary.json":  # the table of a run that was interrupted, and then went on
        rows = good.splitlines(keepends=True)
        last = rows[-1].split(",")
        for seed in ("3", "5"):
            more = [seed, str(int(last[1]) + 1), str(int(last[2]) + 256), *last[3:]]
            good += ",".join(more)
        (ran / "metrics.csv").write_text(good)
        again = purerl.read_run(ran)
        np.testing.assert_array_equal(again.returns[:, :-1], curves.returns)
    digits = [i for i, x in enumerate(good) if x.isdigit()]
    rng = np.random.default_rng(0)
    read = columns_of_curves(good)
    for place in rng.choice(digits, 60, replace=False):
        digit = str((int(good[place]) + 1) % 10)
        bad = good[:place] + digit + good[place + 1 :]
        (ran / "metrics.csv").write_text(bad)
        if known == "run.json" and columns_of_curves(bad) != read:
            with pytest.raises(purerl.RunError, match=r"metrics\.csv is damaged: "):
                purerl.read_run(ran)
    (ran / "metrics.csv").write_text("".join(good.splitlines(keepends=True)[:5]))
    with pytest.raises(purerl.RunError, match="it has 2 rows of each seed, expected 4"):
        purerl.read_run(ran)


def columns_of_curves(text):
    rows = list(csv.DictReader(text.splitlines()))
    names = ("seed", "update", "num_episodes")
    # Returns as float32: a last digit may change and the number not. Of the seeds, the first one's
    # time is everybody's.
    returns = [repr(np.float32(row["episode_return"] or "nan")) for row in rows]
    columns = [[row[n] for n in names] + [row["timesteps"] * (row["seed"] == "3")] for row in rows]
    return list(zip(returns, columns, strict=True))


def test_damaged_bytes_raise_nothing_else(ran):
    rng = np.random.default_rng(0)
    names = ("summary.json", "run.json", "config.toml", "metrics.csv")
    refused = 0
    for name in names * 40:
        good = (ran / name).read_bytes()
        place, bit = rng.integers(len(good)), rng.integers(8)
        bad = good[:place] + bytes([good[place] ^ 1 << bit]) + good[place + 1 :]
        (ran / name).write_bytes(bad if rng.random() < 0.7 else good[:place])
        try:
            purerl.read_run(ran)
            RunView(ran).best_seed()
            RunView(ran).read_config()
        except (purerl.RunError, purerl.ConfigError):
            refused += 1
        (ran / name).write_bytes(good)
    assert 40 < refused < 160


def test_paths_are_printed_as_they_are(command, ran):
    folder = pathlib.Path("a[/b]:cat:")
    folder.parent.mkdir()
    ran.rename(folder)
    assert command("plot", folder)[1] == "a[/b]:cat:/curve.png\n"
    code, _, err = command("plot", "x[/b]")
    assert (code, err.split(" is ")[0]) == (1, "purerl: x[/b]")
    config = purerl.TrainConfig("CartPole-v1")
    shown = io.StringIO()
    with console_sink(config, 1, folder, Console(file=shown, highlight=False)):
        pass
    assert "-> a[/b]:cat:/\n" in shown.getvalue()


def test_an_ascii_terminal(monkeypatch):
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, "ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    metrics = quick_metrics([1.0, 2.0, 4.0])
    with lasting_output():
        console = new_console()
        show_curve(console, metrics, 10 * np.arange(1, 4))
        console.print("é/[b]")
        print("é")
        sys.stdout.flush()
    shown = written.getvalue().decode("ascii")
    assert "\\xe9/[b]\n\\xe9\n" in shown
    assert "#" * 40 in shown


def quick_metrics(returns):
    """Metrics of one seed or several, an episode an update; none where a return is NaN."""
    returns = np.array(returns, np.float32)
    fields = dict.fromkeys(set(Metrics._fields) - {"losses", "eval", "info", "log"}, returns)
    counts = {
        "num_episodes": np.isfinite(returns).astype(np.int32),
        "nonfinite_updates": np.zeros(returns.shape, np.int32),
    }
    return Metrics(**{**fields, **counts, "losses": {"loss": -returns}, "eval": None})


def test_a_seed_that_has_ended_counts_with_its_last_values():
    nan = np.nan
    metrics = quick_metrics([[1, 8, nan, nan], [1, 2, nan, 4], [1, 2, 3, 6]])
    shown = io.StringIO()
    show_curve(Console(file=shown, width=200), metrics, 10 * np.arange(1, 5))
    rows = re.findall(r"^ *(\d+) +([\d.]+) +([\d.]+) +([\d.]+) ", shown.getvalue(), re.M)
    assert [row[1:] for row in rows] == [
        ("1.0", "1.0", "1.0"),
        ("4.0", "2.0", "8.0"),
        ("4.3", "2.0", "8.0"),
        ("6.0", "4.0", "8.0"),
    ]
    assert re.search(r"^return +6 +4 +8 *$", shown.getvalue(), re.M)
    assert re.search(r"^loss +-6 +-8 +-4 *$", shown.getvalue(), re.M)


def test_a_terminal_that_is_gone(monkeypatch):
    terminal, its_end = pty.openpty()
    with open(its_end, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with lasting_output():
            print("seen", flush=True)
            os.close(terminal)
            for _ in range(3):
                print("lost", flush=True)
            new_console().print("lost")


@pytest.mark.release
def test_training_outlives_its_terminal(tmp_path):
    terminal, its_end = pty.openpty()
    code = (
        "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
        "os.execv(sys.executable, [sys.executable, '-m', *sys.argv[1:]])"
    )
    line = (
        f"purerl train CartPole-v1 --run-dir {tmp_path}/run --total-timesteps 3e5 --no-tensorboard"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *line.split()], stdout=its_end, stderr=its_end, stdin=its_end
    )
    os.close(its_end)
    shown = b""
    while b"steps each" not in shown:
        shown += os.read(terminal, 4096)
    os.close(terminal)
    assert process.wait(250) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["finished"]


def test_an_error_that_nobody_foresaw(command, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device", "runs")

    monkeypatch.setattr(listing, "run_envs", fail)
    assert command("envs") == (1, "", "purerl: runs: No space left on device\n")
    monkeypatch.setattr(listing, "run_envs", lambda *_: {}["x"])
    code, _, err = command("envs")
    assert code == 1
    assert re.fullmatch(r"purerl: KeyError: 'x' \(in .*test_cli.py, line \d+\); .*\n", err)
    monkeypatch.setenv("PURERL_TRACEBACK", "1")
    with pytest.raises(KeyError):
        command("envs")


def test_the_newest_is_a_sweep_too(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for age, name in ((300, "old/run.json"), (100, "new/sweep.json"), (200, "mid/run.json")):
        file = pathlib.Path("runs", name)
        file.parent.mkdir(parents=True)
        file.write_text("{}")
        os.utime(file, (time.time() - age,) * 2)
    assert training.newest_run() == pathlib.Path("runs/new")
    pathlib.Path("runs/old/metrics.csv").write_text("")
    assert training.newest_run() == pathlib.Path("runs/old")


def test_every_field_is_a_flag():
    flags = list_flags({"agent": "ppo", "noise": None, "rewarder": None})
    words = [flag.word for flag in flags]
    assert len(set(words)) == len(words)
    assert {"--lr", "--num-envs", "--k-epochs", "--noise.theta", "--buffer.maxlen"} <= set(words)
    config, _ = config_of(
        *("CartPole-v1", "--num-envs", "4", "--lr", "0.002", "--gamma", "0.5", "--no-anneal"),
        *("--hidden", "32,16", "--activation", "relu", "--target-kl", "none", "--normalize-obs"),
        *("--total-timesteps", "1e4"),
    )
    assert config.num_envs == 4
    assert config.total_timesteps == 10_000
    assert config.normalize_obs is True
    assert config.agent == purerl.PPO(
        lr=0.002, gamma=0.5, anneal=False, K_epochs=10, hidden=(32, 16), activation="relu"
    )
    config, _ = config_of(
        *(
            "Pendulum-v1",
            "--agent",
            "DDPG",
            "--noise",
            "ornstein_uhlenbeck",
            "--noise.sigma",
            "0.3",
        ),
        *("--rewarder", "scale", "--rewarder.factor", "0.1", "--buffer.priority-sampling"),
    )
    assert config.agent == purerl.DDPG()
    assert config.noise == purerl.OrnsteinUhlenbeckNoise(sigma=0.3)
    assert config.rewarder == purerl.Scale(0.1)
    assert config.buffer.priority_sampling


def test_flags_come_over_the_file_and_the_file_instead_of_the_preset(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text(
        'env = "Pendulum-v1"\nnum_envs = 4\n[agent]\nname = "ppo"\nlr = 0.1\nlam = 0.5\n'
    )
    config, preset = config_of("--config", str(file), "--lr", "0.2")
    assert preset == {}
    assert (config.env.spec.name, config.num_envs) == ("Pendulum-v1", 4)
    assert config.agent == purerl.PPO(lr=0.2, lam=0.5)
    config, preset = config_of("Pendulum-v1", "--gamma", "0.9")
    assert preset
    assert config.agent == purerl.PPO(gamma=0.9, entropy_beta=0.0)
    assert config.num_envs == 16
    config, preset = config_of("Pendulum-v1", "--no-preset")
    assert (config.agent, preset) == (purerl.PPO(), {})
    # Another agent than the file's takes nothing of it.
    config, _ = config_of("CartPole-v1", "--config", str(file), "--agent", "dqn")
    assert config.agent == purerl.DQN()


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("4", 4), ("true", True), ("None", None), ("relu", "relu"), ("1,2", [1, 2])],
)
def test_literals(text, value):
    assert literal(text) == value
    assert type(literal(text)) is type(value)


def test_negative_numbers_are_values():
    for text, value in (("-1e3", -1000.0), ("-1_000", -1000.0), ("-2E-1", -0.2)):
        assert config_of("CartPole-v1", "--stop-at-return", text)[0].stop_at_return == value


@pytest.mark.parametrize("word", ["mine:E", "--env=mine:E", "--eval-env=mine:E"])
def test_an_environment_of_the_working_directory_is_found(word, monkeypatch):
    monkeypatch.setattr(sys, "path", [x for x in sys.path if x])
    with _importing_from_here(["train", word]):
        assert sys.path[0] == ""
    assert "" not in sys.path


def test_an_interrupt_that_came_with_the_end(command, ran, monkeypatch):
    real = training.fit

    def late(*args, **options):
        error = purerl.Interrupted("late")
        error.output = real(*args, **options)
        raise error

    monkeypatch.setattr(training, "fit", late)
    code, out, err = command("resume", ran, "--no-tensorboard")
    assert (code, err) == (130, "")
    assert "interrupted when the run had finished; all of it is in ran/\n" in out


MISTAKES = [
    ("trian CartPole-v1", "no command 'trian'; did you mean 'train'"),
    ("train CartPol-v1", "no environment 'CartPol-v1'; did you mean 'CartPole-v1'"),
    ("train CartPole-v1 --agent poo", "no agent 'poo'; did you mean 'ppo'"),
    ("train CartPole-v1 --seeds 0", "--seeds: got '0', expected a number >= 1"),
    ("train CartPole-v1 --seeds two", "--seeds: got 'two'"),
    ("train CartPole-v1 --sedes 2", "no flag '--sedes'; did you mean '--seeds'"),
    ("train CartPole-v1 --learnin-rate 1", "no flag '--learnin-rate'; did you mean '--lr'"),
    ("train CartPole-v1 --num-env 4", "no flag '--num-env'; did you mean '--num-envs'"),
    ("train CartPole-v1 --total-timesteps lots", "total_timesteps: got 'lots'"),
    ("train CartPole-v1 --lr fast", "PPO.lr: got 'fast', expected a float"),
    ("train CartPole-v1 --lr", "argument --lr: expected one argument"),
    ("train CartPole-v1 lr=1", "unexpected argument 'lr=1'; expected flags"),
    ("train CartPole-v1 --noise gauss", "no noise 'gauss'; did you mean 'gaussian'"),
    ("train CartPole-v1 --config nowhere.toml", "can't read nowhere.toml: No such file"),
    ("train CartPole-v1 --config /dev/zero", "can't read /dev/zero: it is a device, expected a"),
    ("train nowhere:Env", "can't import 'nowhere' of 'nowhere:Env'"),
    ("train", "ENV: missing, expected an environment"),
    ("train CartPole-v1 --gravity 1.6", "listed by --help, the environment's by purerl envs ENV"),
    ("sweep CartPole-v1 --grid learnin_rate=1,2", "did you mean 'lr'"),
    ("sweep CartPole-v1 --grid gravity=4.9,9.8", "did you mean 'env.gravity'?"),
    ("sweep CartPole-v1 --grid env.gravty=4.9,9.8", "did you mean 'env.gravity'"),
    ("sweep CartPole-v1 --samples lr=loguniform(1,2)", "did you mean 'log_uniform'"),
    ("sweep CartPole-v1", "--grid: missing"),
    ("sweep CartPole-v1 --grid lr=1 --grid lr=2", "--grid: lr is there twice, with 1 and 2; expe"),
    ("sweep CartPole-v1 --grid num-envs=4 --grid num_envs=8", "--grid: num_envs is there twice"),
    ("sweep CartPole-v1 --grid lr=1 --grid learning_rate=2", "are the same field"),
    ("sweep CartPole-v1 --grid agent.lr=1 --grid lr=2", "are the same field"),
    (
        "sweep CartPole-v1 --samples lr=uniform(0,1) --samples lr=uniform(1,2)",
        "--samples: lr is th",
    ),
    ("tune CartPole-v1 --space lr=1,2 --space lr=3,4", "--space: lr is there twice, with 1,2 and"),
    ("evolve CartPole-v1 --range lr=uniform(0,1) --range lr=uniform(1,2)", "--range: lr is there"),
    ("train CartPole-v1 --hidden -1,-2", "PPO.hidden: got [-1, -2], expected"),
    ("plot --x hours", "--x: got 'hours', expected steps or seconds"),
    ("plot a b --compare --x seconds", "--x: got 'seconds', expected without --compare"),
    ("plot a --slices --y return", "--y: got 'return', expected without --slices"),
    ("plot a --slices --x steps", "--x: got 'steps', expected without --slices"),
    ("plot a --slices --member 0", "--member: got '0', expected without --slices"),
    ("plot a --env mine:E", "--env: is for --slices and --member of a sweep"),
    ("export a --env.gravity 3", "no flag '--env.gravity'"),
    ("agents --env CartPole-v1", "--env: got 'CartPole-v1', expected with an AGENT"),
    ("agents dqm", "no agent 'dqm'; did you mean 'dqn'"),
    ("presets Acrobat-v1", "did you mean 'Acrobot-v1'"),
    ("eval nowhere --episodes 0", "--episodes: got 0, expected an integer >= 1"),
    ("eval nowhere --episodes 1000000000000", "--episodes: got 1000000000000, expected at most"),
    (f"eval nowhere --key {2**70}", "--key: got 1.18e+21, expected at most 4,294,967,295"),
    ("render nowhere --key -1", "--key: got -1, expected an integer >= 0"),
    ("render nowhere --max-steps 0", "--max-steps: got 0, expected an integer >= 1"),
    ("train CartPole-v1 --num-envs 1e9", "num_envs=1,000,000,000 x update_every=64 of 1 agent ta"),
    ("train CartPole-v1 --num-envs 1e7 --seeds 1000", "num_envs=10,000,000 x update_every=64 of"),
    ("bench CartPole-v1 --num-envs 1e7 --seeds 1000", "num_envs=10,000,000 x update_every=64 of"),
    ("train CartPole-v1 --seeds 1000000000", "--seeds: got 1000000000, expected at most 1,048,576"),
    (f"train CartPole-v1 --seeds 1,{2**40}", f"--seeds: got '1,{2**40}'"),
]


@pytest.mark.parametrize(("line", "message"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_mistakes_are_one_line_and_exit_code_2(line, message, command):
    if line.startswith("plot"):
        pathlib.Path("runs/x").mkdir(parents=True)
        pathlib.Path("runs/x/run.json").write_text("{}")
        pathlib.Path("runs/x/lock").write_text("")
    code, out, err = command(*line.split())
    assert code == 2
    assert out == ""
    assert message in err
    assert err.startswith("purerl: ")
    assert err.count("\n") == 1
    assert not list(pathlib.Path("runs").glob("*-ppo-*"))  # no folder of a run that never began


FAILURES = [
    ("eval nowhere", "nowhere is no run's folder: there is no such folder"),
    ("plot file", "file is no run's folder: it is a file"),
    ("eval file", "file is damaged, or no policy that save_policy wrote"),
    ("eval pipe", "the policy pipe can't be read: it is a pipe, expected a file"),
    ("sweep CartPole-v1 --grid lr=1,2 --run-dir file/run", "run_dir: can't write into "),
    ("eval", "there is no run in runs/"),
    ("resume .", ". is no run's folder: it has no run.json"),
    ("plot .", "no run's folder"),
    ("train CartPole-v1 --run-dir file/run", "run_dir: can't write into"),
]


@pytest.mark.parametrize(("line", "message"), FAILURES, ids=[line for line, _ in FAILURES])
def test_what_fails_is_one_line_and_exit_code_1(line, message, command):
    pathlib.Path("file").write_text("")
    os.mkfifo("pipe")
    code, _, err = command(*line.split())
    assert code == 1
    assert message in err
    assert err.count("\n") == 1


def test_help_teaches(command, capsys):
    code, out, _ = command("--help")
    assert code == 0
    for name, (_, text) in COMMANDS.items():
        assert f"{name} " in out
        assert text in out
        with pytest.raises(SystemExit) as stop:
            command(name, "--help")
        assert stop.value.code == 0
        assert capsys.readouterr().out.startswith("usage: purerl")
    with pytest.raises(SystemExit):
        command("train", "--agent", "dqn", "--help")
    out = capsys.readouterr().out
    assert "Examples:\n  purerl train CartPole-v1 --seeds 8\n" in out
    assert "(100000)" in out  # transitions in its buffer
    shown = r"--target-update-every N\s+gradient steps between updates of the target\s+network"
    assert re.search(shown, out)


def test_every_flag_is_explained():
    for agent in purerl.AGENTS:
        parser = Parser()
        add_config_flags(parser, ["--agent", agent])
        for action in parser._actions:
            assert action.help.strip(), action.option_strings
            assert not re.search(r"MISSING| at 0x|<function", action.help), action.help


def run_alone(*argv, **environment):
    ours = ("XLA_FLAGS", "JAX_")  # what the tests have set
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    command = [sys.executable, "-m", "purerl", *argv]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=250, env=env | environment
    )


@pytest.mark.slow
def test_the_second_run_finds_its_program(tmp_path):
    argv = ("train", "CartPole-v1", *QUICK, "--run-dir")

    def compiled(name):
        """Sizes of the programs that are kept after a run."""
        place = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        done = run_alone(*argv, str(tmp_path / name), **place)
        assert (done.returncode, done.stderr) == (0, "")
        assert "\x1b" not in done.stdout
        assert "█" in done.stdout
        return {path: path.stat().st_size for path in (tmp_path / "cache").rglob("*-cache")}

    first = compiled("one")
    assert first
    assert compiled("two") == first  # nothing had to be compiled again
    # As a kill or a full disk leaves it: JAX would read it again at each start, and never mend it.
    for path, size in first.items():
        path.write_bytes(path.read_bytes()[: size // 2])
    mended = compiled("three")
    assert mended.keys() == first.keys()
    assert all(abs(mended[path] / size - 1) < 0.1 for path, size in first.items())
