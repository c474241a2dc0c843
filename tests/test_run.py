import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.agents import Tiny
from kit.environments import faulty, push_env, reward_forever, target_env, walk
from kit.quick import quick_jit
from kit.trees import equal

import purerl
from purerl.agents.noise import Noise
from purerl.experience.metrics import Count
from purerl.experience.normalize import normalize
from purerl.records.fields import real

OPTIONS = {"num_envs": 4, "update_every": 8, "total_timesteps": 96}


def jitted_run(*args, key, **options):
    return quick_jit(lambda key: purerl.run(*args, key=key, **options))(key)


def test_the_run_state_is_one_pytree_and_counts(key):
    state, metrics = jitted_run(walk(3), Tiny(), key=key, **OPTIONS)
    assert int(state.num_updates) == 3
    assert metrics.episode_return.shape == metrics.losses["loss"].shape == (3,)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    np.testing.assert_allclose(metrics.episode_return, 6.0)
    # 3 x 8 steps of 4 environments, episodes of 3 steps.
    assert int(metrics.num_episodes.sum()) == 4 * 8


def test_chunked_is_whole_bit_for_bit(key):
    options = {**OPTIONS, "total_timesteps": 6 * 32, "normalize_obs": True, "eval_every": 2}
    loop = purerl.make_loop(walk(3), purerl.PPO(), **options)

    @quick_jit
    def scan(state, indices):
        return jax.lax.scan(loop.step, state, indices)

    start = quick_jit(loop.init)(key)
    whole, metrics = scan(start, jnp.arange(6))
    state, chunks = start, []
    for chunk in ([0, 1], [2, 3], [4, 5]):  # of one length: one program
        state, part = scan(state, jnp.array(chunk))
        chunks.append(part)
    assert equal(state, whole)
    assert equal(jax.tree.map(lambda *xs: jnp.concatenate(xs), *chunks), metrics)


def test_evaluation_does_not_change_what_is_learned(key):
    def train(**options):
        return jitted_run(walk(3), Tiny(), key=key, **OPTIONS, **options)

    without, metrics = train()
    assert metrics.eval is None
    with_it, metrics = train(eval_every=2, eval_max_episodes=5)
    assert equal(without, with_it._replace(best=None))
    np.testing.assert_array_equal(metrics.eval.num_episodes, [0, 5, 0])
    np.testing.assert_array_equal(metrics.eval.episode_return, [np.nan, 6.0, np.nan])


def test_an_evaluation_stops_at_its_step_limit(key):
    _, metrics = jitted_run(
        reward_forever(50), Tiny(), key=key, eval_every=1, eval_max_episode_steps=5, **OPTIONS
    )
    np.testing.assert_array_equal(metrics.eval.episode_return, 5.0)


def test_under_vmap_an_evaluation_stays_a_branch():
    # A select would evaluate after every update.
    def train(key):
        return purerl.run(walk(3), Tiny(), key=key, eval_every=2, **OPTIONS)

    keys = jax.random.split(jax.random.key(0), 2)
    assert " cond[" in str(jax.make_jaxpr(jax.vmap(train))(keys))


def test_statistics_of_observations_are_kept_once_and_learned_with(key):
    options = {**OPTIONS, "total_timesteps": 64, "normalize_obs": True}
    agent = purerl.PPO(K_epochs=1, batch_size=32)
    loop = purerl.make_loop(walk(5, limit=4), agent, **options)
    step = quick_jit(loop.step)
    first, _ = step(quick_jit(loop.init)(key), jnp.int32(0))
    obs = np.asarray(first.buffer.data["obs"]).reshape(-1, 2)
    np.testing.assert_allclose(first.obs_stats.mean, obs.mean(0), rtol=1e-5)
    np.testing.assert_allclose(first.obs_stats.var, obs.var(0), rtol=1e-4)
    second, metrics = step(first, jnp.int32(1))
    # What acted and what learned saw the same numbers: the ratio is 1 at the first gradient step.
    assert abs(float(metrics.losses["approx_kl"])) < 1e-6
    # The buffer holds what the environment gave; the value was that of the normalised observation.
    stored = second.buffer.data
    seen = normalize(first.obs_stats, stored["obs"].reshape(-1, 2))
    value = loop.agent.value(first.agent, (), seen).reshape(stored["value"].shape)
    np.testing.assert_allclose(stored["value"], value, rtol=1e-4, atol=1e-5)


