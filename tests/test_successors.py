import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.quick import quick_jit
from kit.trees import assert_equal

import purerl
from purerl import Box, Discrete, Env, EnvSpec, TimeStep
from purerl.agents.learning import successor_values
from purerl.experience.buffer import Buffer
from purerl.experience.successors import Successors, num_blocks
from purerl.training.rollout import init_rollout, rollout
from purerl.training.run import make_loop

N, LIMIT, GAMMA = 3, 4, 0.9
BUFFER = Buffer(maxlen=22 * N, gamma=GAMMA)

push = quick_jit(Buffer.push)
read = quick_jit(Buffer.read)
sample = quick_jit(Buffer.sample, static_argnames=("batch_size", "keys", "n_step"))


def made_up(seed, length, *, odd):
    """Transitions `[length, N]`, each observation of another number, with terminations anywhere and
    a time limit; if odd, with truncations and gaps anywhere too, though seldom."""
    rng = np.random.default_rng(seed)
    number = np.arange(length * N, dtype=np.float32).reshape(length, N)
    terminated = rng.random((length, N)) < 0.1
    truncated, gap = (rng.random((2, length, N)) < 0.08) & odd & ~terminated
    age, episode, played = np.zeros(N, int), np.zeros((length, N), np.int32), np.zeros(N, np.int32)
    for t in range(length):
        age += 1
        truncated[t] |= (age == LIMIT) & ~terminated[t]
        episode[t] = played
        over = terminated[t] | truncated[t] | gap[t]
        played, age = played + over, np.where(over, 0, age)
    cut = truncated | gap
    after = np.roll(number, -1, axis=0)
    after[-1] = -0.5
    return purerl.Transition(
        obs={"x": number},
        action=np.zeros((length, N), np.int32),
        reward=rng.normal(size=(length, N)).astype(np.float32),
        next_obs={"x": np.where(cut, -number - 1, after)},
        terminated=terminated,
        truncated=truncated,
        episode=episode,
        valid=np.ones((length, N), bool),
        extras={},
    )


def empty(buffer=BUFFER, **options):
    example = jax.tree.map(lambda x: x[0], made_up(0, 1, odd=False))
    return buffer.init(example, N, **{"limit": LIMIT, **options})


def cuts(history):
    """Where the next row doesn't follow, for which there is a successor, `[length, N]`."""
    same = np.roll(history.episode, -1, axis=0) == history.episode
    return ~history.terminated & (history.truncated | ~same)


