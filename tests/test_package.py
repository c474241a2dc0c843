import ast
import dataclasses
import inspect
import json
import os
import pathlib
import pydoc
import re
import subprocess
import sys

import jax
import pytest

import purerl
from purerl.accelerator import machine
from purerl.records.fields import Record, field_options
from purerl.training.describe import describe

ROOT = pathlib.Path(purerl.__file__).parent


HANGS = jax.__version_info__ < (0, 11)


def python(code, **environ):
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | environ
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=250,
        env=env,
    )


def test_import_is_light():
    """Beside JAX, flax and optax little is imported, and nothing that takes seconds."""
    code = """
import sys
import flax, jax, optax
before = set(sys.modules)
import purerl
print(*{name.partition(".")[0] for name in set(sys.modules) - before})
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized(), "importing touched a device"
"""
    run = python(code)
    assert run.returncode == 0, run.stderr
    light = {"purerl", "rich", "tomllib", "tomli_w"}
    assert set(run.stdout.split()) - set(sys.stdlib_module_names) <= light | {"numpy"}


SETTINGS = """
import json, os
import flax, jax, optax
def settings():
    return dict(os.environ), {name: str(x) for name, x in jax.config.values.items()}
before = settings()
import purerl
print(json.dumps([before, settings()]))
"""


@pytest.mark.parametrize(
    "flags",
    [
        "--xla_force_host_platform_device_count=2",
        f"{machine.SCHEDULER_FLAG}=true --xla_backend_optimization_level=3",
    ],
)
def test_import_leaves_the_process_as_it_was(flags):
    """But for the flag against hangs, on a JAX that hangs, unless the user has set it; with one
    thread JAX 0.11 has another flag."""
    threads = {} if HANGS else {"NPROC": "2"}
    (environ, config), after = json.loads(python(SETTINGS, XLA_FLAGS=flags, **threads).stdout)
    if HANGS and machine.SCHEDULER_FLAG not in flags:
        environ["XLA_FLAGS"] = f"{flags} {machine.SCHEDULER_FLAG}=false".strip()
    if HANGS and "device_count=2" in flags:
        environ["NPROC"] = "8"
    assert [environ, config] == after


GROWTH = """
import purerl
import jax, jax.numpy as jnp
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4 // 1024
w = jnp.full((2, 64, 64), 0.01)
body = lambda i, x: jnp.tanh(jnp.einsum("sbi,sij->sbj", x, w))
x = jnp.ones((2, 32, 64))
loop = jax.jit(lambda x: jax.lax.fori_loop(0, 40_000, body, x)).lower(x).compile()
before = resident()
loop(x).block_until_ready()
print(resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_one_thread_does_not_leak():
    """In MiB: 100 where XLA is left as it is."""
    done = python(GROWTH, NPROC="1")
    assert int(done.stdout) < 30, done


@pytest.mark.skipif(not HANGS, reason="this JAX does not hang")
def test_a_late_import_warns_where_jax_hangs():
    done = python("import jax; jax.numpy.ones(1) + 1; import purerl")
    assert done.returncode == 1
    assert "Import purerl first" in done.stderr


def test_public_names_exist_and_are_documented():
    assert sorted(purerl.__all__) == sorted(set(purerl.__all__))
    for name in purerl.__all__:
        thing = getattr(purerl, name)
        if callable(thing) or inspect.ismodule(thing):
            assert inspect.getdoc(thing), name
    assert callable(purerl.statistics.final_returns)
    assert "statistics" in purerl.__all__


def test_signatures_show_real_parameters():
    """Of everything public that is called, for `help`, `inspect.signature` and editors."""
    gathers = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    for name in purerl.__all__:
        thing = getattr(purerl, name)
        if not callable(thing) or (isinstance(thing, type) and issubclass(thing, BaseException)):
            continue
        parameters = inspect.signature(thing).parameters.values()
        assert not parameters or any(x.kind not in gathers for x in parameters), name
        if isinstance(thing, type) and issubclass(thing, Record):
            shown = {x.name: (x.default, x.annotation) for x in parameters}
            empty = inspect.Parameter.empty
            for field, option in field_options(thing).items():
                needed = option.default is dataclasses.MISSING
                assert shown[field] == (empty if needed else option.default, option.type)
    assert str(inspect.signature(purerl.Scale)) == "(factor: float) -> None"
    assert "lr: float = 0.001" in pydoc.render_doc(purerl.PPO)
    assert "agent: purerl.agents.base.Agent = PPO()" in pydoc.render_doc(purerl.TrainConfig)


# From the top of the house down: a room imports from those below it, and from its own.
ROOMS = (
    "cli",
    "plots",
    "sweeps",
    "runs",
    "deploy",
    "training",
    "agents",
    "nn",
    "experience",
    "envs",
    "accelerator",
    "statistics",
    "records",
)
MODULES = {
    ".".join(("purerl", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
}


def imported(source):
    """Modules of purerl that a file imports anywhere in it, in whatever form."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            module = node.module or ""
            inner = [f"{module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else module for name in inner]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = re.findall(r"\bpurerl(?:\.\w+)+", node.value)
            names = [word for word in words if word in MODULES and word.count(".") > 1]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "purerl")