def test_a_rewarder_changes_what_is_learned_from_and_not_what_is_told(key):
    options = {**OPTIONS, "total_timesteps": 32}
    rewarder = purerl.RunningNormalize()
    state, metrics = jitted_run(walk(3), Tiny(), key=key, rewarder=rewarder, **options)
    plain, _ = jitted_run(walk(3), Tiny(), key=key, **options)
    assert float(metrics.episode_return[0]) == 6.0
    std = np.sqrt(float(state.rewarder.stats.var))
    np.testing.assert_allclose(
        state.buffer.data["reward"], plain.buffer.data["reward"] / std, rtol=1e-5
    )


def test_discounts_are_the_agents_unless_said_otherwise():
    def discounts(agent, buffer=None):
        buffer = purerl.make_loop(walk(3), agent, buffer, **OPTIONS).buffer
        return buffer.gamma, buffer.lam

    agent = purerl.PPO(gamma=0.9, lam=0.8)
    assert discounts(agent) == (0.9, 0.8)
    assert discounts(agent, purerl.Buffer(gamma=0.5, lam=0.3)) == (0.5, 0.3)
    assert discounts(agent, purerl.Buffer(lam=0.3)) == (0.9, 0.3)


def test_time_limit_and_frame_skip(key):
    options = {**OPTIONS, "total_timesteps": 32}
    state, metrics = jitted_run(
        walk(100), Tiny(), key=key, max_episode_steps=2, skip_frames=3, **options
    )
    # Two decisions of three frames: rewards 1 + 2 + 3, then 4 + 5 + 6.
    np.testing.assert_array_equal(metrics.episode_return, 21.0)
    np.testing.assert_array_equal(metrics.episode_length, 2.0)
    data = state.buffer.data
    assert not data["terminated"].any()
    np.testing.assert_array_equal(np.flatnonzero(data["truncated"][:, 0]), [1, 3, 5, 7])


def test_action_processor(key):
    options = {**OPTIONS, "total_timesteps": 32}
    state, metrics = jitted_run(
        target_env(), Tiny(), key=key, action_processor=lambda a: jnp.ones_like(a), **options
    )
    np.testing.assert_allclose(metrics.episode_return, 0.0)  # 1 is the target
    assert np.asarray(state.buffer.data["action"]).std() > 0.05  # the agent's own


@pytest.mark.parametrize(
    ("env", "agent", "buffer", "options", "message"),
    [
        (
            walk(3),
            {"batch_size": 33},
            None,
            {},
            r"PPO.batch_size: got 33, expected a divisor of 32",
        ),
        (walk(3), {}, 64, {}, "Buffer.maxlen: got 64, expected 32"),
        (reward_forever(10), {}, None, {"max_episode_steps": 11}, "got 11, expected at most 10"),
    ],
)
def test_arguments_that_do_not_fit_together(env, agent, buffer, options, message):
    buffer = buffer and purerl.Buffer(maxlen=buffer)
    with pytest.raises(purerl.ConfigError, match=message):
        purerl.make_loop(env, purerl.PPO(**agent), buffer, **{**OPTIONS, **options})


REPLAY = {"num_envs": 4, "update_every": 2, "total_timesteps": 80, "update_after": 0}


class Ramp(Noise):
    """1, 2, 3, ... since the start of the episode, in units of half the action's range."""

    step_size: float = real(default=1.0)

    def next_value(self, value, key):
        return value + self.step_size


