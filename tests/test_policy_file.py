"""Policies on disk: what comes back acts the same, bit for bit, or says why it can't."""

import functools
import io
import json
import os
import pathlib
import pickle
import subprocess
import sys
import tracemalloc
import warnings
import zipfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.environments import dict_env, discrete_env, push_env, walk
from kit.policies import AGENTS, actions, make_policy, observations, trained
from kit.trees import assert_equal

import purerl
from purerl import load_policy, save_policy
from purerl.deploy import policy_file
from purerl.experience.metrics import Count
from purerl.records import files
from purerl.records.fields import unchecked
from purerl.training.policy import Interface


class MyActor(purerl.Actor):
    width: int = 5

    @nn.compact
    def create_network(self, obs):
        return nn.Dense(self.action_dim)(nn.tanh(nn.Dense(self.width)(obs)))


class OtherActor(MyActor):
    pass


class MyAgent(purerl.PPO):
    """An agent of a user's own."""


def assert_same(policy, loaded):
    obs, key = observations(policy.spec.observation_space), jax.random.key(7)
    assert jax.tree.structure(policy.state) == jax.tree.structure(loaded.state)
    assert policy.interface == loaded.interface
    leaves = (jax.tree.leaves((p.state, p.obs_stats)) for p in (policy, loaded))
    for x, y in zip(*leaves, strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)
    acted = actions(policy, obs, key)
    for x, y in zip(acted, actions(loaded, obs, key), strict=True):
        np.testing.assert_array_equal(x, y)
    return np.asarray(acted[0])


