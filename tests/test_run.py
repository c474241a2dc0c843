import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit, reward_forever, target_env, walk

import purerl
from purerl.normalize import normalize

OPTIONS = {"num_envs": 4, "update_every": 8, "total_timesteps": 96}


def equal(x, y):
    def data(leaf):
        key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if key else leaf

    pairs = zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    return all(np.array_equal(data(a), data(b), equal_nan=True) for a, b in pairs)


def jitted_run(*args, key, **options):
    return quick_jit(lambda key: purerl.run(*args, key=key, **options))(key)


def test_the_run_state_is_one_pytree_and_counts(key):
    state, metrics = jitted_run(walk(3), purerl.PPO(), key=key, **OPTIONS)
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
    for chunk in ([0], [1, 2, 3], [4, 5]):
        state, part = scan(state, jnp.array(chunk))
        chunks.append(part)
    assert equal(state, whole)
    assert equal(jax.tree.map(lambda *xs: jnp.concatenate(xs), *chunks), metrics)


def test_no_key_is_used_twice(key):
    options = {**OPTIONS, "eval_every": 2, "normalize_obs": True}
    with jax.debug_key_reuse(True):
        jitted_run(walk(3), purerl.PPO(), key=key, **options)
        with pytest.raises(Exception, match="already consumed"):  # the checker does check
            quick_jit(lambda k: jax.random.normal(k) + jax.random.uniform(k))(jax.random.key(1))


def test_evaluation_does_not_change_what_is_learned(key):
    def train(**options):
        return jitted_run(walk(3), purerl.PPO(), key=key, **OPTIONS, **options)

    without, metrics = train()
    assert metrics.eval is None
    with_it, metrics = train(eval_every=2, eval_max_episodes=5)
    assert equal(without, with_it)
    np.testing.assert_array_equal(metrics.eval.num_episodes, [0, 5, 0])
    np.testing.assert_array_equal(metrics.eval.episode_return, [np.nan, 6.0, np.nan])


def test_an_evaluation_stops_at_its_step_limit(key):
    _, metrics = jitted_run(
        reward_forever(50), purerl.PPO(), key=key, eval_every=1, eval_max_episode_steps=5, **OPTIONS
    )
    np.testing.assert_array_equal(metrics.eval.episode_return, 5.0)


def test_under_vmap_an_evaluation_stays_a_branch():
    # A select would evaluate after every update.
    def train(key):
        return purerl.run(walk(3), purerl.PPO(), key=key, eval_every=2, **OPTIONS)

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
    value = loop.agent.value(first.agent, seen).reshape(stored["value"].shape)
    np.testing.assert_allclose(stored["value"], value, rtol=1e-4, atol=1e-5)


def test_a_rewarder_changes_what_is_learned_from_and_not_what_is_told(key):
    options = {**OPTIONS, "total_timesteps": 32}
    rewarder = purerl.RunningNormalize()
    state, metrics = jitted_run(walk(3), purerl.PPO(), key=key, rewarder=rewarder, **options)
    plain, _ = jitted_run(walk(3), purerl.PPO(), key=key, **options)
    assert float(metrics.episode_return[0]) == 6.0
    std = np.sqrt(float(state.rewarder.stats.var))
    np.testing.assert_allclose(
        state.buffer.data["reward"], plain.buffer.data["reward"] / std, rtol=1e-5
    )


def test_discounts_are_the_agents_unless_said_otherwise(key):
    def advantage(agent, buffer=None):
        state, _ = jitted_run(walk(3), agent, buffer, key=key, **{**OPTIONS, "total_timesteps": 32})
        return np.asarray(state.buffer.data["advantage"])

    plain = advantage(purerl.PPO(gamma=0.5, lam=0.3))
    np.testing.assert_array_equal(
        plain, advantage(purerl.PPO(gamma=0.9, lam=0.9), purerl.Buffer(gamma=0.5, lam=0.3))
    )
    assert np.abs(plain - advantage(purerl.PPO(gamma=0.9, lam=0.9))).max() > 0.1


def test_time_limit_and_frame_skip(key):
    options = {**OPTIONS, "total_timesteps": 32}
    state, metrics = jitted_run(
        walk(100), purerl.PPO(), key=key, max_episode_steps=2, skip_frames=3, **options
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
        target_env(), purerl.PPO(), key=key, action_processor=lambda a: jnp.ones_like(a), **options
    )
    np.testing.assert_allclose(metrics.episode_return, 0.0)  # 1 is the target
    assert np.asarray(state.buffer.data["action"]).std() > 0.5  # the agent's own


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