@pytest.mark.parametrize(
    ("agent", "priorities"),
    [(Tiny(), False), (purerl.DQN(batch_size=8), False), (purerl.DQN(batch_size=8), True)],
)
def test_after_max_episodes_nothing_changes(agent, priorities, key):
    """Episodes of 3 steps in 4 environments: 8 have ended after 6, in the third update of 2."""
    replay = isinstance(agent, purerl.DQN)
    buffer = purerl.Buffer(maxlen=16, priority_sampling=priorities) if replay else None
    options = {**REPLAY, "max_episodes": 8, "normalize_obs": True, "eval_every": 1}
    loop = purerl.make_loop(
        walk(3), agent, buffer, rewarder=purerl.RunningNormalize(gamma=0.9), **options
    )
    step = quick_jit(loop.step)
    state, states, metrics = quick_jit(loop.init)(key), [], []
    for index in range(6):
        state, row = step(state, jnp.int32(index))
        states.append(state)
        metrics.append(row)
    assert [int(s.num_episodes) for s in states] == [0, 4, 8, 8, 8, 8]
    assert [int(m.num_episodes) for m in metrics] == [0, 4, 4, 0, 0, 0]
    assert not equal(states[1], states[2])
    for later in states[3:]:
        assert equal(later, states[2])
    assert int(states[-1].num_updates) == 3
    assert np.isfinite(metrics[2].losses["loss"])
    assert np.isnan(metrics[3].losses["loss"])
    assert np.isnan(metrics[3].episode_return)
    assert int(metrics[3].eval.num_episodes) == 0


def test_a_run_can_stop_where_something_is_not_finite(key):
    env = faulty(walk(3), 0.003)
    options = {**OPTIONS, "total_timesteps": 60 * 32}
    after, metrics = jitted_run(env, Tiny(), key=key, stop_if_nonfinite=True, **options)
    first = int(np.flatnonzero(metrics.nonfinite_updates)[0])
    assert 0 < first < 40
    assert int(after.nonfinite_updates) == metrics.nonfinite_updates.sum() == 1
    assert int(after.num_updates) == first + 1
    assert np.isnan(metrics.losses["loss"][first + 1 :]).all()
    _, metrics = jitted_run(env, Tiny(), key=key, **options)
    assert metrics.nonfinite_updates.sum() > 1
    assert np.isfinite(metrics.losses["loss"][metrics.nonfinite_updates == 0]).all()


def test_an_update_that_overflows_is_skipped(key):
    """Rewards of 1e38 are finite, their sums are not."""
    options = {**OPTIONS, "rewarder": purerl.Scale(1e38)}
    state, metrics = jitted_run(walk(3), Tiny(), key=key, **options)
    assert metrics.nonfinite_updates.sum() == int(state.nonfinite_updates) == 3
    for leaf in jax.tree.leaves(state.agent):
        assert np.isfinite(leaf).all()


def test_max_episodes_alone_says_how_long_it_can_take(key):
    options = {"num_envs": 4, "update_every": 8, "max_episodes": 10}
    loop = purerl.make_loop(reward_forever(10), Tiny(), **options)
    assert loop.num_updates == 4  # 10 episodes in 4 environments: 3 after each other, of 10 steps
    state, _ = jitted_run(reward_forever(10), Tiny(), key=key, **options)
    assert int(state.num_episodes) >= 10
    with pytest.raises(purerl.ConfigError, match="could take for ever"):
        purerl.make_loop(walk(3), Tiny(), **options)
    with pytest.raises(purerl.ConfigError, match="or max_episodes"):
        purerl.make_loop(walk(3), Tiny(), num_envs=4)


def test_a_run_that_ends_early_tells_its_timesteps(key):
    config = purerl.TrainConfig(
        walk(3), Tiny(), num_envs=4, update_every=8, total_timesteps=320, max_episodes=20
    )
    out = quick_jit(purerl.make_train(config))(key)
    assert out.num_updates == 2  # 10 episodes in the first, 20 and more after the second
    assert out.num_timesteps == 64
    assert len(out.timesteps) == len(out.metrics.episode_return) == 10


@pytest.mark.parametrize(("update_after", "first"), [(0, 0), (8, 0), (9, 1), (24, 2)])
def test_before_update_after_nothing_is_learned(update_after, first, key):
    options = {**REPLAY, "update_after": update_after}
    loop = purerl.make_loop(push_env(), purerl.DDPG(batch_size=8), **options)
    step = quick_jit(loop.step)
    start = state = quick_jit(loop.init)(key)
    for index in range(first + 1):
        before = state
        state, metrics = step(state, jnp.int32(index))
        learned = index >= first
        assert equal(before.agent, state.agent) != learned
        assert np.isnan(metrics.losses["q"]) != learned
        assert int(state.buffer.size) == 2 * (index + 1)  # experience is kept all the same
    assert not equal(start.agent, state.agent)


