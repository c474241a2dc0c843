import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.agents import Tiny, learn
from kit.environments import faulty, push_env, walk
from kit.quick import mostly_slow, quick_jit
from kit.trees import assert_close

import purerl
from purerl.accelerator.devices import ALONE, AXIS, Devices
from purerl.agents import gradients
from purerl.agents.gradients import masked_sum, mean_gradient, moments, valid_count
from purerl.experience.metrics import pool, summarize
from purerl.experience.normalize import init_stats, update_stats
from purerl.training.run import make_loop

AGENTS = [
    *("ppo", "gru", "reinforce", "actor_critic", "q_actor_critic"),
    *("ddpg", "td3", "sac", "dqn", "pqn"),
]
# Several devices on one: what `shard_map` does with devices, `vmap` does with rows.
FOUR = Devices(4)
several = lambda fn, **options: jax.vmap(fn, axis_name=AXIS, **options)  # noqa: E731


def child(*args, num_devices=2):
    flags = f"--xla_force_host_platform_device_count={num_devices}"
    environ = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "kit.spread", *map(str, args)],
        cwd=pathlib.Path(__file__).parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
    )


def finish(process, timeout=280):
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode == 0, err[-3000:]
    return told(out.splitlines())


def told(lines):
    """What a child has seen, among what Gloo has to say."""
    return json.loads(next(line for line in lines if line.startswith("{")))


def equal(x):
    """Whether all rows are the same, bit by bit."""
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    return len({np.asarray(row).tobytes() for row in x}) == 1


@pytest.mark.parametrize("agent", mostly_slow(AGENTS, ("ppo",), slow=("gru", "sac", "dqn")))
def test_replicas_stay_identical(agent):
    """Over real devices, two seeds, to the bit."""
    seen = finish(child(agent))
    assert seen["devices"] == 2
    for path, digests in seen["replicas"].items():
        if ".stats" not in path:  # the rows of the two devices
            assert len(digests) == 2, path
        assert len(set(digests)) == 1, path
    assert len(set(seen["own"])) == 2, "both devices played the same"
    assert seen["skipped"] == 0
    assert seen["learned"]


@pytest.fixture(scope="module")
def batch():
    """x `[D, B]` and which are valid: none on one of the devices, few on another."""
    x = 3.0 + 2.0 * jax.random.normal(jax.random.key(1), (4, 50))
    valid = jnp.arange(50) < jnp.array([50, 3, 0, 20])[:, None]
    return x, valid


def mean_of(x, valid, devices=ALONE):
    """Each device's share of the mean over what is valid."""
    return masked_sum(x, valid / valid_count(valid, devices))


def test_masked_means_count_what_is_valid_everywhere(batch):
    x, valid = batch
    everything = (x.reshape(-1), valid.reshape(-1))
    shares = several(lambda x, valid: mean_of(x, valid, FOUR))(x, valid)
    np.testing.assert_allclose(jnp.mean(shares), mean_of(*everything), rtol=1e-6)
    # At most a share of an entry a device has, and still it counts as one.
    single = jnp.zeros_like(valid).at[1, 7].set(True)
    shares = several(lambda x, valid: mean_of(x, valid, FOUR))(x, single)
    np.testing.assert_allclose(jnp.mean(shares), x[1, 7], rtol=1e-6)
    nothing = several(lambda x: mean_of(x, x > jnp.inf, FOUR))(x)
    assert not np.any(nothing)


@pytest.mark.parametrize("rows", [10, 100])
def test_gradients_of_a_mean_are_those_of_the_whole(batch, rows, monkeypatch):
    """Whether or not each device takes its rows in blocks."""
    monkeypatch.setattr(gradients, "ROWS_AT_ONCE", rows)
    x, valid = batch

    def loss_fn(w, x):
        return {"loss": jnp.tanh(w[0] * x + w[1]) ** 2, "x": x}

    def gradient(x, valid, devices=ALONE):
        weight = valid / valid_count(valid, devices)
        return mean_gradient(loss_fn, jnp.array([0.3, -0.2]), x, weight, devices)

    losses, grads = several(lambda *batch: gradient(*batch, FOUR))(x, valid)
    expected = gradient(x.reshape(-1), valid.reshape(-1))
    assert equal(grads)
    np.testing.assert_allclose(jnp.mean(losses["loss"]), expected[0]["loss"], rtol=1e-5)
    np.testing.assert_allclose(jnp.mean(losses["x"]), expected[0]["x"], rtol=1e-5)
    np.testing.assert_allclose(grads[0], expected[1], rtol=1e-5)


