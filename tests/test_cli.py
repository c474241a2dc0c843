"""The command: what it says, what it makes, and how it answers mistakes."""

import csv
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

import purerl
from purerl.host.cli import COMMANDS, Parser, training
from purerl.host.cli.flags import add_config_flags, config_from, list_flags, literal

QUICK = ("--total-timesteps", "4096", "--update-every", "32", "--no-tensorboard")


def config_of(*argv):
    parser = Parser()
    parser.add_argument("env", nargs="?")
    add_config_flags(parser, argv)
    return config_from(parser.parse(list(argv)))


def test_train_shows_a_curve_and_leaves_a_folder(command):
    code, out, err = command(
        "train", "CartPole-v1", "--seeds", "5,6,7", "--eval-every", 4, "--num-envs", 8, *QUICK
    )
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

    # What is shown and written is what train gives.
    config = purerl.TrainConfig(
        "CartPole-v1", total_timesteps=4096, num_envs=8, update_every=32, eval_every=4
    )
    keys = jax.vmap(jax.random.key)(jnp.arange(5, 8, dtype=jnp.uint32))
    outs = quick_jit(jax.vmap(purerl.make_train(config)))(keys)
    last = np.asarray(outs.metrics.episode_return)[:, -1]
    mean = re.search(r"^return +([\d.]+)", out, re.M)
    assert float(mean[1]) == pytest.approx(np.nanmean(last), rel=1e-3)
    with (folder / "metrics.csv").open() as file:
        assert len(list(csv.reader(file))) == 1 + 16 * 3
    assert tomllib.loads((folder / "config.toml").read_text())["update_every"] == 32


def test_no_episode_ended(command):
    argv = ("train", "Pendulum-v1", "--no-preset", "--total-timesteps", 64, "--no-tensorboard")
    code, out, _ = command(*argv)
    assert code == 0
    assert "no episode ended" in out


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
    assert "interrupted after 768 steps of each seed, which are saved; to go on" in out
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


def test_lists(command):
    code, out, _ = command("envs")
    assert code == 0
    for name in purerl.env_names():
        assert name in out
    assert re.search(r"CartPole-v1 +\(4,\) +Discrete\(2\) +500", out)
    assert re.search(r"MNISTBandit-bsuite +it wants to", out)
    _, out, _ = command("agents")
    assert all(name in out for name in purerl.AGENTS)
    _, out, _ = command("agents", "dqn")
    assert "--target-update-every" in out
    _, out, _ = command("presets", "Pendulum-v1")
    assert "normalize_obs=True" in out
    assert "Acrobot" not in out


def test_bench_measures(command):
    argv = ("bench", "CartPole-v1", "--total-timesteps", 1024, "--repeats", 2)
    code, out, _ = command(*argv)
    assert code == 0
    assert re.search(r"PPO, 1 seeds: [\d,]+ steps/s over all seeds \(median of 2", out)


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
    monkeypatch.syspath_prepend(str(pathlib.Path.cwd()))
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
        lr=0.002, gamma=0.5, anneal=False, hidden=(32, 16), activation="relu"
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


MISTAKES = [
    ("trian CartPole-v1", "no command 'trian'; did you mean 'train'"),
    ("train CartPol-v1", "no environment 'CartPol-v1'; did you mean 'CartPole-v1'"),
    ("train CartPole-v1 --agent poo", "no agent 'poo'; did you mean 'ppo'"),
    ("train CartPole-v1 --seeds 0", "--seeds: got '0', expected a number >= 1"),
    ("train CartPole-v1 --seeds two", "--seeds: got 'two'"),
    ("train CartPole-v1 --sedes 2", "no flag '--sedes'; did you mean '--seeds'"),
    ("train CartPole-v1 --learning-rate 1", "no flag '--learning-rate'; did you mean '--lr'"),
    ("train CartPole-v1 --num-env 4", "no flag '--num-env'; did you mean '--num-envs'"),
    ("train CartPole-v1 --total-timesteps lots", "total_timesteps: got 'lots'"),
    ("train CartPole-v1 --lr fast", "PPO.lr: got 'fast', expected a float"),
    ("train CartPole-v1 --lr", "argument --lr: expected one argument"),
    ("train CartPole-v1 lr=1", "unexpected argument 'lr=1'; expected flags"),
    ("train CartPole-v1 --noise gauss", "no noise 'gauss'; did you mean 'gaussian'"),
    ("train CartPole-v1 --config nowhere.toml", "can't read nowhere.toml: No such file"),
    ("train nowhere:Env", "can't import 'nowhere' of 'nowhere:Env'"),
    ("train", "ENV: missing, expected an environment"),
    ("sweep CartPole-v1 --grid learning_rate=1,2", "did you mean 'lr'"),
    ("sweep CartPole-v1 --samples lr=loguniform(1,2)", "did you mean 'log_uniform'"),
    ("sweep CartPole-v1", "--grid: missing"),
    ("plot --x hours", "--x: got 'hours', expected steps or seconds"),
    ("agents dqm", "no agent 'dqm'; did you mean 'dqn'"),
    ("presets Acrobat-v1", "did you mean 'Acrobot-v1'"),
    ("eval nowhere --episodes 0", "--episodes: got 0, expected an integer >= 1"),
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


FAILURES = [
    ("eval nowhere", "nowhere is no run's folder: there is no such folder"),
    ("eval", "there is no run in runs/"),
    ("resume .", ". is no run's folder: it has no run.json"),
    ("plot .", "no run's folder"),
    ("train CartPole-v1 --run-dir file/run", "run_dir: can't write into"),
]


@pytest.mark.parametrize(("line", "message"), FAILURES, ids=[line for line, _ in FAILURES])
def test_what_fails_is_one_line_and_exit_code_1(line, message, command):
    pathlib.Path("file").write_text("")
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
    assert re.search(r"--target-update-every N\s+gradient steps between such moves. \(200\)", out)


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
    begin = time.perf_counter()
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=250, env=env | environment
    )
    return done, time.perf_counter() - begin


@pytest.mark.slow
def test_the_second_run_finds_its_program(tmp_path):
    argv = ("train", "CartPole-v1", *QUICK, "--run-dir")
    place = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    compiled = []
    for name in ("one", "two"):
        done, _ = run_alone(*argv, str(tmp_path / name), **place)
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout
        assert "█" in done.stdout
        compiled.append({path.name for path in (tmp_path / "cache").rglob("*-cache")})
    assert len(compiled[0]) > 0
    assert compiled[1] == compiled[0]  # nothing had to be compiled again