@pytest.mark.parametrize(
    ("name", "normalize_obs"),
    [*((name, i % 2 == 0) for i, name in enumerate(AGENTS)), ("ppo", False), ("dqn", False)],
)
def test_there_and_back(name, normalize_obs, tmp_path):
    agent, env = AGENTS[name]
    policy = make_policy(agent, env(), normalize_obs=normalize_obs)
    save_policy(policy, tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert (loaded.obs_stats is not None) == normalize_obs
    assert type(loaded.agent) is type(agent)
    assert loaded.agent == policy.agent
    acted = assert_same(policy, loaded)
    assert len(np.unique(acted)) > 1  # or else they would be the same for no reason


def test_what_training_leaves(tmp_path):
    out = trained()
    save_policy(out.policy, tmp_path / "policy.npz")
    loaded = load_policy(tmp_path / "policy.npz")
    assert_same(out.policy, loaded)
    assert np.float32(loaded.agent.lr) == np.float32(out.agent.lr)
    assert (tmp_path / "policy.npz").stat().st_size < 100_000
    assert os.listdir(tmp_path) == ["policy.npz"]
    save_policy(loaded, tmp_path / "again")
    assert_same(out.policy, load_policy(str(tmp_path / "again")))


def test_in_another_process(tmp_path):
    policy = make_policy(purerl.DDPG(), push_env(), normalize_obs=True)
    save_policy(policy, tmp_path / "policy")
    obs = observations(policy.spec.observation_space)
    np.save(tmp_path / "obs.npy", obs)
    code = """
import sys, numpy as np, purerl
policy = purerl.load_policy(sys.argv[1] + "/policy")
np.save(sys.argv[1] + "/action.npy", policy.act(np.load(sys.argv[1] + "/obs.npy")))
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=250)
    np.testing.assert_array_equal(np.load(tmp_path / "action.npy"), policy.act(obs))


def test_members(tmp_path):
    agent, env = purerl.PPO(), walk()
    one = make_policy(agent, env)
    state = jax.tree.map(lambda x: jnp.stack([x, x + 1, x]), one.state)
    agents = jax.tree.map(lambda x: np.broadcast_to(np.float32(x), 3), agent)
    agents = unchecked(agents, lr=np.array([0.1, 0.2, 0.3], np.float32))
    many = Count(jnp.zeros(3, jnp.int32), jnp.arange(3))
    policies = purerl.Policy(agents, state, None, Interface(env.spec), num_updates=many)
    with pytest.raises(purerl.ConfigError, match=r"policy: .*\(3,\) runs: choose one"):
        save_policy(policies, tmp_path / "policy")
    assert not os.listdir(tmp_path)
    member = jax.tree.map(lambda x: x[1], policies)
    save_policy(member, tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert int(loaded.num_updates) == 1
    assert np.float32(loaded.agent.lr) == np.float32(0.2)
    assert_equal(member.state, loaded.state)


@pytest.mark.parametrize("env", [dict_env, discrete_env])
def test_other_observations(env, tmp_path):
    policy = make_policy(purerl.PPO(), env(), normalize_obs=env is dict_env)
    save_policy(policy, tmp_path / "policy")
    assert_same(policy, load_policy(tmp_path / "policy"))


def test_observations_in_containers_of_the_users_own(tmp_path):
    spec = walk().spec
    spec = spec._replace(observation_space=jax.tree_util.Partial(len, spec.observation_space))
    policy = make_policy(purerl.PPO(), walk())
    policy = policy.replace(interface=Interface(spec))
    with pytest.raises(purerl.ConfigError, match="observation_space: a Partial can't be saved"):
        save_policy(policy, tmp_path / "policy")


@pytest.mark.parametrize(
    "actor", [MyActor, functools.partial(MyActor, width=3)], ids=["class", "partial"]
)
def test_a_network_of_the_users_own(actor, tmp_path):
    policy = make_policy(purerl.PPO(actor=actor, lr=0.5), walk())
    path = tmp_path / "policy"
    save_policy(policy, path)
    with pytest.raises(purerl.RunError, match=r"^[^\n]*MyActor[^\n]*load_policy\(path, agent=PPO"):
        load_policy(path)
    loaded = load_policy(path, purerl.PPO(actor=actor))
    assert loaded.agent.lr == 0.5  # the file's
    assert_same(policy, loaded)
    for wrong, message in (
        (purerl.PPO(), "actor is nothing, expected .*MyActor"),
        (purerl.PPO(actor=OtherActor), "actor is .*OtherActor.*, expected .*MyActor"),
        (purerl.REINFORCE(actor=actor), r"agent: got .*REINFORCE, expected PPO\(actor="),
        ("ppo", "agent: got"),
    ):
        with pytest.raises(purerl.RunError, match=message):
            load_policy(path, wrong)


def test_another_network_of_the_same_name(tmp_path):
    save_policy(make_policy(purerl.PPO(actor=MyActor), walk()), tmp_path / "policy")
    wider = type("MyActor", (MyActor,), {"width": 6, "__annotations__": {"width": int}})
    wider.__qualname__ = MyActor.__qualname__
    with pytest.raises(purerl.RunError, match=r"kernel is float32 \(5, 2\) there, .* \(6, 2\)$"):
        load_policy(tmp_path / "policy", purerl.PPO(actor=wider))


def test_an_agent_of_the_users_own(tmp_path):
    policy = make_policy(MyAgent(lam=0.5), walk())
    save_policy(policy, tmp_path / "policy")
    with pytest.raises(purerl.RunError, match=r"MyAgent\(\), whose code isn't in the file"):
        load_policy(tmp_path / "policy")
    for given in (MyAgent, MyAgent()):
        loaded = load_policy(tmp_path / "policy", agent=given)
        assert type(loaded.agent) is MyAgent
        assert loaded.agent.lam == 0.5
        assert_same(policy, loaded)


def test_an_action_processor(tmp_path):
    policy = make_policy(purerl.DDPG(), push_env(), action_processor=jnp.sin)
    save_policy(policy, tmp_path / "policy")
    with pytest.raises(purerl.RunError, match=r"action_processor=.*sin"):
        load_policy(tmp_path / "policy")
    assert_same(policy, load_policy(tmp_path / "policy", action_processor=jnp.sin))
    save_policy(make_policy(purerl.DDPG(), push_env()), tmp_path / "policy")
    with pytest.raises(purerl.RunError, match="with no action_processor"):
        load_policy(tmp_path / "policy", action_processor=jnp.sin)


@pytest.fixture
def saved(tmp_path):
    save_policy(make_policy(purerl.PPO(hidden=(4,)), walk()), tmp_path / "policy")
    return tmp_path / "policy"


def assert_one_line(path):
    with pytest.raises(purerl.RunError) as caught:
        load_policy(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_damaged_files(saved):
    good = saved.read_bytes()
    policy = load_policy(saved)
    for length in np.linspace(0, len(good) - 1, 20).astype(int):
        saved.write_bytes(good[:length])
        assert_one_line(saved)
    rng = np.random.default_rng(0)
    refused = 0
    for place, bit in rng.integers([len(good), 8], size=(300, 2)).tolist():
        saved.write_bytes(good[:place] + bytes([good[place] ^ 1 << bit]) + good[place + 1 :])
        try:  # times in the archive may change, numbers not
            loaded = load_policy(saved)
        except purerl.RunError:
            refused += 1
        else:
            assert (loaded.agent, loaded.interface) == (policy.agent, policy.interface)
            for x, y in zip(*map(jax.tree.leaves, (policy, loaded)), strict=True):
                np.testing.assert_array_equal(x, y)
    assert refused > 200


def boxes(*shape):
    box = {"box": {"low": 0.0, "high": 1.0, "shape": shape, "dtype": "float32"}}
    return lambda about, _: about["spec"].update(observation_space=box)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (boxes(10**9), "its spaces have 1,000,000,001 elements, expected at most 4,194,304"),
        (boxes(-(10**5), 10**5), "10,000,000,001 elements"),
        (
            lambda about, _: about["agent"]["fields"].update(hidden=[1] * 100_000),
            "hidden has 100,000 parts",
        ),
        (lambda about, _: about["spec"].update(name=7), "name is 7"),
    ],
)
def test_a_small_file_takes_little(saved, change, message):
    rewritten(saved, change)
    tracemalloc.start()
    try:
        assert message in assert_one_line(saved)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["compressed", "long header", "short header", "twice"])
def test_archives_of_other_forms(saved, kind):
    """A megabyte of deflated zeros is a gigabyte; a header may have any shape."""
    with np.load(saved) as archive:
        about = archive["about"]
    packed = zipfile.ZIP_DEFLATED if kind == "compressed" else zipfile.ZIP_STORED
    array = io.BytesIO()
    size = {"long header": 10**9, "short header": 10}.get(kind, 2**26)
    header = {"descr": "|u1", "fortran_order": False, "shape": (size,)}
    np.lib.format.write_array_header_1_0(array, header)
    with zipfile.ZipFile(saved, "w", packed) as archive:
        for name in ("more.npy", "more.npy") if kind == "twice" else ("more.npy",):
            with warnings.catch_warnings(action="ignore"), archive.open(name, "w") as member:
                member.write(array.getvalue())
                for _ in range(64 if kind == "compressed" else 1):
                    member.write(bytes(2**20))
        with archive.open("about.npy", "w") as member:
            np.save(member, about)
    assert saved.stat().st_size < 2**22
    tracemalloc.start()
    try:
        message = assert_one_line(saved)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    assert {"compressed": "compressed", "twice": "there twice"}.get(kind, "its header") in message


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "it is a pipe, expected a file" in assert_one_line(tmp_path / "pipe")
    with pytest.raises(purerl.RunError, match="it is a device"):
        load_policy("/dev/zero")
    with pytest.raises(OSError, match="it has a null byte"):
        files.open_file("a\0b")


def test_a_description_that_is_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(policy_file, "MOST_ABOUT", 100)
    with pytest.raises(purerl.ConfigError, match=r"its description has .* at most 100"):
        save_policy(make_policy(purerl.PPO(), walk()), tmp_path / "policy")
    assert not os.listdir(tmp_path)


def rewritten(path, change):
    """The file with its description changed."""
    with np.load(path) as archive:
        arrays = dict(archive)
    about = json.loads(arrays["about"].tobytes())
    change(about, arrays)
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez(packed := io.BytesIO(), **arrays)
    path.write_bytes(packed.getvalue())


def test_time_limit_and_frame_skip_of_the_run_go_along(command):
    config = purerl.TrainConfig("CartPole-v1", max_episode_steps=5, skip_frames=2)
    out = jax.eval_shape(purerl.make_train(config), jax.random.key(0))
    assert out.interface.limits == (5, 2)
    policy = make_policy(purerl.PPO(hidden=(4,)), purerl.make("CartPole-v1"))
    policy = policy.replace(interface=Interface(policy.spec, limits=out.interface.limits))
    save_policy(policy, path := pathlib.Path("a.policy"))
    assert load_policy(path).interface == policy.interface

    def play():
        code, out, err = command("eval", path, "--episodes", 8, "--json")
        assert code == 0, err
        (row,) = json.loads(out)
        return row["length_mean"], row["return_mean"], err

    length, total, err = play()
    assert length <= 5 < 1.5 * length < total  # a reward of 1 for each of two frames
    assert err == ""
    # As earlier versions wrote it.
    rewritten(path, lambda about, _: about.pop("limits"))
    assert load_policy(path).interface.limits is None
    length, total, err = play()
    assert length == total > 5
    assert "a.policy doesn't have the time limit and the frame skip of its run, as files" in err
    assert err.count("\n") == 1
    rewritten(path, lambda about, _: about.update(limits=[5, "two"]))
    assert "its time limit and frame skip are [5, 'two']" in assert_one_line(path)


def test_foreign_files(saved, tmp_path):
    assert "No such file" in assert_one_line(tmp_path / "none")
    assert "directory" in assert_one_line(tmp_path)
    saved.write_text("hello")
    assert "no policy" in assert_one_line(saved)
    np.savez(saved.with_suffix(".npz"), x=np.ones(3))
    assert "no policy" in assert_one_line(saved.with_suffix(".npz"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about, _: about.update(format=1), r"format 1, expected 2: purerl \S+ wrote it"),
        (lambda about, _: about.update(kind="a cat"), "no policy that save_policy wrote"),
        (lambda about, _: about["agent"].update(kind="a2c"), "can't be made a policy"),
        (lambda about, _: about["agent"]["fields"].update(colour=1), "PPO: no field 'colour'"),
        (lambda about, _: about["agent"]["fields"].update(hidden=[5]), "of other networks"),
        (lambda about, _: about["spec"].pop("name"), "can't be made a policy"),
        (lambda _, arrays: arrays.pop(next(iter(arrays))), "is missing there"),
        (lambda _, arrays: arrays.update(more=np.ones(2)), r"more is float64 \(2,\) there"),
    ],
)
def test_files_of_others(saved, change, message):
    rewritten(saved, change)
    with pytest.raises(purerl.RunError, match=message) as caught:
        load_policy(saved)
    assert "\n" not in str(caught.value)


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


def test_no_code_comes_from_a_file(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rewritten(saved, lambda _, arrays: arrays.update(more=np.array([Bomb()], dtype=object)))
    assert_one_line(saved)
    saved.write_bytes(pickle.dumps(Bomb()))
    assert_one_line(saved)
    with zipfile.ZipFile(saved, "w") as archive:
        archive.writestr("about.npy", pickle.dumps(Bomb()))
    assert_one_line(saved)
    assert not (tmp_path / "exploded").exists()


def test_whole_or_not_at_all(saved, monkeypatch):
    good = saved.read_bytes()

    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(purerl.RunError, match=f"can't be written to {saved}: No space left"):
        save_policy(make_policy(purerl.PPO(), walk()), saved)
    assert saved.read_bytes() == good
    assert os.listdir(saved.parent) == [saved.name]


def test_where_nothing_can_be_written(tmp_path):
    policy = make_policy(purerl.PPO(hidden=(4,)), walk())
    with pytest.raises(purerl.RunError, match="No such file or directory"):
        save_policy(policy, tmp_path / "none" / "policy")
    with pytest.raises(purerl.ConfigError, match=r"policy: got function, expected .*out.policy"):
        save_policy(lambda obs: obs, tmp_path / "policy")


def test_a_file_may_name_every_default_network():
    public = [getattr(purerl, name) for name in purerl.__all__]
    networks = {
        c for c in public if isinstance(c, type) and issubclass(c, (purerl.Actor, purerl.Critic))
    }
    bases = {purerl.Actor, purerl.Critic, purerl.ActorCriticNetwork}
    assert networks - bases <= set(policy_file.NETWORKS.values())
