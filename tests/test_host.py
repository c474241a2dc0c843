"""Environments of the host: what Gymnasium simulates is what is learned from, step by step."""

import pickle
import sys
from typing import ClassVar

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from kit.agents import Tiny
from kit.quick import quick_jit
from kit.trees import assert_equal

import purerl
from purerl.envs import as_env, vector_env
from purerl.envs.base import host_of

pytestmark = pytest.mark.usefixtures("quick_programs")


class Count(gymnasium.Env):
    """Episodes that carry their name, drawn at the reset, and the time: `[name, time]` of float64.
    The reward is the time and the action; they die after `length` steps if the action is 1, and
    are cut if it is 0."""

    observation_space = gymnasium.spaces.Box(0.0, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, length=3):
        self.length = length

    def observe(self):
        return np.array([self.name, self.time], np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.name, self.time = self.np_random.random(), 0
        return self.observe(), {}

    def step(self, action):
        self.time += 1
        over, died = self.time >= self.length, bool(action)
        info = {"success": float(over and died)}
        return self.observe(), self.time + 10.0 * action, over and died, over and not died, info


def same_step(num_envs, mode=AutoresetMode.SAME_STEP):
    return SyncVectorEnv([Count] * num_envs, autoreset_mode=mode)


def play(env, num_steps, num_envs=2, seed=0):
    """What was acted on, the actions, the time steps, what is acted on next, `[T, N, ...]`; and the
    seeds of the first reset."""
    many = vector_env(env, num_envs)
    keys = jax.random.split(jax.random.key(seed), (num_steps + 1, num_envs))
    actions = jax.random.randint(jax.random.key(seed + 1), (num_steps, num_envs), 0, 2)
    if env.spec.action_space.sizes is None:
        actions = jnp.full((num_steps, num_envs, *env.spec.action_space.shape), 0.3)

    def step(state, inputs):
        new, timestep = many.step(inputs[0], state, inputs[1])
        return new, (state.obs, timestep, new.obs)

    def run():
        _, state = many.reset(keys[0])
        return state.env, jax.lax.scan(step, state, (keys[1:], actions))[1]

    _, (before, timestep, after) = jax.tree.map(np.asarray, quick_jit(run)())
    seeds = jax.vmap(lambda k: jax.random.bits(k, (), jnp.uint32))(keys[0]) >> 1
    return before, np.asarray(actions), timestep, after, np.asarray(seeds).tolist()


def by_hand(seeds, actions, make=Count):
    """The same steps by a plain loop: successors, what is acted on next, rewards and ends."""
    envs = [make() for _ in seeds]
    for env, seed in zip(envs, seeds, strict=True):
        env.reset(seed=seed)
    rows = []
    for row in actions:
        seen = []
        for env, action in zip(envs, row, strict=True):
            obs, reward, terminated, truncated, info = env.step(action)
            after = env.reset()[0] if terminated or truncated else obs
            seen.append((obs, after, reward, terminated, truncated, info["success"]))
        rows.append([np.stack(x) for x in zip(*seen, strict=True)])
    return [np.stack(x) for x in zip(*rows, strict=True)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: purerl.gymnasium_env(Count, metrics=("success",)),
        lambda: purerl.gymnasium_env(same_step(2), metrics=("success",)),
        lambda: purerl.gymnasium_env(same_step(2, AutoresetMode.DISABLED), metrics=("success",)),
    ],
)
def test_steps_are_those_of_a_plain_loop(make):
    before, actions, timestep, after, seeds = play(make(), 13)
    last, following, reward, terminated, truncated, success = by_hand(seeds, actions)
    np.testing.assert_array_equal(timestep.obs, last.astype(np.float32))
    np.testing.assert_array_equal(after, following.astype(np.float32))
    np.testing.assert_array_equal(before[1:], after[:-1])
    np.testing.assert_array_equal(timestep.reward, reward)
    np.testing.assert_array_equal(timestep.terminated, terminated)
    np.testing.assert_array_equal(timestep.truncated, truncated)
    np.testing.assert_array_equal(timestep.info["success"], success)
    assert terminated.any()
    assert truncated.any()
    assert not timestep.info["nonfinite"].any()
    # The true successor: of the same episode, at its last time.
    np.testing.assert_array_equal(timestep.obs[..., 0], before[..., 0])
    assert (timestep.obs[terminated | truncated][:, 1] == 3).all()