def test_reset_each_episode_empties_the_buffer_before_each_rollout(key):
    def held(**options):
        agent = purerl.DQN(batch_size=8)
        state, _ = jitted_run(walk(3), agent, key=key, **{**REPLAY, **options})
        return state.buffer

    assert int(held().size) == 20
    emptied = held(reset_each_episode=True)
    assert int(emptied.size) == 2
    np.testing.assert_array_equal(emptied.data["obs"][:2, 0, 1], [0, 1])  # steps 18 and 19 of 3


def test_episodic_rollouts_start_anew_and_mask_what_follows(key):
    options = {**OPTIONS, "total_timesteps": 64, "wait_end_path": True}
    state, metrics = jitted_run(walk(5), Tiny(), key=key, **options)
    data = state.buffer.data
    np.testing.assert_array_equal(data["obs"][:, 0, 1], [0, 1, 2, 3, 4, 0, 1, 2])
    np.testing.assert_array_equal(data["valid"], (np.arange(8) < 5)[:, None] * np.ones((1, 4)))
    # The second episodes aren't waited for, and don't count.
    np.testing.assert_array_equal(metrics.num_episodes, 4)
    np.testing.assert_array_equal(metrics.episode_length, 5)
    # Episodes 0 and 1 in the first rollout, 2 and 3 in the second, which starts with a reset.
    np.testing.assert_array_equal(data["episode"][:, 0], [2] * 5 + [3] * 3)


def test_an_episode_longer_than_an_episodic_rollout_is_cut_and_not_dead(key):
    options = {**OPTIONS, "wait_end_path": True}
    state, metrics = jitted_run(walk(50), Tiny(), key=key, **options)
    np.testing.assert_array_equal(metrics.episode_length, 8)
    assert state.buffer.data["truncated"][-1].all()
    assert not state.buffer.data["terminated"].any()
    assert state.buffer.data["valid"].all()


def test_what_follows_an_end_does_not_teach(key):
    """Rewards after the first end are changed, and the agent learns the same."""

    class Later(purerl.Scale):
        def __call__(self, state, reward, terminated, truncated):
            after = jnp.cumsum(terminated, axis=0) - terminated > 0
            return state, jnp.where(after, self.factor * reward, reward)

    def params(factor, wait_end_path=True):
        options = {**OPTIONS, "total_timesteps": 32, "wait_end_path": wait_end_path}
        agent = purerl.PPO(batch_size=32)
        run = jitted_run(walk(5), agent, key=key, rewarder=Later(factor), **options)
        return run[0].agent.params

    assert equal(params(1.0), params(100.0))
    assert not equal(params(1.0, False), params(100.0, False))


def test_noise_is_added_clipped_stored_and_restarted(key):
    class Middle(purerl.Actor):
        distribution = None

        def create_network(self, obs):
            return jnp.zeros((obs.shape[0], 1))

    options = {**REPLAY, "update_every": 10, "total_timesteps": 40}
    agent = purerl.DDPG(actor=Middle, critic=purerl.DefaultQCritic, batch_size=8)
    env = reward_forever(4)._replace(
        spec=reward_forever(4).spec._replace(action_space=purerl.Box(-2.0, 6.0, (1,)))
    )
    noise = Ramp(step_size=0.4, noise_decay=0.5)
    state, _ = jitted_run(env, agent, key=key, noise=noise, **options)
    # From the middle, 2, in units of half the range, 4; halved after each episode of 4 steps.
    ramp = 0.4 * np.array([1, 2, 3, 4])
    expected = 2 + 4 * np.concatenate([ramp, ramp / 2, ramp[:2] / 4])
    np.testing.assert_allclose(
        state.buffer.data["action"][:10, 0, 0], np.minimum(expected, 6.0), rtol=1e-5
    )
    np.testing.assert_allclose(state.rollout.memory.noise.scale, 0.25)


