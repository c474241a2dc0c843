import os
import re
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purerl
from purerl.host import cli
from purerl.host.cli import config_from_args, main

QUICK = ["--total-timesteps", "4096", "--set", "update_every=32"]


def run(capsys, *argv):
    """Exit code, standard output and standard error of a command."""
    try:
        code = main(list(argv))
    except SystemExit as stop:
        code = stop.code
    out = capsys.readouterr()
    return code, out.out, out.err


def test_train_shows_a_curve_and_a_table(capsys):
    argv = ["train", "CartPole-v1", "--seeds", "3", "--seed", "5", *QUICK, "--set", "eval_every=4"]
    code, out, err = run(capsys, *argv)
    assert code == 0
    assert err == ""
    assert "CartPole-v1, PPO, 3 seeds: 16 updates of 8 environments x 32 steps" in out
    rows = re.findall(r"^ *([\d,]+) +([\d.]+) +([\d.]+) +([\d.]+) ", out, re.M)
    assert [int(row[0].replace(",", "")) for row in rows] == [256 * n for n in range(1, 17)]
    for _, mean, low, high in rows:
        assert float(low) <= float(mean) <= float(high)
    for name in ("return", "episode length", "entropy", "approx kl", "evaluation's return"):
        assert re.search(rf"^{name} ", out, re.M)
    assert re.search(r"compiled in [\d.]+ s, trained in [\d.]+ s: [\d,]+ steps/s", out)

    # What is shown is what train gives.
    config = purerl.TrainConfig("CartPole-v1", total_timesteps=4096, update_every=32)
    keys = jax.vmap(jax.random.key)(jnp.arange(5, 8, dtype=jnp.uint32))
    outs = jax.jit(jax.vmap(purerl.make_train(config)))(keys)
    last = np.asarray(outs.metrics.episode_return)[:, -1]
    mean = re.search(r"^return +([\d.]+)", out, re.M)
    assert float(mean[1]) == pytest.approx(last.mean(), rel=1e-3)


def test_no_episode_ended(capsys):
    code, out, _ = run(capsys, "train", "Pendulum-v1", "--total-timesteps", "64")
    assert code == 0
    assert "no episode ended" in out


def test_envs_lists_every_environment(capsys):
    code, out, _ = run(capsys, "envs")
    assert code == 0
    for name in purerl.env_names():
        assert name in out
    assert re.search(r"CartPole-v1 +\(4,\) +Discrete\(2\) +500", out)
    assert re.search(r"MNISTBandit-bsuite +it wants to", out)


def test_set_reaches_config_and_agent():
    values = ("num_envs=4", "lr=0.002", "agent.gamma=0.5", "anneal=False", "hidden=[32,16]")
    values += ("activation=relu", "target_kl=none", "normalize_obs=true")
    assignments = [word for value in values for word in ("--set", value)]
    argv = ["train", "CartPole-v1", "--total-timesteps", "1e4", *assignments]
    config = config_from_args(cli._parser().parse_args(argv))
    assert config.num_envs == 4
    assert config.total_timesteps == 10_000
    assert config.normalize_obs is True
    assert config.agent == purerl.PPO(
        lr=0.002, gamma=0.5, anneal=False, hidden=(32, 16), activation="relu"
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian", "CartPole-v1"], "no command 'trian'; did you mean 'train'"),
        (["train", "CartPol-v1"], "did you mean 'CartPole-v1'"),
        (["train", "CartPole-v1", "--agent", "poo"], "no agent 'poo'; did you mean 'ppo'"),
        (["train", "CartPole-v1", "--seeds", "0"], "--seeds: got 0, expected an integer >= 1"),
        (["train", "CartPole-v1", "--seeds", "two"], "invalid int value: 'two'"),
        (["train", "CartPole-v1", "--sedes", "2"], "unrecognized arguments: --sedes"),
        (["train", "CartPole-v1", "--total-timesteps", "lots"], "total_timesteps: got 'lots'"),
        (["train", "CartPole-v1", "--set", "lr"], "got 'lr', expected FIELD=VALUE"),
        (["train", "CartPole-v1", "--set", "learning_rate=1"], "did you mean 'lr'"),
        (["train", "CartPole-v1", "--set", "num_envz=1"], "did you mean 'num_envs'"),
        (["train", "CartPole-v1", "--set", "lr=fast"], "PPO.lr: got 'fast', expected a float"),
        (["train", "CartPole-v1", "--set", "num_updates=3"], "no field 'num_updates'"),
        (["train"], "the following arguments are required: ENV"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(argv, message, capsys):
    code, out, err = run(capsys, *argv)
    assert code == 2
    assert out == ""
    assert message in err
    assert err.startswith("purerl: ")
    assert err.count("\n") == 1


def test_help_teaches(capsys):
    code, out, _ = run(capsys, "train", "--help")
    assert code == 0
    assert "Example: purerl train CartPole-v1" in out


def test_ctrl_c_shows_what_was_trained_and_the_same_command_goes_on(capsys, monkeypatch, tmp_path):
    real = cli.fit

    def interrupted(*args, callback, **options):
        def and_stop(report):
            callback(report)
            os.kill(os.getpid(), signal.SIGINT)

        return real(*args, callback=and_stop, **options)

    command = ("train", "CartPole-v1", *QUICK, "--run-dir", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(cli, "fit", interrupted)
        code, out, err = run(capsys, *command)
    assert code == 130
    assert "interrupted after update 1 of 16, which is saved in" in out
    assert "256 " in out  # the steps of one update
    assert err == ""
    code, resumed, _ = run(capsys, *command)
    assert code == 0
    code, again, _ = run(capsys, *command)  # over, and nothing is left to do
    assert code == 0
    _, whole, _ = run(capsys, "train", "CartPole-v1", *QUICK)

    def table(out):
        return re.sub(r"compiled in.*\n", "", out)

    assert table(resumed) == table(again) == table(whole)


def test_a_folder_that_fails_is_one_line_and_exit_code_1(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    command = ("train", "CartPole-v1", *QUICK, "--run-dir", str(tmp_path / "file" / "run"))
    code, _, err = run(capsys, *command)
    assert code == 1
    assert re.fullmatch(r"purerl: run_dir: can't write into .*\n", err)


def test_the_installed_command_in_a_pipe():
    command = [sys.executable, "-m", "purerl.host.cli", "train", "CartPole-v1", *QUICK]
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, env=env)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "█" in done.stdout
