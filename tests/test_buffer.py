import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.oracles import assert_proportional, assert_sums, numpy_gae, numpy_n_step, paths
from kit.quick import quick_jit
from kit.trees import assert_equal

import purerl
from purerl.experience import sumtree
from purerl.experience.buffer import Buffer
from purerl.experience.normalize import RunningStats
from purerl.experience.transition import Transition

N = 3

push = quick_jit(Buffer.push)
reset = quick_jit(Buffer.reset)
path_entries = quick_jit(Buffer.path_entries)
update_priorities = quick_jit(Buffer.update_priorities)
sample = quick_jit(Buffer.sample, static_argnames=("batch_size", "keys", "n_step"))


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


def random_steps(rng, num_steps):
    """Transitions `[T, N]` with ends anywhere, and episodes whose number changes without an end."""
    shape = (num_steps, N)
    return Transition(
        obs={"time": rng.integers(0, 256, shape, np.uint8)},
        action=rng.integers(0, 9, shape, np.int32),
        reward=rng.normal(size=shape).astype(np.float32),
        next_obs={"time": rng.integers(0, 256, shape, np.uint8)},
        terminated=rng.random(shape) < 0.15,
        truncated=rng.random(shape) < 0.15,
        episode=np.cumsum(rng.random(shape) < 0.15, axis=0, dtype=np.int32),
        valid=rng.random(shape) < 0.5,
        extras={"value": rng.normal(size=shape).astype(np.float32)},
    )


def rows(transitions, start, stop):
    return jax.tree.map(lambda x: x[start:stop], transitions)


def empty(buffer, limit=None):
    return buffer.init(jax.tree.map(lambda x: x[0], steps(0, 1)), N, limit=limit)


def random_full(buffer, rng):
    """A full buffer, every transition with an error and so with a priority of its own."""
    num_rows = buffer.maxlen // N
    state = push(buffer, empty(buffer), random_steps(rng, num_rows))
    error = rng.normal(size=num_rows * N).astype(np.float32)
    return update_priorities(buffer, state, np.arange(num_rows * N), error), error


def test_the_ring_keeps_the_newest():
    buffer = Buffer(maxlen=7 * N)
    state, pushed = empty(buffer), 0
    for num_steps in (3, 3, 3, 5, 1, 7, 2):
        state = push(buffer, state, steps(pushed, num_steps))
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


def test_path_entries_are_a_plain_loop():
    reward, value, next_value, terminated, truncated = paths(5, shape=(8, N))
    buffer = Buffer(maxlen=8 * N, gamma=0.9, lam=0.7)
    rollout = steps(0, 8)._replace(
        reward=jnp.asarray(reward),
        terminated=jnp.asarray(terminated),
        truncated=jnp.asarray(truncated),
        extras={"value": jnp.asarray(value)},
    )
    state = push(buffer, empty(buffer), rollout)
    found = path_entries(buffer, state, jnp.asarray(next_value))
    ends = (next_value, terminated, truncated)
    close = {"rtol": 1e-4, "atol": 1e-5}
    expected = numpy_gae(reward, value, *ends, 0.9, 0.7)
    np.testing.assert_allclose(found["advantage"], expected, **close)
    expected = numpy_n_step(reward, *ends, 0.9, 8)
    np.testing.assert_allclose(found["reward_to_go"], expected, **close)
    expected = reward + 0.9 * np.where(terminated, 0, next_value) - value
    np.testing.assert_allclose(found["td_error"], expected, **close)


HALVES = RunningStats(  # by which a number counts half as much
    size=jnp.float32(1.0),
    offset={"time": jnp.float32(0.0)},
    var={"time": jnp.float32(4.0)},
    shift={"time": jnp.uint8(0)},
    lost=(jnp.float32(0.0), {"time": jnp.float32(0.0)}, {"time": jnp.float32(0.0)}),
    left_out=jnp.int32(0),
)