def test_moments_are_those_of_all(batch):
    x, valid = batch

    def found(x, valid, devices=ALONE):
        return moments(x, valid / valid_count(valid, devices), devices)

    parts = several(lambda x, valid: found(x, valid, FOUR))(x, valid)
    for part, whole in zip(parts, found(x.reshape(-1), valid.reshape(-1)), strict=True):
        assert equal(part)
        np.testing.assert_allclose(part[0], whole, rtol=1e-5)


def test_a_tree_is_summed_as_one_array_of_each_kind():
    tree = {
        "a": jnp.arange(12.0).reshape(4, 3),
        "b": (jnp.arange(4), jnp.arange(4) + 7, jnp.ones((4, 2, 2))),
        "c": jnp.arange(8).reshape(4, 2) % 3 == 0,
    }
    total = several(lambda x: FOUR.sum(x))(tree)
    for got, x in zip(jax.tree.leaves(total), jax.tree.leaves(tree), strict=True):
        assert equal(got)
        assert got.dtype == (x.sum(0).dtype if x.dtype == bool else x.dtype)
        np.testing.assert_array_equal(got[0], np.asarray(x).sum(0))
    jaxpr = str(jax.make_jaxpr(several(lambda x: FOUR.sum(x)))(tree))
    assert jaxpr.count("psum") <= 3
    mean = several(lambda x: FOUR.mean(x))({"a": tree["a"], "n": tree["b"][0]})
    np.testing.assert_allclose(mean["a"][0], np.asarray(tree["a"]).mean(0))
    assert float(mean["n"][0]) == 1.5


def test_statistics_of_all_devices():
    """Also where the devices see different things: the variance between them counts."""
    x = jax.random.normal(jax.random.key(0), (4, 5, 6, 3)) + jnp.arange(4.0).reshape(4, 1, 1, 1)
    start = init_stats(x[0, 0, 0])._replace(size=jnp.float32(30.0))
    stats = several(lambda x: update_stats(start, x, 2, FOUR))(x)
    assert all(equal(leaf) for leaf in jax.tree.leaves(stats))
    expected = update_stats(start, x, 3)
    for name in ("size", "mean", "var"):
        got, want = getattr(stats, name), getattr(expected, name)
        np.testing.assert_allclose(got[0], want, rtol=1e-5)


def test_reward_normalization_counts_all_devices():
    reward = jax.random.normal(jax.random.key(0), (6, 8)) * jnp.arange(1.0, 9.0)
    over = jnp.zeros((6, 8), bool).at[3].set(True)
    parts = [jnp.moveaxis(x.reshape(6, 4, 2), 1, 0) for x in (reward, over, over)]
    for rewarder in (
        purerl.RunningNormalize(gamma=0.9),
        purerl.NStep(n=2, gamma=0.9, normalize=True),
    ):
        _, expected = rewarder(rewarder.init(8), reward, over, over)
        _, got = several(lambda *x, r=rewarder: r(r.init(2), *x, devices=FOUR))(*parts)
        np.testing.assert_allclose(
            jnp.moveaxis(got, 0, 1).reshape(6, 8), expected, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_episodes_of_all_devices_count_once_each(share):
    key = jax.random.key(3)
    returns, ended = jax.random.normal(key, (4, 7)), jax.random.uniform(key, (4, 7)) < share
    lengths = jnp.arange(28).reshape(4, 7)
    ended = ended.at[2].set(False)
    got = several(lambda *x: pool(summarize(*x), FOUR))(returns, lengths, ended)
    for x, expected in zip(got[:7], summarize(returns, lengths, ended)[:7], strict=True):
        assert equal(x)
        np.testing.assert_allclose(x[0], expected, rtol=1e-5)


WHOLE = {
    # One minibatch an epoch: in what order it is gone through doesn't matter.
    "ppo": purerl.PPO(batch_size=64, K_epochs=3, hidden=(8,)),
    "gru": purerl.PPO(network="gru", batch_size=64, K_epochs=3, hidden=(8,)),
    "shared lstm": purerl.ActorCritic(
        network="lstm", share_network=True, episode_length=8, hidden=(8,)
    ),
    "reinforce": purerl.REINFORCE(baseline=True, episode_length=8, hidden=(8,), entropy_beta=0.1),
    "actor_critic": purerl.ActorCritic(episode_length=8, hidden=(8,)),
    "q_actor_critic": purerl.ActorCritic(
        critic=purerl.DefaultQNetwork, episode_length=8, hidden=(8,)
    ),
}


@pytest.mark.parametrize("name", mostly_slow(WHOLE, ("ppo", "reinforce")))
def test_an_update_over_devices_is_that_of_the_whole_batch(name, key):
    """Masked, standardised, with differently many valid steps on each device."""
    agent = WHOLE[name]
    options = {"num_envs": 8, "update_every": 8, "total_timesteps": 64, "wait_end_path": True}
    env = walk(length=6) if name == "q_actor_critic" else push_env()
    whole, part = (make_loop(env, agent, **options, num_devices=n) for n in (1, 4))

    @quick_jit
    def update():
        state = whole.init(key)
        _, transitions, *_ = whole.play(state.agent, state.rollout, None, key, 0)
        # Not all paths end alike, and some devices have less that is valid.
        keep = jnp.arange(8)[:, None] <= jnp.arange(8)[None] + 1
        transitions = transitions._replace(valid=transitions.valid & keep)
        stored = whole.buffer.push(state.buffer, transitions)
        memory = jax.tree.map(lambda x: x + 0.3, state.rollout.memory)
        expected, _, losses = learn(
            whole.agent, state.agent, whole.buffer, stored, key, whole.clock(0), memory
        )

        def one(transitions, memory):
            stored = part.buffer.push(part.init(key).buffer, transitions)
            clock = part.clock(0)
            rest = stored, key, clock, memory
            new, _, losses = learn(part.agent, state.agent, part.buffer, *rest)
            return new, FOUR.mean(losses)

        transitions = transitions._replace(next_obs=whole.buffer.read(stored)["next_obs"])
        parts = jax.tree.map(
            lambda x: jnp.moveaxis(x.reshape(8, 4, 2, *x.shape[2:]), 1, 0), transitions
        )
        memories = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), memory)
        return expected, losses, *several(one)(parts, memories), state.agent

    expected, losses, got, got_losses, before = update()
    assert jax.tree.all(jax.tree.map(equal, got))
    moved = jax.tree.map(lambda x, y: float(jnp.max(jnp.abs(x - y))), expected, before)
    assert max(jax.tree.leaves(moved)) > 1e-4
    assert_close(jax.tree.map(lambda x: x[0], got), expected, 1e-3, 2e-6)
    for loss, value in losses.items():
        np.testing.assert_allclose(got_losses[loss][0], value, rtol=1e-3, atol=1e-5, err_msg=loss)