def test_no_branch_takes_the_buffer():
    """Under vmap a `cond` becomes a select that copies: none may have the buffer in it."""
    options = {**REPLAY, "max_episodes": 8, "eval_every": 2, "update_after": 16}
    buffer = purerl.Buffer(maxlen=4_004, priority_sampling=True)

    def train(key):
        return purerl.run(walk(3), purerl.DQN(batch_size=8), buffer, key=key, **options)

    keys = jax.random.split(jax.random.key(0), 3)
    text = str(jax.make_jaxpr(jax.vmap(train))(keys))
    lines = [line for line in text.splitlines() if "3,1001,4" in line or "3,4016" in line]
    assert lines
    assert not [line for line in lines if "select_n" in line or " cond[" in line]


SEVERAL_A_STEP = {"hidden": (8,), "batch_size": 8, "gradient_steps": 4}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "agent"),
    [
        ("CartPole-v1", purerl.DQN()),
        ("Pendulum-v1", purerl.TD3(**SEVERAL_A_STEP)),
        ("Pendulum-v1", purerl.SAC(**SEVERAL_A_STEP)),
    ],
)
def test_a_replay_run_holds_its_buffer_once(env, agent):
    buffer = purerl.Buffer(maxlen=400_000)
    config = purerl.TrainConfig(
        env,
        agent,
        buffer=buffer,
        total_timesteps=2_000,
        max_episodes=10,
        log_every=3,  # two loops, one in the other
    )
    train = purerl.make_train(config)
    for function, keys, lanes in (
        (train, jax.random.key(0), 1),
        (jax.vmap(train), jax.random.split(jax.random.key(0), 3), 3),
    ):
        held = sum(
            x.size * x.dtype.itemsize
            for x in jax.tree.leaves(jax.eval_shape(function, keys).state.buffer)
        )
        memory = quick_jit(function).lower(keys).compile().memory_analysis()
        assert held > lanes * 10_000_000
        assert memory.temp_size_in_bytes < 0.2 * held


class Replay(Tiny):
    """`Tiny` that keeps more than one rollout, as agents with a replay buffer do."""

    def make_buffer(self, num_envs, update_every):
        return purerl.Buffer(maxlen=8 * num_envs * update_every)


def test_no_return_goes_across_a_rollout_that_was_dropped(key):
    """Rewards 1, 2, 3, ... in two environments; of the second rollout of 2 steps NaN comes from one
    of them, and nothing is kept. The other's step 2 isn't followed by its step 5."""
    options = {"num_envs": 2, "update_every": 2, "total_timesteps": 400}
    rewarder = purerl.RunningNormalize(gamma=0.5)
    loop = purerl.make_loop(walk(50), Replay(gamma=0.5), rewarder=rewarder, **options)
    step = quick_jit(loop.step)
    state, metrics = step(quick_jit(loop.init)(key), 0)
    walks = state.rollout.env
    spoiled = walks._replace(
        env=walks.env._replace(name=walks.env.name.at[0].set(jnp.nan)),
        obs=walks.obs.at[0, 0].set(jnp.nan),
    )
    state = state._replace(rollout=state.rollout._replace(env=spoiled))
    state, metrics = step(state, 1)
    assert int(metrics.nonfinite_updates) == 1
    state, metrics = step(state, 2)
    assert int(metrics.nonfinite_updates) == 0
    assert int(state.buffer.size) == 4
    np.testing.assert_allclose(state.rewarder.discounted[1], 6 + 0.5 * 5)  # not 0.25 * 2 more
    data = {**state.buffer.data, "reward": jnp.array([[1.0, 1], [2, 2], [1, 5], [2, 6]])}
    buffer = loop.buffer.replace(gamma=0.5)
    indices = jnp.array([1, 3, 5, 0, 2, 4])
    drawn = buffer.sample(state.buffer._replace(data=data), indices=indices, n_step=3)
    np.testing.assert_allclose(drawn["reward"], [2, 2, 8, 2, 2, 2])
    np.testing.assert_allclose(drawn["discount"], [0.25, 0.5, 0.25] * 2)


