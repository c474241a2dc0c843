"""What is drawn is what was trained; folders and files say what is wrong with them."""

import csv
import dataclasses
import itertools
import json
import subprocess
import sys
import types

import jax
import matplotlib.colors
import matplotlib.text
import numpy as np
import pytest
import scipy.stats
from kit.agents import Tiny
from kit.environments import walk
from PIL import Image

import purerl
from purerl.plots import figures
from purerl.plots import sweeps as plotting_sweep
from purerl.plots.runs import plot_comparison, plot_curves
from purerl.plots.sweeps import plot_sweep, plot_sweep_curves
from purerl.runs.curves import Curves
from purerl.runs.view import read_run, read_runs
from purerl.sweeps.plan import make_plan
from purerl.sweeps.result import SweepResult

nan = np.nan


def curves(name="PPO", seeds=5, updates=40, level=100.0, seed=0):
    rng = np.random.default_rng(seed)
    num_episodes = rng.integers(3, size=(seeds, updates))
    num_episodes[:, -1] = 1
    rise = level * np.linspace(0, 1, updates)
    returns = np.where(num_episodes > 0, rise + rng.normal(scale=5, size=(seeds, updates)), nan)
    seconds = np.linspace(0.5, 7, updates)
    return Curves(name, np.arange(1, updates + 1) * 512, returns, num_episodes, seconds)


def carried(run):
    """Curves with an update in each bin, by a loop."""
    values = run.returns.copy()
    for row in values:
        for i in range(1, len(row)):
            row[i] = row[i - 1] if np.isnan(row[i]) else row[i]
    return values


def texts(figure):
    figure.canvas.draw()
    return [
        text
        for text in figure.findobj(matplotlib.text.Text)
        if text.get_text() and text.get_visible()
    ]


def check_layout(figure):
    """All words are inside the figure, and no two of them lie on each other."""
    boxes = {}
    shown = [t for t in texts(figure) if t.get_window_extent().width > 0]
    ticks = {
        id(label)
        for axes in figure.findobj(match=lambda x: hasattr(x, "xaxis"))
        for axis in (axes.xaxis, axes.yaxis)
        for tick, at in zip(axis.get_major_ticks(), axis.get_majorticklocs(), strict=False)
        for label in (tick.label1, tick.label2)
        if not min(axis.get_view_interval()) <= at <= max(axis.get_view_interval())
    }
    for text in shown:
        if id(text) in ticks:  # matplotlib doesn't draw ticks beyond the axis
            continue
        boxes[text.get_text(), id(text)] = box = text.get_window_extent()
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= figure.bbox.x1, text
        assert box.y1 <= figure.bbox.y1, text
    for (a, first), (b, second) in itertools.combinations(boxes.items(), 2):
        overlap = min(first.x1, second.x1) - max(first.x0, second.x0)
        assert min(overlap, min(first.y1, second.y1) - max(first.y0, second.y0)) < 2, (a, b)


