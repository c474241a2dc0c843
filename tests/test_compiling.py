"""The compiler's options: purerl's programs get them, and no others do."""

import ast
import pathlib

import jax
import numpy as np
import pytest
from kit.environments import walk
from kit.policies import make_policy
from kit.sweeps import config

import purerl
from purerl import sweep
from purerl.accelerator import compiling, machine
from purerl.training.policy import _compiled_act

PACKAGE = pathlib.Path(purerl.__file__).parent
# They lower a program that isn't compiled, and compile zeros onto devices of several hosts.
PLAIN = {"deploy/export.py", "runs/state_store.py"}


def test_no_module_calls_jax_jit():
    """But for the one that adds the options."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        if any(isinstance(x, ast.Attribute) and ast.unparse(x) == "jax.jit" for x in nodes):
            found.add(str(path.relative_to(PACKAGE)))
    assert found == PLAIN | {"accelerator/compiling.py"}


def test_programs_are_compiled_with_the_options(monkeypatch, tmp_path):
    """XLA refuses an option that it doesn't know, before it compiles anything."""
    env = walk()
    policy = make_policy(purerl.PPO(), env)
    monkeypatch.setattr(compiling, "compiler_options", lambda: {"xla_no_such_option": 1})
    programs = [
        lambda: purerl.fit(config(), tmp_path / "run"),
        lambda: sweep(config(), seeds=2),
        lambda: policy.step(np.zeros(2)),
        lambda: purerl.render(policy, env, tmp_path / "episode.gif", max_steps=2),
        lambda: purerl.to_gymnasium(env).reset(seed=0),
    ]
    _compiled_act.cache_clear()
    for program in programs:
        with pytest.raises(Exception, match="No such compile option: 'xla_no_such_option'"):
            program()
    _compiled_act.cache_clear()


def test_the_options_give_way_to_the_users(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(compiling, "vector_bits", lambda: 256)
    assert purerl.compiler_options() == {"xla_backend_optimization_level": 1}
    double = jax.jit(lambda x: 2 * x, compiler_options=purerl.compiler_options())
    assert double(3) == 6
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=3")
    assert purerl.compiler_options() == {}


def test_the_options_of_other_devices(monkeypatch):
    """XLA reads all names on each device, so that a wrong one would show here too."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    options = purerl.compiler_options()
    assert options == {"xla_gpu_graph_min_graph_size": 1}
    assert jax.jit(lambda x: 2 * x, compiler_options=options)(3) == 6
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_graph_min_graph_size=5")
    assert purerl.compiler_options() == {}
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert purerl.compiler_options() == {}


def test_vectors_of_512_bits_where_the_processor_has_them(monkeypatch):
    """Under a flag that limits the instructions XLA couldn't use them."""
    monkeypatch.setattr(compiling, "vector_bits", lambda: 512)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    options = purerl.compiler_options()
    assert options["xla_cpu_prefer_vector_width"] == 512
    assert jax.jit(lambda x: 2 * x, compiler_options=options)(3) == 6
    for flag in ("xla_cpu_prefer_vector_width=128", "xla_cpu_max_isa=AVX2"):
        monkeypatch.setenv("XLA_FLAGS", f"--{flag}")
        assert purerl.compiler_options() == {"xla_backend_optimization_level": 1}


@pytest.mark.parametrize(
    ("text", "bits"), [("flags : avx2 avx512f avx512dq", 512), ("flags : sse4_2 avx2", 256)]
)
def test_the_processors_vectors(text, bits, monkeypatch):
    monkeypatch.setattr(machine.Path, "read_text", lambda self: text)
    assert machine.vector_bits.__wrapped__() == bits
