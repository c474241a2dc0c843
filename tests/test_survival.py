"""What becomes of a run when something goes wrong while it trains: nothing is lost."""

import contextlib
import csv
import json
import math
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from kit.quick import mostly_slow
from kit.runs import config
from kit.trees import assert_equal

import purerl
from purerl.runs.chunks import Program
from purerl.runs.folder import read_summary
from purerl.runs.view import RunView

QUICKLY = {"report_every": 0.0, "checkpoint_every": 0.0}


pytestmark = pytest.mark.usefixtures("compile_once")


@pytest.fixture(scope="module")
def whole(compile_once):
    """The run of two seeds that nothing interrupts."""
    return purerl.fit(config(), seeds=2)


def saved(folder):
    names = [path.name for path in (folder / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdigit())


class Watching:
    """A sink that counts, and that raises where it is told to."""

    def __init__(self, at=None, raises=None, on_close=None):
        self.at, self.raises, self.on_close = at, raises, on_close
        self.starts, self.closed = [], 0

    def __call__(self, report):
        self.starts.append(report.start)
        if self.at is not None and report.stop >= self.at:
            raise self.raises

    def close(self):
        self.closed += 1
        if self.on_close:
            raise self.on_close


ERRORS = {"Error": ZeroDivisionError("mine"), "Exit": SystemExit(3), "Ctrl-C": KeyboardInterrupt()}


@pytest.mark.parametrize("name", mostly_slow(ERRORS, ("Error",)))
def test_a_callback_that_raises_loses_nothing(name, tmp_path, whole):
    error = ERRORS[name]
    first = Watching(on_close=ValueError("first"))
    sinks = [first, Watching(5, error), Watching()]
    with pytest.raises(type(error)) as caught:
        purerl.fit(config(), tmp_path, seeds=2, callback=sinks, report_every=0.0)
    assert caught.value is error
    assert [sink.closed for sink in sinks] == [1, 1, 1]
    assert error.__notes__ == ["closing Watching failed, too: ValueError('first')"]
    last = first.starts[-1] + 1
    assert saved(tmp_path)[-1] == last == 5
    assert RunView(tmp_path).state == "killed"  # without the files of an end
    after = Watching()
    assert_equal(purerl.fit(config(), tmp_path, seeds=2, callback=after), whole)
    assert after.starts[0] == last


def test_a_sink_that_cannot_be_closed_costs_no_result(tmp_path, whole):
    sinks = [Watching(on_close=OSError("no connection")), Watching()]
    with pytest.raises(purerl.RunError, match=r"closing Watching failed: OSError") as caught:
        purerl.fit(config(), seeds=2, callback=sinks)
    assert_equal(caught.value.output, whole)
    assert [sink.closed for sink in sinks] == [1, 1]
    # There is nothing left to do: sinks are closed all the same.
    purerl.fit(config(), tmp_path, seeds=2)
    sink = Watching()
    purerl.fit(config(), tmp_path, seeds=2, callback=sink)
    assert (sink.starts, sink.closed) == ([], 1)


def test_an_exception_in_the_middle_of_a_chunk_passes(tmp_path, whole, monkeypatch):
    real, calls = Program.run, []

    def run(self, state, start, stop):
        out = real(self, state, start, stop)
        calls.append(stop)
        if len(calls) == 4:  # the state that went in is gone, the new one isn't there
            raise FloatingPointError
        return out

    monkeypatch.setattr(Program, "run", run)
    with pytest.raises(FloatingPointError):
        purerl.fit(config(), tmp_path, seeds=2, **QUICKLY)
    assert_equal(purerl.fit(config(), tmp_path, seeds=2), whole)


def test_the_first_seconds_can_be_resumed(tmp_path, whole, monkeypatch):
    """Killed before anything was saved, and while the first checkpoint is on its way."""

    def die(*_, **__):
        raise KeyboardInterrupt

    for name in ("compile", "run"):
        with monkeypatch.context() as patch:
            patch.setattr(Program, name, die)
            with pytest.raises(KeyboardInterrupt):
                purerl.fit(config(), tmp_path / name, seeds=2)
        assert not saved(tmp_path / name)
    with pytest.raises(purerl.ConfigError, match=r"seeds is \[0, 1\] there, got \[0\]"):
        purerl.fit(config(), tmp_path / "run", seeds=1, resume=True)
    assert_equal(purerl.fit(config(), tmp_path / "run", seeds=2, resume=True), whole)
    # Nothing was trained: the folder may become another run's.
    purerl.fit(config(4), tmp_path / "compile")


def test_the_first_checkpoint_comes_early(tmp_path):
    seen, until = [], time.monotonic() + 250

    def wait(report):
        seen.append(saved(tmp_path))
        while report.stop > 1 and not saved(tmp_path) and time.monotonic() < until:
            time.sleep(0.01)

    purerl.fit(config(), tmp_path, callback=wait, report_every=0.0)
    assert seen[0] == []
    assert saved(tmp_path)[0] == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_signals_save(number, tmp_path):
    def callback(report):
        if report.stop == 3:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(purerl.Interrupted, match="after update 3 of 12"):
        purerl.fit(config(), tmp_path, callback=callback, report_every=0.0)
    assert signal.getsignal(number) == before
    assert saved(tmp_path)[-1] == 3


def test_a_signal_with_the_last_update_interrupts_too(tmp_path, whole):
    """A script that trains one run after the other is to end."""

    def stop(report):
        if report.is_last:
            os.kill(os.getpid(), signal.SIGINT)

    words = r"after update 12 of 12, with which the run is finished: all of it is in "
    with pytest.raises(purerl.Interrupted, match=words) as caught:
        purerl.fit(config(), tmp_path, seeds=2, callback=stop, report_every=0.0)
    assert_equal(caught.value.output, whole)
    assert read_summary(tmp_path)["finished"] is True
    assert_equal(purerl.fit(config(), tmp_path, seeds=2, callback=stop), whole)


def test_an_ignored_signal_stays_ignored(tmp_path):
    """As `nohup` does it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        out = purerl.fit(config(), callback=lambda _: os.kill(os.getpid(), signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert len(out.metrics.num_episodes) == 12


DAMAGES = {
    "deleted": lambda text: None,
    "cut": lambda text: text[: len(text) // 2],
    "emptied": lambda text: "",
    "changed": lambda text: text.replace("\n1,3,", "\n1,999,"),
    "of binary": lambda text: "\0\xff" + text,
    "of rows twice": lambda text: text + text.split("\n", 1)[1],
    "another table": lambda text: "a,b\n1,2\n",
}


CASES = [(name, updates) for name in DAMAGES for updates in (4, 12)]
QUICK = [("deleted", 4), ("deleted", 12), ("cut", 4), ("of binary", 12)]


@pytest.mark.parametrize(("damage", "updates"), mostly_slow(CASES, QUICK))
def test_the_table_of_metrics_is_restored(damage, updates, tmp_path, interrupted_and_over):
    """After a resume, and where nothing is left to do."""
    folder = shutil.copytree(interrupted_and_over[updates], tmp_path / "run")
    file = folder / "metrics.csv"
    text = DAMAGES[damage](file.read_text())
    if text is None:
        file.unlink()
    else:
        file.write_text(text, encoding="latin-1")
    took = read_summary(folder)["seconds"]
    purerl.fit(config(), folder, seeds=2)
    rows, expected = csv_rows(folder), csv_rows(interrupted_and_over[12])
    assert len(rows) == 24
    for row, right in zip(rows, expected, strict=True):
        assert row | {"seconds": ""} == right | {"seconds": ""}
    for row, right in zip(rows[:8], csv_rows(interrupted_and_over[updates]), strict=False):
        assert row["seconds"] in ("", right["seconds"])  # what isn't known isn't made up
    summary = read_summary(folder)
    assert summary["seconds"] == took if updates == 12 else summary["seconds"] > took
    assert purerl.read_run(folder).num_updates.tolist() == [12, 12]


def csv_rows(folder):
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def interrupted_and_over(tmp_path_factory, compile_once):
    """The folders of a run that was stopped after 4 of 12 updates, and of one that is over."""
    folder = tmp_path_factory.mktemp("runs")

    def stop(report):
        if report.stop == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(purerl.Interrupted):
        purerl.fit(config(), folder / "4", seeds=2, callback=stop, report_every=0.0)
    purerl.fit(config(), folder / "12", seeds=2, report_every=0.0)
    return {4: folder / "4", 12: folder / "12"}


def test_a_table_that_is_deleted_while_it_is_written(tmp_path):
    def delete(report):
        if report.stop == 5:
            (tmp_path / "metrics.csv").unlink()

    purerl.fit(config(), tmp_path, callback=delete, report_every=0.0)
    assert [int(row["update"]) for row in csv_rows(tmp_path)] == list(range(1, 13))
    assert [bool(row["seconds"]) for row in csv_rows(tmp_path)] == [False] * 5 + [True] * 7


def test_a_folder_that_is_deleted_while_it_trains(tmp_path):
    def delete(report):
        if report.stop == 5:
            shutil.rmtree(tmp_path / "run")

    with pytest.raises(purerl.RunError, match=r"run is gone") as caught:
        purerl.fit(
            config(),
            tmp_path / "run",
            seeds=2,
            callback=delete,
            report_every=0.0,
            checkpoint_every=math.inf,
        )
    assert str(caught.value).count("\n") == 0
    assert caught.value.output.metrics.num_episodes.shape == (2, 6)


def test_a_full_disk_at_the_end_costs_no_result(tmp_path, whole):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(report):
        if report.stop == 12:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))

    try:
        with pytest.raises(purerl.RunError, match=r"File too large") as caught:
            purerl.fit(config(), tmp_path, seeds=2, callback=fill, checkpoint_every=math.inf)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert_equal(caught.value.output, whole)
    assert_equal(purerl.fit(config(), tmp_path, seeds=2), whole)


WRONG = {"agent": 3, "env": None, "seeds": "0", "finished": 1, "final_return": [], "timesteps": {}}


@pytest.mark.parametrize("name", WRONG)
def test_a_summary_of_wrong_types(name, tmp_path, interrupted_and_over):
    folder = shutil.copytree(interrupted_and_over[12], tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {name: WRONG[name]}))
    with pytest.raises(purerl.RunError, match=rf"summary.json is damaged: {name} is .*, expected"):
        read_summary(folder)
    for text in ("[]", "3", "[" * 100_000, "{"):
        (folder / "summary.json").write_text(text)
        with pytest.raises(purerl.RunError, match=r"summary.json is damaged"):
            read_summary(folder)
    purerl.fit(config(), folder, seeds=2)  # writes it anew
    assert read_summary(folder)["finished"] is True


@pytest.mark.slow
def test_threads_train_side_by_side(tmp_path, whole):
    """Three folders at once, often, with a checkpoint at every chunk."""
    failed, ends = [], {}

    def train(folder):
        try:
            ends[folder] = purerl.fit(config(), folder, seeds=2, **QUICKLY)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=train, args=(tmp_path / str(i),)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    assert not failed
    assert len(ends) == 6
    for end in ends.values():
        assert_equal(end, whole)


def test_two_threads_do_not_train_in_one_folder(tmp_path, whole):
    inside, done = threading.Event(), threading.Event()
    ends = []

    def wait(report):
        inside.set()
        done.wait(100)

    thread = threading.Thread(
        target=lambda: ends.append(purerl.fit(config(), tmp_path, seeds=2, callback=wait))
    )
    thread.start()
    inside.wait(100)
    try:
        with pytest.raises(purerl.RunError, match="or another thread of this one"):
            purerl.fit(config(), tmp_path, seeds=2)
    finally:
        done.set()
        thread.join()
    assert_equal(ends[0], whole)


def test_a_full_disk_ends_a_sweep_in_a_line(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    real, slices = purerl.sweeps.sweep.Store.save, []

    def save(self, *args):
        slices.append(args)
        if len(slices) == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
        real(self, *args)

    options = {"seeds": 3, "slice_size": 1, "run_dir": tmp_path / "run"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(purerl.sweeps.sweep.Store, "save", save)
        try:
            with pytest.raises(purerl.RunError, match=r"can't write into .*run: .*too large"):
                purerl.sweep(config(), **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert purerl.sweep(config(), **options).effort.slices == 2


def test_a_sweep_where_nothing_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(purerl.RunError, match=r"run_dir: can't write into .*file/run: Not a dir"):
        purerl.sweep(config(), run_dir=tmp_path / "file" / "run")

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(pathlib.Path, "mkdir", refuse)
    for call in (purerl.fit, lambda run, folder: purerl.sweep(run, run_dir=folder)):
        with pytest.raises(purerl.RunError, match=r"run_dir: can't write into .*Read-only"):
            call(config(), tmp_path / "run")


TERMINAL = """
import os, pty, sys, time
sys.path.insert(0, sys.argv[1])
master, slave = pty.openpty()
os.dup2(slave, 1), os.dup2(slave, 2), os.close(slave)
import purerl
from purerl.runs.console import console_sink, show_curve
from kit.runs import config

def hang_up(report):
    if report.stop == 3:
        os.close(master)

with console_sink(config()) as live:
    assert live.console.is_terminal
    out = purerl.fit(config(), callback=[hang_up, live], report_every=0.0)
show_curve(live.console, out.metrics, out.timesteps)
print("standard output", flush=True)
print("standard error", file=sys.stderr, flush=True)
open(sys.argv[2], "w").write(str(len(out.metrics.num_episodes)))
"""


def test_training_outlives_its_terminal(tmp_path):
    command = [sys.executable, "-W", "error", "-c", TERMINAL, str(pathlib.Path(__file__).parent)]
    done = subprocess.run([*command, str(tmp_path / "end")], timeout=250)
    assert done.returncode == 0
    assert (tmp_path / "end").read_text() == "12"


def test_what_else_a_terminal_answers_is_told(tmp_path):
    from purerl.runs.console import LastingFile

    with contextlib.suppress(OSError), open("/dev/full", "w") as full:
        LastingFile(full).write("text")
        with pytest.raises(OSError, match="No space"):
            LastingFile(full).flush()


def test_values_that_are_known_to_be_equal_stay(tmp_path, interrupted_and_over):
    """A table that matches is not written again."""
    folder = shutil.copytree(interrupted_and_over[12], tmp_path / "run")
    before = os.stat(folder / "metrics.csv").st_mtime_ns
    purerl.fit(config(), folder, seeds=2)
    assert os.stat(folder / "metrics.csv").st_mtime_ns == before
    assert np.isfinite([float(row["seconds"]) for row in csv_rows(folder)]).all()
