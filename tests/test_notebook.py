"""Results and progress in a notebook: short, whole, and of numbers that are there."""

import importlib.util
import pathlib
import re
import subprocess
import sys
import types
import xml.etree.ElementTree as ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.runs import config as tiny_config
from kit.runs import stop_at

import purerl
from purerl.runs import progress
from purerl.sweeps.progress import progress as sweep_progress
from purerl.training import card

pytestmark = pytest.mark.usefixtures("quick_programs")
SVG = "{http://www.w3.org/2000/svg}"
NOTEBOOK = pathlib.Path(__file__).parent.parent / "experiments" / "first_hour.ipynb"


@pytest.fixture(scope="module")
def config():
    return tiny_config(num_updates=24)


@pytest.fixture(scope="module")
def out(config, compile_once):
    return purerl.fit(config, seeds=3)


def shapes(page):
    """The parts of a page's pictures, whose numbers are all in them."""
    parts = list(ElementTree.fromstring(page).iter())
    points = [x for x in parts if x.tag in (f"{SVG}polyline", f"{SVG}polygon")]
    for part in points:
        at = np.array([pair.split(",") for pair in part.get("points").split()], float)
        assert np.all((at >= 0) & (at <= [card.WIDTH, card.HEIGHT]))
    return [x.tag.removeprefix(SVG) for x in parts if x.tag.startswith(SVG)]


def test_reprs_say_what_it_is(config, out):
    one = out.member(1)
    spread = r"[-\d.]+ \([-\d.]+ to [-\d.]+\)"
    name = "Tiny on push"
    assert repr(config) == (
        "TrainConfig(env=Env('push'), agent=Tiny(), total_timesteps=768, num_envs=4, "
        "update_every=8, max_episode_steps=3)"
    )
    assert repr(purerl.TrainConfig("CartPole-v1")) == "TrainConfig(env='CartPole-v1', agent=PPO())"
    assert repr(purerl.make("CartPole-v1", gravity=1.6)) == "make('CartPole-v1', gravity=1.6)"
    whole = rf"TrainOutput\({name}, 3 runs, 768 steps each, final return {spread}\)"
    assert re.fullmatch(whole, repr(out))
    assert re.fullmatch(rf"TrainOutput\({name}, 768 steps, final return [-\d.]+\)", repr(one))
    assert repr(one.policy).startswith("Policy(Tiny on push, observations Box(")
    assert "3 runs" in repr(out.policy)
    grid = jax.tree.map(lambda x: jnp.stack([x, x]), out)
    assert "2 x 3 runs, 768 steps each" in repr(grid)
    ends = purerl.Curves.of("", out).final_returns
    assert f"return {ends.mean():.1f} ({ends.min():.1f} to {ends.max():.1f})" in repr(out)


def test_reprs_of_what_has_no_numbers(out):
    seen = []

    def train(out):
        seen.append((repr(out), out._repr_html_(), repr(out.policy), out.policy._repr_html_()))
        return out

    jax.jit(train)(out)
    jax.eval_shape(jax.vmap(train), out)
    seen += [(repr(x), x._repr_html_()) for x in (jax.eval_shape(lambda: out),)]
    donated = jax.tree.map(lambda x: jnp.array(x), out.member(0))
    jax.tree.map(lambda x: x.delete(), donated.metrics)
    seen.append((repr(donated), donated._repr_html_()))
    for texts in seen:
        assert all("Tiny on push" in text and "final" not in text for text in texts)
        assert all(len(text) < 400 and "<svg" not in text for text in texts)
    jax.tree.map(lambda _: None, out).__repr__()  # a placeholder
    jax.tree.map(lambda x: object(), out).__repr__()
    empty = {"num_episodes": 0 * out.metrics.num_episodes}
    empty["episode_return"] = out.metrics.episode_return + np.nan
    never = out.replace(metrics=out.metrics._replace(**empty))
    assert "no episode ended" in repr(never)
    assert "<svg" not in never._repr_html_()


def test_cards_have_the_curves(config, out):
    drawn = shapes(out._repr_html_())
    assert drawn.count("polyline") == 4
    assert shapes(out.member(0)._repr_html_()).count("polyline") == 1
    many = jax.tree.map(lambda x: jnp.concatenate([x] * 6), out)
    drawn = shapes(many._repr_html_())
    assert (drawn.count("polyline"), drawn.count("polygon")) == (1, 1)
    assert "<table" in config._repr_html_()
    assert "24 updates of 4 environments x 8 steps, 768 steps each" in config._repr_html_()
    assert not shapes(out.policy._repr_html_())
    for page in (out._repr_html_(), config._repr_html_()):  # the color of the notebook's text
        assert set(re.findall("#[0-9a-f]{3,6}", page)) <= {card.COLOR}


