"""Where metrics go: whole, in order, and right after a kill too."""

import csv
import io
import pickle
import sys
import types

import jax
import numpy as np
import pytest
from kit import trees
from kit.agents import Tiny
from kit.environments import walk
from PIL import Image

import purerl
from purerl.experience.metrics import Episodes, Metrics
from purerl.runs import report as reports
from purerl.runs.sinks import csv_sink, tensorboard_sink

pytestmark = pytest.mark.usefixtures("quick_programs")


def made_up(start, stop, seeds=(3, 7), seconds=1.0, evaluated=False):
    """A report of numbers that tell where they belong: 1000 * seed + update."""
    updates = np.arange(start + 1, stop + 1)
    x = (1000.0 * np.array(seeds)[:, None] + updates).astype(np.float32)
    counts = np.where(updates % 2 == 0, updates, 0) * np.ones((len(seeds), 1), np.int32)
    x = np.where(counts > 0, x, np.nan).astype(np.float32)
    episodes = Episodes(x, x - 1, x + 1, x, x, x, counts.astype(np.int32))
    losses = {"loss": (x * 0 + 0.1).astype(np.float32)}
    metrics = Metrics(
        **episodes._asdict(),
        losses=losses,
        nonfinite_updates=np.zeros(x.shape, np.int32),
        eval=episodes if evaluated else None,
    )
    return purerl.Report(start, stop, 100, 32, metrics, seconds, 0.5, seeds)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_first_of_several_hosts_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    for sink in (csv_sink(tmp_path / "metrics.csv"), tensorboard_sink(tmp_path / "events")):
        sink(made_up(0, 3))
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    csv_sink(tmp_path / "metrics.csv")(made_up(0, 3))
    assert list(tmp_path.iterdir())


def test_a_row_an_update_and_seed(tmp_path):
    sink = csv_sink(tmp_path / "metrics.csv")
    sink(made_up(0, 3, seconds=3.0))
    sink(made_up(3, 4, seconds=5.0))
    rows = rows_of(tmp_path / "metrics.csv")
    assert [(int(r["seed"]), int(r["update"])) for r in rows] == [
        (seed, update) for update in (1, 2, 3, 4) for seed in (3, 7)
    ]
    assert [int(r["timesteps"]) for r in rows] == [32, 32, 64, 64, 96, 96, 128, 128]
    assert [float(r["seconds"]) for r in rows] == [1, 1, 2, 2, 3, 3, 5, 5]
    returns = ["", "", "3002.0", "7002.0", "", "", "3004.0", "7004.0"]
    assert [r["episode_return"] for r in rows] == returns
    assert rows[2]["loss"] == "0.1"  # in float32's own digits
    assert rows[2]["num_episodes"] == "2"


def test_rows_after_the_point_that_a_run_goes_on_from_are_taken_back(tmp_path):
    path = tmp_path / "metrics.csv"
    csv_sink(path)(made_up(0, 6, seconds=6.0))
    with path.open("a") as file:
        file.write("3,7,22")  # a kill in the middle of a row
    sink = csv_sink(path)
    sink(made_up(4, 8, seconds=1.0))
    rows = rows_of(path)
    assert [int(r["update"]) for r in rows] == [n for n in range(1, 9) for _ in (3, 7)]
    assert float(rows[7]["seconds"]) == 4.0
    assert float(rows[-1]["seconds"]) == 5.0
    assert sink.seconds == 5.0
    # Begun anew, nothing of the old stays.
    csv_sink(path)(made_up(0, 1))
    assert len(rows_of(path)) == 2


def test_fit_writes_what_it_returns(tmp_path):
    config = purerl.TrainConfig(
        walk(5, limit=3), purerl.PPO(), 256, num_envs=4, update_every=8, eval_every=2
    )
    out = purerl.fit(config, tmp_path, seeds=[4, 9], report_every=0.0)
    rows = rows_of(tmp_path / "metrics.csv")
    table = reports.by_name(out.metrics)
    assert {"eval_return", "eval_num_episodes", "policy_loss"} <= rows[0].keys()
    for name, values in table.items():
        written = [np.float32(row[name] or "nan") for row in rows]
        np.testing.assert_array_equal(np.reshape(written, (-1, 2)).T, values.astype(np.float32))


