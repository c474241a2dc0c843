"""An agent with a memory through every contract."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.quick import quick_jit
from kit.recurrent import Recurrent, recall_env
from kit.trees import assert_close, assert_equal

import purerl

CONFIG = purerl.TrainConfig(env=recall_env(), agent=Recurrent(), total_timesteps=32 * 16 * 150)


@pytest.fixture(scope="module")
def out():
    return quick_jit(purerl.make_train(CONFIG))(jax.random.key(0))


def test_what_was_seen_before_is_learned_from(out):
    """Without a memory the mean return is 0."""
    assert float(out.metrics.episode_return[-10:].mean()) > 0.9
    env, acting = recall_env(), out.policy.acting()
    episodes = purerl.evaluate(env, acting, jax.random.key(1), 100, 10)
    assert float(episodes.episode_return) == 1.0
    sampled = purerl.evaluate(env, out.policy.acting(sample=True), jax.random.key(1), 100, 10)
    assert 0.8 < float(sampled.episode_return) <= 1.0
    blind = purerl.TrainConfig(env=env, agent=purerl.PPO(hidden=(8,)), total_timesteps=32 * 16 * 20)
    blind = quick_jit(purerl.make_train(blind))(jax.random.key(0))
    assert abs(float(blind.metrics.episode_return[-10:].mean())) < 0.3


@pytest.mark.parametrize("episodic", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_an_update_sees_the_memory_that_acted(episodic, normalize, key):
    """What the network gives for the rollout's sequence, from the memory before it, is what it gave
    step by step; also where rollouts are not whole episodes."""

    class Checking(Recurrent):
        def update(self, state, experience, key, clock):
            new, experience, losses = super().update(state, experience, key, clock)
            logits, value, _ = self.replayed(state.params, experience)
            data = experience.read()
            kept = data["valid"]
            far = jnp.abs(logits - data["logits"]).max(-1) + jnp.abs(value - data["value"])
            return new, experience, losses | {"far": jnp.where(kept, far, 0.0).max()}

    loop = purerl.make_loop(
        recall_env(4),
        Checking(),
        num_envs=6,
        update_every=7,
        total_timesteps=6 * 7 * 8,
        wait_end_path=episodic,
        normalize_obs=normalize,
    )
    _, metrics = quick_jit(lambda key: loop.scan(loop.init(key)))(key)
    assert np.asarray(metrics.losses["far"]).max() < 1e-5


def test_many_at_once_are_as_each_alone(out):
    config = CONFIG.replace(total_timesteps=32 * 16 * 5)
    train, keys = purerl.make_train(config), jax.random.split(jax.random.key(1), 3)
    together = quick_jit(jax.vmap(train))(keys)
    alone = quick_jit(train)(keys[1])
    params = (out.state.agent.params for out in (together.member(1), alone))
    assert_close(*params, 1e-3, 1e-5)
    with pytest.raises(purerl.ConfigError, match="this is the output of"):
        together.policy.acting()


def test_a_run_that_was_broken_off_ends_in_the_same_state(tmp_path):
    config = CONFIG.replace(update_every=15, total_timesteps=32 * 15 * 13)

    def stop(report):
        if report.stop >= 4:
            raise RuntimeError("enough")

    options = {"seeds": 2, "report_every": 1e-3}
    whole = purerl.fit(config, **options)
    with pytest.raises(RuntimeError, match="enough"):
        purerl.fit(config, tmp_path, callback=stop, **options)
    resumed = purerl.fit(config, tmp_path, **options)
    assert np.abs(np.asarray(resumed.state.rollout.memory)).max() > 0.0
    assert_equal(whole.state, resumed.state)


def test_a_policy_with_a_memory_is_played_with_it(out):
    with pytest.raises(purerl.ConfigError, match=r"has a memory.*policy\.acting"):
        out.policy(jnp.zeros((3, 2)))
    with pytest.raises(purerl.ConfigError, match=r"action, memory = .*memory = policy\.memory"):
        out.policy.step(np.zeros(2))
    for cue in (-1.0, 1.0):
        memory = out.policy.memory()
        for time in range(4):
            obs = np.array([cue if time == 0 else 0.0, time / 3])
            action, memory = out.policy.step(obs, memory=memory)
        assert action == (cue > 0)
    values = out.value(jnp.zeros((5, 2)), out.policy.memory(5))
    assert values.shape == (5,)


def test_files_and_pictures_know_the_memory(out, tmp_path):
    policy, env = out.policy, recall_env()
    purerl.save_policy(policy, tmp_path / "a.policy")
    loaded = purerl.load_policy(tmp_path / "a.policy", agent=Recurrent)
    assert int(loaded.num_updates) == 150
    purerl.export_policy(policy, tmp_path / "a.stablehlo")
    exported = jax.export.deserialize(bytearray((tmp_path / "a.stablehlo").read_bytes()))
    acting, memory = policy.acting(), policy.memory(4)
    theirs, ours, mine = memory, memory, memory
    for time in range(4):
        obs = jnp.stack([jnp.array([1.0, -1.0, 1.0, -1.0]) * (time == 0), jnp.full(4, time / 3)], 1)
        ours, action, _ = acting.step(ours, obs, None)
        theirs, found = exported.call(theirs, obs)
        mine, again, _ = loaded.acting().step(mine, obs, None)
        np.testing.assert_array_equal(action, found)
        np.testing.assert_array_equal(action, again)
    np.testing.assert_array_equal(action, [1, 0, 1, 0])
    assert purerl.render(policy, env, tmp_path / "a.gif") == (1.0, 4)
    returns, lengths = purerl.evaluate_in_gymnasium(policy, purerl.to_gymnasium(env), 20)
    assert returns.tolist() == [1.0] * 20
    assert lengths.tolist() == [4] * 20