def legend_names(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_line_is_the_interquartile_mean():
    run = curves()
    axes = plot_curves(run).axes[0]
    thick = max(axes.lines, key=lambda line: line.get_linewidth())
    expected = [scipy.stats.trim_mean(x[~np.isnan(x)], 0.25) for x in carried(run).T]
    np.testing.assert_allclose(thick.get_ydata(), expected)
    np.testing.assert_array_equal(thick.get_xdata(), run.timesteps)
    thin = [line.get_ydata() for line in axes.lines if line is not thick]
    np.testing.assert_allclose(np.sort(thin, 0), np.sort(carried(run), 0))
    band = axes.collections[0].get_datalim(axes.transData).intervaly
    assert np.nanmin(run.returns) <= band[0] < np.nanmax(expected) < band[1]
    assert axes.get_xlabel() == "environment steps"
    assert axes.get_ylabel() == "return of training episodes"


def test_evaluations_are_drawn_and_compared(tmp_path):
    """The newest evaluation so far in each row, of the output and of its folder alike."""
    config = purerl.TrainConfig(
        walk(3), Tiny(), 96, eval_env=walk(5), eval_every=2, num_envs=4, update_every=4
    )
    out = purerl.fit(config, tmp_path / "run", seeds=2)
    run = Curves.of("walk", out)
    np.testing.assert_array_equal(run.eval_return, [[np.nan, 15.0, 15.0, 15.0, 15.0, 15.0]] * 2)
    np.testing.assert_array_equal(read_run(tmp_path / "run").eval_return, run.eval_return)
    np.testing.assert_array_equal(run.of_metric("eval_return").final_returns, [15.0, 15.0])
    (axes,) = plot_curves(run, y="eval_return").get_axes()
    assert axes.get_ylabel() == "return of evaluations"
    assert np.nanmax(axes.get_lines()[-1].get_ydata()) == 15.0
    figure = plot_comparison([run, dataclasses.replace(run, name="other")], y="eval_return")
    assert "final eval return" in [text.get_text() for text in texts(figure)]
    plain = dataclasses.replace(run, eval_return=None)
    with pytest.raises(purerl.ConfigError, match="no metric 'eval_return'; it was trained without"):
        plot_curves(plain, y="eval_return")
    rows = np.array([[np.nan, 1.0, np.nan, 2.0], [np.nan] * 4])
    expected = np.array([[np.nan, 1.0, 1.0, 2.0], [np.nan] * 4])
    np.testing.assert_array_equal(purerl.statistics.carried(rows), expected)


def test_time_is_on_the_axis_where_it_is_asked_for():
    run = curves()
    axes = plot_curves(run, x="seconds").axes[0]
    np.testing.assert_array_equal(axes.lines[-1].get_xdata(), run.seconds)
    assert axes.get_xlabel() == "wall-clock time (s)"


def test_one_seed_has_no_band_and_says_so():
    figure = plot_curves(curves(seeds=1))
    assert len(figure.axes[0].lines) == 1
    assert not figure.axes[0].collections
    assert legend_names(figure) == ["PPO (1 seed, no interval)"]


def test_many_seeds_and_many_runs_have_no_thin_lines():
    assert len(plot_curves(curves(seeds=17)).axes[0].lines) == 1
    assert len(plot_curves(curves(seeds=16)).axes[0].lines) == 17
    assert len(plot_curves([curves(), curves("DQN", 3)]).axes[0].lines) == 2


def test_runs_are_named_with_their_seeds():
    figure = plot_curves([curves("_a $b$"), curves("DQN", 3), curves("DQN", 1)], title="x_1 $y$")
    assert legend_names(figure) == [
        "_a $b$ (5 seeds)",
        "DQN #1 (3 seeds)",
        "DQN #2 (1 seed, no interval)",
    ]
    assert "x_1 $y$" in [text.get_text() for text in texts(figure)]


def luminance(color):
    """CIE L*."""
    rgb = np.array(matplotlib.colors.to_rgb(color))
    y = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return 116 * np.cbrt(y @ [0.2126, 0.7152, 0.0722]) - 16


def test_runs_differ_in_grey():
    lights = sorted(luminance(color) for color in figures.COLORS)
    assert np.diff(lights).min() >= 8
    assert lights[-1] <= 75  # on white
    styles = [tuple(map(str, figures.style(i).values())) for i in range(210)]
    assert len(set(styles)) == 210
    neighbours = [(figures.style(i), figures.style(i + 1)) for i in range(10)]
    assert all(a[key] != b[key] for a, b in neighbours for key in a)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plot_curves(curves(), title="A title " * 20),
        lambda: plot_curves([curves(f"a long name, with lr={i}e-4") for i in range(9)]),
        lambda: plot_comparison([curves("PPO on CartPole-v1"), curves("DQN", 3, level=-2000)]),
        lambda: plot_comparison([curves("a long name " * 8 + str(i)) for i in range(4)], title="T"),
    ],
)
def test_no_words_are_cut_off_or_covered(draw):
    check_layout(draw())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (999, "999"),
        (1000, "1k"),
        (-1600, "\N{MINUS SIGN}1.6k"),
        (50_000, "50k"),
        (1_000_000, "1M"),
        (2.5e9, "2.5G"),
    ],
)
def test_ticks_are_short(value, text):
    assert figures.engineering(value) == text


