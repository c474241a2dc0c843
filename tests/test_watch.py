"""`purerl ls` and `purerl watch`: what folders hold, while they are written and afterwards."""

import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
from kit.folders import contents
from kit.runs import config as tiny_config
from PIL import Image

import purerl
from purerl.records.folders import LOCK, is_locked, locked
from purerl.runs.report import by_name
from purerl.runs.status import status_of
from purerl.runs.watch import Table, Watched, make_server
from purerl.statistics import bin_curves, iqm

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, compile_once):
    """A run's folder, and what `fit` returned."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    config = tiny_config(num_updates=24).replace(eval_every=4, eval_max_episodes=2)
    return folder, purerl.fit(config, folder, seeds=[4, 9], checkpoint_every=1e6)


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it."""
    return pathlib.Path(shutil.copytree(finished[0], tmp_path / "runs" / "first"))


@pytest.fixture
def killed(run):
    """Another, as a kill leaves it after 10 of 24 updates."""
    folder = run.with_name("killed")
    shutil.copytree(run, folder)
    (folder / "summary.json").unlink()
    lines = (folder / "metrics.csv").read_text().splitlines(keepends=True)
    (folder / "metrics.csv").write_text("".join(lines[: 1 + 2 * 10]) + "4,11,3")
    shutil.rmtree(folder / "metrics")
    return folder


def at_the_end(out):
    return float(purerl.Curves.of("", out).final_returns.mean())


def test_states(run, killed, finished):
    whole = status_of(run)
    assert whole[:6] == ("first", "run", "push", "Tiny", "", 2)
    assert (whole.timesteps, whole.total_timesteps, whole.state) == (768, 768, "finished")
    assert whole.final_return == pytest.approx(at_the_end(finished[1]), rel=1e-5)
    part = status_of(killed)
    assert (part.timesteps, part.total_timesteps, part.state) == (320, 768, "killed")
    before = contents(killed)
    with locked(killed / LOCK):
        assert is_locked(killed / LOCK)
        assert status_of(killed).state == "running"
    assert not is_locked(killed / LOCK)
    assert status_of(killed).state == "killed"
    assert contents(killed) == before
    (killed / LOCK).unlink()
    assert not is_locked(killed / LOCK)
    assert not (killed / LOCK).exists()
    summary = json.loads((run / "summary.json").read_text())
    del summary["checksum"]
    (run / "summary.json").write_text(json.dumps(summary | {"finished": False}))
    assert status_of(run).state == "stopped"
    (run / "summary.json").write_text("{")
    damaged = status_of(run)
    assert damaged.state == "damaged"
    assert "summary.json is damaged" in damaged.problem


def test_ls(command, run, killed, tmp_path):
    sweep = tmp_path / "runs" / "swept"
    config = tiny_config(num_updates=2)
    result = purerl.sweep(config, seeds=2, grid={"lr": [0.1, 0.2]}, run_dir=sweep)
    half = shutil.copytree(sweep, sweep.with_name("half"))
    shutil.rmtree(half / "best")
    (tmp_path / "runs" / "notes").mkdir()
    for i, name in enumerate(("half", "swept", "killed", "first")):
        for file in (tmp_path / "runs" / name).rglob("*"):
            os.utime(file, (1e9 + i, 1e9 + i))
    code, out, err = command("ls")
    assert (code, err) == (0, "")
    head, *rows = (re.split(r"  +", line.strip()) for line in out.splitlines())
    assert head == ["name", "kind", "environment", "agent", "seeds", "steps", "return", "state"]
    assert [row[0] for row in rows] == ["first", "killed", "swept", "half"]
    assert rows[1][:6] == ["killed", "run", "push", "Tiny", "2", "320 of 768"]
    best = result.best()
    assert rows[2][1:] == ["sweep", "push", "Tiny", "2", "64", f"{best.mean:.1f}", "finished"]
    assert rows[3][1:] == ["sweep", "push", "Tiny", "2", "-", "-", "unfinished"]
    _, out, _ = command("ls", "runs", "--json")
    found = json.loads(out)
    assert [x["state"] for x in found] == ["finished", "killed", "finished", "unfinished"]
    assert found[2]["best"] == f"lr={best.hyperparams['lr']:.4g}"
    assert [x["name"] for x in json.loads(command("ls", run, "--json")[1])] == ["first"]
    assert command("ls", "runs/notes")[1] == "runs/notes holds no run\n"
    code, out, err = command("ls", "nowhere")
    assert (code, out) == (1, "")
    assert err == "purerl: nowhere can't be listed: No such file or directory\n"
    (killed / "run.json").write_text("[]")
    _, out, _ = command("ls")
    assert "killed: " in out.splitlines()[-1]
    assert "run.json is damaged" in out.splitlines()[-1]