def test_means_count_each_episode_once():
    report = made_up(0, 4, evaluated=True)
    table = reports.means(report)
    # Two episodes of return 3002 and four of 3004.
    np.testing.assert_allclose(
        table["episode_return"], [(2 * 3002 + 4 * 3004) / 6, (2 * 7002 + 4 * 7004) / 6]
    )
    assert table["episode_return_min"].tolist() == [3001, 7001]
    assert table["episode_return_max"].tolist() == [3005, 7005]
    assert table["num_episodes"].tolist() == [6, 6]
    assert table["eval_return"].tolist() == [3004, 7004]
    nothing = reports.means(made_up(0, 1))
    assert np.isnan(nothing["episode_return"]).all()
    assert np.isnan(nothing["episode_return_min"]).all()


def test_tensorboard_has_each_seed_and_the_band(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    sink = tensorboard_sink(tmp_path)
    sink(made_up(0, 2))
    sink(made_up(2, 4))
    sink.close()

    def read(series, name="episode_return"):
        accumulator = events.EventAccumulator(str(tmp_path / series))
        accumulator.Reload()
        return [(e.step, e.value) for e in accumulator.Scalars(name)]

    assert read("seed-3") == [(64, 3002), (128, 3004)]
    assert read("mean") == [(64, 5002), (128, 5004)]
    assert read("low") == [(64, 3002), (128, 3004)]
    assert read("high") == [(64, 7002), (128, 7004)]


def ended(report, index):
    """The report where a seed's run has ended before: its metrics are empty."""

    def empty(x):
        x = x.copy()
        x[index] = np.nan if x.dtype.kind == "f" else 0
        return x

    return report._replace(metrics=jax.tree.map(empty, report.metrics))


def test_the_band_is_over_all_seeds_when_some_have_ended(monkeypatch):
    logged = []
    run = types.SimpleNamespace(log=logged.append, finish=print)
    stub = types.SimpleNamespace(init=lambda **_: run, Video=None)
    monkeypatch.setitem(sys.modules, "wandb", stub)
    sink = purerl.wandb_sink()
    sink(first := made_up(0, 2))
    last = ended(made_up(2, 4), 0)._replace(before=reports.latest(first))
    sink(last)
    names = ("mean/episode_return", "low/episode_return", "high/episode_return")
    assert [logged[1][name] for name in names] == [(3002 + 7004) / 2, 3002, 7004]
    assert "seed-3/episode_return" not in logged[1]
    assert logged[1]["seed-7/episode_return"] == 7004
    assert "return 5003.0 (3002.0 to 7004.0)" in reports.live_numbers(last)


def test_a_report_knows_the_values_before_it_also_after_a_stop(tmp_path):
    """Episodes of 12 steps: of two updates of 8 one ends none."""
    config = purerl.TrainConfig(walk(12), Tiny(), 192, num_envs=4, update_every=8, log_every=1)
    seen = []

    def watch(report):
        seen.append(report)
        if len(seen) == 3:
            raise KeyboardInterrupt

    options = {"seeds": [5, 6], "callback": watch, "report_every": 0.0}
    with pytest.raises(KeyboardInterrupt):
        purerl.fit(config, tmp_path, **options)
    purerl.fit(config, tmp_path, **options)
    assert [report.start for report in seen] == [0, 1, 2, 3, 4, 5]
    assert seen[0].before is None
    returns = [reports.latest(report)["episode_return"] for report in seen]
    assert np.isnan(returns[0]).all()
    assert np.isfinite(returns[1:]).all()
    for report, there in zip(seen[1:], returns[:-1], strict=True):
        np.testing.assert_array_equal(report.before["episode_return"], there)
    trees.assert_equal(pickle.loads(pickle.dumps(seen[3])).before, seen[3].before)


def test_many_seeds_are_a_band_only(tmp_path):
    sink = tensorboard_sink(tmp_path)
    sink(made_up(0, 2, seeds=tuple(range(40))))
    sink.close()
    assert {path.name for path in tmp_path.iterdir()} == {"mean", "low", "high"}


def test_a_sink_is_any_callable():
    config = purerl.TrainConfig(walk(3), Tiny(), 64, num_envs=4, update_every=8)
    seen, closed = [], []

    class Mine:
        def __call__(self, report):
            seen.append(report.stop)

        def close(self):
            closed.append(True)

    purerl.fit(config, callback=[Mine(), lambda report: seen.append(-report.stop)])
    assert seen[:2] == [1, -1]
    assert closed == [True]
    with pytest.raises(purerl.ConfigError, match="callback: got 3, expected a function"):
        purerl.fit(config, callback=3)


def test_wandb_gets_what_tensorboard_does(monkeypatch):
    """Without the package: what its functions are called with."""
    began, logged, ended = [], [], []
    run = types.SimpleNamespace(log=logged.append, finish=lambda: ended.append(True))
    init = lambda **options: began.append(options) or run  # noqa: E731
    video = lambda file, **options: (file.read()[:4], options)  # noqa: E731
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Video=video))
    sink = purerl.wandb_sink("mine", name="a run", entity="us", id="x")
    assert began == [{"project": "mine", "name": "a run", "entity": "us", "id": "x"}]
    sink(made_up(0, 2))
    sink(made_up(2, 4))
    sink.close()
    assert ended == [True]
    assert [values["timesteps"] for values in logged] == [64, 128]
    assert [values["seed-7/episode_return"] for values in logged] == [7002, 7004]
    names = ("mean/episode_return", "low/episode_return", "high/episode_return")
    assert [logged[1][name] for name in names] == [5004, 3004, 7004]

    logged.clear()
    config = purerl.TrainConfig(walk(3), Tiny(), 64, num_envs=4, update_every=8)
    sink = purerl.wandb_sink(render_every=32)
    purerl.fit(config, seeds=[5, 6], callback=sink, report_every=0.0)
    films = [values["seed-5/episode"] for values in logged]
    assert [magic for magic, _ in films] == [b"GIF8", b"GIF8"]
    assert films[0][1] == {"caption": "return 6", "format": "gif"}
    assert not any("seed-6/episode" in values for values in logged)


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    sink = purerl.wandb_sink(project="purerl")
    sink(made_up(0, 2))
    sink.close()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    config = purerl.TrainConfig(walk(3), Tiny(), 64, num_envs=4, update_every=8)
    purerl.fit(config, callback=purerl.wandb_sink(project="purerl", render_every=32))
    media = "wandb/offline-run-*/files/media/videos/seed-0/*.gif"
    assert len(list(tmp_path.glob(media))) in (1, 2)  # one a report


