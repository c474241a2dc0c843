"""How the first states of new episodes are drawn: each from the right distribution, few a step."""

import pickle
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.agents import Tiny
from kit.environments import faulty, walk
from kit.quick import mostly_slow, quick_jit
from kit.trees import assert_equal

import purerl
from purerl.envs import Box, Discrete, Env, EnvSpec, TimeStep, auto_reset, vector_env
from purerl.envs.vector import parse_resets

pytestmark = pytest.mark.usefixtures("quick_programs")

STRATEGIES = ["fresh", "optimistic(4)", "spare(4)", "spare(4) every 5"]


class Chance(NamedTuple):
    name: jax.Array
    time: jax.Array


def chancy(end=0.2, end_below=None):
    """Episodes that carry a name, uniform in [0, 1), and end with a chance of some at each step; by
    a time limit where the name is below a half, with another chance if it is given."""

    def observe(state):
        return jnp.stack([state.name, state.time.astype(jnp.float32)])

    def reset(key):
        state = Chance(jax.random.uniform(key), jnp.int32(0))
        return observe(state), state

    def step(key, state, action):
        state = Chance(state.name, state.time + 1)
        low = state.name < 0.5
        chance = end if end_below is None else jnp.where(low, end_below, end)
        over = jax.random.uniform(key) < chance
        died = over & (state.name >= 0.5)
        timestep = TimeStep(observe(state), jnp.float32(1), died, over & ~died, {})
        return state, timestep

    return Env(reset, step, EnvSpec("chancy", Box(0.0, jnp.inf, (2,)), Discrete(2)))


def play(env, resets, num_envs, num_steps, seed=0):
    """What was acted on, what followed, what is acted on next, `[T, N, ...]`; and how many first
    states were shared."""
    strategy, _, every = resets.partition(" every ")
    many = vector_env(env, num_envs, strategy, int(every) if every else None)
    assert many.num_envs == num_envs
    assert (many.refill is not None) == bool(every)
    block = int(every or 1)
    keys = jax.random.split(jax.random.key(seed), (num_steps + 1, num_envs))

    def step(state, keys):
        new, timestep = many.step(keys, state, jnp.zeros(num_envs, jnp.int32))
        return new, (state.obs, timestep, new.obs)

    def steps(state, keys):
        if many.refill is not None:
            state = many.refill(jax.random.fold_in(keys[0, 0], 1), state)
        return jax.lax.scan(step, state, keys)

    def run(keys):
        obs, state = many.reset(keys[0])
        blocks = keys[1:].reshape(-1, block, num_envs)
        state, seen = jax.lax.scan(steps, state._replace(obs=obs), blocks)
        seen = jax.tree.map(lambda x: x.reshape(num_steps, *x.shape[2:]), seen)
        return seen, getattr(state, "num_shared", 0)

    return jax.tree.map(np.asarray, quick_jit(run)(keys))


@pytest.mark.parametrize("resets", STRATEGIES)
def test_the_successor_is_kept_and_every_start_is_acted_on(resets):
    (before, timestep, after), _ = play(chancy(), resets, 8, 60)
    done = timestep.terminated | timestep.truncated
    assert timestep.terminated.any()
    assert timestep.truncated.any()
    assert not (timestep.terminated & timestep.truncated).any()
    # The true successor is of the episode that ended: its name, and its last time.
    np.testing.assert_array_equal(timestep.obs[..., 0], before[..., 0])
    np.testing.assert_array_equal(timestep.obs[..., 1], before[..., 1] + 1)
    # What is acted on next is that, or the start of another episode.
    np.testing.assert_array_equal(before[1:], after[:-1])
    np.testing.assert_array_equal(after[~done], timestep.obs[~done])
    np.testing.assert_array_equal(after[done][:, 1], 0.0)
    own = done & ~timestep.info.get("shared_start", np.zeros_like(done))
    assert np.all(after[own][:, 0] != before[own][:, 0])


def starts(resets, env=None, num_envs=40, num_steps=400):
    """Names of new episodes, in order of steps and environments, those that are shared left out;
    and the names and the lengths of the episodes that they follow."""
    (before, timestep, after), _ = play(env or chancy(), resets, num_envs, num_steps)
    done = timestep.terminated | timestep.truncated
    own = done & ~timestep.info.get("shared_start", np.zeros_like(done))
    return after[own][:, 0], before[own][:, 0], before[own][:, 1]


@pytest.mark.parametrize(
    "resets", [*STRATEGIES, "optimistic(40)", "spare(10)", "spare(10) every 20"]
)
def test_starts_are_drawn_from_the_distribution_whatever_ended(resets):
    names, names_before, lengths = starts(resets)
    assert len(names) > (300 if "(40)" in resets else 1000)
    assert len(np.unique(names)) >= len(names) - 3  # new ones, of 2**23 that there are
    ordered, share = np.sort(names), np.arange(len(names)) / len(names)
    # Kolmogorov and Smirnov's distance, at a chance of 1 in 10,000 to be above.
    assert np.max(np.abs(ordered - share)) < 2.23 / np.sqrt(len(names))
    # Independent of the episode before, of its length, and of one another.
    bound = 4 / np.sqrt(len(names))
    for other in (names_before, lengths, np.roll(names, 1)):
        assert abs(np.corrcoef(names, other)[0, 1]) < bound


