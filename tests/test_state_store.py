"""A state on disk comes back with the same bits, of whatever pytree it is, or not at all."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.agents import Tiny
from kit.runs import RUNS, small, stop_at

import purerl
from purerl.accelerator.transfer import is_key
from purerl.envs import Box, Env, EnvSpec, TimeStep
from purerl.records.files import by_path, digest
from purerl.runs.chunks import Program, seed_keys
from purerl.runs.state_store import DamageError, Writer, read_about, read_state


class Pair(NamedTuple):
    left: object
    right: object


def bits(leaf):
    """An array's bits: NaN and -0.0 are compared too."""
    x = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
    return str(leaf.dtype), x.shape, x.tobytes()


def assert_same_bits(x, y):
    assert jax.tree.structure(x) == jax.tree.structure(y)
    for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True):
        assert isinstance(a, jax.Array)
        assert bits(a) == bits(b)


def placed(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def save(path, state, about=None):
    writer = Writer()
    writer.start(path, state, about or {})
    writer.wait()
    writer.close()


def everything():
    """A pytree of all that may come up."""
    nan = np.array([0x7FC00001, 0xFFC12345, 0x80000000, 0, 1], np.uint32).view(np.float32)
    return {
        "a.b": jnp.float32(1.0),
        "a": {"b": jnp.float32(2.0), "": jnp.float32(3.0)},
        "a%2Eb": [jnp.arange(3), (jnp.bool_(True), jnp.zeros((2, 0), jnp.int8))],
        "x/y": Pair(jnp.ones((2, 3), jnp.bfloat16), None),
        "x": {"y": jnp.int32(-7)},
        "ü ": jnp.asarray(nan),
        "~/../": jnp.uint8(255),
        "nothing": (None, {}, ()),
        "empty": jnp.zeros((0, 3), jnp.float32),
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(1), (2, 2)),
        "rbg": jax.random.key(3, impl="rbg"),
        "no keys": jax.random.split(jax.random.key(1), 0),
        "zeros": jnp.zeros((5, 7)),
        "half": jnp.float16(0.1),
        "old key": jax.random.key_data(jax.random.key(9)),
        7: jnp.int16(3),
    }


def test_every_kind_of_leaf_comes_back_bit_for_bit(tmp_path):
    numbers = everything()
    state = Pair({str(n): x for n, x in numbers.items()}, [jnp.float32(-0.0)])
    save(tmp_path / "s", state, {"of": "test"})
    back = read_state(tmp_path / "s", jax.tree.map(placed, state))
    assert_same_bits(back, state)
    about = read_about(tmp_path / "s")
    assert about["of"] == "test"
    assert about["state"]["left.keys"] == "key<fry>[2, 2]"
    # Every leaf that has a bit has a digest.
    assert set(about["digests"]) == {name for name, x in by_path(state).items() if x.size}


def test_a_state_of_empty_arrays_alone(tmp_path):
    state = {"a": jnp.zeros((0, 2)), "b": jnp.zeros((3, 0), bool)}
    save(tmp_path / "s", state)
    assert_same_bits(read_state(tmp_path / "s", jax.tree.map(placed, state)), state)


class Alike:
    """Keys that print alike."""

    def __init__(self, order):
        self.order = order

    def __lt__(self, other):
        return self.order < other.order

    def __repr__(self):
        return "alike"


def test_every_leaf_has_a_name_of_its_own():
    trees = [
        {"a.b": 1, "a": {"b": 2}, "": 3, "%": 4, "a%2Eb": 5, "a..b": 6},
        {"a": {"": 1, "b": [2, 3]}, "a.b": (4, 5), "a.b.0": 6, "a/b": 7, "a\\b": 8, "a\0b": 9},
        {Alike(0): 1, Alike(1): 2, Alike(2): {"x": 3}},
        Pair({"x.y": 1}, {"x": Pair(2, 3)}),
    ]
    for tree in trees:
        assert sorted(by_path(tree).values()) == sorted(jax.tree.leaves(tree))
    # Names as they always were where nothing is to be told apart.
    assert list(by_path({"params": {"Dense_0": Pair(1, [2])}})) == [
        "params.Dense_0.left",
        "params.Dense_0.right.0",
    ]


