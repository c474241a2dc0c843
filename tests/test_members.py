"""Members over cores and devices: whatever the layout, each is trained as it is alone."""

import os
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from kit.agents import Tiny
from kit.environments import push_env
from kit.trees import assert_close, assert_equal

import purerl
from purerl.accelerator import machine, members
from purerl.accelerator.members import Layout, in_threads
from purerl.training.train import program_key

pytestmark = pytest.mark.usefixtures("quick_programs")


OPTIONS = {"num_envs": 4, "update_every": 8, "total_timesteps": 8 * 32, "normalize_obs": True}


def config(**changes):
    return purerl.TrainConfig(env=push_env(), agent=Tiny(), **{**OPTIONS, **changes})


@pytest.fixture
def cores(monkeypatch):
    """Sets the number of programs at a time. Before JAX 0.11 they run one after the other, since
    XLA would hang."""
    if jax.__version_info__ < (0, 11):
        monkeypatch.setattr(members, "in_threads", lambda calls: [call() for call in calls])

    def use(number):
        monkeypatch.setattr(members, "programs_at_once", lambda: number)

    return use


@pytest.mark.parametrize("num_cores", [1, 2, 3, 5])
@pytest.mark.parametrize("num_members", [1, 2, 3, 5, 8])
def test_parts_are_of_one_size_and_hold_everyone(num_members, num_cores, cores):
    cores(num_cores)
    layout = Layout.of(num_members)
    assert layout.num_parts <= min(num_cores, num_members)
    # As few on a core as can be, on no more cores than that takes.
    assert layout.size == -(-num_members // num_cores)
    assert layout.size * (layout.num_parts - 1) < num_members <= layout.size * layout.num_parts
    keys = jax.vmap(jax.random.key)(np.arange(num_members, dtype=np.uint32))
    tree = {"key": keys, "x": jnp.arange(2.0 * num_members).reshape(-1, 2)}
    parts = layout.split(tree)
    assert len(parts) == layout.num_parts
    assert {len(leaf) for part in parts for leaf in jax.tree.leaves(part)} == {layout.size}
    assert_equal(layout.join(parts), tree)


def test_one_agent_and_other_devices_are_left_alone(cores, monkeypatch):
    cores(4)
    assert Layout.of(None) == Layout(None, 1, False)
    monkeypatch.setattr(jax, "local_device_count", lambda: 4)
    assert Layout.of(6) == Layout(6, 3, on_devices=True)
    assert Layout.of(1) == Layout(1, 1, on_devices=False)
    monkeypatch.undo()
    monkeypatch.setenv("NPROC", "1")
    assert members.programs_at_once() == 1


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 8), ("250000 100000", 3), ("50000 100000", 1), ("900000 100000", 8), (None, 8)],
)
def test_a_containers_share_of_time_limits_the_cores(quota, expected, monkeypatch, tmp_path):
    file = tmp_path / "cpu.max"
    if quota is not None:
        file.write_text(f"{quota}\n")
    monkeypatch.setattr(machine, "Path", lambda path: file)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert machine.num_cores() == expected


def test_they_run_at_the_same_time_and_an_exception_arrives():
    meeting = threading.Barrier(3, timeout=250)
    assert in_threads([meeting.wait] * 3) != [None] * 3

    def fail():
        raise FloatingPointError("one of them")

    with pytest.raises(FloatingPointError, match="one of them"):
        in_threads([lambda: 1, fail])


def test_a_member_does_not_depend_on_the_layout(cores):
    """Five seeds on one core, two (of 3 and 2) and five; to the bit with as many on each core."""
    outputs = []
    for number in (1, 2, 5):
        cores(number)
        outputs.append(purerl.fit(config(), seeds=5))
    for out in outputs[1:]:
        assert_close(out.state, outputs[0].state, 1e-5)
        assert_close(out.metrics, outputs[0].metrics, 1e-4)
        assert isinstance(jax.tree.leaves(out.state.agent)[0], jax.Array)
    cores(2)
    apart = purerl.fit(config(), seeds=[3, 4, 0, 1, 2])
    places = np.array([2, 3, 4, 0, 1])
    assert_equal(jax.tree.map(lambda x: x[places], apart.state), outputs[1].state)


@pytest.mark.slow
def test_what_was_begun_on_other_cores_goes_on(cores, tmp_path):
    """A checkpoint is of all members, whatever the layout: here from two cores to one and three."""
    cores(2)
    whole = purerl.fit(config(), seeds=5)

    def stop(report):
        if report.stop >= 3:
            raise RuntimeError("enough")

    fit = {"seeds": 5, "report_every": 0.0}
    for number in (2, 1, 3):
        cores(2)
        folder = tmp_path / str(number)
        with pytest.raises(RuntimeError, match="enough"):
            purerl.fit(config(), folder, callback=stop, **fit)
        cores(number)
        resumed = purerl.fit(config(), folder, **fit)
        if number == 2:
            assert_equal(resumed.state, whole.state)
        assert_close(resumed.state, whole.state, 1e-5)
        assert_close(resumed.metrics, whole.metrics, 1e-4)


