import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.agents import Tiny
from kit.quick import quick_jit

import purerl
from purerl.accelerator.devices import AXIS, Devices
from purerl.envs import Box, Discrete, Env, EnvSpec, TimeStep
from purerl.experience.metrics import Count, Metrics, Row, no_episodes, pool, summarize
from purerl.runs.curves import Curves
from purerl.runs.report import Report, means


def test_each_ended_episode_counts_once():
    returns = jnp.array([[1.0, 5.0], [2.0, 9.0], [3.0, 7.0]])
    lengths = jnp.array([[1, 10], [2, 20], [3, 30]])
    ended = jnp.array([[False, True], [True, False], [False, True]])
    stats = summarize(returns, lengths, ended)
    assert stats.num_episodes == 3
    assert stats.num_episodes.dtype == jnp.int32
    seen = [float(x) for x in stats[:6]]
    np.testing.assert_allclose(seen, [(5 + 2 + 7) / 3, 2, 7, (10 + 2 + 30) / 3, 2, 30], rtol=1e-6)


def test_no_episode_is_nan_and_zero():
    ended = jnp.zeros((3, 2), bool)
    for stats in (summarize(jnp.ones((3, 2)), jnp.ones((3, 2), jnp.int32), ended), no_episodes()):
        assert stats.num_episodes == 0
        assert all(np.isnan(x) for x in stats[:6])
    info = {"won": ended}
    pairs = (summarize(ended, ended, ended, info), no_episodes(info))  # two branches of one cond
    jax.tree.map(lambda x, y: np.testing.assert_equal(x.dtype, y.dtype), *pairs)


def random_metrics(rng, share):
    """Metrics of one update, of the episodes that are returned beside them."""
    count = rng.integers(0, 4) if rng.random() < share else 0
    returns, lengths = rng.normal(50.0, 20.0, count), rng.integers(1, 90, count)
    padded = np.zeros((2, 4), np.float32)
    padded[:, :count] = returns, lengths
    episodes = summarize(padded[0], padded[1].astype(np.int32), np.arange(4) < count)
    loss = float(rng.normal()) if rng.random() < 0.7 else np.nan
    evaluated = no_episodes()
    if rng.random() < 0.3:
        evaluated = summarize(
            rng.normal(size=2).astype(np.float32), np.ones(2, int), np.ones(2, bool)
        )
    metrics = Metrics(
        **episodes._asdict(),
        losses={"loss": jnp.float32(loss), "never": jnp.float32(jnp.nan)},
        nonfinite_updates=jnp.int32(rng.random() < 0.2),
        eval=evaluated,
    )
    return metrics, returns, lengths


@pytest.mark.parametrize(("seed", "share"), [(0, 1.0), (1, 0.3), (2, 0.0)])
def test_a_row_of_many_updates_counts_each_episode_once(seed, share):
    rng = np.random.default_rng(seed)
    updates = [random_metrics(rng, share) for _ in range(9)]
    row = Row.start(updates[0][0])
    add = jax.jit(lambda row, new: row.add(new))
    for metrics, _, _ in updates:
        row = add(row, metrics)
    out = row.end()
    for place, name in ((1, "episode_return"), (2, "episode_length")):
        seen = np.concatenate([update[place] for update in updates])
        assert out.num_episodes == len(seen)
        for reduce, field in ((np.mean, ""), (np.min, "_min"), (np.max, "_max")):
            expected = reduce(seen) if len(seen) else np.nan
            np.testing.assert_allclose(getattr(out, name + field), expected, rtol=1e-5)
    every = [metrics for metrics, _, _ in updates]
    losses = np.array([float(metrics.losses["loss"]) for metrics in every])
    np.testing.assert_allclose(out.losses["loss"], np.nanmean(losses), rtol=1e-5)
    assert np.isnan(out.losses["never"])
    assert int(out.nonfinite_updates) == sum(int(x.nonfinite_updates) for x in every)
    evaluated = [metrics.eval for metrics in every if metrics.eval.num_episodes > 0]
    last = evaluated[-1] if evaluated else no_episodes()
    for got, expected in zip(out.eval, last, strict=True):
        np.testing.assert_array_equal(got, expected)
    assert jax.tree.structure(out) == jax.tree.structure(every[0])
    for got, expected in zip(jax.tree.leaves(out), jax.tree.leaves(every[0]), strict=True):
        assert got.dtype == expected.dtype


@pytest.mark.parametrize("start", [0, 2**30 - 2, 2**31 - 3, 2**40 + 5, 2**59])
def test_counts_are_exact(start):
    count, expected = Count.of(start), start
    plus = jax.jit(Count.plus)
    for step in (1, 2, 0, 2**30, 7):
        count, expected = plus(count, step), expected + step
        assert int(count) == expected
        assert float(count.as_float()) == pytest.approx(expected, rel=1e-6)
        assert bool(count.at_least(expected))
        assert not bool(count.at_least(expected + 1))
        assert bool(count.at_least(max(expected - 1, 0)))
        for divisor in (1, 2, 3, 10, 1_000_003, 2**30):
            divides = count.divides(divisor, 2**60)
            assert bool(divides) == (expected % divisor == 0)
    many = jax.vmap(Count.of(start).plus)(jnp.arange(3))
    assert np.asarray(many).tolist() == [start, start + 1, start + 2]


def lucky_env(length=3):
    """Episodes of some steps. `info` has the step, whether the last action was 1, and its double
    at every step."""

    def reset(key):
        return jnp.zeros(1), jnp.int32(0)

    def step(key, time, action):
        time = time + 1
        info = {"lucky": action == 1, "steps": time, "other": jnp.zeros(2)}
        end = (time >= length) | (action == 2)
        return time, TimeStep(jnp.zeros(1), jnp.float32(0), end, jnp.zeros((), bool), info)

    spec = EnvSpec("lucky", Box(0, 1, (1,)), Discrete(3), metrics=("lucky", "steps"))
    return Env(reset, step, spec)


