"""Where metrics go: whole, in order, and right after a kill too."""

import csv

import numpy as np
import pytest
from kit.agents import Tiny
from kit.environments import walk

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


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    sink = purerl.wandb_sink(project="purerl")
    sink(made_up(0, 2))
    sink.close()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