@pytest.mark.parametrize(
    ("curves", "expected"),
    [
        ([[np.nan, np.nan, 5.0]], {"circle": 1}),
        ([[5.0, 5.0, 5.0]], {"polyline": 1}),
        ([[np.nan, 1e6, -1e6], [np.nan, np.nan, np.nan]], {"polyline": 2}),
        ([[np.nan, i, -i] for i in range(20)], {"polyline": 1, "polygon": 1}),
        ([[np.nan] * 3], {}),
    ],
)
def test_curves_with_gaps(curves, expected):
    page = f"<div>{card.picture(np.array([1, 2, 3]), np.array(curves), 'a < b')}</div>"
    drawn = shapes(page)
    assert {x: drawn.count(x) for x in ("circle", "polyline", "polygon") if x in drawn} == expected


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 525), (0.1, 0.11), (-1e9, 1e9), (5, 5.05)])
def test_ticks_are_round_and_few(low, high):
    found = card.ticks(low, high)
    assert 2 <= len(found) <= 6
    assert all(low <= x <= high for x in found)
    assert np.allclose(np.diff(found), found[1] - found[0])


class Kernel:
    """An IPython that is a notebook's kernel, and keeps what is shown."""

    def __init__(self, monkeypatch):
        self.kernel, self.user_ns, self.outputs = object(), {}, []
        ipython, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
        ipython.get_ipython = lambda: self
        display.display = self.display
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        monkeypatch.setitem(sys.modules, "IPython.display", display)

    def display(self, data, *, raw, display_id):
        assert raw
        assert display_id is True
        pages = [data]
        self.outputs.append(pages)

        def update(data, *, raw):
            assert raw
            pages.append(data)

        return types.SimpleNamespace(update=update)


@pytest.fixture
def kernel(monkeypatch):
    return Kernel(monkeypatch)


def test_fit_shows_a_bar_and_curves(kernel, config):
    purerl.fit(config, seeds=3, report_every=0.0)
    (pages,) = kernel.outputs
    texts = [page["text/plain"] for page in pages]
    assert texts[0] == "Tiny on push, 3 seeds: compiling"
    assert re.search(r": 4% · [\d,]+ steps/s · .* left · return .* · ", texts[1])
    assert texts[-2].startswith("Tiny on push, 3 seeds: 100%")
    assert re.search(r": trained in \d+ s · [\d,]+ steps/s over all seeds", texts[-1])
    assert len(pages) == 26
    assert shapes(pages[-1]["text/html"]).count("polyline") == 4
    assert "width:100.0%" in pages[-1]["text/html"]


def test_where_nobody_watches_nothing_is_shown(kernel, config, capsys, monkeypatch):
    def shown(verbose=None):
        return progress.progress_sinks(verbose, config, (0, 1), None, [])

    purerl.fit(config, verbose=False)
    assert shown(False) == kernel.outputs == []
    kernel.user_ns["PAPERMILL_OUTPUT_PATH"] = "out.ipynb"
    assert shown() == kernel.outputs == []
    with sweep_progress(4, None) as report:
        report("training", 2)
    assert kernel.outputs == []
    assert len(shown(True)) == len(kernel.outputs) == 1
    kernel.kernel = None  # IPython in a terminal
    assert shown() == []
    monkeypatch.delitem(sys.modules, "IPython")
    assert shown() == []
    assert capsys.readouterr().out == ""
    (sink,) = shown(True)
    sink.close()
    assert "Tiny, 2 seeds: 24 updates of 4 environments" in " ".join(
        capsys.readouterr().out.split()
    )
    assert len(kernel.outputs) == 1
    with pytest.raises(purerl.ConfigError, match="verbose: got 'yes', expected True, False or"):
        purerl.fit(config, verbose="yes")


def test_papermill_is_known_by_its_command(kernel, monkeypatch):
    assert progress.is_watched()
    code = "import time; time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code, "/usr/bin/papermill"])
    try:
        monkeypatch.setenv("JPY_PARENT_PID", str(child.pid))
        if sys.platform.startswith("linux"):
            while not pathlib.Path(f"/proc/{child.pid}/cmdline").read_bytes():
                pass
            assert not progress.is_watched()
    finally:
        child.kill()
        child.wait()


def test_a_run_that_goes_on_has_its_whole_curve(kernel, config, tmp_path):
    with pytest.raises(purerl.Interrupted):
        purerl.fit(config, tmp_path, report_every=0.0, callback=stop_at(12))
    assert "stopped at 50%, after " in kernel.outputs[0][-1]["text/plain"]
    purerl.fit(config, tmp_path)
    first, last = kernel.outputs[1][0], kernel.outputs[1][-1]
    assert "compiling" in first["text/plain"]
    assert shapes(first["text/html"]).count("polyline") == 1
    assert "trained in" in last["text/plain"]
    purerl.fit(config, tmp_path)  # it is finished
    assert len(kernel.outputs) == 2