def test_ticks_close_together_are_written_out():
    run = dataclasses.replace(curves(), returns=curves().returns / 1000 - 1500)
    figure = plot_curves(run)
    figure.canvas.draw()
    labels = [x.get_text() for x in figure.axes[0].get_yticklabels()]
    assert "\N{MINUS SIGN}1,500" in labels
    assert len(set(labels)) == len(labels) > 2


def lines_of(axes):
    return {line.get_marker(): line for line in axes.lines}


def test_a_comparison_has_means_profiles_and_pairs():
    a, b = curves("PPO", 6, seed=1), curves("DQN", 9, level=105, seed=2)
    for run in (a, b):
        run.returns[0, 36:] = nan
        run.num_episodes[0, 36:] = 0
    figure = plot_comparison([a, b])
    means, profile, pairs, right = figure.get_axes()
    finals = []
    for run in (a, b):
        ends = [
            np.repeat(returns[36:], counts[36:])
            for returns, counts in zip(run.returns[1:], run.num_episodes[1:], strict=True)
        ]
        finals.append(np.array([end.mean() for end in ends]))
    points = [lines_of(means)[figures.MARKERS[i]].get_xdata()[0] for i in range(2)]
    np.testing.assert_allclose(points, [scipy.stats.trim_mean(x, 0.25) for x in finals])
    labels = [label.get_text() for label in means.get_yticklabels()]
    assert labels == ["PPO\n(5 of 6 seeds)", "DQN\n(8 of 9 seeds)"]
    for line, final in zip(profile.lines, finals, strict=True):
        shares = [np.mean(final > threshold) for threshold in line.get_xdata()]
        np.testing.assert_allclose(line.get_ydata(), shares)
        assert (shares[0], shares[-1]) == (1, 0)
    u = scipy.stats.mannwhitneyu(*finals).statistic / (5 * 8)
    assert lines_of(pairs)["o"].get_xdata()[0] == pytest.approx(u)
    assert [label.get_text() for label in pairs.get_yticklabels()] == ["PPO"]
    assert [label.get_text() for label in right.get_yticklabels()] == ["DQN"]


def test_a_comparison_of_one_or_of_the_same():
    assert len(plot_comparison([curves()]).get_axes()) == 2
    single = plot_comparison([curves("PPO", seeds=1), curves("DQN", seeds=3)])
    check_layout(single)
    means, _, pairs, _ = single.get_axes()
    labels = [label.get_text() for label in means.get_yticklabels()]
    assert labels == ["PPO\n(1 seed, no interval)", "DQN\n(3 seeds)"]
    bars = [line for line in means.lines if line.get_linewidth() == 5]
    assert [bool(np.isfinite(bar.get_xdata()).all()) for bar in bars] == [False, True]
    assert not np.isfinite(pairs.lines[0].get_xdata()).any()
    same = curves(seeds=3)
    same.returns[:] = 500
    check_layout(plot_comparison([same, same]))


@pytest.mark.parametrize(
    ("suffix", "begins"), [("png", b"\x89PNG"), ("PDF", b"%PDF"), ("svg", b"<?xml")]
)
def test_a_figure_is_saved_by_its_suffix(tmp_path, suffix, begins):
    path = tmp_path / f"curve.{suffix}"
    path.write_text("what was there before")
    plot_curves(curves(), path)
    assert path.read_bytes().startswith(begins)
    assert [x.name for x in tmp_path.iterdir()] == [path.name]
    if suffix == "png":
        with Image.open(path) as image:
            assert image.width >= 1000


def test_a_figure_that_cannot_be_saved(tmp_path):
    with pytest.raises(purerl.ConfigError, match=r"path: got 'a.jpg', expected .*\.png, \.pdf or"):
        plot_curves(curves(), "a.jpg")
    with pytest.raises(purerl.RunError, match=r"curve\.png can't be written: No such file"):
        plot_curves(curves(), tmp_path / "none" / "curve.png")


