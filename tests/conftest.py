"""What all tests share."""

import os
import shutil
import tempfile

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from kit.quick import quick_programs

import purerl
from purerl.accelerator.compiling import LEVEL


def pytest_configure(config):
    """Programs that several tests compile are compiled once, by whichever worker comes first; on a
    CPU at the level that purerl compiles at."""
    if f"--{LEVEL}" not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{LEVEL}=1".strip()
    if hasattr(config, "workerinput") or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = tempfile.mkdtemp(prefix="purerl-tests-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(scope="session")
def cartpole():
    return purerl.make("CartPole-v1")


@pytest.fixture(scope="module")
def compile_once(tmp_path_factory):
    """A run that goes on is compiled as often as it is called; here it is looked up."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    with quick_programs():
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(name="quick_programs")
def _quick_programs():
    with quick_programs():
        yield


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