def test_metrics_of_the_environment_are_means_over_last_steps():
    env = lucky_env()
    purerl.check_env(env)
    options = {"num_envs": 4, "update_every": 6, "total_timesteps": 96}

    def run(key):
        return purerl.run(env, Tiny(), key=key, **options)

    # Of every update, the buffer's transitions are those that were played.
    state, metrics = quick_jit(run)(jax.random.key(0))
    assert metrics.info.keys() == {"lucky", "steps"}
    data = state.buffer.data
    actions, ends = (np.asarray(data[x]) for x in ("action", "terminated"))
    actions, ends = actions.reshape(-1, 4)[-6:], ends.reshape(-1, 4)[-6:]
    assert metrics.num_episodes[-1] == ends.sum()
    lucky = [actions[t, n] == 1 for t, n in np.argwhere(ends)]
    np.testing.assert_allclose(metrics.info["lucky"][-1], np.mean(lucky), rtol=1e-6)
    np.testing.assert_allclose(metrics.info["steps"], metrics.episode_length)  # of each episode
    # A row of several updates, each episode once; over devices they are pooled likewise.
    rows = quick_jit(lambda key: purerl.run(env, Tiny(), key=key, log_every=4, **options)[1])
    counts = np.asarray(metrics.num_episodes)
    for name, x in metrics.info.items():
        known = np.where(counts > 0, x, 0.0)
        expected = np.sum(known * counts) / np.sum(counts)
        np.testing.assert_allclose(rows(jax.random.key(0)).info[name], [expected], rtol=1e-5)


def test_metrics_of_the_environment_are_unknown_where_no_episode_ended():
    options = {"num_envs": 1, "update_every": 1, "total_timesteps": 6, "eval_every": 3}
    config = purerl.TrainConfig(lucky_env(), Tiny(), eval_max_episodes=5, **options)
    out = quick_jit(purerl.make_train(config))(jax.random.key(1))
    unknown = np.asarray(out.metrics.num_episodes) == 0
    assert unknown.any()
    np.testing.assert_array_equal(np.isnan(out.metrics.info["steps"]), unknown)
    np.testing.assert_array_equal(
        np.isnan(out.metrics.eval.info["steps"]), [True, True, False, True, True, False]
    )
    np.testing.assert_array_equal(out.metrics.eval.info["steps"], out.metrics.eval.episode_length)
    # By hand, with actions of one kind: always lucky, in three steps.
    found = purerl.evaluate(
        lucky_env(), lambda obs, key: jnp.ones(len(obs), jnp.int32), jax.random.key(0), 4, 9
    )
    assert {name: float(x) for name, x in found.info.items()} == {"lucky": 1.0, "steps": 3.0}


def test_metrics_of_the_environment_are_in_tables_and_figures(tmp_path):
    config = purerl.TrainConfig(
        lucky_env(), Tiny(), num_envs=4, update_every=8, total_timesteps=96, eval_every=1
    )
    reports = []
    out = purerl.fit(config, tmp_path, seeds=2, callback=reports.append)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    found = np.array([float(row["info/steps"]) for row in rows]).reshape(-1, 2).T
    np.testing.assert_allclose(found, out.metrics.info["steps"], rtol=1e-6)
    assert "eval_info/lucky" in rows[0]
    curves = purerl.read_run(tmp_path)
    np.testing.assert_allclose(curves.info["steps"], out.metrics.info["steps"], rtol=1e-6)
    np.testing.assert_allclose(Curves.of("a", out).info["steps"], curves.info["steps"])
    counts = np.asarray(out.metrics.num_episodes)
    table = means(Report(0, 3, 3, 32, out.metrics, 1.0, 1.0, (0, 1)))
    expected = np.sum(out.metrics.info["lucky"] * counts, 1) / counts.sum(1)
    np.testing.assert_allclose(table["info/lucky"], expected, rtol=1e-5)
    figure = purerl.plot_curves(curves, y="info/lucky")
    assert figure.axes[0].get_ylabel() == "lucky"
    for y, words in (("info/luck", "did you mean 'info/lucky'"), ("length", "known: return, info")):
        with pytest.raises(purerl.ConfigError, match=words):
            purerl.plot_curves(curves, y=y)


def test_what_an_environment_says_has_to_be_there():
    env = lucky_env()
    for names, words in ((("luck",), "info has no 'luck'"), (("other",), r"shape \(2,\)")):
        with pytest.raises(purerl.ConfigError, match=words):
            purerl.TrainConfig(env._replace(spec=env.spec._replace(metrics=names)))
    with pytest.raises(purerl.ConfigError, match="expected a tuple of names"):
        purerl.check_env(env._replace(spec=env.spec._replace(metrics="lucky")))


def test_pooled_info_is_that_of_all_episodes():
    rng = np.random.default_rng(0)
    returns, x = rng.normal(size=(2, 4, 3, 5)).astype(np.float32)
    ended = rng.random((4, 3, 5)) < 0.3
    ended[1] = False

    def one(returns, ended, x):
        episodes = summarize(returns, jnp.ones((3, 5), jnp.int32), ended, {"x": x})
        return pool(episodes, Devices(4))

    pooled = jax.vmap(one, axis_name=AXIS)(returns, ended, x)
    np.testing.assert_allclose(pooled.info["x"], np.full(4, x[ended].mean()), rtol=1e-5)
    np.testing.assert_allclose(pooled.episode_return, np.full(4, returns[ended].mean()), rtol=1e-5)