def test_the_users_backend_stays(tmp_path):
    code = f"""
import sys, matplotlib
before = dict.__getitem__(matplotlib.rcParams, "backend")
import numpy as np
from purerl.runs.curves import Curves
from purerl.plots.runs import plot_curves
run = Curves("a", np.arange(1, 4), np.ones((2, 3)), np.ones((2, 3), int))
plot_curves(run, {str(tmp_path / "a.pdf")!r})
assert "matplotlib.pyplot" not in sys.modules
assert dict.__getitem__(matplotlib.rcParams, "backend") is before
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=250)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot_curves([]), "curves: got none"),
        (lambda: plot_curves(["runs/a"]), r"got str, expected Curves: .*read_run\(path\)"),
        (lambda: plot_curves(curves(), x="second"), "x: got 'second'; did you mean 'seconds'"),
        (
            lambda: plot_curves(dataclasses.replace(curves("A"), seconds=None), x="seconds"),
            "they aren't known of 'A'",
        ),
        (lambda: Curves.of("A", curves()), "out: got Curves, expected a TrainOutput or Metrics"),
        (lambda: plot_curves(silent()), "A: no episode ended, train"),
        (lambda: plot_comparison([silent(until=30)]), "A: no episode ended in the last tenth"),
        (lambda: Curves("A", np.ones(3), np.ones(3), np.ones(3)), r"A: returns have shape \(3,\)"),
        (
            lambda: Curves("A", np.ones(4), np.ones((2, 3)), np.ones((2, 3))),
            r"timesteps has shape \(4,\), expected \(3,\)",
        ),
    ],
)
def test_what_cannot_be_plotted_is_told(call, message):
    with pytest.raises(purerl.ConfigError, match=message):
        call()


def silent(until=0):
    run = curves("A")
    run.returns[:, until:] = nan
    run.num_episodes[:, until:] = 0
    return run


HEADER = ["seed", "update", "timesteps", "seconds", "episode_return", "num_episodes", "policy_loss"]


def rows_of(run, seeds):
    for update, seed in itertools.product(range(run.returns.shape[1]), range(run.num_seeds)):
        value = run.returns[seed, update]
        yield [
            seeds[seed],
            update + 1,
            run.timesteps[update],
            run.seconds[update],
            "" if np.isnan(value) else repr(float(value)),
            run.num_episodes[seed, update],
            "",
        ]


def write_run(folder, run, rows=None, header=HEADER, tail=""):
    folder.mkdir(exist_ok=True)
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows_of(run, range(10, 20)) if rows is None else rows)
        file.write(tail)
    about = {"env": "walk", "agent": "PPO", "seeds": [10, 11], "steps_per_update": 512}
    (folder / "summary.json").write_text(json.dumps(about))
    return folder


def test_a_folder_is_read(tmp_path):
    run = curves()
    rows = list(rows_of(run, range(10, 20)))
    np.random.default_rng(0).shuffle(rows)
    got = read_run(write_run(tmp_path / "a", run, rows))
    assert got.name == "PPO on walk"
    for field in ("timesteps", "returns", "num_episodes", "seconds"):
        np.testing.assert_allclose(getattr(got, field), getattr(run, field))
    assert got.timesteps.dtype == np.int64
    write_run(tmp_path / "b", run)
    assert [x.name for x in read_runs([tmp_path / "a", tmp_path / "b"])] == [
        "PPO on walk: a",
        "PPO on walk: b",
    ]
    assert read_run(tmp_path / "b", "mine").name == "mine"


def test_seconds_may_be_unknown(tmp_path):
    run = curves()
    rows = [[*row[:3], "", *row[4:]] for row in rows_of(run, range(5))]
    assert read_run(write_run(tmp_path, run, rows)).seconds is None
    rows = [[*row[:3], *row[4:]] for row in rows]
    header = [*HEADER[:3], *HEADER[4:]]
    assert read_run(write_run(tmp_path, run, rows, header)).seconds is None


def test_an_update_on_its_way_is_not_counted(tmp_path):
    run = curves(seeds=2, updates=6)
    rows = list(rows_of(run, range(2)))
    got = read_run(write_run(tmp_path, run, rows[:-1], tail="1,6,30"))
    np.testing.assert_array_equal(got.returns, run.returns[:, :5])


def damaged(name):
    run = curves(seeds=2, updates=6)
    rows = [list(map(str, row)) for row in rows_of(run, range(2))]
    changes = {
        "torn": lambda: rows[4].pop(),
        "word": lambda: rows[4].__setitem__(2, "x"),
        "hole": lambda: rows.pop(4),
        "twice": lambda: rows.append(rows[4]),
        "empty": lambda: rows.clear(),
        "no seed": lambda: rows[4].__setitem__(0, ""),
        "far": lambda: rows[4].__setitem__(1, "1000000000"),
        "silent": lambda: [row.__setitem__(4, "") or row.__setitem__(5, "0") for row in rows],
    }
    changes[name]()
    return run, rows


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torn", "metrics.csv is damaged: line 6: 6 fields, expected 7"),
        ("word", "line 6: could not convert string to float: 'x'"),
        ("hole", "seed 0 has 0 rows of update 3, expected one"),
        ("twice", "seed 0 has 2 rows of update 3, expected one"),
        ("empty", "it has no rows"),
        ("no seed", "seed is empty in some row"),
        ("far", "12 rows are too few for 2 seeds up to update 1000000000"),
        ("silent", "has no finished episode"),
    ],
)
def test_a_damaged_table_is_told(tmp_path, name, message):
    with pytest.raises(purerl.RunError, match=message):
        read_run(write_run(tmp_path, *damaged(name)))


def test_a_folder_of_no_run_is_told(tmp_path):
    with pytest.raises(purerl.RunError, match="none is no run's folder: there is no such folder"):
        read_run(tmp_path / "none")
    with pytest.raises(purerl.RunError, match=r"it has neither summary\.json nor run\.json"):
        read_run(tmp_path)
    (tmp_path / "summary.json").write_text('{"env": "walk"}')
    with pytest.raises(purerl.RunError, match=r"summary\.json is damaged: it has no 'agent'"):
        read_run(tmp_path)
    (tmp_path / "summary.json").write_text('{"env": "wal')
    with pytest.raises(purerl.RunError, match=r"summary\.json is damaged"):
        read_run(tmp_path)
    (tmp_path / "summary.json").write_text('{"env": "walk", "agent": "PPO"}')
    with pytest.raises(purerl.RunError, match=r"has no metrics\.csv: nothing was .* it is lost$"):
        read_run(tmp_path)
    (tmp_path / "metrics.csv").write_text("seed,update\n0,1\n")
    with pytest.raises(purerl.RunError, match=r"metrics\.csv is damaged: it has no column 'timest"):
        read_run(tmp_path)
    (tmp_path / "metrics.csv").write_bytes(b"\xff\xfe\x00\x00" * 9)
    with pytest.raises(purerl.RunError, match=r"metrics\.csv is damaged"):
        read_run(tmp_path)


def made_up(scores=None, seeds=4, updates=20, **swept):
    """A result that wasn't trained: of combination c and seed s the final return is c + s / 10."""
    plan = make_plan(
        purerl.TrainConfig(env=walk(), num_envs=2, update_every=4, total_timesteps=160),
        seeds,
        swept.get("grid"),
        swept.get("samples"),
        swept.get("num_samples"),
        None,
    )
    count = len(plan.combinations)
    if scores is None:
        scores = np.arange(count)[:, None] + np.arange(seeds) / 10
    groups = []
    for i, group in enumerate(plan.groups):
        shape = (len(group.members), updates)
        returns = np.broadcast_to(scores.ravel()[group.members, None], shape)
        fields = dict.fromkeys(purerl.Metrics._fields) | {"info": {}, "log": {}}
        fields |= {"episode_return": returns, "num_episodes": np.isfinite(returns).astype(int)}
        metrics = purerl.Metrics(**fields)
        groups.append(
            types.SimpleNamespace(
                group=group,
                metrics=metrics,
                num_rows=np.full(shape[0], updates),
                shapes=types.SimpleNamespace(timesteps=8 * (i + 1) * np.arange(1, updates + 1)),
            )
        )
    table = {"final_return": np.ravel(scores)}
    result = SweepResult.__new__(SweepResult)
    result.plan, result.groups, result.table = plan, groups, table
    return result