def test_a_table_is_read_as_it_grows(run, tmp_path):
    text = (run / "metrics.csv").read_bytes()
    whole = Table(run / "metrics.csv").read()
    assert whole.shape[0] == 48
    file = tmp_path / "growing.csv"
    table = Table(file)
    assert table.columns() == {}  # there is none yet
    for cut in (3, 500, 501, 900, 2000, 2001, len(text)):
        file.write_bytes(text[:cut]) if not file.exists() else _append(file, text[:cut])
        rows = table.read()
        complete = max(text[:cut].count(b"\n") - 1, 0)
        assert len(rows) == complete
        np.testing.assert_array_equal(rows, whole[:complete].reshape(rows.shape))
    again = tmp_path / "again.csv"  # a run that goes on from a checkpoint
    again.write_bytes(b"".join(text.splitlines(keepends=True)[:5]))
    again.replace(file)
    assert len(table.read()) == 4
    _append(file, b"".join(text.splitlines(keepends=True)[:6]))
    columns = table.columns()  # of the third update one seed is missing
    assert columns["seed"].tolist() == [[4, 4], [9, 9]]
    file.write_text("seed,update\n1,2\n1,2,3\n")
    with pytest.raises(ValueError, match=r"inhomogeneous|fields in a row"):
        table.read()


def _append(file, text):
    """Appends what a file lacks of a text."""
    with file.open("ab") as stream:
        stream.write(text[file.stat().st_size :])


