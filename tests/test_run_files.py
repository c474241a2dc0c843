"""A run's folder, as others read it."""

import json
import time
import tomllib

import jax.numpy as jnp
import numpy as np
import pytest
from kit.environments import target_env, walk
from kit.quick import quick_programs
from kit.trees import assert_equal

import purerl
from purerl.cli.flags import read_config
from purerl.records.files import sealed, unsealed
from purerl.records.folders import list_checkpoints
from purerl.records.toml import to_toml
from purerl.runs.chunks import hyperparam_arrays, with_shared
from purerl.runs.curves import Curves
from purerl.runs.folder import config_text
from purerl.runs.view import RunView
from purerl.training.effective import describe_in_force
from purerl.training.train import final_return

pytestmark = pytest.mark.usefixtures("quick_programs")


def config(**options):
    options = {"num_envs": 4, "update_every": 8, "total_timesteps": 320, **options}
    env = options.pop("env", walk(5, limit=3))
    agent = options.pop("agent", purerl.PPO(hidden=(8,)))
    return purerl.TrainConfig(env, agent, **options)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A run of two seeds: its config, its folder and what `fit` returned."""
    run, folder = config(env=target_env()), tmp_path_factory.mktemp("run")
    with quick_programs():
        return run, folder, purerl.fit(run, folder, seeds=[4, 9])


def test_the_summary_is_that_of_the_run(ran):
    run, folder, out = ran
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["seeds"] == [4, 9]
    assert summary["agent"] == "PPO"
    assert summary["finished"] is True
    assert summary["num_updates"] == 10
    assert summary["timesteps"] == 320
    assert summary["num_episodes"] == out.metrics.num_episodes.sum()
    returns = final_return(out.metrics, np.array([10, 10]))
    assert returns[0] != returns[1]
    np.testing.assert_allclose(summary["final_return"]["by_seed"], returns)
    np.testing.assert_allclose(summary["final_return"]["mean"], returns.mean())
    np.testing.assert_allclose(summary["final_return"]["std"], returns.std(ddof=1))
    assert summary["seconds"] > 0
    # The same again: nothing was trained, and what it took is still known.
    purerl.fit(run, folder, seeds=[4, 9])
    assert json.loads((folder / "summary.json").read_text()) == summary


def test_each_seed_has_its_policy(ran):
    _, folder, out = ran
    obs = jnp.linspace(0.0, 1.0, 3)[:, None]
    for i, seed in enumerate((4, 9)):
        policy = purerl.load_policy(folder / "policies" / f"seed-{seed}.policy")
        np.testing.assert_array_equal(policy(obs), out.member(i).policy(obs))
        np.testing.assert_array_equal(policy.value(obs), out.member(i).policy.value(obs))


def contents(folder):
    return {str(x): x.stat().st_mtime_ns for x in folder.rglob("*")}


def test_a_run_comes_back_from_its_folder(ran):
    run, folder, out = ran
    before = contents(folder)
    found = purerl.load_run(folder, run.env)
    assert_equal(found.state, out.state)
    assert_equal(found.metrics, out.metrics)
    assert found.num_timesteps == out.num_timesteps
    obs = jnp.linspace(0.0, 1.0, 3)[:, None]
    np.testing.assert_array_equal(found.member(1).policy(obs), out.member(1).policy(obs))
    assert contents(folder) == before
    with pytest.raises(purerl.ConfigError, match=r"^env: missing, since no name makes"):
        purerl.load_run(folder)


def test_a_run_comes_back_while_it_trains_and_after_it_was_stopped(tmp_path):
    run, seen = config(env="CartPole-v1"), []

    def look(report):
        deadline = time.monotonic() + 250  # checkpoints are written in the background
        while not list_checkpoints(tmp_path) and report.stop >= 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        if report.stop >= 2:
            seen.append(purerl.load_run(tmp_path))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        purerl.fit(run, tmp_path, callback=look, report_every=0, checkpoint_every=0)
    (during,), stopped = seen, purerl.load_run(tmp_path)
    assert 1 <= during.num_updates <= stopped.num_updates < 10
    whole = purerl.fit(run).metrics.episode_length
    for found in (during, stopped):
        lengths = found.metrics.episode_length
        assert len(lengths) == found.num_updates
        np.testing.assert_array_equal(lengths, whole[: len(lengths)])
    again = purerl.fit(run, tmp_path)
    assert_equal(purerl.load_run(tmp_path).state, again.state)


def test_what_is_no_run_does_not_come_back(tmp_path):
    purerl.sweep(config(env="CartPole-v1"), seeds=1, grid={"lr": [1e-3]}, run_dir=tmp_path / "all")
    with pytest.raises(purerl.RunError, match="all holds several agents, of which policies"):
        purerl.load_run(tmp_path / "all")
    with pytest.raises(purerl.RunError, match="is no run's folder: it has neither"):
        purerl.load_run(tmp_path)


def test_curves_know_where_each_seeds_run_was_over(tmp_path):
    """By the summary; by the table after a kill, and in a folder of an earlier version."""
    run = config(env="CartPole-v1", total_timesteps=1_280, max_episodes=8, log_every=2)
    own = Curves.of("", purerl.fit(run, tmp_path, seeds=[9, 4]))
    assert own.num_updates[0] != own.num_updates[1]
    assert (own.num_updates < 18).all()  # of 20 rows, of which the last two count otherwise
    assert np.isfinite(own.final_returns).all()
    file = tmp_path / "summary.json"
    before = {n: x for n, x in unsealed(file.read_text()).items() if n != "updates"}
    for summary in (file.read_text(), json.dumps(sealed(before)), None):
        if summary is None:
            file.unlink()
        else:
            file.write_text(summary)
        read = purerl.read_run(tmp_path)
        np.testing.assert_array_equal(read.num_updates, own.num_updates[::-1])  # by their numbers
        np.testing.assert_allclose(read.final_returns, own.final_returns[::-1])
        np.testing.assert_allclose(RunView(tmp_path).final_returns(), own.final_returns)


def test_one_agent_without_seeds_has_the_files_too(tmp_path):
    purerl.fit(config(), tmp_path)
    assert (tmp_path / "policies" / "seed-0.policy").exists()
    assert json.loads((tmp_path / "summary.json").read_text())["final_return"]["std"] is None


CONFIGS = [
    purerl.TrainConfig("CartPole-v1"),
    purerl.TrainConfig("CartPole-v1", total_timesteps=None, max_episodes=7, skip_frames=2),
    purerl.TrainConfig(
        "Pendulum-v1",
        purerl.DDPG(hidden=(8, 8), actor_lr=3e-4),
        noise=purerl.OrnsteinUhlenbeckNoise(sigma=0.3),
        rewarder=purerl.Scale(0.1),
        buffer=purerl.Buffer(maxlen=1024, priority_sampling=True, anneal_beta=False),
    ),
    purerl.TrainConfig("CartPole-v1", purerl.DQN(target_fn="q", epsilon_steps=100)),
    purerl.TrainConfig("Pendulum-v1", purerl.ActorCritic(activation="relu"), normalize_obs=True),
    purerl.TrainConfig("CartPole-v1", purerl.REINFORCE(baseline=True)),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: type(c.agent).__name__)
def test_a_config_comes_back_from_its_file(config, tmp_path):
    file = tmp_path / "config.toml"
    file.write_text(to_toml(config.to_mapping()))
    again = purerl.TrainConfig.from_mapping(read_config(file))
    assert again.to_mapping() == config.to_mapping()
    assert again.agent == config.agent


def test_what_has_no_form_in_a_file_is_named(tmp_path):
    purerl.fit(
        config(agent=purerl.PPO(actor=purerl.DefaultActor), action_processor=lambda a: a), tmp_path
    )
    text = (tmp_path / "config.toml").read_text()
    assert "since it has no form there: env, agent.actor, action_processor" in text
    assert tomllib.loads(text)["num_envs"] == 4


def test_hyperparameters_are_in_the_files(tmp_path):
    run = config(env="CartPole-v1", total_timesteps=96)
    values = {"learning_rate": 0.1, "env.gravity": 1.6, "gamma": [0.9, 0.8]}
    out = purerl.fit(run, tmp_path, seeds=2, hyperparams=values)
    text = (tmp_path / "config.toml").read_text()
    assert "# Not in this file, since seeds differ in it (see run.json): gamma\n\n" in text
    plain = tomllib.loads(text)
    assert plain["env"] == {"name": "CartPole-v1", "gravity": 1.6}
    assert (plain["agent"]["lr"], plain["agent"]["gamma"]) == (0.1, 0.99)
    written = json.loads((tmp_path / "summary.json").read_text())["hyperparams"]
    assert written == {"lr": 0.1, "env.gravity": 1.6, "gamma": [0.9, 0.8]}
    # It is the same run, also from its file, and of a folder of an earlier version.
    assert_equal(purerl.load_run(tmp_path).state, out.state)
    file = tmp_path / "run.json"
    described = json.loads(file.read_text())
    again = purerl.TrainConfig.from_mapping(read_config(tmp_path / "config.toml"))
    for one in (run, again):
        purerl.fit(one, tmp_path, seeds=2, hyperparams=values, resume=True)
    earlier = {**unsealed(file.read_text()), "config": describe_in_force(run)}
    file.write_text(json.dumps(sealed(earlier)))
    purerl.fit(run, tmp_path, seeds=2, hyperparams=values, resume=True)
    assert json.loads(file.read_text()) == described
    with pytest.raises(purerl.ConfigError, match=r"hyperparams.lr is \[0.1.*\] there, got \[0.2"):
        purerl.fit(run, tmp_path, seeds=2, hyperparams={**values, "learning_rate": 0.2})


def test_parts_that_a_config_leaves_open_get_their_hyperparameters():
    run = config(
        env="Pendulum-v1", agent=purerl.DDPG(hidden=(4,)), normalize_reward=True, update_after=0
    )
    values = hyperparam_arrays(run, {"noise.sigma": 0.3, "rewarder.gamma": 0.9}, None)
    whole = with_shared(run, values)
    assert (whole.noise.sigma, whole.rewarder.gamma, whole.normalize_reward) == (0.3, 0.9, False)
    again = purerl.TrainConfig.from_mapping(tomllib.loads(config_text(whole)))
    assert describe_in_force(with_shared(again, values)) == describe_in_force(whole)
    assert with_shared(run, {}).to_mapping() == run.to_mapping()


def test_a_longer_run_keeps_its_rows_of_metrics(tmp_path, monkeypatch):
    """By default a row is of as many updates as make few enough rows of the whole run."""
    monkeypatch.setattr("purerl.training.run.MOST_ROWS", 4)
    agent = purerl.PPO(hidden=(8,), anneal=False)
    run = config(agent=agent, total_timesteps=96)
    purerl.fit(run, tmp_path)
    longer = run.replace(total_timesteps=192)
    assert longer.make_loop().log_every == 2
    out = purerl.fit(longer, tmp_path)
    assert (out.log_every, len(out.metrics.num_episodes)) == (1, 6)
    assert purerl.fit(longer, tmp_path).log_every == 1
    with pytest.raises(purerl.ConfigError, match="say log_every=1"):
        purerl.fit(longer.replace(log_every=2), tmp_path)


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    def replace(report):
        (tmp_path / "metrics.csv").unlink()
        (tmp_path / "metrics.csv").mkdir()

    with pytest.raises(purerl.RunError, match=r"can't write metrics into .*metrics.csv"):
        purerl.fit(config(), tmp_path, callback=replace, report_every=0.0)