def test_curves_of_long_runs_are_merged(monkeypatch, out):
    monkeypatch.setattr(progress, "MOST_POINTS", 8)
    curves = progress._Curves()
    for start in range(0, 24, 3):
        part = jax.tree.map(lambda x, i=start: x[:, i : i + 3], out.metrics)
        curves.add(purerl.Report(start, start + 3, 24, 32, part, 1.0, 1.0, (0, 1, 2)))
    returns, episodes = card.flat(out.metrics)
    assert len(curves._x) <= 8
    assert curves._x[-1] == 24 * 32
    np.testing.assert_array_equal(curves._episodes.sum(axis=1), episodes.sum(axis=1))
    total = np.nansum(returns * episodes, axis=1)
    known = np.nan_to_num(curves._returns) * curves._episodes
    np.testing.assert_allclose(known.sum(axis=1), total, rtol=1e-5)


def test_sweep_shows_a_bar_and_curves(kernel, config):
    result = purerl.sweep(config, seeds=2, grid={"lr": [0.01, 0.1, 1.0]}, slice_size=2)
    ((*pages, last),) = kernel.outputs
    assert "sweep: compiling · 0 of 6 agents" in pages[0]["text/plain"]
    assert re.search(r"training · 2 of 6 agents · .* left", pages[2]["text/plain"])
    assert shapes(pages[2]["text/html"]).count("polyline") == 1  # one combination
    assert re.search(r"training, in .* · 6 of 6 agents", last["text/plain"])
    assert shapes(last["text/html"]).count("polyline") == 3 + 1
    best = result.best()
    assert repr(result) == (
        "SweepResult(Tiny on push, 3 combinations x 2 seeds, best final return "
        f"{best.mean:.1f} with lr={best.hyperparams['lr']:.4g})"
    )
    page = result._repr_html_()
    assert "<pre" in page
    assert "3 combinations x 2 seeds: final return" in page
    assert shapes(page).count("polyline") == 3 + 1
    assert f"thick: lr={best.hyperparams['lr']:.4g}" in page


def test_figures_show_themselves(out):
    figure = purerl.plot_curves(purerl.Curves.of("tiny", out))
    picture, about = figure._repr_png_()
    assert picture.startswith(b"\x89PNG")
    width, height = np.frombuffer(picture[16:24], ">u4")
    assert (width, height) == (2 * about["width"], 2 * about["height"])


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(
    importlib.util.find_spec("nbclient") is None or importlib.util.find_spec("ipykernel") is None,
    reason="needs pip install 'purerl[notebook]'",
)
def test_the_notebook_runs_in_a_real_kernel(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    messages = []

    class Client(NotebookClient):
        def process_message(self, message, cell, cell_index):
            messages.append((cell_index, message["msg_type"]))
            return super().process_message(message, cell, cell_index)

    book = nbformat.read(NOTEBOOK, as_version=4)
    for cell in book.cells:  # the same code on a budget that a test can pay
        cell.source = cell.source.replace("100_000", "16_384")
    Client(book, timeout=500, resources={"metadata": {"path": tmp_path}}).execute()
    cells = {x.source.split("\n")[-1]: x for x in book.cells if x.cell_type == "code"}

    def shown(line):
        (output,) = cells[line].outputs
        return output["data"]

    fit = "out = purerl.fit(config, seeds=4)"
    sweep = 'result = purerl.sweep(config, seeds=4, grid={"lr": [1e-4, 1e-3, 1e-2]})'
    assert shown("config")["text/plain"].startswith("TrainConfig(env='CartPole-v1', agent=PPO(")
    assert "trained in" in shown(fit)["text/plain"]
    assert "12 of 12 agents" in shown(sweep)["text/plain"]
    for line, curves in ((fit, 4), ("out", 4), (sweep, 3), ("result", 3)):
        assert shapes(shown(line)["text/html"]).count("polyline") == curves + 1
    assert "TrainOutput(PPO on CartPole-v1, 4 runs" in shown("out")["text/plain"]
    assert "SweepResult(PPO on CartPole-v1, 3 combinations" in shown("result")["text/plain"]
    for line in (
        'purerl.plot_curves(purerl.Curves.of("PPO", out))',
        "purerl.plot_sweep_curves(result)",
    ):
        assert shown(line)["image/png"]
    assert (tmp_path / "cartpole.gif").read_bytes().startswith(b"GIF")
    index = book.cells.index(cells[fit])
    assert messages.count((index, "display_data")) == 1
    assert messages.count((index, "update_display_data")) >= 2