@pytest.fixture
def server(run, killed):
    with make_server([run, killed], 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def get(address, **headers):
    with urllib.request.urlopen(
        urllib.request.Request(address, headers=headers), timeout=250
    ) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def test_the_page_and_its_numbers(server, run, killed, finished):
    before = contents(run.parent)
    kind, page = get(server)
    assert kind.startswith("text/html")
    assert "prefers-color-scheme: dark" in page
    assert not re.search(r"(src|href)=.?(https?:)?//", page)  # nothing from elsewhere
    kind, text = get(f"{server}data")
    assert kind == "application/json"
    first, second = json.loads(text)["runs"]
    assert (first["name"], first["state"], first["seeds"]) == ("first", "finished", [4, 9])
    assert (first["timesteps"], first["total"], first["share"], first["left"]) == (
        768,
        768,
        1,
        None,
    )
    assert first["speed"] == pytest.approx(2 * 768 / first["seconds"])
    out = finished[1]
    returns, episodes = out.metrics.episode_return, out.metrics.num_episodes
    x, curves = bin_curves(out.timesteps, returns, episodes, 200)
    curve = first["curves"]["episode_return"]
    assert curve["x"] == x.tolist()
    np.testing.assert_allclose(curve["seeds"], curves, rtol=1e-4)
    np.testing.assert_allclose(curve["middle"], iqm(curves, axis=0), rtol=1e-4)
    assert set(out.metrics.losses) | {"eval_return", "eval_length"} <= set(first["curves"])
    table = by_name(out.metrics)
    last = table["eval_return"][:, np.isfinite(table["eval_return"][0])][:, -1]
    assert first["curves"]["eval_return"]["middle"][-1] == pytest.approx(iqm(last), rel=1e-4)
    assert (second["name"], second["state"], second["timesteps"]) == ("killed", "killed", 320)
    with locked(killed / LOCK):
        (training,) = json.loads(get(f"{server}data")[1])["runs"][1:]
    assert training["state"] == "running"
    assert training["left"] == pytest.approx(training["seconds"] * (768 - 320) / 320, rel=0.5)
    assert contents(run.parent) == before
    (killed / "metrics.csv").write_text("seed,update,timesteps\n1,x,3\n")
    assert "could not convert" in Watched(killed).snapshot()["problem"]
    (killed / "metrics.csv").unlink()
    assert "curves" not in Watched(killed).snapshot()


def test_the_page_is_for_this_machine(server):
    for path, headers, code in (("nothing", {}, 404), ("data", {"Host": "evil.example:80"}, 403)):
        with pytest.raises(urllib.error.HTTPError) as raised:
            get(server + path, **headers)
        assert raised.value.code == code
        raised.value.close()
    for host in ("localhost", "127.0.0.1", "127.0.0.1:80"):  # browsers leave the port 80 out
        assert "runs" in json.loads(get(server + "data", Host=host)[1])


def test_the_command_serves_until_it_is_interrupted(command, run, monkeypatch):
    def serve(self, poll_interval):
        assert "runs" in json.loads(get(f"http://127.0.0.1:{self.server_port}/data")[1])

    def interrupted(self, poll_interval):
        thread = threading.Thread(target=self.handle_request)
        thread.start()
        serve(self, poll_interval)
        thread.join()
        raise KeyboardInterrupt

    monkeypatch.setattr("http.server.ThreadingHTTPServer.serve_forever", interrupted)
    code, out, err = command("watch", run)
    assert (code, err) == (130, "")
    lines = out.splitlines()
    assert re.match(rf"http://127\.0\.0\.1:\d+/  \({run}\)", lines[0])
    assert lines[1:] == ["Ctrl-C ends this page; training goes on", "the page is closed"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = command("watch", run, "--port", port)
        assert code == 1
        assert err == f"purerl: --port: {port} can't be had: Address already in use\n"
        monkeypatch.setattr("purerl.cli.looking.PORT", port)
        code, out, _ = command("watch")
        assert code == 130
        assert f":{port}/" not in out
    assert command("watch", run, "--port", 0)[0] == 2
    code, _, err = command("watch", "nowhere")
    assert (code, err) == (1, "purerl: nowhere is no run's folder: there is no such folder\n")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome")
def test_the_page_in_a_browser(server, tmp_path):
    def browse(*options):
        basic = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000")
        profile = f"--user-data-dir={tmp_path}/profile"
        command = [BROWSER, *basic, profile, *options, server]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=250, check=True
        ).stdout

    page = browse("--dump-dom")
    assert re.search(r'class="state finished">finished<', page)
    assert re.search(r'class="state killed">killed<', page)
    figures = re.findall(r'<figure data-name="([^"]*)".*?</figure>', page, re.S)
    assert figures[:2] == ["episode_return", "eval_return"]
    assert len(figures) > 3
    returns = re.search(r'<figure data-name="episode_return".*?</figure>', page, re.S)[0]
    assert returns.count('class="thick"') == 2  # runs
    assert returns.count('class="thin"') == 4  # their seeds
    assert "NaN" not in page
    grounds = {}
    for scheme, number in (("dark", 0), ("light", 1)):
        file = tmp_path / f"{scheme}.png"
        setting = f"--blink-settings=preferredColorScheme={number}"
        browse(setting, "--window-size=1000,1200", f"--screenshot={file}")
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("L")).astype(int)
        grounds[scheme] = np.median(pixels)
        assert np.mean(np.abs(pixels - grounds[scheme]) > 60) > 0.005  # letters and curves
    assert grounds["dark"] < 60 < 200 < grounds["light"]