def check_held(history, state, row_of):
    """Everything that the ring gives, next to the transitions that were pushed, each to a row of
    `row_of`; returns which are lost, as a set of (step, environment)."""
    rows, pushed = len(state.data["reward"]), len(row_of)
    held = [(t, n) for t in range(max(0, pushed - rows), pushed) for n in range(N)]
    held = [held[i] for i in np.resize(np.arange(len(held)), rows * N)]
    t, n = np.array(held).T
    row_of = np.array(row_of)
    indices = row_of[t] * N + n
    batch = sample(BUFFER, state, indices=indices)
    lost = batch["weight"] == 0
    alive = ~lost & ~history.terminated[t, n]
    after = history.next_obs["x"][t, n]
    np.testing.assert_array_equal(batch["next_obs"]["x"][alive], after[alive])
    lost = {(int(t), int(n)) for t, n in np.array(held)[lost]}

    data = read(BUFFER, state)
    followed = {(t - 1, n) for t, n in lost}
    for i, (t, n) in enumerate(held):
        row = row_of[t]
        if alive[i]:
            assert data["next_obs"]["x"][row, n] == after[i]
        assert bool(data["valid"][row, n]) == ((t, n) not in lost)
        goes_on = not (history.terminated[t, n] or history.truncated[t, n])
        goes_on &= (
            t + 1 < pushed and history.episode[t, n] == history.episode[min(t + 1, pushed - 1), n]
        )
        expected = history.truncated[t, n] or (goes_on and (t, n) in followed)
        assert bool(data["truncated"][row, n]) == expected

    batch = sample(BUFFER, state, indices=indices, n_step=3)
    for i, at in enumerate(held):
        if at in lost:
            assert batch["weight"][i] == 0
            continue
        reward, discount, last = look_ahead(history, pushed - 1, lost, *at, 3)
        np.testing.assert_allclose(batch["reward"][i], reward, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(batch["discount"][i], discount, rtol=1e-5)
        assert batch["weight"][i] == 1
        if discount > 0:
            assert batch["next_obs"]["x"][i] == history.next_obs["x"][last, at[1]]
    return lost


def look_ahead(history, newest, lost, t, n, steps):
    """Return, discount and last step of the path that begins at t."""
    path = [t]
    while len(path) < steps and path[-1] < newest:
        t = path[-1]
        if history.terminated[t, n] or history.truncated[t, n]:
            break
        if history.episode[t, n] != history.episode[t + 1, n]:
            break
        path.append(t + 1)
    if (path[-1], n) in lost:
        path.pop()
    total = sum(GAMMA**k * history.reward[t, n] for k, t in enumerate(path))
    return total, 0.0 if history.terminated[path[-1], n] else GAMMA ** len(path), path[-1]


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("pushes", [(1,), (8,), (1, 3, 8, 22)])
def test_the_ring_is_a_list_of_transitions(odd, pushes):
    """Three rounds of the ring, wherever its blocks begin."""
    rng = np.random.default_rng(len(pushes))
    history = made_up(rng.integers(99), 130, odd=odd)
    cut, state, pushed, ever = cuts(history), empty(), 0, set()
    row_of = []
    while pushed < 100:
        size = int(rng.choice(pushes))
        new = jax.tree.map(lambda x, i=pushed, j=pushed + size: x[i:j], history)
        # As a rollout ends: what follows its last step isn't in the next row yet.
        state = push(BUFFER, state, new)
        first = row_of[-1] + 1 if row_of and size < 22 else 0
        row_of += [(first + i) % 22 for i in range(size)]
        pushed += size
        if pushed % 3 == 0 or size > 1:
            ever |= check_held(history, state, row_of)
    if not odd:
        assert not ever
    for t, n in ever:  # only what another cut has driven out
        assert cut[t, n]
        assert cut[t + 1 : t + LIMIT, n].any()
    assert bool(ever) == odd
    assert len(state.successors.row) <= 22 // LIMIT + 3


def test_a_push_that_is_not_writable_changes_no_successor():
    history = made_up(5, 30, odd=True)
    state = push(BUFFER, empty(), jax.tree.map(lambda x: x[:8], history))
    new = jax.tree.map(lambda x: x[8:16], history)
    assert_equal(push(BUFFER, state, new, jnp.bool_(False)), state)
    assert_equal(push(BUFFER, state, new, jnp.bool_(True)), push(BUFFER, state, new))


def test_a_buffer_for_whole_rollouts_takes_no_parts_of_one():
    state = empty(num_steps=22)
    with pytest.raises(purerl.ConfigError, match="got 8 steps, expected 22"):
        push(BUFFER, state, made_up(0, 8, odd=False))


@pytest.mark.parametrize(
    ("rows", "limit", "whole", "expected"),
    [
        (128, None, True, None),
        (128, 500, True, 1),
        (128, 128, True, 1),
        (128, 127, True, 2),
        (128, 32, True, 4),
        (128, 1, True, None),  # one for each step
        (128, 32, False, 5),
        (129, 32, False, 5),
        (130, 32, False, 6),
        (1, 500, True, None),
        (2, 500, False, None),
        (100_000, 500, False, 201),
    ],
)
def test_as_many_blocks_as_time_limits_fit_into(rows, limit, whole, expected):
    assert num_blocks(rows, limit, whole=whole) == expected
    if expected is not None:  # the most cuts, wherever the first one is
        starts = range(limit) if not whole else [0]
        assert expected == max(len({(first + t) // limit for t in range(rows)}) for first in starts)


def odd_env(chance):
    """Episodes of four steps, which end before with some probability, or are truncated with
    `chance`. Observations are numbers that never repeat."""

    def reset(key):
        state = jax.random.uniform(key), jnp.float32(0)
        return jnp.stack(state), state

    def step(key, state, action):
        name, time = state
        ended, cut = jax.random.bernoulli(key, jnp.array([0.15, chance]))
        state = name, time + 1
        timestep = TimeStep(jnp.stack(state), name, ended, cut & ~ended, {})
        return state, timestep

    env = Env(reset, step, EnvSpec("odd", Box(0.0, jnp.inf, (2,)), Discrete(2)))
    return purerl.time_limit(env, LIMIT)


@pytest.mark.parametrize(("chance", "episodic"), [(0.0, False), (0.0, True), (0.4, False)])
def test_rollouts_with_few_successors_are_those_with_all(chance, episodic):
    """And V of them is V of all."""
    env = purerl.vector_env(odd_env(chance), N)
    agent = purerl.PPO()
    acting = agent.acting(agent.init(jax.random.key(0), env.spec), purerl.Clock())

    @quick_jit
    def play(key):
        state, both = init_rollout(env, acting, key, N), []
        for limit in (None, LIMIT):
            _, new, _ = rollout(env, acting, state, key, 22, episodic=episodic, limit=limit)
            example = jax.tree.map(lambda x: x[0], new._replace(next_obs=()))
            stored = BUFFER.init(example, N, limit=limit, num_steps=22)
            both.append(purerl.Experience(BUFFER, BUFFER.push(stored, new)))
        return both

    def value_fn(obs, scale):
        return obs @ jnp.array([1.0, 3.0]) * scale

    full, few = play(jax.random.key(1))
    assert isinstance(few.state.successors, Successors)
    assert len(few.state.successors.row) == 22 // LIMIT + 2
    expected, found = full.read(), few.read()
    scale = np.arange(1.0, 1 + 22 * N).reshape(22, N)
    value = jnp.zeros((22, N)).at[1:].set(value_fn(expected["obs"][1:], scale[:-1]))
    values = [
        quick_jit(successor_values, static_argnums=0)(value_fn, x, value, scale)
        for x in (full, few)
    ]
    lost = ~np.asarray(found["valid"]) & np.asarray(expected["valid"])
    assert lost.any() == (chance > 0)
    alive = ~expected["terminated"] & ~lost
    np.testing.assert_array_equal(found["next_obs"][alive], expected["next_obs"][alive])
    exact = value_fn(expected["next_obs"], scale)
    for x in values:
        np.testing.assert_allclose(x[alive], exact[alive], rtol=1e-5)
    assert not lost[-1].any()
    assert not (lost & ~expected["truncated"]).any()


def test_nan_in_a_successor_that_is_not_stored_is_seen():
    """After a termination; the rollout's rewards have it, so that the loop drops the rollout."""

    def step(key, state, action):
        ended = state % 5 == 4
        timestep = TimeStep(jnp.where(ended, jnp.nan, state)[None], 1.0, ended, ended & False, {})
        return state + 1, timestep

    spec = EnvSpec("nan", Box(0.0, jnp.inf, (1,)), Discrete(2), LIMIT + 1)
    env = purerl.vector_env(Env(lambda key: (jnp.zeros(1), jnp.float32(0)), step, spec), N)
    agent = purerl.PPO()
    acting = agent.acting(agent.init(jax.random.key(0), env.spec), purerl.Clock())
    state = init_rollout(env, acting, jax.random.key(0), N)
    _, new, _ = rollout(env, acting, state, jax.random.key(1), 8, limit=LIMIT + 1)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((new.obs, new.next_obs)))
    np.testing.assert_array_equal(np.isnan(new.reward), new.terminated)


def test_a_run_stores_few_successors():
    """PPO keeps two rows for a rollout of 128 steps, DQN one for 500 steps."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    for agent, rows, options in (
        (purerl.PPO(), 2, {}),
        (purerl.DQN(), 27, {}),
        (purerl.DQN(), 27, {"update_every": 8}),
        (purerl.DDPG(), None, {"wait_end_path": True, "update_every": 300}),
        (purerl.DDPG(), 50 + 2, {"wait_end_path": True, "update_every": 10}),
    ):
        env = "Pendulum-v1" if isinstance(agent, purerl.DDPG) else "CartPole-v1"
        if not isinstance(agent, purerl.PPO):
            size = 500 * 8 if isinstance(agent, purerl.DDPG) else 100_000
            options = options | {"buffer": Buffer(maxlen=size), "num_envs": 8}
        loop = make_loop(env, agent, total_timesteps=10_000, **options)
        stored = jax.eval_shape(loop.init, key).buffer
        assert ("next_obs" in stored.data) == (rows is None)
        if rows is not None:
            assert stored.successors.obs.shape[:2] == (rows, 8)