LRS = [1e-2, 3e-4, 1e-3]


def test_a_sweep_over_numbers():
    result = made_up(grid={"lr": LRS})
    figure = plot_sweep(result)
    axes = figure.axes[0]
    (line,) = axes.lines
    np.testing.assert_allclose(line.get_xdata(), [3e-4, 1e-3, 1e-2])
    np.testing.assert_allclose(line.get_ydata(), [1.15, 2.15, 0.15])
    points = axes.collections[0].get_offsets()
    assert len(points) == 12
    assert {(x, y) for x, y in points if x == 3e-4} == {(3e-4, 1 + s / 10) for s in range(4)}
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "lr"
    assert [x.get_text() for x in axes.get_xticklabels()] == ["0.0003", "0.001", "0.01"]
    assert "over seeds" in axes.get_title(loc="left")
    check_layout(figure)
    assert plot_sweep(made_up(grid={"gamma": [0.9, 0.99]})).axes[0].get_xscale() == "linear"


def test_a_sweep_over_words():
    scores = np.array([[1.0, 2.0], [nan, nan], [3.0, nan]])
    words = ["tanh", "relu", "silu"]
    result = made_up(scores, 2, grid={"activation": words})
    figure = plot_sweep(result)
    axes = figure.axes[0]
    assert [x.get_text() for x in axes.get_xticklabels()] == words
    np.testing.assert_allclose(axes.lines[-1].get_ydata(), [1.5, nan, 3])
    assert "no final return: relu" in axes.get_title(loc="left")
    check_layout(figure)