def test_devices_have_a_part_each_and_their_folder_goes_on_elsewhere(tmp_path):
    """Five seeds over three devices, of 2, 2 and 1, in another process; the rest here."""
    code = """
import purerl, jax
from kit.agents import Tiny
from kit.environments import push_env
config = purerl.TrainConfig(env=push_env(), agent=Tiny(), **OPTIONS)
def stop(report):
    if report.stop >= 3:
        raise SystemExit(jax.local_device_count())
purerl.fit(config, sys.argv[1], seeds=5, report_every=0.0, callback=stop)
""".replace("OPTIONS", repr(OPTIONS))
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=3"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path += {sys.path!r}\n{code}", tmp_path],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 3, done.stderr
    assert (tmp_path / "checkpoints" / "3").exists()
    out = purerl.fit(config(), tmp_path, seeds=5, resume=True)
    assert_close(out.state, purerl.fit(config(), seeds=5).state, 1e-5)


def test_a_sweep_over_cores_is_one_over_none(cores):
    outputs = []
    for number in (1, 3):
        cores(number)
        outputs.append(purerl.sweep(config(), seeds=4, grid={"lr": [0.1, 0.3]}, slice_size=5))
    alone, spread = outputs
    assert (alone.effort.parts, spread.effort.parts) == (1, 2)  # two of two
    assert (alone.effort.slices, spread.effort.slices) == (2, 2)
    assert_close(spread.metrics, alone.metrics, 1e-4)
    assert_close(spread.member(7).state, alone.member(7).state, 1e-5)


def test_the_same_program_is_compiled_once(traces, cores):
    """Also for other seeds and values, in another object, and for another part of the run."""
    cores(2)

    def cartpole(**changes):
        options = {"agent": purerl.REINFORCE(hidden=(4,)), "total_timesteps": 8192}
        return purerl.TrainConfig(env="CartPole-v1", **{**options, **changes})

    first = purerl.fit(cartpole(), seeds=2)
    assert len(traces) == 2  # the first state and the chunks
    purerl.fit(cartpole(), seeds=[5, 6])
    assert len(traces) == 2
    assert_equal(purerl.fit(cartpole(), seeds=2).state, first.state)
    with_lr = {"hyperparams": {"lr": [0.1, 0.2]}}
    tuned = purerl.fit(cartpole(), seeds=2, **with_lr)
    assert len(traces) == 4
    assert_equal(purerl.fit(cartpole(), seeds=2, **with_lr).state, tuned.state)
    purerl.sweep(cartpole(), seeds=2)
    purerl.sweep(cartpole(), seeds=2)
    assert len(traces) == 5
    # What differs in anything is another program, as are settings of JAX that are traced.
    other = cartpole(agent=purerl.REINFORCE(hidden=(4,), lr=0.5))
    np.testing.assert_allclose(purerl.fit(other, seeds=2).agent.lr, 0.5)
    assert len(traces) == 7
    with jax.debug_nans(True):
        purerl.fit(cartpole(), seeds=2)
    assert len(traces) == 9


def test_what_a_users_function_reads_is_read_again(traces):
    """A program with code of the user isn't remembered: what it reads may have changed."""
    env, scale = push_env(), [1.0]

    def step(key, state, action):
        state, after = env.step(key, state, action)
        return state, after._replace(reward=scale[0] * after.reward)

    mine = config().replace(env=env._replace(step=step))
    before = purerl.fit(mine, seeds=2).metrics.episode_return
    scale[0] = 100.0
    after = purerl.fit(mine, seeds=2).metrics.episode_return
    np.testing.assert_allclose(after[:, 0], 100.0 * before[:, 0], rtol=1e-4)


def test_an_environment_by_its_name_is_the_same_one():
    def key(**changes):
        options = {"env": "CartPole-v1", "agent": purerl.PPO(), "total_timesteps": 4096}
        return program_key(purerl.TrainConfig(**{**options, **changes}))

    assert key() == key()
    assert hash(key()) == hash(key())
    gravity = purerl.make("CartPole-v1", gravity=1.6)
    assert key(env=gravity) == key(env={"name": "CartPole-v1", "gravity": 1.6}) != key()
    assert key(env="Acrobot-v1") != key() != key(agent=purerl.PPO(lr=0.1))
    assert key(agent=purerl.PPO(optimizer="adamw")) != key(agent=purerl.PPO(optimizer="sgd"))
    # Nothing is equal to what a user has written.
    cartpole = purerl.make("CartPole-v1")
    for mine in (
        {"env": push_env(), "agent": Tiny()},
        {"env": cartpole._replace(reset=lambda key: cartpole.reset(key))},
        {"agent": Tiny()},
        {"agent": purerl.PPO(optimizer=lambda lr: optax.sgd(lr))},
        {"agent": purerl.PPO(actor_obs=lambda obs: obs[:2])},
        {"action_processor": lambda action: action},
    ):
        assert key(**mine) is None


@pytest.mark.parametrize("setting", ["x64", "debug_nans"])
def test_a_setting_of_jax_around_fit_holds_in_every_part(setting, cores):
    """Settings as contexts are a thread's own."""
    outputs = []
    for number in (1, 2):
        cores(number)
        with jax.enable_x64(True) if setting == "x64" else jax.debug_nans(True):
            outputs.append(purerl.fit(config(), seeds=2))
    assert_close(outputs[1].metrics, outputs[0].metrics, 1e-3)