@pytest.mark.parametrize("resets", ["fresh", "spare(32)", "spare(32) every 40"])
def test_first_states_of_short_episodes_are_not_favoured(resets):
    """All starts, the shared ones too: with names of one half whose episodes last 2 steps, and of
    the other, 20, the mean name is a half, and so is the mean return what it is with "fresh"."""
    (_, timestep, after), shared = play(chancy(0.5, 0.05), resets, 40, 2000)
    done = timestep.terminated | timestep.truncated
    names = after[done][:, 0]
    if resets != "fresh":
        assert shared > len(names) / 4  # many are, of those that end early
    distinct = len(np.unique(names))
    assert distinct > 2000
    assert abs(names.mean() - 0.5) < 4 * np.sqrt(1 / 12 / distinct) + 0.005
    # The length of all episodes: 11 steps.
    length = 2000 * 40 / done.sum()
    assert abs(length - 11) < 0.6


def test_fresh_is_each_environment_with_resets_of_its_own():
    env, num = chancy(), 6
    many, plain = vector_env(env, num), purerl.vectorize(auto_reset(env))
    keys = jax.random.split(jax.random.key(0), (2, num))
    _, state = many.reset(keys[0])
    action = jnp.zeros(num, jnp.int32)
    found = many.step(keys[1], state, action)
    expected = plain.step(keys[1], plain.reset(keys[0])[1], action)
    assert_equal(found, expected)


def test_strategies_play_the_same_episodes_up_to_their_ends():
    (obs, _, _), _ = play(walk(5), "fresh", 4, 5)
    (others, _, _), _ = play(walk(5), "optimistic(2)", 4, 5)
    np.testing.assert_array_equal(obs, others)


def test_optimistic_shares_starts_only_where_more_end_than_are_drawn():
    num, ratio, length = 12, 4, 3
    (_, timestep, after), shared_in_all = play(walk(length), f"optimistic({ratio})", num, 9)
    shared = timestep.info["shared_start"]
    for t in range(9):
        if (t + 1) % length:
            assert not shared[t].any()
            continue
        names = after[t, :, 0]
        # All 12 end, 3 starts are drawn: each goes to 4, and 9 of them are counted.
        assert np.unique(names, return_counts=True)[1].tolist() == [ratio] * 3
        assert shared[t].sum() == num - 3
        assert len(np.unique(names[~shared[t]])) == 3
    assert shared_in_all == 3 * (num - 3)
    # Of one kind that ends alone none is shared.
    (_, timestep, _), shared_in_all = play(chancy(0.02), "optimistic(4)", num, 50)
    ends = (timestep.terminated | timestep.truncated).sum(1)
    assert shared_in_all == np.maximum(ends - 3, 0).sum()


def spare_by_hand(done, size, num_resets, every):
    """Which ends `[T, N]` begin where an episode before began, by a plain loop over a reserve of
    lists: of unused states, and of used ones, each in the order of their use."""
    unused, used = size, 0
    shared = np.zeros_like(done)
    for t, ends in enumerate(done):
        if t % every == 0:
            unused = min(unused + num_resets, size)
            used = size - unused
        for n in np.flatnonzero(ends):
            shared[t, n] = unused == 0
            unused, used = max(unused - 1, 0), min(used + 1, size)
    return shared


@pytest.mark.parametrize("every", ["", " every 8", " every 4"])
def test_spare_gives_every_environment_a_start_though_all_end_together(every):
    num, ratio = 16, 8
    resets = f"spare({ratio}){every}"
    # Of 2**23 names two are the same with a chance of 1 in 2,600: so they are with seed 0.
    (_, timestep, after), shared_in_all = play(walk(ratio), resets, num, 5 * ratio, seed=1)
    names = after[ratio - 1 :: ratio, :, 0]
    assert len(np.unique(names)) == names.size == 5 * num
    assert shared_in_all == 0
    assert not timestep.info["shared_start"].any()


@pytest.mark.parametrize(
    ("end", "ratio", "every", "size", "num_resets"),
    [
        (0.3, 12, 1, 12, 1),
        (0.6, 4, 1, 12, 3),
        (0.05, 4, 1, 12, 3),
        (0.3, 12, 8, 12, 8),
        (0.1, 60, 20, 12, 4),
        (0.1, 300, 10, 12, 1),  # rounded up
        (0.3, 8, 16, 24, 24),  # the reserve holds what is drawn
    ],
)
def test_spare_counts_where_an_episode_begins_as_another_did(end, ratio, every, size, num_resets):
    num = 12
    resets = f"spare({ratio})" + (f" every {every}" if every > 1 else "")
    (_, timestep, after), shared_in_all = play(chancy(end), resets, num, 80)
    done = timestep.terminated | timestep.truncated
    expected = spare_by_hand(done, size, num_resets, every)
    shared = timestep.info["shared_start"]
    np.testing.assert_array_equal(shared, expected)
    assert shared_in_all == expected.sum()
    begun = set()
    for t, n in np.argwhere(done):
        assert (after[t, n, 0] in begun) == shared[t, n]
        begun.add(after[t, n, 0])
    for t in range(80):  # never where another one begins at the same time
        names = after[t, done[t], 0]
        assert len(np.unique(names)) == len(names)