def test_only_observations_are_normalised_when_they_are_read():
    buffer = Buffer(maxlen=2 * N)
    state = buffer.push(empty(buffer), steps(1, 2))
    data = purerl.Experience(buffer, state, obs_stats=HALVES).read()
    np.testing.assert_allclose(data["obs"]["time"][:, 0], [0.5, 1.0])
    np.testing.assert_allclose(data["next_obs"]["time"][:, 0], [1.0, 1.5])
    np.testing.assert_array_equal(data["reward"][:, 0], [1.0, 2.0])
    np.testing.assert_array_equal(state.data["obs"]["time"][:, 0], [1, 2])


@pytest.mark.parametrize("num_steps", [2, 3, 5])
def test_a_push_that_does_not_divide_the_ring_wraps(num_steps):
    rng = np.random.default_rng(num_steps)
    buffer = Buffer(maxlen=7 * N)
    state, ring, position = empty(buffer), np.zeros((7, N)), 0
    for _ in range(9):
        new = random_steps(rng, num_steps)
        state = push(buffer, state, new)
        for row in new.reward:
            ring[position] = row
            position = (position + 1) % 7
        np.testing.assert_array_equal(state.data["reward"], ring.astype(np.float32))
        assert int(state.position) == position


@pytest.mark.parametrize("priorities", [False, True])
def test_written_transitions_are_drawn_uniformly_and_no_others(priorities, key):
    buffer = Buffer(maxlen=7 * N, priority_sampling=priorities)
    partly = push(buffer, empty(buffer), steps(0, 3))
    wrapped = push(buffer, push(buffer, partly, steps(3, 3)), steps(6, 3))
    anew = push(buffer, reset(buffer, wrapped), steps(9, 3))
    for state, num_rows in ((partly, 3), (wrapped, 7), (anew, 3)):
        batch = sample(buffer, state, key, 20_000, keys=("reward",))
        assert_proportional(batch["indices"], np.arange(7 * N) < num_rows * N)
        np.testing.assert_array_equal(batch["weight"], 1.0)


