"""Metrics of the user's: what is averaged over which steps, and where it shows."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.agents import Tiny
from kit.environments import walk
from kit.quick import quick_jit
from kit.runs import stop_at

import purerl
from purerl.accelerator.devices import AXIS, Devices
from purerl.experience.log import log_means, log_step
from purerl.runs.curves import Curves
from purerl.runs.report import Report, means


def log(step):
    """`walk`'s rewards are the times 1, 2, 3, and the last step terminates."""
    first = step.obs[:, 1] == 0
    return {
        "reward": step.reward,
        "first": first,
        "late_max": jnp.where(first, jnp.nan, step.next_obs[:, 1]),
        "never": jnp.full(step.reward.shape, jnp.inf),
        "one": 1,
        "whole": step.reward.sum(),
    }


def config(**changes):
    options = {"num_envs": 4, "update_every": 6, "total_timesteps": 96, "log": log} | changes
    return purerl.TrainConfig(walk(3), Tiny(), **options)


EXPECTED = {"reward": 2.0, "first": 1 / 3, "late_max": 2.5, "one": 1.0, "whole": 8.0}


@pytest.fixture(scope="module")
def trained():
    """Two seeds, four updates in two rows, and the same without `log`."""
    keys = jax.random.split(jax.random.key(0), 2)
    train = lambda config: quick_jit(jax.vmap(purerl.make_train(config)))(keys)  # noqa: E731
    return train(config(log_every=2, rewarder=purerl.Scale(0.1))), train(
        config(log=None, log_every=2, rewarder=purerl.Scale(0.1))
    )


def test_finite_values_of_all_steps_are_averaged_and_training_is_the_same(trained):
    out, without = trained
    assert set(out.metrics.log) == {*EXPECTED, "never"}
    assert np.isnan(out.metrics.log["never"]).all()
    for name, value in EXPECTED.items():
        np.testing.assert_allclose(out.metrics.log[name], np.full((2, 2), value), rtol=1e-6)
    assert without.metrics.log == {}
    for one, other in zip(
        *map(jax.tree.leaves, (out.state.agent, without.state.agent)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_steps_after_the_end_of_a_path_or_of_the_run_do_not_count():
    """Rollouts of five steps, each of an episode of three and of what comes after it; the first one
    ends the run."""
    options = {"wait_end_path": True, "update_every": 5, "total_timesteps": 40, "max_episodes": 4}
    out = quick_jit(purerl.make_train(config(**options)))(jax.random.key(0))
    np.testing.assert_allclose(out.metrics.log["reward"], [2.0, np.nan], rtol=1e-6)
    np.testing.assert_allclose(out.metrics.log["first"], [1 / 3, np.nan], rtol=1e-6)


def test_devices_average_over_all_environments():
    rewards = jnp.array([[1.0, 2.0], [3.0, jnp.nan], [5.0, 6.0], [7.0, 8.0]])

    def one(reward):
        steps = purerl.Transition(*[reward] * 7, jnp.ones(2, bool), {})
        sums = log_step(lambda step: {"reward": step.reward}, steps)
        return log_means(jax.tree.map(lambda x: x[None], sums), Devices(4))

    got = jax.vmap(one, axis_name=AXIS)(rewards)["reward"]
    np.testing.assert_allclose(got, np.full(4, np.nanmean(rewards)), rtol=1e-6)


def test_it_is_in_reports_and_in_figures(trained, tmp_path):
    out, _ = trained
    metrics = jax.tree.map(np.asarray, out.metrics)
    report = Report(0, 4, 4, 24, metrics, 1.0, 0.0, (0, 1), 2)
    assert report.columns()["log/whole"].shape == (2, 2)
    spread = metrics._replace(log={"late_max": np.array([[1.0, 3.0], [5.0, np.nan]])})
    got = means(report._replace(metrics=spread))["log/late_max"]
    np.testing.assert_allclose(got, [2.0, 5.0])  # no maximum, in spite of its name
    curves = Curves.of("walk", out)
    np.testing.assert_allclose(curves.of_metric("reward").binned(curves.timesteps)[1], 2.0)
    purerl.plot_curves(curves, tmp_path / "a.png", y="log/first")
    with pytest.raises(purerl.ConfigError, match=r"no metric 'lat_max'; did you mean 'log/late_m"):
        purerl.plot_curves(curves, y="lat_max")


def test_a_run_with_it_resumes_bit_for_bit(tmp_path, compile_once):
    whole = purerl.fit(config(), seeds=2)
    with pytest.raises(purerl.Interrupted):
        purerl.fit(config(), tmp_path / "run", seeds=2, report_every=0.0, callback=stop_at(2))
    with pytest.raises(purerl.ConfigError, match=r"config\.log is '.*log' there, got None"):
        purerl.fit(config(log=None), tmp_path / "run", seeds=2)
    out = purerl.fit(config(), tmp_path / "run", seeds=2)
    for one, other in zip(*map(jax.tree.leaves, (whole.metrics, out.metrics)), strict=True):
        np.testing.assert_array_equal(one, other)
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    assert [float(row["log/whole"]) for row in rows] == [8.0] * 8
    assert {row["log/never"] for row in rows} == {""}
    assert "has no form there: env, agent, log" in (tmp_path / "run" / "config.toml").read_text()
    curves = purerl.read_run(tmp_path / "run")
    np.testing.assert_allclose(curves.log["reward"], 2.0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (3, "got 3, expected a function of a Transition"),
        (lambda step: step.reward, "expected a dict of numbers by name"),
        (lambda step: {"x": step.obs}, r"x has shape \(4, 2\), expected \[N\]"),
        (lambda step: {3: step.reward}, "got the name 3"),
        (lambda step: {"a,b": step.reward}, "got the name 'a,b'"),
        (lambda step: {"x": "u"}, "x is 'u', expected numbers"),
        (lambda step: step.rewards, "can't be traced: AttributeError"),
        (lambda step: {"x": float(step.reward[0])}, "can't be traced"),
    ],
)
def test_mistakes_come_before_anything_is_compiled(wrong, message):
    with pytest.raises(purerl.ConfigError, match=rf"log: .*{message}"):
        config(log=wrong)