def test_a_digest_follows_from_every_bit_and_the_kind():
    x = np.arange(64, dtype=np.float32)
    seen = {digest(x), digest(x.view(np.int32)), digest(x.reshape(8, 8)), digest(x[::-1])}
    for bit in range(8):
        changed = x.copy()
        changed.view(np.uint8)[37] ^= 1 << bit
        seen.add(digest(changed))
    assert len(seen) == 12
    assert digest(x.reshape(8, 8).T) == digest(np.ascontiguousarray(x.reshape(8, 8).T))


def test_every_flipped_bit_of_an_array_is_seen(tmp_path):
    """Where it hurts: in the files that have the arrays, for which orbax has no checksum."""
    state = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(64, 64)), jnp.float32)}
    save(tmp_path / "s", state)
    like = jax.tree.map(placed, state)
    files = sorted(tmp_path.glob("s/state/**/d/*"), key=lambda file: file.stat().st_size)
    largest, rng = files[-1], np.random.default_rng(1)
    whole = largest.read_bytes()
    assert len(whole) > 10_000
    for place in rng.integers(0, len(whole), 12):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        largest.write_bytes(damaged)
        with pytest.raises(DamageError):
            read_state(tmp_path / "s", like)
    largest.write_bytes(whole)
    assert_same_bits(read_state(tmp_path / "s", like), state)


def random_like(rng, like):
    """A state of random bits, where none is at hand without training."""

    def leaf(x):
        if is_key(x):
            data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(x.shape, x.dtype))
            return jax.random.wrap_key_data(jnp.asarray(random_bits(rng, data)))
        return jax.device_put(random_bits(rng, x), x.sharding)

    return jax.tree.map(leaf, like)


def random_bits(rng, x):
    drawn = rng.integers(0, 2 if x.dtype == bool else 256, (*x.shape, x.dtype.itemsize), np.uint8)
    return drawn.view(x.dtype)[..., 0]


@pytest.mark.parametrize("name", RUNS)
def test_every_agents_state_comes_back_bit_for_bit(name, tmp_path):
    program = Program(small(name), seed_keys(2)[0], {})
    state = random_like(np.random.default_rng(0), program.state_like)
    save(tmp_path / "s", state)
    assert_same_bits(read_state(tmp_path / "s", program.state_like), state)


def strange_env():
    """An environment whose state has all that a pytree may have, and which remembers it."""

    def reset(key):
        # The last one is of a weak type.
        state = {**{str(n): x for n, x in everything().items()}, "key": key, "python": 1.5}
        return jnp.zeros(1), state

    def step(key, state, action):
        drawn = jax.random.normal(state["key"], (1,)) + 0.1 * action
        count = state["a"]["b"] + 1.0
        state = {**state, "key": jax.random.split(state["key"])[0], "a": {**state["a"], "b": count}}
        ended = state["a.b"] + count > 9.0
        return state, TimeStep(drawn, -jnp.sum(drawn**2), ended, jnp.bool_(False), {})

    return Env(reset, step, EnvSpec("strange", Box(-jnp.inf, jnp.inf, (1,)), Box(-2.0, 2.0, (1,))))


def test_a_run_whose_state_is_any_pytree_resumes_bit_for_bit(tmp_path, quick_programs):
    config = purerl.TrainConfig(strange_env(), Tiny(), 320, num_envs=4, update_every=8)
    options = {"report_every": 0.0, "checkpoint_every": 0.0}
    whole = purerl.fit(config)
    with pytest.raises(purerl.Interrupted):
        purerl.fit(config, tmp_path, callback=stop_at(4), **options)
    seen = []
    assert_same_bits(purerl.fit(config, tmp_path, callback=seen.append).state, whole.state)
    assert seen[0].start > 0
