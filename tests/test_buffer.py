import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_returns import numpy_gae, numpy_n_step, paths

import purerl
from purerl.buffer import Buffer
from purerl.types import Transition

N = 3


def steps(start, num_steps):
    """Transitions whose observation is the number of the step, `[T, N, ...]`."""
    time = jnp.broadcast_to(jnp.arange(start, start + num_steps)[:, None], (num_steps, N))
    zeros = jnp.zeros((num_steps, N))
    return Transition(
        obs={"time": time.astype(jnp.uint8)},
        action=time,
        reward=time.astype(jnp.float32),
        next_obs={"time": (time + 1).astype(jnp.uint8)},
        terminated=zeros.astype(bool),
        truncated=zeros.astype(bool),
        episode=time,
        valid=~zeros.astype(bool),
        extras={"value": zeros},
    )


def empty(buffer):
    return buffer.init(jax.tree.map(lambda x: x[0], steps(0, 1)), N)


def test_the_ring_keeps_the_newest():
    buffer = Buffer(maxlen=7 * N)
    push = jax.jit(buffer.push)
    state, pushed = empty(buffer), 0
    for num_steps in (3, 3, 3, 5, 1, 7, 2):
        state = push(state, steps(pushed, num_steps))
        pushed += num_steps
        size = min(pushed, 7)
        assert int(state.size) == size
        newest = np.arange(pushed - size, pushed)
        held = np.sort(state.data["action"][:size, 0])
        np.testing.assert_array_equal(held, newest)
        # A row is one step: every entry of it belongs to the same time.
        for name in ("obs", "reward", "episode", "action"):
            rows = jax.tree.leaves(state.data[name])[0]
            np.testing.assert_array_equal(rows, state.data["action"].astype(rows.dtype))
        if size == 7 and num_steps < 7:
            assert int(state.data["action"][state.position, 0]) == pushed - 7  # the oldest is next


def test_dtypes_stay():
    state = empty(Buffer(maxlen=4 * N))
    assert state.data["obs"]["time"].dtype == jnp.uint8
    assert state.data["obs"]["time"].shape == (4, N)
    pushed = Buffer(maxlen=4 * N).push(state, steps(0, 4))
    assert pushed.data["obs"]["time"].dtype == jnp.uint8
    assert jax.tree.map(jnp.shape, pushed) == jax.tree.map(jnp.shape, state)


def test_reset_forgets():
    buffer = Buffer(maxlen=4 * N)
    state = buffer.reset(buffer.push(empty(buffer), steps(0, 3)))
    assert int(state.size) == int(state.position) == 0


def test_too_much_at_once():
    buffer = Buffer(maxlen=2 * N)
    with pytest.raises(ValueError, match="3 steps do not fit into 2 rows"):
        buffer.push(empty(buffer), steps(0, 3))
    with pytest.raises(purerl.ConfigError, match="a multiple of num_envs=3"):
        empty(Buffer(maxlen=7))


def test_finish_path_is_a_plain_loop():
    reward, value, next_value, terminated, truncated = paths(5, shape=(8, N))
    buffer = Buffer(maxlen=8 * N, gamma=0.9, lam=0.7)
    rollout = steps(0, 8)._replace(
        reward=jnp.asarray(reward),
        terminated=jnp.asarray(terminated),
        truncated=jnp.asarray(truncated),
        extras={"value": jnp.asarray(value)},
    )
    state = buffer.finish_path(buffer.push(empty(buffer), rollout), jnp.asarray(next_value))
    ends = (next_value, terminated, truncated)
    close = {"rtol": 1e-4, "atol": 1e-5}
    expected = numpy_gae(reward, value, *ends, 0.9, 0.7)
    np.testing.assert_allclose(state.data["advantage"], expected, **close)
    expected = numpy_n_step(reward, *ends, 0.9, 8)
    np.testing.assert_allclose(state.data["reward_to_go"], expected, **close)
    expected = reward + 0.9 * np.where(terminated, 0, next_value) - value
    np.testing.assert_allclose(state.data["td_error"], expected, **close)


def test_read_transforms_observations_only():
    buffer = Buffer(maxlen=2 * N).tell(transform_obs=lambda obs: obs["time"] * 2.0)
    state = buffer.push(empty(buffer), steps(1, 2))
    data = buffer.read(state)
    np.testing.assert_array_equal(data["obs"][:, 0], [2.0, 4.0])
    np.testing.assert_array_equal(data["next_obs"][:, 0], [4.0, 6.0])
    np.testing.assert_array_equal(data["reward"][:, 0], [1.0, 2.0])
    np.testing.assert_array_equal(state.data["obs"]["time"][:, 0], [1, 2])


def test_a_push_under_jit_with_donation_copies_nothing():
    buffer = Buffer(maxlen=10_000 * N)
    state = jax.eval_shape(lambda: empty(buffer))
    push = jax.jit(buffer.push, donate_argnums=0)
    memory = push.lower(state, jax.eval_shape(lambda: steps(0, 4))).compile().memory_analysis()
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert memory.alias_size_in_bytes >= held
    assert memory.temp_size_in_bytes < held / 100