def test_each_vector_has_an_autoreset_mode_of_its_own():
    """Gymnasium keeps the modes of all vectors of a class in one dict."""

    class Marked(Count):
        metadata: ClassVar = dict(Count.metadata)

    def vector(mode):
        return SyncVectorEnv([Marked] * 2, autoreset_mode=mode)

    def successors(env):
        _, _, timestep, after, _ = play(env, 4)
        assert timestep.obs[2, 0, 1] == 3.0  # the last of an episode, and the first of the next
        assert after[2, 0, 1] == 0.0

    made = purerl.gymnasium_env(Marked)
    theirs = purerl.gymnasium_env(vector(AutoresetMode.SAME_STEP))
    successors(made)
    assert Marked.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP  # it leaves theirs alone
    vector(AutoresetMode.DISABLED)
    successors(theirs)
    vector(AutoresetMode.SAME_STEP)
    successors(made)
    late = vector(AutoresetMode.NEXT_STEP)
    vector(AutoresetMode.DISABLED)
    for given in (late, gymnasium.wrappers.vector.ClipReward(late, -1.0, 1.0)):
        with pytest.raises(purerl.ConfigError, match="has the autoreset mode NEXT_STEP"):
            purerl.gymnasium_env(given)


class Nested(Count):
    """Observations in a dict and a tuple, a `Discrete` and bytes among them."""

    observation_space = gymnasium.spaces.Dict(
        {
            "time": gymnasium.spaces.Discrete(4),
            "pair": gymnasium.spaces.Tuple(
                (gymnasium.spaces.Box(0, 255, (2, 2, 1), np.uint8), Count.observation_space)
            ),
        }
    )
    action_space = gymnasium.spaces.MultiDiscrete([2, 3])

    def observe(self):
        image = np.full((2, 2, 1), self.time, np.uint8)
        return {"time": self.time, "pair": (image, super().observe())}

    def step(self, action):
        assert action.shape == (2,)
        return super().step(int(action[0]))


@pytest.mark.parametrize("mode", [None, AutoresetMode.SAME_STEP])
def test_observations_may_have_parts(mode):
    given = Nested if mode is None else SyncVectorEnv([Nested] * 4, autoreset_mode=mode)
    env = purerl.gymnasium_env(given)
    assert env.spec.observation_space["time"] == purerl.Discrete(4)
    assert env.spec.action_space == purerl.MultiDiscrete([2, 3])
    state, _ = purerl.run(
        env, purerl.PPO(K_epochs=1), key=jax.random.key(0), num_envs=4, update_every=8,
        total_timesteps=64,
    )  # fmt: skip
    image, _ = state.rollout.env.obs["pair"]
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image[:, 0, 0, 0], state.rollout.env.obs["time"])


OPTIONS = {"update_every": 8, "total_timesteps": 64}


def test_a_time_limit_truncates():
    env = purerl.time_limit(purerl.gymnasium_env(lambda: Count(5)), 2)
    assert env.spec.max_episode_steps == 2
    _, _, timestep, after, _ = play(env, 6)
    np.testing.assert_array_equal(timestep.truncated[:, 0], [False, True] * 3)
    assert not timestep.terminated.any()
    np.testing.assert_array_equal(timestep.obs[1::2, :, 1], 2)
    np.testing.assert_array_equal(after[1::2, :, 1], 0)
    config = purerl.TrainConfig(env=lambda_env(9), agent=Tiny(), max_episode_steps=4, **OPTIONS)
    out = purerl.fit(config)
    assert set(np.asarray(out.metrics.episode_length).tolist()) == {4.0}


def lambda_env(length):
    return purerl.gymnasium_env(lambda: Count(length), num_envs=2)


class Broken(Count):
    def step(self, action):
        obs, *rest = super().step(action)
        return (np.full(2, np.nan) if self.time == 2 else obs), *rest