def test_a_sweep_over_two_is_a_map():
    result = made_up(grid={"lr": LRS, "gamma": [0.9, 0.99]})
    figure = plot_sweep(result)
    axes = figure.axes[0]
    # Combinations: lr is the slower one.
    np.testing.assert_allclose(axes.images[0].get_array(), [[2.15, 4.15, 0.15], [3.15, 5.15, 1.15]])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("lr", "gamma")
    written = {(t.get_position()): t.get_text() for t in axes.texts}
    assert written[0, 0] == "2.15"
    assert written[2, 1] == "1.15"
    assert len(written) == 6
    check_layout(figure)
    swapped = plot_sweep(result, ["gamma", "lr"]).axes[0]
    np.testing.assert_array_equal(swapped.images[0].get_array(), axes.images[0].get_array().T)
    one = plot_sweep(result, "gamma").axes[0]
    every = np.arange(6)[:, None] + np.arange(4) / 10
    expected = [scipy.stats.trim_mean(every[i::2].ravel(), 0.25) for i in range(2)]
    np.testing.assert_allclose(one.lines[0].get_ydata(), expected)
    assert "over seeds and lr" in one.get_title(loc="left")


def test_what_is_pooled_is_drawn_from_at_once():
    """With a single seed too the interval has a width; of one agent there is none."""
    scores = np.array([[0.0], [4.0], [8.0], [1.0], [nan]])
    means, lows, highs = plotting_sweep._by_level(scores, np.array([0, 0, 0, 1, 1]), 2)
    assert means.tolist() == [4.0, 1.0]
    assert lows[0] < 2 < 6 < highs[0]
    assert np.isnan([lows[1], highs[1]]).all()
    result = made_up(seeds=1, grid={"lr": LRS, "gamma": [0.9, 0.99]})
    band = plot_sweep(result, "lr").axes[0].collections[1].get_paths()[0].get_extents()
    assert band.height > 4.5  # from 0 to 5; the means are 0.5, 2.5 and 4.5