@pytest.mark.parametrize("priorities", [False, True])
def test_indices_choose_transitions_and_keys_their_entries(priorities):
    rng = np.random.default_rng(0)
    buffer = Buffer(maxlen=7 * N, priority_sampling=priorities)
    state, _ = random_full(buffer, rng)
    indices = rng.integers(0, 7 * N, 16)
    data = buffer.read(state)
    batch = sample(buffer, state, indices=indices)
    assert set(batch) == {*data, "indices", "weight"}
    np.testing.assert_array_equal(batch["indices"], indices)
    expected = jax.tree.map(lambda x: np.asarray(x)[indices // N, indices % N], data)
    assert_equal({name: batch[name] for name in data}, expected)
    some = sample(buffer, state, indices=indices, keys=("obs", "value"))
    assert set(some) == {"obs", "value", "indices", "weight"}
    assert_equal(some, {name: batch[name] for name in some})
    discounted = sample(buffer.replace(gamma=0.9), state, indices=indices, keys=("obs",))
    assert set(discounted) == {"obs", "indices", "weight", "discount"}


@pytest.mark.parametrize("n_step", [1, 3])
def test_samples_keep_their_dtypes_and_are_normalised(n_step, key):
    buffer = Buffer(maxlen=7 * N, gamma=0.9)
    state = push(buffer, empty(buffer), steps(0, 4))
    plain, half = (
        purerl.Experience(buffer, state, obs_stats=stats).sample(key, 5, n_step=n_step)
        for stats in (None, HALVES)
    )
    for name in ("obs", "next_obs"):
        assert plain[name]["time"].dtype == jnp.uint8
        assert half[name]["time"].dtype == jnp.float32
        np.testing.assert_allclose(half[name]["time"], plain[name]["time"] / 2)
    assert plain["terminated"].dtype == plain["truncated"].dtype == bool
    assert plain["action"].dtype == plain["episode"].dtype == plain["indices"].dtype == jnp.int32


def test_what_can_not_be_sampled(key):
    buffer = Buffer(maxlen=7 * N)
    state, index = empty(buffer), jnp.zeros(2, jnp.int32)
    either = "expected either key and batch_size, or indices"
    for arguments, message in [
        ({"indices": index, "keys": ["rewards"]}, "no entry 'rewards'; did you mean 'reward'"),
        ({"indices": index, "keys": ["priority"]}, "no entry 'priority'"),
        ({"indices": index, "n_step": 2}, "Buffer.gamma: missing"),
        ({"indices": index, "key": key, "batch_size": 2}, either),
        ({"key": key}, either),
        ({"batch_size": 2}, either),
        ({}, either),
    ]:
        with pytest.raises(purerl.ConfigError, match=message):
            buffer.sample(state, **arguments)


def test_priorities_are_asked_for():
    for value in ({"alpha": 0.5}, {"beta": 0.5}, {"anneal_beta": True}):
        with pytest.raises(purerl.ConfigError, match="is for priority_sampling=True"):
            Buffer(maxlen=6, **value)


@pytest.mark.parametrize(
    ("fields", "progress", "alpha", "beta"),
    [
        ({}, 0.0, 0.6, 0.4),
        ({}, 0.5, 0.6, 0.7),
        ({"alpha": 0.9, "beta": 0.5}, 0.5, 0.9, 0.75),
        ({"alpha": 0.9, "beta": 0.5}, 1.0, 0.9, 1.0),
        ({"alpha": 0.9, "beta": 0.5, "anneal_beta": False}, 0.5, 0.9, 0.5),
    ],
)
def test_draws_and_importance_weights_follow_the_formulas(fields, progress, alpha, beta, key):
    # Schaul et al. 2015, section 3.3 and 3.4.
    rng = np.random.default_rng(0)
    buffer = Buffer(maxlen=7 * N, priority_sampling=True, **fields)
    state = push(buffer, empty(buffer), random_steps(rng, 3))
    error = rng.normal(size=3 * N).astype(np.float32)
    state = update_priorities(buffer, state, np.arange(3 * N), error)
    priority = (np.abs(error) + 1e-6) ** alpha
    probability = priority / priority.sum()
    batch = sample(buffer, state, key, 20_000, keys=("priority",))
    assert_proportional(batch["indices"], np.append(probability, np.zeros(4 * N)))
    for indices in (batch["indices"], np.array([2, 5, 2, 7])):  # the largest is that of the batch
        weight = (1 / (3 * N * probability[indices])) ** beta
        batch = sample(buffer, state, indices=indices, keys=("priority",), progress=progress)
        np.testing.assert_allclose(batch["weight"], weight / weight.max(), rtol=1e-5)
        np.testing.assert_allclose(batch["priority"], priority[indices], rtol=1e-5)


def test_alpha_zero_is_uniform(key):
    buffer = Buffer(maxlen=7 * N, priority_sampling=True, alpha=0.0)
    state, _ = random_full(buffer, np.random.default_rng(0))
    batch = sample(buffer, state, key, 20_000, keys=("priority",))
    assert_proportional(batch["indices"], np.ones(7 * N))
    np.testing.assert_array_equal(batch["weight"], 1.0)


@pytest.mark.parametrize(("num_rows", "pushes"), [(7, (1, 5, 7)), (50, (3, 17, 50))])
def test_new_transitions_get_the_highest_priority_so_far(num_rows, pushes):
    rng = np.random.default_rng(num_rows)
    count = num_rows * N  # no multiple of what a node of the tree sums up
    buffer = Buffer(maxlen=count, priority_sampling=True, alpha=0.5)
    state = empty(buffer)
    priority, position, written, highest = np.zeros(count), 0, 0, 1.0
    for _ in range(20):
        num_steps = int(rng.choice(pushes, p=[0.5, 0.4, 0.1]))
        state = push(buffer, state, random_steps(rng, num_steps))
        position = 0 if num_steps == num_rows else position
        for row in range(position, position + num_steps):
            at = row % num_rows * N
            priority[at : at + N] = highest
        position = (position + num_steps) % num_rows
        written = min(written + num_steps * N, count)
        np.testing.assert_allclose(state.priorities[0][:count], priority, rtol=1e-5)

        indices = np.resize(rng.permutation(written)[:8], 8)
        error = np.resize([0.0, *rng.normal(size=min(written, 8) - 1)], 8).astype(np.float32)
        state = update_priorities(buffer, state, indices, error)
        priority[indices] = (np.abs(error) + 1e-6) ** 0.5
        highest = max(highest, priority[indices].max())
        np.testing.assert_allclose(state.priorities[0][:count], priority, rtol=1e-5)
        np.testing.assert_array_equal(state.data["td_error"].reshape(-1)[indices], error)
        np.testing.assert_allclose(state.max_priority, highest, rtol=1e-5)
        assert not state.priorities[0][count:].any()
        assert_sums(state.priorities, rtol=1e-5)
    assert highest > 1.5


def test_without_priorities_errors_are_not_noted():
    buffer = Buffer(maxlen=7 * N)
    state = empty(buffer)
    assert buffer.update_priorities(state, jnp.arange(3), jnp.ones(3)) is state


@pytest.mark.parametrize("priorities", [False, True])
def test_a_buffer_that_is_not_writable_stays_as_it_is(priorities):
    rng = np.random.default_rng(0)
    buffer = Buffer(maxlen=7 * N, priority_sampling=priorities, gamma=0.9, lam=0.8)
    state, _ = random_full(buffer, rng)
    few, full = random_steps(rng, 3), random_steps(rng, 7)
    # One of the errors would be the highest so far.
    error = (np.arange(4), np.array([0.1, 9.0, 0.2, 0.3], np.float32))
    operations = [(push, (few,)), (push, (full,)), (reset, ())]
    if priorities:
        operations.append((update_priorities, error))
    for operation, arguments in operations:
        kept = operation(buffer, state, *arguments, jnp.bool_(False))
        assert_equal(kept, state)
        written = operation(buffer, state, *arguments, jnp.bool_(True))
        assert_equal(written, operation(buffer, state, *arguments))
        with pytest.raises(AssertionError):
            assert_equal(written, state)


def numpy_look_ahead(history, newest, t, env, gamma, n):
    """Return, discount and last step of the path that begins at t."""
    total, discount = 0.0, 1.0
    for left in reversed(range(n)):
        total += discount * history.reward[t, env]
        discount *= gamma
        ended = history.terminated[t, env] or history.truncated[t, env]
        if left == 0 or ended or t == newest:
            break
        if history.episode[t, env] != history.episode[t + 1, env]:
            break
        t += 1
    return total, 0.0 if history.terminated[t, env] else discount, t


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_n_step_samples_are_a_plain_loop(n):
    rng = np.random.default_rng(n)
    buffer = Buffer(maxlen=13 * N, gamma=0.9)
    for _ in range(3):
        history = random_steps(rng, 30)
        state = empty(buffer)
        for pushed in range(5, 31, 5):  # two thirds empty at first, more than two rounds at last
            state = push(buffer, state, rows(history, pushed - 5, pushed))
            held = [(t, env) for t in range(max(0, pushed - 13), pushed) for env in range(N)]
            held = [held[i] for i in np.resize(np.arange(len(held)), 13 * N)]
            indices = np.array([t % 13 * N + env for t, env in held])
            batch = sample(buffer, state, indices=indices, n_step=n)
            looked = [numpy_look_ahead(history, pushed - 1, *at, 0.9, n) for at in held]
            reward, discount, last = map(np.array, zip(*looked, strict=True))
            first, env = np.array(held).T
            np.testing.assert_allclose(batch["reward"], reward, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(batch["discount"], discount, rtol=1e-5)
            for name in ("next_obs", "terminated", "truncated"):
                entry = getattr(history, name)
                assert_equal(batch[name], jax.tree.map(lambda x, t=last, e=env: x[t, e], entry))
            for name in ("obs", "action", "episode"):  # those of the first step
                entry = getattr(history, name)
                assert_equal(batch[name], jax.tree.map(lambda x, t=first, e=env: x[t, e], entry))


def held_bytes(state):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))


@pytest.mark.parametrize("limit", [None, 10])
@pytest.mark.parametrize("writable", [None, jnp.bool_(True)])
@pytest.mark.parametrize("priorities", [False, True])
def test_a_push_under_jit_with_donation_copies_nothing(priorities, writable, limit):
    buffer = Buffer(maxlen=333_334 * N, priority_sampling=priorities)
    state = jax.eval_shape(lambda: empty(buffer, limit))
    compiled = jax.jit(Buffer.push, donate_argnums=1)
    new = jax.eval_shape(lambda: steps(0, 4))
    memory = compiled.lower(buffer, state, new, writable).compile().memory_analysis()
    held = held_bytes(state)
    assert memory.alias_size_in_bytes >= held
    assert memory.temp_size_in_bytes < held / 100


def test_errors_that_are_not_finite_are_not_noted():
    buffer = Buffer(maxlen=4 * N, priority_sampling=True)
    state = push(buffer, empty(buffer), steps(0, 4))
    error = jnp.array([jnp.nan, 3.0, jnp.inf, -jnp.inf])
    after = update_priorities(buffer, state, jnp.arange(4), error)
    alone = update_priorities(buffer, state, jnp.array([1]), jnp.array([3.0]))
    assert_equal(after, alone)
    assert float(after.max_priority) > 1.0


def test_a_transition_drawn_twice_keeps_its_first_error():
    """And the same one as error and as priority, on a device that writes in any order too."""
    buffer = Buffer(maxlen=4 * N, priority_sampling=True)
    state = push(buffer, empty(buffer), steps(0, 4))
    found = update_priorities(buffer, state, jnp.array([2, 0, 2]), jnp.array([0.5, 1.0, 3.0]))
    expected = update_priorities(buffer, state, jnp.array([2, 0]), jnp.array([0.5, 1.0]))
    assert_equal(found, expected)


def test_an_empty_buffer_has_no_errors_to_note(key):
    """After rollouts that were left out for NaN; the sum tree's draw from nothing is a leaf."""
    buffer = Buffer(maxlen=6 * N, priority_sampling=True)
    state = empty(buffer)
    indices = sumtree.sample(state.priorities, key, 4)
    assert_equal(update_priorities(buffer, state, indices, jnp.full(4, 9.0)), state)


@pytest.mark.parametrize("limit", [None, 10])
@pytest.mark.parametrize("members", [None, 4])
@pytest.mark.parametrize("priorities", [False, True])
def test_a_scan_of_everything_copies_no_buffer(priorities, members, limit):
    buffer = Buffer(maxlen=100_000 * N, priority_sampling=priorities, gamma=0.9)
    keys = ("obs", "action", "reward", "next_obs")
    if priorities:  # what `update_priorities` writes
        keys = (*keys, "td_error", "priority")

    def step(state, inputs):
        key, new = inputs
        state = buffer.push(state, new)
        batch = buffer.sample(state, key, 32, keys=keys, n_step=3)
        return buffer.update_priorities(state, batch["indices"], batch["reward"]), batch

    def run(state, key):
        new = jax.tree.map(lambda x: x[:, None], steps(0, 10))
        return jax.lax.scan(step, state, (jax.random.split(key, 10), new))

    def many(x):
        return jax.ShapeDtypeStruct((members, *x.shape), x.dtype)

    arguments = jax.eval_shape(lambda: (empty(buffer, limit), jax.random.key(0)))
    if members is not None:
        run, arguments = jax.vmap(run), jax.tree.map(many, arguments)
    compiled = quick_jit(run, donate_argnums=0).lower(*arguments).compile()
    memory, held = compiled.memory_analysis(), held_bytes(arguments[0])
    assert memory.alias_size_in_bytes >= held
    assert memory.temp_size_in_bytes < held / 100