def test_a_broken_simulation_is_cut_and_reset():
    _, _, timestep, after, _ = play(purerl.gymnasium_env(Broken), 6)
    np.testing.assert_array_equal(timestep.truncated[:, 0], [False, True] * 3)
    np.testing.assert_array_equal(timestep.info["nonfinite"], timestep.truncated)
    assert np.isfinite(after).all()
    given = SyncVectorEnv([Broken] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(Exception, match="expected a VectorEnv with AutoresetMode"):
        play(purerl.gymnasium_env(given), 6)


def test_a_run_follows_from_its_key_and_fit_is_the_run():
    config = purerl.TrainConfig(env=lambda_env(3), agent=Tiny(), **OPTIONS)
    train = quick_jit(purerl.make_train(config))
    first, again, other = (train(jax.random.key(seed)) for seed in (0, 0, 1))
    assert_equal(first, again)
    assert np.any(first.state.rollout.env.obs != other.state.rollout.env.obs)
    assert_equal(purerl.fit(config).metrics, first.metrics)
    assert_equal(purerl.fit(config, seeds=[0]).member(0).metrics, first.metrics)


def test_evaluations_have_simulators_of_their_own():
    options = {"env": lambda_env(3), "agent": Tiny(), **OPTIONS}
    plain = purerl.fit(purerl.TrainConfig(**options))
    config = purerl.TrainConfig(**options, eval_every=2, eval_max_episodes=3)
    for out in (purerl.fit(config), purerl.fit(config, seeds=[0]).member(0)):
        np.testing.assert_array_equal(out.metrics.episode_return, plain.metrics.episode_return)
        assert np.asarray(out.metrics.eval.num_episodes).tolist() == [0, 3, 0, 3]
        np.testing.assert_array_equal(out.metrics.eval.episode_length[1::2], 3.0)
    found = purerl.evaluate(config.env, plain.policy.act, jax.random.key(0), 4, 10)
    assert float(found.episode_length) == 3.0


@pytest.mark.parametrize(
    "agent",
    [
        purerl.REINFORCE(n_episodes=2, episode_length=8),  # of whole episodes
        purerl.DQN(batch_size=8),  # with a buffer
        pytest.param(purerl.PPO(network="gru"), marks=pytest.mark.slow),
    ],
)
def test_agents_of_every_kind(agent):
    config = purerl.TrainConfig(
        env=lambda_env(3), agent=agent, update_after=0, update_every=8, total_timesteps=64
    )
    out = purerl.fit(config)
    assert int(out.state.num_updates) == 4
    assert set(np.asarray(out.metrics.episode_length).tolist()) == {3.0}


def test_a_run_that_is_resumed_begins_new_episodes(tmp_path):
    config = purerl.TrainConfig(
        env="gymnasium/CartPole-v1", agent=Tiny(), num_envs=2, update_every=5, total_timesteps=50
    )
    before = purerl.fit(config.replace(total_timesteps=20), tmp_path)
    assert np.all(before.state.rollout.length > 0)
    with pytest.warns(UserWarning, match="simulators of CartPole-v1 are on the host, and not in"):
        after = purerl.fit(config, tmp_path, resume=True)
    assert int(after.state.num_updates) == 5
    np.testing.assert_array_equal(after.metrics.episode_return[:2], before.metrics.episode_return)
    # Fifteen steps since the reset, in an episode of another number.
    assert np.all(after.state.rollout.length <= 15)
    assert np.all(after.state.rollout.episode > before.state.rollout.episode)
    policy = purerl.load_policy(tmp_path / "policies" / "seed-0.policy", Tiny())
    returns, _ = purerl.evaluate_in_gymnasium(policy, "CartPole-v1", 2)
    assert np.all(returns >= 8)
    assert 'env = "gymnasium/CartPole-v1"' in (tmp_path / "config.toml").read_text()


def test_another_runs_simulators_are_not_stepped():
    env = purerl.gymnasium_env(Count)
    many = vector_env(env, 2)
    keys = jax.random.split(jax.random.key(0), 2)
    _, state = many.reset(keys)
    many.reset(jax.random.split(jax.random.key(1), 2))
    with pytest.raises(Exception, match="at another time than this state"):
        jax.block_until_ready(many.step(keys, state, jnp.zeros(2, jnp.int32)))


def test_what_the_host_cannot_do_is_said_before_anything_is_compiled():
    env = purerl.gymnasium_env(Count, num_envs=2)
    config = purerl.TrainConfig(env=env, agent=Tiny(), **OPTIONS)
    keys = jax.random.split(jax.random.key(0), 2)
    mapped = "is simulated on the host, and can't be mapped by jax.vmap"
    given = purerl.gymnasium_env(same_step(2))
    for use, message in (
        (lambda: jax.eval_shape(jax.vmap(purerl.make_train(config)), keys), mapped),
        (lambda: purerl.fit(config, seeds=2), "seeds: got 2, expected one"),
        (lambda: config.replace(num_envs=3), "num_envs: got 3, expected 2"),
        (lambda: config.replace(num_devices=2), "num_devices: is for environments in JAX"),
        (lambda: config.replace(skip_frames=2), "skip_frames: is for environments in JAX"),
        (lambda: config.replace(remember_action=True), "remember_action: is for environments in"),
        (lambda: config.replace(resets="spare(2)"), r"resets: got 'spare\(2\)', expected 'fresh'"),
        (lambda: purerl.auto_reset(env), "auto_reset: is for environments in JAX"),
        (lambda: purerl.time_limit(given, 2), "max_episode_steps: got 2, but the simulators"),
        (
            lambda: jax.eval_shape(
                purerl.make_train(config.replace(env=given, eval_every=1)), keys[0]
            ),
            "are given as a VectorEnv, of which there is one, of 2",
        ),
        (
            lambda: purerl.gymnasium_env(same_step(2, AutoresetMode.NEXT_STEP)),
            "has the autoreset mode NEXT_STEP, expected SAME_STEP or DISABLED",
        ),
        (lambda: purerl.make("gymnasium/CartPol-v1"), "did you mean 'CartPole-v1'"),
        (lambda: purerl.make("gymnasium/CartPole-v1", tpyo=1), "can't be made with.*tpyo"),
        (lambda: purerl.gymnasium_env("CartPole-v1", num_envs=0), "num_envs: got 0, expected"),
        (lambda: purerl.gymnasium_env(same_step(2), num_envs=3), "num_envs: got 3, expected 2"),
        (lambda: purerl.gymnasium_env(dict), "dict makes {}, expected a gymnasium.Env"),
        (lambda: as_env(Count()), "purerl.gymnasium_env makes one of Gymnasium's"),
    ):
        with pytest.raises(purerl.ConfigError, match=message):
            use()


def test_a_user_wrapper_in_jax_is_refused():
    env = purerl.gymnasium_env(Count)
    wrapped = env._replace(step=lambda key, state, action: env.step(key, state, action))
    with pytest.raises(purerl.ConfigError, match="Gymnasium has wrappers"):
        jax.eval_shape(purerl.make_train(purerl.TrainConfig(env=wrapped)), jax.random.key(0))


class Texts(Count):
    observation_space = gymnasium.spaces.Text(3)


def test_spaces_without_a_counterpart():
    with pytest.raises(purerl.ConfigError, match=r"has the observation_space Text\(.*expected Box"):
        purerl.gymnasium_env(Texts)


def test_without_gymnasium(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(purerl.ConfigError, match=r"pip install 'purerl\[gymnasium\]'.*mujoco"):
        purerl.make("gymnasium/CartPole-v1")


def test_names_and_parameters():
    env = purerl.gymnasium_env("Pendulum-v1", num_envs=3, g=9.0)
    assert env.spec.name == "Pendulum-v1"
    assert env.spec.max_episode_steps == 200
    config = purerl.TrainConfig(env=env, agent=purerl.SAC())
    assert config.make_loop().num_envs == 3
    plain = config.to_mapping()["env"]
    assert plain == {"name": "gymnasium/Pendulum-v1", "num_envs": 3, "g": 9.0}
    again = purerl.TrainConfig.from_mapping(config.to_mapping())
    assert again.env.spec == env.spec
    assert host_of(pickle.loads(pickle.dumps(config)).env).num_envs == 3
    purerl.check_env(env)
    one, _ = env.reset(jax.random.key(0))
    assert one.shape == (3,)
    with pytest.raises(purerl.ConfigError, match="Pendulum-v1 can't be traced with it"):
        config.make_loop({"env.g": 3.0})


def test_mujoco():
    pytest.importorskip("mujoco")
    env = purerl.gymnasium_env("HalfCheetah-v5", num_envs=2, forward_reward_weight=2.0)
    assert env.spec.observation_space.shape == (17,)
    assert env.spec.max_episode_steps == 1000
    _, _, timestep, _, seeds = play(env, 5)
    plain = gymnasium.make("HalfCheetah-v5", forward_reward_weight=2.0)
    plain.reset(seed=seeds[1])
    for t in range(5):
        obs, reward, *_ = plain.step(np.full(6, 0.3, np.float32))
        np.testing.assert_allclose(timestep.obs[t, 1], obs, rtol=1e-6)
        np.testing.assert_allclose(timestep.reward[t, 1], reward, rtol=1e-6)


def test_a_sweep_trains_one_after_the_other():
    config = purerl.TrainConfig(env=lambda_env(3), agent=purerl.PPO(), **OPTIONS)
    table = purerl.sweep(config, seeds=2, grid={"lr": [1e-3, 3e-3]}).table
    assert table["seed"].tolist() == [0, 1, 0, 1]
    assert np.isfinite(table["final_return"]).all()


def test_the_command(command):
    code, out, err = command(
        "train", "gymnasium/CartPole-v1", "--total-timesteps", 64, "--num-envs", 2,
        "--update-every", 8, "--run-dir", "run", "--no-tensorboard",
    )  # fmt: skip
    assert code == 0, out + err
    code, out, err = command("eval", "run", "--episodes", 3)
    assert code == 0, out + err


def learned(agent, name, total, **options):
    config = purerl.TrainConfig(
        env=name, agent=agent, total_timesteps=total, eval_every=1, eval_max_episodes=20, **options
    )
    every = config.make_loop().num_updates // 4
    out = purerl.fit(config.replace(eval_every=every))
    return np.asarray(out.metrics.eval.episode_return)[every - 1 :: every]


@pytest.mark.slow
def test_ppo_learns_gymnasiums_cartpole():
    # The best of four evaluations: of 16 seeds the worst has 442; one at random has 20.
    assert learned(purerl.PPO(), "gymnasium/CartPole-v1", 60_000, num_envs=4).max() >= 350


@pytest.mark.release
@pytest.mark.timeout(1800)
def test_sac_learns_gymnasiums_pendulum():
    returns = learned(purerl.SAC(), "gymnasium/Pendulum-v1", 12_000, num_envs=1)
    assert returns[-1] >= -250


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_simulators_of_the_users_are_trained_in(mode):
    config = purerl.TrainConfig(same_step(2, mode), Tiny(), 48, update_every=4)
    assert config.make_loop().num_envs == 2
    out = purerl.fit(config)
    assert np.asarray(out.metrics.episode_length)[-1] == 3.0
    env = as_env(same_step(2))
    with pytest.raises(Exception, match="can't be played one by one"):
        jax.block_until_ready(env.reset(jax.random.key(0)))


def test_a_state_of_another_time_is_refused():
    """Not mixed into episodes: those of two runs at once, or of a step that is taken twice."""
    many = vector_env(purerl.gymnasium_env(Count), 2)
    keys, action = jax.random.split(jax.random.key(0), 2), jnp.zeros(2, jnp.int32)
    _, state = many.reset(keys)
    after, _ = many.step(keys, state, action)
    jax.block_until_ready(many.step(keys, after, action))
    with pytest.raises(Exception, match="at another time than this state"):
        jax.block_until_ready(many.step(keys, after, action))
    _, state = many.reset(keys)  # with the same seeds
    with pytest.raises(Exception, match="at another time than this state"):
        jax.block_until_ready(many.step(keys, after, action))


def test_metrics_are_in_the_info():
    config = purerl.TrainConfig(
        purerl.gymnasium_env(Count, metrics=("succes",)), Tiny(), 48, num_envs=2, update_every=4
    )
    with pytest.raises(Exception, match="has no 'succes' at an episode's end"):
        purerl.fit(config)
    with pytest.raises(purerl.ConfigError, match="metrics: got 'success', expected names"):
        purerl.gymnasium_env(Count, metrics="success")


def test_a_spec_of_the_users_stays_under_a_time_limit():
    env = purerl.gymnasium_env(Count)
    env = env._replace(spec=env.spec._replace(resets="fresh", legal=lambda obs: obs[..., :2] > 0))
    limited = purerl.time_limit(env, 2)
    assert limited.spec.legal is env.spec.legal
    assert limited.spec.max_episode_steps == 2
    assert vector_env(limited, 2).spec.legal is env.spec.legal


def test_evaluations_in_gymnasiums_environment_of_the_same_kind():
    """gymnax has float32's largest number where Gymnasium has infinity."""
    loop = purerl.TrainConfig(
        "CartPole-v1",
        Tiny(),
        64,
        num_envs=2,
        update_every=4,
        eval_every=2,
        eval_env="gymnasium/CartPole-v1",
    ).make_loop()
    assert host_of(loop.eval_env) is not None
    assert host_of(loop.env) is None