def test_a_sweep_of_draws_is_points():
    draws = {"lr": purerl.LogUniform(1e-5, 1e-1), "gamma": purerl.Uniform(0.8, 1.0)}
    result = made_up(samples=draws, num_samples=12)
    figure = plot_sweep(result)
    axes = figure.axes[0]
    assert len(axes.collections[0].get_offsets()) == 12
    best = result.plan.combinations[11]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[best["lr"], best["gamma"]]])
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
    check_layout(figure)
    check_layout(plot_sweep(result, "lr"))


def test_a_learning_curve_a_value():
    result = made_up(grid={"lr": LRS, "num_envs": [2, 4]})
    figure = plot_sweep_curves(result)
    assert legend_names(figure)[:3] == [
        "lr=0.0003, num_envs=2 (4 seeds)",
        "lr=0.0003, num_envs=4 (4 seeds)",
        "lr=0.001, num_envs=2 (4 seeds)",
    ]
    lines = figure.axes[0].lines
    assert [line.get_ydata()[-1] for line in lines] == pytest.approx(
        [2.15, 3.15, 4.15, 5.15, 0.15, 1.15]
    )
    assert [line.get_xdata()[-1] for line in lines] == [160, 320] * 3
    assert legend_names(plot_sweep_curves(result, "num_envs"))[0] == "num_envs=2 (12 seeds)"
    with pytest.raises(purerl.ConfigError, match=r"lr=0.0003 differ in their steps; name num_envs"):
        plot_sweep_curves(result, "lr")


def test_of_many_values_the_best_are_shown():
    result = made_up(grid={"lr": [i * 1e-4 for i in range(1, 13)]})
    figure = plot_sweep_curves(result)
    assert len(legend_names(figure)) == plotting_sweep.MOST_CURVES == 8
    assert legend_names(figure)[0].startswith("lr=0.0012 ")
    assert figure.axes[0].get_title(loc="left").startswith("the best 8 of 12")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: plot_sweep(x, "learning_rate"), "'learning_rate' was not swept; did you .*'lr'"),
        (lambda x: plot_sweep_curves(x, "gama"), "did you mean 'gamma'"),
        (lambda x: plot_sweep(x, []), "expected swept names, each once"),
        (lambda x: plot_sweep(made_up()), "nothing was swept"),
        (lambda x: plot_sweep(x, "lr", "a.gif"), "path: got 'a.gif'"),
    ],
)
def test_what_was_not_swept_is_told(call, message):
    result = made_up(grid={"lr": LRS, "gamma": [0.9, 0.99], "lam": [0.9]})
    with pytest.raises(purerl.ConfigError, match=message):
        call(result)


def test_a_sweep_without_an_episode():
    result = made_up(np.full((3, 2), nan), 2, grid={"lr": LRS})
    for plot in (plot_sweep, plot_sweep_curves):
        with pytest.raises(purerl.ConfigError, match="train for longer"):
            plot(result)


def test_what_was_trained_is_drawn(tmp_path):
    config = purerl.TrainConfig(walk(), Tiny(), 320, num_envs=2, update_every=8)
    result = purerl.sweep(config, seeds=2, grid={"lr": [1e-3, 1e-2]}, verbose=False)
    # Episodes of walk(3) have the return 1 + 2 + 3.
    axes = plot_sweep(result, path=tmp_path / "a.png").axes[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [6, 6])
    run = Curves.of("walk", result.metrics, 16)
    np.testing.assert_allclose(run.final_returns, result.table["final_return"])
    assert run.returns.shape == (4, 20)
    one = Curves.of("walk", result.member(1))
    np.testing.assert_array_equal(one.returns, run.returns[1:2])
    np.testing.assert_array_equal(one.timesteps, np.arange(16, 336, 16))
    assert one.num_updates.tolist() == [20]
    assert len(plot_sweep_curves(result).axes[0].lines) == 2
    with pytest.raises(purerl.ConfigError, match="steps_per_update: got None"):
        Curves.of("walk", result.metrics)
    deep = jax.tree.map(lambda x: x[None], result.metrics)
    with pytest.raises(purerl.ConfigError, match=r"shape \(1, 4, 20\), expected \[U\] or \[S, U\]"):
        Curves.of("walk", deep, 16)
