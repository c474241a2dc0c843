import ast
import inspect
import os
import pathlib
import statistics
import subprocess
import sys

import jax
import pytest

import purerl
from purerl.accelerator import machine

ROOT = pathlib.Path(purerl.__file__).parent


def python(code, **environ):
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | environ
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env=env,
    )


def test_import_is_light():
    code = """
import sys, time
import jax, flax, optax
start = time.process_time()
import purerl
print(time.process_time() - start)
assert "gymnax" not in sys.modules
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized(), "importing touched a device"
"""
    runs = [python(code) for _ in range(3)]
    assert all(run.returncode == 0 for run in runs), runs[0].stderr
    # CPU seconds, which a busy machine doesn't stretch as it does the clock's.
    assert statistics.median(float(run.stdout) for run in runs) <= 0.3


def test_xla_is_told_not_to_hang_and_to_compile_fast():
    done = python("import purerl, os; print(os.environ['XLA_FLAGS'])")
    expected = [f"{machine.EFFORT_FLAG}=1", f"{machine.SCHEDULER_FLAG}=false"]
    assert sorted(done.stdout.split()) == sorted(expected)


def test_xla_takes_its_time_for_an_accelerator():
    code = """
import importlib.util, os
import jax
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: name == "libtpu" or find(name, *rest)
import purerl
print(os.environ["XLA_FLAGS"])
"""
    assert python(code).stdout.split() == [f"{machine.SCHEDULER_FLAG}=false"]


def test_what_the_user_has_set_stands():
    code = "import purerl, os; print(os.environ['XLA_FLAGS'])"
    own = f"{machine.SCHEDULER_FLAG}=true {machine.EFFORT_FLAG}=3"
    assert python(code, XLA_FLAGS=own).stdout.strip() == own
    other = "--xla_force_host_platform_device_count=2"
    assert python(code, XLA_FLAGS=other).stdout.split() == [
        other,
        f"{machine.EFFORT_FLAG}=1",
        f"{machine.SCHEDULER_FLAG}=false",
    ]


@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="this JAX does not hang")
def test_a_late_import_warns_where_jax_hangs():
    done = python("import jax; jax.numpy.ones(1) + 1; import purerl")
    assert done.returncode == 1
    assert "Import purerl first" in done.stderr


def test_public_names_exist_and_are_documented():
    assert sorted(purerl.__all__) == sorted(set(purerl.__all__))
    for name in purerl.__all__:
        thing = getattr(purerl, name)
        if callable(thing):
            assert inspect.getdoc(thing), name


def imports(path):
    """Modules of purerl that a file imports at its top."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("purerl"):
            yield node.module


def test_arrows_point_one_way():
    below = {
        "host": ("purerl.host",),
        "envs": ("purerl.agents", "purerl.run", "purerl.host", "purerl.config", "purerl.train"),
        "agents": ("purerl.run", "purerl.host", "purerl.config", "purerl.train", "purerl.rollout"),
    }
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0]
        if path.parent == ROOT and path.name.startswith("__"):  # the public names, the command
            continue
        forbidden = below["host"] if room != "host" else ()
        forbidden += below.get(room, ()) if room != "host" else ()
        for module in imports(path):
            assert not module.startswith(forbidden or "-"), f"{path.name} imports {module}"


def lines_of_body(function):
    """Lines of a function's statements, without its signature and its docstring."""
    first = function.body[1:] if ast.get_docstring(function) else function.body
    return function.end_lineno - first[0].lineno + 1 if first else 0


def test_functions_are_short():
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert lines_of_body(node) <= 60, f"{path.name}: {node.name}"


def test_version():
    assert purerl.__version__[0].isdigit()