def gifs(folder, series):
    """Steps and pictures of the videos that TensorBoard finds."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = events.EventAccumulator(str(folder / series), size_guidance={"images": 0})
    accumulator.Reload()
    if "episode" not in accumulator.Tags()["images"]:
        return []
    pictures = accumulator.Images("episode")
    return [(e.step, Image.open(io.BytesIO(e.encoded_image_string)), e) for e in pictures]


def test_videos_in_tensorboard(tmp_path):
    config = purerl.TrainConfig(walk(3), Tiny(), 320, num_envs=4, update_every=8, log_every=1)
    sink = tensorboard_sink(tmp_path, render_every=128)
    purerl.fit(config, seeds=[5, 6], callback=sink, report_every=0.0)  # an update a report
    found = gifs(tmp_path, "seed-5")
    assert [step for step, _, _ in found] == [128, 256, 320]
    for _, picture, event in found:
        assert (picture.format, picture.n_frames) == ("GIF", 4)  # the first moment, and 3 steps
        assert picture.size == (event.width, event.height)
    assert not gifs(tmp_path, "seed-6")


def test_a_sink_that_is_used_again_films_the_new_environment(tmp_path):
    sink = tensorboard_sink(tmp_path, render_every=10_000)  # the end alone
    for length in (3, 5):
        purerl.fit(
            purerl.TrainConfig(walk(length), Tiny(), 32, num_envs=4, update_every=8), callback=sink
        )
    frames = [picture.n_frames for _, picture, _ in gifs(tmp_path, "seed-0")]
    assert frames[-1] == 6


def test_environments_of_the_host_are_refused_at_the_first_report(tmp_path):
    pytest.importorskip("gymnasium")
    config = purerl.TrainConfig(
        env="gymnasium/CartPole-v1", agent=Tiny(), num_envs=2, update_every=5, total_timesteps=50
    )
    sink = tensorboard_sink(tmp_path, render_every=1_000_000)
    with pytest.raises(purerl.ConfigError, match="render_every: is for environments in JAX"):
        purerl.fit(config, callback=sink)


def test_no_videos_unless_asked(tmp_path):
    config = purerl.TrainConfig(walk(3), Tiny(), 64, num_envs=4, update_every=8)
    purerl.fit(config, callback=tensorboard_sink(tmp_path))
    assert not gifs(tmp_path, "seed-0")


def test_videos_of_what_no_sink_can_film(tmp_path):
    with pytest.raises(purerl.ConfigError, match="render_every: got 0, expected an integer >= 1"):
        tensorboard_sink(tmp_path, render_every=0)


@pytest.mark.parametrize("seeds", [None, [3, 7]])
def test_a_callback_has_the_policy_of_each_seed(seeds):
    config = purerl.TrainConfig(
        walk(3), Tiny(), 96, num_envs=4, update_every=8, log_every=1, normalize_obs=True
    )
    seen = []

    def watch(report):
        seen.append([report.member(i) for i in range(len(report.seeds))])
        with pytest.raises(purerl.ConfigError, match="member: got 9, expected 0 to"):
            report.member(9)

    purerl.fit(config, seeds=seeds, callback=watch, report_every=0.0)
    assert len(seen) == 3
    for updates, members in enumerate(seen, 1):  # kept beyond the chunks that reuse their memory
        whole = purerl.fit(config.replace(total_timesteps=updates * 32), seeds=seeds)
        for i, (policy, env) in enumerate(members):
            there = whole if seeds is None else whole.member(i)
            assert int(np.asarray(policy.num_updates)) == updates
            trees.assert_equal(policy.state, there.policy.state)
            trees.assert_equal(policy.obs_stats, there.policy.obs_stats)
            assert policy.interface == there.policy.interface
            assert env.spec == config.env.spec


def test_a_callback_has_the_environment_of_each_seed():
    config = purerl.TrainConfig("CartPole-v1", Tiny(), 32, num_envs=4, update_every=8)
    found = []

    def moved(env):
        _, state = env.reset(jax.random.key(0))
        return env.step(jax.random.key(1), state, 1)[1].obs

    gravity = {"env.gravity": [1.0, 20.0], "lr": [0.1, 0.2]}
    purerl.fit(
        config,
        seeds=2,
        hyperparams=gravity,
        callback=lambda report: found.extend(report.member(i) for i in range(2)),
    )
    for i, (policy, env) in enumerate(found):
        values = {"gravity": gravity["env.gravity"][i]}
        assert float(policy.env_params["gravity"]) == values["gravity"]
        assert float(policy.agent.lr) == np.float32(gravity["lr"][i])
        trees.assert_close(moved(env), moved(purerl.make("CartPole-v1", gravity=values["gravity"])))


def test_a_kept_report_keeps_no_state():
    assert made_up(0, 2).member is None  # of the past
    config = purerl.TrainConfig(walk(3), Tiny(), 64, num_envs=4, update_every=8, log_every=1)
    kept, taken = [], []

    def keep(report):
        kept.append(report)
        taken.append(pickle.loads(pickle.dumps(report)))

    purerl.fit(config, callback=keep, report_every=0.0)
    with pytest.raises(purerl.ConfigError, match="member: training has gone on since this report"):
        kept[0].member(0)
    assert taken[0].member is None
    assert [report.stop for report in taken] == [1, 2]
    assert [report.is_last for report in kept] == [False, True]


def test_the_last_report_of_a_run_that_ends_early():
    config = purerl.TrainConfig(
        walk(3), Tiny(), 3200, num_envs=4, update_every=8, max_episodes=30, stop_at_return=1e9
    )
    seen = []
    out = purerl.fit(config, callback=lambda report: seen.append((report.stop, report.is_last)))
    assert out.num_updates < 100
    assert [last for _, last in seen] == [False] * (len(seen) - 1) + [True]