def source_of(module):
    file = ROOT.joinpath(*module.split(".")[1:])
    return (file / "__init__.py" if file.is_dir() else file.with_suffix(".py")).read_text()


@pytest.mark.parametrize(
    "source",
    [
        "import purerl.runs.fit",
        "import purerl.runs.fit as other",
        "from purerl.runs import fit",
        "from purerl.runs.fit import fit",
        "def function():\n    from purerl.runs.fit import Interrupted",
        "import_module('purerl.runs.fit')",
    ],
)
def test_every_form_of_import_is_seen(source):
    assert list(imported(source)) == ["purerl.runs.fit"]


def test_arrows_point_down():
    def height(module):
        room = module.split(".")[1] if "." in module else "cli"
        return ROOMS.index(room)

    for module in MODULES - {"purerl", "purerl.__main__"}:
        for other in imported(source_of(module)):
            assert height(other) >= height(module), f"{module} imports {other}"
            assert other != "purerl" or height(module) == 0, f"{module} imports purerl itself"


def test_no_import_goes_in_a_circle():
    arrows = {module: set(imported(source_of(module))) - {module} for module in MODULES}
    del arrows["purerl"]  # which only the command imports
    while leaves := [module for module, others in arrows.items() if not others & set(arrows)]:
        for module in leaves:
            del arrows[module]
    assert not arrows, f"a circle among {sorted(arrows)}"


TESTS = pathlib.Path(__file__).parent


def test_no_test_imports_a_test():
    """What several need is in the kit, also for the programs that tests write."""
    form = re.compile(r"^\s*(?:from|import)\s+(?:tests\.)?(test_\w+|conftest)\b", re.MULTILINE)
    assert form.findall("import test_fit\n  from test_run import equal") == ["test_fit", "test_run"]
    for path in TESTS.rglob("*.py"):
        assert not form.findall(path.read_text()), path.name


def test_rooms_are_those_of_the_readers_map():
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert rooms == set(ROOMS) - {"statistics"}


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


def test_a_run_is_known_by_names_that_moves_do_not_change():
    assert describe(purerl.DefaultQCritic) == "purerl.DefaultQCritic"
    assert describe(pathlib.PurePath) != describe(pathlib.Path)


def test_no_file_of_the_package_is_ignored():
    """What .gitignore names is in no clone, and in no wheel."""
    repository = ROOT.parent
    if not (repository / ".git").exists():
        pytest.skip("no checkout")
    done = subprocess.run(
        ["git", "check-ignore", *map(str, ROOT.rglob("*.py"))],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == ""