@pytest.mark.parametrize("name", ["ddpg", "dqn"])
def test_a_step_on_shares_of_a_batch_is_one_on_the_whole(name, key):
    agent = {"ddpg": purerl.DDPG(hidden=(8,)), "dqn": purerl.DQN(hidden=(8,))}[name]
    env = push_env() if name == "ddpg" else walk()
    obs = jax.random.normal(key, (2, 32, *env.spec.observation_space.shape))
    batch = {
        "obs": obs[0],
        "next_obs": obs[1],
        "action": jax.vmap(env.spec.action_space.sample)(jax.random.split(key, 32)),
        "reward": jax.random.normal(key, (32,)),
        "discount": jnp.full(32, 0.9),
        "weight": jax.random.uniform(key, (32,)),
    }
    state = agent.init(key, env.spec)
    expected, _, _ = quick_jit(agent._learn)(state, batch, purerl.Clock())
    step = several(lambda *args: agent._learn(*args, purerl.Clock(devices=FOUR)), in_axes=(None, 0))
    got, _, _ = quick_jit(step)(state, jax.tree.map(lambda x: x.reshape(4, 8, *x.shape[1:]), batch))
    assert all(equal(x) for x in jax.tree.leaves(got))
    assert_close(jax.tree.map(lambda x: x[0], got), expected, 1e-3, 2e-6)


def test_importance_weights_are_over_the_largest_of_all_devices():
    """A transition drawn on device d has probability p / (D sum of d's p)."""
    buffer = purerl.Buffer(maxlen=8, priority_sampling=True, alpha=1.0, beta=0.5, anneal_beta=False)
    error = jnp.array([[1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0], [5.0] * 8, [0.1] * 7 + [9.0]])
    indices = jnp.array([[0, 3], [1, 2], [7, 0]])

    def weights(error, indices):
        zeros = jnp.zeros((4, 2))
        state = buffer.init(transition(zeros[0]), 2)
        state = buffer.push(state, transition(zeros))
        state = buffer.update_priorities(state, jnp.arange(8), error)
        devices = Devices(3)
        return buffer.sample(state, indices=indices, keys=["reward"], devices=devices)["weight"]

    got = several(weights)(error, indices)
    probability = error / (3 * error.sum(1, keepdims=True))
    expected = (8 * 3 * np.take_along_axis(np.asarray(probability), indices, 1)) ** -0.5
    np.testing.assert_allclose(got, expected / expected.max(), rtol=1e-4)