def test_an_episode_that_is_broken_off_does_not_count(key):
    """Every third step of each environment is broken, whole episodes are of two steps or four."""

    def step(key, time, action):
        broken = time == 2
        obs = jnp.where(broken, jnp.nan, 1.0)[None]
        died = (time == 1) & (jax.random.uniform(key) < 0.3)
        timestep = purerl.TimeStep(obs, jnp.float32(1), died, jnp.bool_(False), {})
        return time + 1, timestep

    spec = purerl.EnvSpec("broken", purerl.Box(0.0, 1.0, (1,)), purerl.Discrete(2))
    env = purerl.Env(lambda key: (jnp.ones(1), jnp.int32(0)), step, spec)
    state, metrics = jitted_run(env, Tiny(), key=key, **OPTIONS)
    counted = int(metrics.num_episodes.sum())
    assert 0 < counted < 96 // 3
    assert counted == int(state.num_episodes)
    np.testing.assert_allclose(metrics.episode_length[metrics.num_episodes > 0], 2)

    dead = env._replace(step=lambda *x: (step(*x)[0], step(*x)[1]._replace(terminated=x[1] == 2)))
    state, metrics = jitted_run(dead, Tiny(), key=key, **OPTIONS)
    assert int(state.num_episodes) == metrics.num_episodes.sum() == 0


def test_episodic_runs_take_as_many_updates_as_their_episodes_need(key):
    options = {"num_envs": 4, "update_every": 20, "max_episodes": 40, "wait_end_path": True}
    for env in (walk(50), reward_forever(10), walk(5, limit=3)):
        assert purerl.make_loop(env, Tiny(), **options).num_updates == 10
    state, _ = jitted_run(env, Tiny(), key=key, **options)
    assert int(state.num_episodes) == 40


def test_what_stays_out_of_the_statistics_is_counted_and_the_rest_is_learned(key):
    def step(env_key, state, action):
        after, timestep = walk(3).step(env_key, state, action)
        far = jax.random.uniform(jax.random.fold_in(env_key, 1)) < 0.02
        return after, timestep._replace(
            obs=timestep.obs.at[1].set(jnp.where(far, 2e19, timestep.obs[1])),
            reward=jnp.where(far, -2e19, timestep.reward),
        )

    env = walk(3)._replace(step=step)
    rewarder = purerl.RunningNormalize(gamma=0.9)
    options = {**OPTIONS, "total_timesteps": 640, "normalize_obs": True, "rewarder": rewarder}
    state, metrics = jitted_run(env, Tiny(), key=key, **options)
    flawed = np.asarray(metrics.nonfinite_updates)
    assert 0 < flawed.sum() < len(flawed)
    assert int(state.nonfinite_updates) == flawed.sum()
    assert np.isfinite(metrics.losses["loss"]).all()
    assert int(state.agent["calls"]) == len(flawed)
    for stats in (state.obs_stats, state.rewarder.stats):
        assert np.all(np.asarray(stats.var) < 10.0)
    clean, metrics = jitted_run(walk(3), Tiny(), key=key, **options)
    assert metrics.nonfinite_updates.sum() == 0
    np.testing.assert_allclose(state.obs_stats.mean, clean.obs_stats.mean, rtol=0.1)


def test_a_row_of_metrics_is_of_several_updates_and_changes_nothing(key):
    options = {**OPTIONS, "total_timesteps": 10 * 32, "eval_every": 2, "eval_max_episodes": 2}
    state, every = jitted_run(walk(5), Tiny(), key=key, **options)
    same, rows = jitted_run(walk(5), Tiny(), key=key, log_every=4, **options)
    assert equal(state, same)
    assert rows.episode_return.shape == rows.losses["loss"].shape == (3,)  # of 4, 4 and 2 updates
    for i, part in enumerate((slice(0, 4), slice(4, 8), slice(8, 10))):
        ones = jax.tree.map(lambda x, part=part: np.asarray(x[part], np.float64), every)
        assert int(rows.num_episodes[i]) == ones.num_episodes.sum()
        mean = np.sum(ones.episode_length * ones.num_episodes) / ones.num_episodes.sum()
        np.testing.assert_allclose(rows.episode_length[i], mean, rtol=1e-6)
        np.testing.assert_allclose(rows.losses["loss"][i], ones.losses["loss"].mean(), rtol=1e-5)
        np.testing.assert_array_equal(rows.eval.episode_return[i], ones.eval.episode_return[-1])


