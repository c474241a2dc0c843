"""A run's folder: which is taken, what in it is written, and who holds it."""

import errno
import os
import pathlib
import shutil
import threading

import filelock
import numpy as np
import pytest
from kit.agents import Tiny
from kit.environments import push_env
from kit.folders import contents

import purerl
from purerl.cli import training
from purerl.records.files import write_whole
from purerl.records.folders import locked
from purerl.training.describe import describe, differences

pytestmark = pytest.mark.usefixtures("compile_once")


def config(num_updates=4, env=None):
    env = env or push_env()
    return purerl.TrainConfig(env, Tiny(), 32 * num_updates, num_envs=4, update_every=8)


def foreign_folder(folder):
    """What another program, whose files have the same names, has left."""
    (folder / "checkpoints" / "1000").mkdir(parents=True)
    (folder / "checkpoints" / "1000" / "model.bin").write_text("precious")
    for name in ("config.toml", "metrics.csv", "summary.json"):
        (folder / name).write_text("precious")
    return folder


CALLS = {
    "fit": purerl.fit,
    "fit, to resume": lambda config, run_dir: purerl.fit(config, run_dir, resume=True),
    "fit, for the first time": lambda config, run_dir: purerl.fit(config, run_dir, resume=False),
    "fit, seeds": lambda config, run_dir: purerl.fit(config, run_dir, seeds=2),
    "sweep": lambda config, run_dir: purerl.sweep(config, run_dir=run_dir),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_folder_of_something_else_is_left_alone(call, tmp_path):
    folder = foreign_folder(tmp_path / "theirs")
    (tmp_path / "link").symlink_to(folder)
    before = contents(folder)
    for run_dir in (folder, str(folder), tmp_path / "link"):
        with pytest.raises(purerl.ConfigError, match=r"run_dir: .* is no (run|sweep)'s folder"):
            call(config(), run_dir)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("notes.txt", "precious"),
        ("lock", "1234"),
        ("checkpoints", None),
        ("run.json", "{}"),
        ("run.json", '{"run": 7}'),
    ],
)
def test_whatever_is_in_it(name, text, tmp_path):
    if text is None:
        (tmp_path / name).write_text("a file of this name")
    else:
        (tmp_path / name).write_text(text)
    before = contents(tmp_path)
    with pytest.raises((purerl.ConfigError, purerl.RunError), match="nothing was changed"):
        purerl.fit(config(), tmp_path)
    assert contents(tmp_path) == before