def transition(x):
    false = jnp.zeros(x.shape, bool)
    return purerl.Transition(
        x[..., None],
        x.astype(jnp.int32),
        x,
        x[..., None],
        false,
        false,
        x.astype(jnp.int32),
        ~false,
        {},
    )


OPTIONS = {"num_envs": 8, "update_every": 4, "total_timesteps": 320}


def states(loop, key):
    """All devices' states and metrics after a run, `[D, ...]`, `[D, num_updates]`."""

    def one(_):
        return jax.lax.scan(loop.step, loop.init(key), jnp.arange(loop.num_updates))

    return quick_jit(several(one))(jnp.arange(loop.devices.count))


def test_devices_agree_on_what_to_skip(key):
    """Where one of them sees NaN, none learns."""
    agent = purerl.PPO(hidden=(8,), batch_size=32, K_epochs=1)
    loop = make_loop(faulty(push_env(), 0.02), agent, num_devices=4, normalize_obs=True, **OPTIONS)
    state, metrics = states(loop, key)
    assert 0 < state.nonfinite_updates[0] < loop.num_updates
    same = state._replace(buffer=None, rollout=None, rewarder=None), metrics
    assert all(equal(x) for x in jax.tree.leaves(same))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.agent))


def test_max_episodes_counts_those_of_all_devices(key):
    agent = purerl.PPO(hidden=(8,), batch_size=32, K_epochs=1)
    loop = make_loop(walk(), agent, num_devices=4, max_episodes=20, **OPTIONS)
    state, metrics = states(loop, key)
    # 8 environments end an episode every 3 steps: 8 after the first 4, then 16 and, with 12, 32.
    assert np.asarray(state.num_episodes).tolist() == [32] * 4
    assert np.asarray(state.num_updates).tolist() == [3] * 4
    assert metrics.num_episodes[0].tolist() == [8, 8, 16, *[0] * 7]


def test_evaluation_is_shared(key):
    agent = purerl.PPO(hidden=(8,), batch_size=32, K_epochs=1)
    loop = make_loop(walk(), agent, num_devices=2, eval_every=5, eval_max_episodes=6, **OPTIONS)
    assert loop.eval_max_episodes == 3
    state, metrics = states(loop, key)
    assert metrics.eval.num_episodes[0].tolist() == [0, 0, 0, 0, 6] * 2
    assert np.asarray(state.best.num_updates).tolist() == [5, 5]  # of two equal ones the first
    np.testing.assert_allclose(metrics.eval.episode_length[0, 4], 3.0)


def test_one_device_is_no_device():
    options = {"env": walk(), "agent": purerl.PPO(hidden=(8,)), **OPTIONS}
    plain, one = (
        str(jax.make_jaxpr(lambda k, c=c: purerl.make_train(c)(k).state.agent)(jax.random.key(0)))
        for c in (purerl.TrainConfig(**options), purerl.TrainConfig(num_devices=1, **options))
    )
    assert plain == one
    assert "psum" not in plain


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_devices": 0}, "num_devices: got 0, expected an integer >= 1"),
        ({"num_devices": 3}, "num_envs: got 8, expected a multiple of num_devices=3"),
        (
            {"num_devices": 4, "agent": purerl.PPO(batch_size=2)},
            "PPO.batch_size: got 2, expected a multiple of num_devices=4",
        ),
        (
            {
                "num_devices": 2,
                "agent": purerl.REINFORCE(n_episodes=5),
                "num_envs": None,
                "update_every": None,
            },
            "num_envs: got 5, expected a multiple of num_devices=2",
        ),
        (
            {"num_devices": 4, "eval_every": 1},
            "eval_max_episodes: got 10, expected a multiple of num_devices=4",
        ),
        ({"num_device": 2}, "did you mean 'num_devices'"),
    ],
)
def test_what_devices_cannot_share(changes, message):
    with pytest.raises(purerl.ConfigError, match=message):
        purerl.TrainConfig(**{"env": walk(), **OPTIONS, **changes})


