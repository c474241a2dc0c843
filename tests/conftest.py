"""What all tests share."""

import gc
import os
import shutil
import signal
import tempfile

import jax
import pytest
from kit.quick import QUICK_FLAGS, quick_jit, quick_programs

import purerl
from purerl.accelerator import members
from purerl.accelerator.compiling import LEVEL
from purerl.envs import registry
from purerl.runs import chunks


def pytest_configure(config):
    """Programs that several tests compile are compiled once, by whichever worker comes first; all
    but the trials' with the flags that compile fastest, because half of the time went there."""
    # A shell's background jobs ignore Ctrl-C, and what nohup starts the end of the terminal: tests
    # send these signals to themselves.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if f"--{LEVEL}" not in os.environ.get("XLA_FLAGS", ""):
        flags = (f"--{name}={value}" for name, value in QUICK_FLAGS.items())
        os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()
    # Thousands of programs are of one operation: looking one up takes half of compiling it.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    if hasattr(config, "workerinput") or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = tempfile.mkdtemp(prefix="purerl-tests-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder


def pytest_collection_finish():
    """Tracing allocates so much that collecting garbage at Python's pace takes a sixth of it."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    names = list(registry._factories)
    assert not names, f"registered by a test file's import, for all other files too: {names}"


def _names_forgotten():
    before = dict(registry._factories)
    yield
    registry._factories.clear()
    registry._factories.update(before)


@pytest.fixture(scope="module", autouse=True)
def names_of_a_file():
    """What a file registers, no other file knows: they share a process."""
    yield from _names_forgotten()


@pytest.fixture(autouse=True)
def names_of_a_test(names_of_a_file):
    yield from _names_forgotten()


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(scope="session")
def cartpole():
    return purerl.make("CartPole-v1")


@pytest.fixture(scope="module")
def compile_once():
    """A run that goes on is compiled quickly, and where it goes on it isn't traced again, though
    its environment is the test's: nothing that the environment reads changes in between."""
    with quick_programs(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "program_key", lambda *parts: parts)
        yield


@pytest.fixture(name="quick_programs")
def _quick_programs():
    with quick_programs():
        yield


@pytest.fixture
def traces(monkeypatch):
    """A list that grows with each trace of a program of `fit` or `sweep`, which compile quickly."""
    traced = []

    def jit(function, **options):
        def counted(*args):
            traced.append(args)
            return function(*args)

        return quick_jit(counted, **options)

    monkeypatch.setattr(members, "jit", jit)
    return traced


@pytest.fixture
def command(capsys, monkeypatch, quick_programs, tmp_path):
    """Runs the command in a folder of its own: exit code, standard output and standard error."""
    from purerl.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")  # nothing is written beside the folder

    def run(*argv):
        code = main([str(word) for word in argv])
        out = capsys.readouterr()
        return code, out.out, out.err

    return run