def test_a_long_run_has_no_more_than_ten_thousand_rows():
    options = {"num_envs": 1, "update_every": 1}
    for updates, log_every in ((10_000, 1), (10_001, 2), (62_500, 7), (10**8, 10_000)):
        loop = purerl.make_loop(walk(3), Replay(), total_timesteps=updates, **options)
        assert loop.log_every == log_every
        assert loop.num_rows == -(-updates // log_every) <= 10_000
    config = purerl.TrainConfig(walk(3), Replay(), total_timesteps=10**15, **options)
    out = jax.eval_shape(purerl.make_train(config), jax.random.key(0))
    assert out.timesteps[-1] == 10**15
    assert out.metrics.num_episodes.shape == (10**15 // 2**30 + 1,)
    config = config.replace(total_timesteps=10**6, log_every=10**5 + 1)
    out = jax.eval_shape(purerl.make_train(config), jax.random.key(0))
    assert out.timesteps.tolist() == [*(n * 100_001 for n in range(1, 10)), 10**6]
    for bad, message in (
        ({"log_every": 0}, "TrainConfig.log_every: got 0"),
        ({"log_every": 10**6 + 1}, "log_every: got 1000001, expected an integer from 1 to 1000000"),
        ({"total_timesteps": 2 * 10**18}, "total_timesteps: got a run of"),
    ):
        with pytest.raises(purerl.ConfigError, match=message):
            config.replace(**bad)


def test_counters_go_on_beyond_what_an_int32_counts(key):
    options = {
        "num_envs": 4,
        "update_every": 8,
        "max_episodes": 2**31 + 20,
        "eval_every": 3,
        "eval_max_episodes": 1,
    }
    loop = purerl.make_loop(walk(8), Tiny(), total_timesteps=32 * 10**10, **options)
    step = quick_jit(loop.step)
    index = Count.of(3 * 2**32 - 3)
    state = quick_jit(loop.init)(key)
    state = state._replace(num_updates=index, num_episodes=Count.of(2**31 + 8))
    rows = []
    for _ in range(6):
        state, metrics = step(state, index)
        index = index.plus(1)
        rows.append(metrics)
    assert [int(x.num_episodes) for x in rows] == [4, 4, 4, 0, 0, 0]
    assert int(state.num_episodes) == 2**31 + 20
    assert int(state.num_updates) == 3 * 2**32
    assert [int(x.eval.num_episodes) for x in rows] == [0, 0, 1, 0, 0, 0]


def test_schedules_follow_the_episodes_where_these_end_the_run(key):
    """20 episodes of 4 steps, in 4 environments with 8 steps each: 8 end in every update. With the
    limit of 400 steps they could take 100 times as long."""
    seen = {}

    class Watching(Tiny):
        def update(self, state, experience, key, clock):
            state, experience, losses = super().update(state, experience, key, clock)
            return state, experience, {**losses, "progress": clock.progress}

    for name, more in (
        ("alone", {}),
        ("both", {"total_timesteps": 32 * 10}),
        ("shorter", {"total_timesteps": 32 * 2}),
    ):
        options = {"num_envs": 4, "update_every": 8, "max_episodes": 20, "max_episode_steps": 400}
        loop = purerl.make_loop(walk(4), Watching(), **options, **more)
        step, state, seen[name] = quick_jit(loop.step), quick_jit(loop.init)(key), []
        for index in range(3):
            state, metrics = step(state, index)
            seen[name].append(float(metrics.losses["progress"]))
    np.testing.assert_allclose(seen["alone"], [0, 0.4, 0.8])
    np.testing.assert_allclose(seen["both"], [0, 0.4, 0.8])
    np.testing.assert_allclose(seen["shorter"], [0, 0.5, 1.0])
