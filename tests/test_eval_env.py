"""An evaluation environment of its own: trained on one, evaluated on another."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.agents import Tiny
from kit.environments import push_env, walk
from kit.quick import quick_jit
from kit.trees import assert_equal

import purerl
from purerl.agents.acting import memoryless
from purerl.envs import Box, Discrete, Env, EnvSpec, TimeStep

pytestmark = pytest.mark.usefixtures("quick_programs")

SMALL = {"num_envs": 2, "update_every": 8, "total_timesteps": 64, "eval_every": 2}


def test_evaluations_are_played_there():
    config = purerl.TrainConfig(env=walk(3), eval_env=walk(5), agent=Tiny(), **SMALL)
    out = quick_jit(purerl.make_train(config))(jax.random.key(0))
    np.testing.assert_array_equal(out.metrics.episode_length, 3.0)
    np.testing.assert_array_equal(out.metrics.eval.episode_length, [np.nan, 5.0] * 2)
    np.testing.assert_array_equal(out.metrics.eval.episode_return, [np.nan, 15.0] * 2)
    # What is learned doesn't depend on it.
    plain = quick_jit(purerl.make_train(config.replace(eval_env=None)))(jax.random.key(0))
    np.testing.assert_array_equal(plain.state.rollout.env.obs, out.state.rollout.env.obs)
    np.testing.assert_array_equal(plain.metrics.eval.episode_length, [np.nan, 3.0] * 2)
    _, metrics = purerl.run(walk(3), Tiny(), key=jax.random.key(0), eval_env=walk(5), **SMALL)
    np.testing.assert_array_equal(metrics.eval.episode_length, out.metrics.eval.episode_length)


def test_evaluations_may_sample():
    """Half of the walks of one step go the way that the mode never takes."""

    class Fair(Tiny):
        def policy(self, state, *, sample=False):
            def act(obs, key):
                coin = jax.random.bernoulli(key, shape=obs.shape[:1])
                return jnp.where(coin & sample, 1, 0), {}

            return memoryless(act)

    def step(key, state, action):
        done = jnp.bool_(True)
        return state, TimeStep(jnp.zeros(1), action.astype(jnp.float32), done, ~done, {})

    spec = EnvSpec("coin", Box(-1.0, 1.0, (1,)), Discrete(2), 1)
    env = Env(lambda key: (jnp.zeros(1), jnp.int32(0)), step, spec)
    config = purerl.TrainConfig(env, Fair(), eval_max_episodes=200, **SMALL)
    found = [
        quick_jit(purerl.make_train(config.replace(eval_sample=sample)))(jax.random.key(0))
        for sample in (False, True)
    ]
    greedy, sampled = (float(out.metrics.eval.episode_return[-1]) for out in found)
    assert greedy == 0.0
    assert 0.35 < sampled < 0.65
    assert_equal(found[0].state.rollout, found[1].state.rollout)


def test_the_runs_limits_are_kept():
    config = purerl.TrainConfig(
        env=walk(9), eval_env=walk(20), agent=Tiny(), max_episode_steps=4, skip_frames=2, **SMALL
    )
    loop = config.make_loop()
    assert loop.eval_env.spec.max_episode_steps == loop.eval_max_episode_steps == 4
    out = quick_jit(purerl.make_train(config))(jax.random.key(0))
    assert float(out.metrics.eval.episode_length[1]) == 4.0
    alone = config.replace(env=purerl.time_limit(walk(9), 3), max_episode_steps=None)
    assert alone.make_loop().eval_max_episode_steps == 10_000


@pytest.mark.slow
def test_varied_and_nominal(tmp_path):
    """Hyperparameters of the environment change what is trained in, not what is evaluated in."""
    config = purerl.TrainConfig(
        env={"name": "CartPole-v1", "gravity": "uniform(5, 15)"},
        eval_env={"name": "CartPole-v1", "length": 0.6},
        agent=purerl.PPO(K_epochs=1, hidden=(4,)),
        **SMALL,
    )
    plain = config.to_mapping()
    assert plain["eval_env"] == {"name": "CartPole-v1", "length": 0.6}
    again = purerl.TrainConfig.from_mapping(plain)
    assert again.to_mapping() == plain
    train = quick_jit(purerl.make_train(config.replace(agent=Tiny())))
    lengths = [train(jax.random.key(0), {"env.length": jnp.float32(x)}).metrics for x in (0.3, 2.0)]
    assert np.any(lengths[0].episode_length != lengths[1].episode_length)
    np.testing.assert_array_equal(lengths[0].eval.episode_return, lengths[1].eval.episode_return)
    purerl.fit(config, tmp_path)
    assert "[eval_env]" in (tmp_path / "config.toml").read_text()
    other = config.replace(eval_env="CartPole-v1")
    with pytest.raises(purerl.ConfigError, match="holds another run: config"):
        purerl.fit(other, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_env": "CartPol-v1"}, "did you mean 'CartPole-v1'"),
        ({"eval_env": 3}, "got 3, expected a name"),
        ({"eval_env": push_env()}, r"eval_env: push has the observation_space Box.*expected that"),
        ({"eval_env": walk(5), "eval_every": None}, "eval_env: is for evaluations, expected"),
    ],
)
def test_what_cannot_be_evaluated_in(options, message):
    with pytest.raises(purerl.ConfigError, match=message):
        purerl.TrainConfig(**{"env": walk(3), "agent": Tiny(), **SMALL, **options})


MINE = """
import purerl
def make():
    purerl.imported = True
    return purerl.make("CartPole-v1", length=0.7)
"""


@pytest.mark.slow
def test_the_command(command, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_to_evaluate.py").write_text(MINE)
    small = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    inline = '{name = "CartPole-v1", length = 0.6}'
    code, out, err = command(
        "train", "CartPole-v1", *small, "--eval-env", inline, "--run-dir", "run", "--no-tensorboard"
    )
    assert code == 0, out + err
    assert "length = 0.6" in (tmp_path / "run" / "config.toml").read_text()
    mine = "mine_to_evaluate:make"
    small += ["--no-anneal", "--no-tensorboard"]
    code, out, err = command(
        "train", "CartPole-v1", *small, "--eval-env", mine, "--run-dir", "mine"
    )
    assert code == 0, out + err
    monkeypatch.delitem(sys.modules, "mine_to_evaluate")
    # A file alone imports nothing.
    for words in (
        ("resume", "mine", "--total-timesteps", 96),
        ("train", "--config", "mine/config.toml"),
    ):
        code, out, err = command(*words)
        assert code == 2
        assert f"expected --eval-env {mine}" in err
    assert "mine_to_evaluate" not in sys.modules
    code, out, err = command("eval", "mine", "--episodes", 2)
    assert code == 0, out + err
    assert "mine_to_evaluate" not in sys.modules
    words = ("resume", "mine", "--eval-env", mine, "--total-timesteps", 96, "--no-tensorboard")
    code, out, err = command(*words)
    assert code == 0, out + err


def test_a_simulator_of_the_host_may_evaluate():
    pytest.importorskip("gymnasium")
    config = purerl.TrainConfig(
        env=purerl.gymnasium_env("CartPole-v1", num_envs=2),
        eval_env=purerl.gymnasium_env("CartPole-v1", sutton_barto_reward=True),
        agent=Tiny(),
        **SMALL,
    )
    out = purerl.fit(config)
    np.testing.assert_array_equal(out.metrics.eval.episode_return[1::2], -1.0)
    assert np.nanmin(out.metrics.episode_return) > 0