def test_a_refused_call_makes_nothing(tmp_path):
    with pytest.raises(purerl.ConfigError, match=r"resume: got True, but .* holds no run"):
        purerl.fit(config(), tmp_path / "new", resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(purerl.ConfigError, match="file is a file, expected a folder"):
        purerl.fit(config(), tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(purerl.ConfigError, match="link is a link to nowhere"):
        purerl.fit(config(), tmp_path / "link")
    assert sorted(contents(tmp_path)) == ["file", "link"]


@pytest.mark.parametrize("run_dir", ["", b"runs/x", 3, "a\0b", ["runs"]])
def test_what_is_no_folders_name(run_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for call in (CALLS["fit"], CALLS["sweep"]):
        with pytest.raises(purerl.ConfigError, match="run_dir: got"):
            call(config(), run_dir)
    assert not contents(tmp_path)


def test_the_command_leaves_other_folders_alone(command, tmp_path):
    folder = foreign_folder(tmp_path / "theirs")
    before = contents(folder)
    code, _, err = command("train", "CartPole-v1", "--run-dir", "theirs")
    assert (code, err.count("\n")) == (2, 1)
    assert "theirs is no run's folder: it has 'checkpoints', and no run.json" in err
    assert contents(folder) == before


def test_the_command_writes_events_through_no_link(command, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").symlink_to(tmp_path)
    code, _, err = command("train", "CartPole-v1", "--run-dir", "run")
    assert (code, err.count("\n")) == (1, 1)
    assert "tensorboard is a link to" in err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_a_kill_in_the_first_moments_leaves_is_taken(tmp_path):
    for name in ("checkpoints", "metrics"):
        (tmp_path / name).mkdir()
    for name in ("lock", ".run.json.123.partial"):
        (tmp_path / name).write_text("")
    assert len(purerl.fit(config(), tmp_path).metrics.num_episodes) == 4


@pytest.fixture(scope="module")
def finished(tmp_path_factory, compile_once):
    """A run that is over."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    purerl.fit(config(), folder)
    return folder


@pytest.fixture
def run_folder(tmp_path, finished):
    """A run that is over, and a folder and a file of a user's beside it."""
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "seed-0.policy").write_text("precious")
    (tmp_path / "thesis.tex").write_text("precious")
    return tmp_path / "run"


FILES = ("lock", "run.json", "config.toml", "metrics.csv", "summary.json")


@pytest.mark.parametrize("name", [*FILES, "policies", "checkpoints", "metrics"])
def test_nothing_is_written_through_a_link(name, run_folder, finished):
    folder = not (run_folder / name).is_file()
    target = run_folder.parent / ("theirs" if folder else "thesis.tex")
    (shutil.rmtree if folder else os.remove)(run_folder / name)
    if name == "run.json":  # such that it is read as the run's
        target = run_folder.parent / "run.json"
        shutil.copy(finished / name, target)
    (run_folder / name).symlink_to(target)
    before = contents(run_folder.parent)
    with pytest.raises(purerl.RunError, match=rf"{name} is a link to .*, expected a f"):
        purerl.fit(config(), run_folder)
    after = contents(run_folder.parent)
    assert {x: after[x] for x in before} == before


@pytest.mark.parametrize("name", ["sweep.json", "table.csv", "best", "best/policies"])
def test_a_sweep_writes_through_no_link(name, tmp_path, monkeypatch):
    monkeypatch.setattr(purerl.sweeps.sweep.Job, "train", lambda self, results: None)
    folder, theirs = tmp_path / "sweep", tmp_path / "theirs"
    purerl.sweep(config(), run_dir=folder)
    theirs.mkdir()
    (folder / name).parent.mkdir(exist_ok=True)
    if name == "sweep.json":
        (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name if name == "sweep.json" else theirs)
    before = contents(tmp_path)
    with pytest.raises(purerl.RunError, match=rf"{name} is a link to .*, expected a f"):
        purerl.sweep(config(), run_dir=folder)
    assert contents(tmp_path) == before


def test_what_is_in_the_way_is_named(run_folder):
    for name, in_the_way in (("lock", "mkdir"), ("config.toml", "mkdir"), ("policies", "touch")):
        (run_folder / name).rename(run_folder.parent / "kept")
        getattr(run_folder / name, in_the_way)()
        with pytest.raises(purerl.RunError, match=rf"{name} is no f.*; nothing was changed"):
            purerl.fit(config(), run_folder)
        (os.rmdir if in_the_way == "mkdir" else os.remove)(run_folder / name)
        (run_folder.parent / "kept").rename(run_folder / name)


def test_a_pipe_in_the_place_of_the_lock_is_not_waited_for(run_folder):
    (run_folder / "lock").unlink()
    os.mkfifo(run_folder / "lock")
    with pytest.raises(purerl.RunError, match=r"lock is no file"):
        purerl.fit(config(), run_folder)


def test_a_file_in_the_making_is_written_through_no_link(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    (tmp_path / f".new.{os.getpid()}.partial").symlink_to(tmp_path / "thesis.tex")
    write_whole(tmp_path / "new", lambda file: file.write(b"text"))
    assert (tmp_path / "thesis.tex").read_text() == "precious"
    assert (tmp_path / "new").read_text() == "text"


def test_the_lock_truncates_nothing_and_excludes_others(tmp_path):
    (tmp_path / "lock").write_text("text")
    message = f"another process is training in {tmp_path}"
    with (
        locked(tmp_path / "lock"),
        pytest.raises(purerl.RunError, match=message),
        locked(tmp_path / "lock"),
    ):
        raise AssertionError
    with locked(tmp_path / "lock"):
        assert (tmp_path / "lock").read_text() == "text"


def test_where_there_are_no_locks(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock, "lock_descriptor", refuse)
    with pytest.warns(UserWarning, match="knows no locks"), locked(tmp_path / "lock"):
        pass


def test_a_folder_whose_opening_fails_is_not_held(run_folder):
    (run_folder / "config.toml").unlink()
    (run_folder / "config.toml").mkdir()
    with pytest.raises(purerl.RunError, match=r"config.toml is no file"):
        purerl.fit(config(), run_folder)
    with locked(run_folder / "lock"):
        pass


def test_each_that_asks_gets_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made, run = [], config()
    threads = [
        threading.Thread(target=lambda: made.append(training.new_folder(run))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [pathlib.Path(f"runs/push-tiny-{i}") for i in range(1, 9)]
    assert all(folder.is_dir() for folder in made)


def test_a_refused_run_leaves_no_new_folder(command):
    code, _, err = command("train", "CartPole-v1", "--report-every", "-1")
    assert code == 2
    assert "report_every: got -1.0" in err
    assert not list(pathlib.Path("runs").iterdir())


def test_what_differs_in_an_environment_is_named(tmp_path):
    def with_limit(limit):
        return purerl.time_limit(push_env(), limit)

    purerl.fit(config(env=with_limit(5)), tmp_path)
    message = r"config.env.max_episode_steps is 5 there, got 4"
    with pytest.raises(purerl.ConfigError, match=message):
        purerl.fit(config(env=with_limit(4)), tmp_path)


def test_long_texts_are_shown_where_they_part():
    low = np.arange(100, dtype=np.float32)
    other = low.copy()
    other[70] = 0.125
    boxes = (purerl.Box(low, np.inf), purerl.Box(other, np.inf))
    found = next(differences(*({"space": describe(box)} for box in boxes)))
    there, here = found.removeprefix("space is ").split(" there, got ")
    assert len(found) < 250
    assert there != here
    assert "0.125" in here
    assert next(differences({"a": "x" * 70}, {"a": "y"})) == f"a is '{'x' * 70}' there, got 'y'"