def test_several_hosts_train_one_run_on_all_their_devices(monkeypatch):
    """And what lays members over one process's devices says that it does."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    config = purerl.TrainConfig(walk(), Tiny(), total_timesteps=64, num_envs=4, update_every=4)
    with pytest.raises(purerl.ConfigError, match="num_devices: got 1, expected 4, all the devices"):
        purerl.fit(config, seeds=2)
    with pytest.raises(purerl.ConfigError, match="sweep: got 2 processes, expected one"):
        purerl.sweep(config, seeds=2, verbose=False)


def test_more_devices_than_there_are():
    count = jax.device_count()
    config = purerl.TrainConfig(env=walk(), num_envs=64 * count, num_devices=64 * count)
    message = f"num_devices: got {64 * count}, expected at most {count}, what jax.device_count"
    with pytest.raises(purerl.ConfigError, match=message):
        jax.jit(purerl.make_train(config)).lower(jax.random.key(0))


def test_sizes_given_are_totals():
    agent = purerl.DQN(batch_size=64)
    config = purerl.TrainConfig(env=walk(), agent=agent, num_envs=8, num_devices=4)
    loop = config.make_loop()
    assert (loop.num_envs, loop.agent.batch_size, loop.buffer.maxlen) == (2, 16, 25_000)
    assert loop.steps_per_update == 8
    assert loop.num_updates == 500_000 // 8


def test_start_hosts_says_what_is_missing():
    with pytest.raises(purerl.ConfigError, match="process_id missing, expected all three or none"):
        purerl.start_hosts("127.0.0.1:1", 2)


def hosts(num_processes, local, *rest):
    """Processes that find each other on this machine, each with its own devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        child("ppo", coordinator, num_processes, i, *rest, num_devices=local)
        for i in range(num_processes)
    ]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("num_processes", "local"), mostly_slow([(2, 1), (2, 2)], quick=(), slow=[(2, 1)])
)
def test_processes_train_as_one(num_processes, local):
    """Replicas are the same on all devices of all processes, to the bit; and as on as many devices
    of one process: to the bit where there are two, else but for the order in which Gloo adds up."""
    seen = [finish(process) for process in hosts(num_processes, local)]
    alone = finish(child("ppo", num_devices=num_processes * local))
    for process in seen:
        assert (process["devices"], process["local"]) == (num_processes * local, local)
        assert process["skipped"] == 0
    for path, expected in alone["replicas"].items():
        digests = {digest for process in seen for digest in process["replicas"][path]}
        assert len(digests) == 1, path
        if num_processes * local == 2:
            assert digests == set(expected), path
    for path, expected in alone["params"].items():
        got = seen[0]["params"][path]
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5, err_msg=path)
    played = {digest for process in seen for digest in process["own"]}
    assert len(played) == num_processes * local


@pytest.mark.parametrize(
    ("num_processes", "victim"), mostly_slow([(2, 0), (4, 2)], quick=(), slow=[(2, 0)])
)
def test_a_killed_process_ends_the_others(num_processes, victim):
    processes = hosts(num_processes, 1, "forever")
    try:
        for process in processes:
            assert told(process.stdout)["devices"] == num_processes
        processes[victim].kill()
        killed = time.monotonic()
        for i, process in enumerate(processes):
            if i != victim:
                _, err = process.communicate(timeout=250)
                assert process.returncode != 0
                assert err, "it ended without a word"
        print(f"all ended {time.monotonic() - killed:.1f} s after the kill")
    finally:
        for process in processes:
            process.kill()
            process.communicate()


AGREEMENT = """
import json, jax, numpy as np, purerl
keys = jax.random.split(jax.random.key(0), 10)
def curve(num_devices):
    config = purerl.TrainConfig(
        env="CartPole-v1", total_timesteps=200_000, num_envs=16, num_devices=num_devices
    )
    returns = np.asarray(jax.jit(jax.vmap(purerl.make_train(config)))(keys).metrics.episode_return)
    return np.nanmean(returns, 1).tolist(), np.nanmean(returns[:, -10:], 1).tolist()
print(json.dumps([curve(1), curve(2)]))
"""


@pytest.mark.release
@pytest.mark.timeout(1800)
def test_two_devices_learn_as_one_does():
    """PPO on CartPole, 10 seeds, the same total batch: mean return over the whole run, which is the
    speed of learning, and at its end; the means differ by less than 4.5
    standard errors, which chance alone exceeds once in 2,000 times."""
    flags = "--xla_force_host_platform_device_count=2"
    done = subprocess.run(
        [sys.executable, "-c", AGREEMENT],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=1780,
        check=True,
    )
    one, two = json.loads(done.stdout.splitlines()[-1])
    for name, x, y in zip(("whole run", "end"), one, two, strict=True):
        error = np.sqrt((np.var(x, ddof=1) + np.var(y, ddof=1)) / len(x))
        print(f"{name}: {np.mean(x):.1f} and {np.mean(y):.1f}, standard error {error:.1f}")
        assert x != y
        assert abs(np.mean(x) - np.mean(y)) < 4.5 * error + 1e-6, name
    assert np.mean(one[1]) > 300