@pytest.mark.parametrize("resets", STRATEGIES)
def test_broken_simulations_are_cut_and_begun_again(resets):
    (_, timestep, after), _ = play(faulty(walk(4), 0.3), resets, 8, 40)
    broken = timestep.info["nonfinite"]
    assert broken.any()
    assert timestep.truncated[broken & ~timestep.terminated].all()
    assert np.isfinite(after).all()


def test_states_may_hold_keys_and_be_pickled():
    base = walk(3)

    def reset(key):
        obs, state = base.reset(key)
        return obs, (state, key)

    def step(key, state, action):
        inner, timestep = base.step(key, state[0], action)
        return (inner, jax.random.split(state[1])[0]), timestep

    for resets in STRATEGIES:
        play(Env(reset, step, base.spec), resets, 4, 10)
        env = vector_env(purerl.make("CartPole-v1"), 4, resets.partition(" ")[0])
        assert pickle.loads(pickle.dumps(env)).spec == env.spec


@pytest.mark.parametrize(
    ("resets", "message"),
    [
        ("optimstic(4)", "did you mean 'optimistic'"),
        ("fresh(4)", r"got 'fresh.4.', expected 'fresh', 'optimistic"),
        ("spare(0)", "resets: got 0, expected an integer >= 1"),
        ("spare(x)", r"resets: got 'spare.x.', expected"),
        (4, "resets: got 4, expected"),
    ],
)
def test_what_is_no_strategy_is_said(resets, message):
    with pytest.raises(purerl.ConfigError, match=message):
        vector_env(walk(), 4, resets)


def test_few_initial_states_are_drawn_at_once():
    """A program draws N for its environments and M for the reserve, and R in a rollout; none in a
    step, unless more than 4 N were needed."""
    drawn = []

    def env():
        base = chancy()
        return base._replace(reset=lambda key: (drawn.append(1), base.reset(key))[1])

    def shapes(resets, every, num=8):
        many = vector_env(env(), num, resets, every)
        keys = jax.random.split(jax.random.key(0), num)
        _, state = jax.eval_shape(many.reset, keys)
        drawn.clear()
        jax.eval_shape(many.step, keys, state, jnp.zeros(num, jnp.int32))
        in_step = len(drawn)
        return in_step, state.first[1].shape[0], many.refill is not None

    assert shapes("spare(16)", None) == (1, 8, False)
    assert shapes("spare(16)", 16) == (0, 8, True)
    assert shapes("spare(1000)", 16) == (0, 8, True)
    assert shapes("spare(8)", 16) == (0, 16, True)
    assert shapes("spare(2)", 16) == (1, 8, False)


@pytest.mark.parametrize("resets", mostly_slow(STRATEGIES[1:3], ["spare(4)"]))
def test_a_run_with_few_resets(resets, tmp_path):
    options = {"num_envs": 8, "update_every": 8, "total_timesteps": 320}
    config = purerl.TrainConfig(env=chancy(0.3), agent=Tiny(), resets=resets, **options)
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    outs = quick_jit(jax.vmap(purerl.make_train(config)))(keys)
    assert outs.metrics.num_episodes.sum() > 50
    data = np.asarray(outs.state.rollout.env.num_shared)
    assert np.all((data > 0) & (data < outs.metrics.num_episodes.sum(1)))
    # In chunks, and resumed, it is the same to the bit.
    chunked = purerl.fit(config.replace(total_timesteps=128), tmp_path, seeds=[1])
    chunked = purerl.fit(config, tmp_path, seeds=[1], report_every=0.0)
    whole = quick_jit(jax.vmap(purerl.make_train(config)))(keys[1:])
    assert_equal(whole.metrics, chunked.metrics)


def test_the_strategy_is_an_option():
    config = purerl.TrainConfig(env="CartPole-v1", resets="spare( 4)")
    assert config.resets == config.to_mapping()["resets"] == "spare(4)"
    assert purerl.TrainConfig.from_mapping(config.to_mapping()).resets == "spare(4)"
    assert purerl.TrainConfig(env="CartPole-v1").make_loop().resets == "fresh"
    for wrong, words in (
        ("spair(4)", "did you mean 'spare'"),
        (4, "got 4, expected 'fresh', 'opt"),
    ):
        with pytest.raises(purerl.ConfigError, match=words):
            purerl.TrainConfig(env="CartPole-v1", resets=wrong)


def test_strategies_by_name():
    assert parse_resets("spare") == ("spare", 16)
    assert parse_resets("optimistic( 8 )") == ("optimistic", 8)
    assert parse_resets("fresh") == ("fresh", 1)
