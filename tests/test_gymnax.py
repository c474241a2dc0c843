"""gymnax environments that users write: wrappers, old time limits, nested observations."""

import pickle
import warnings

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces
from gymnax.environments.classic_control.cartpole import CartPole, EnvParams
from gymnax.wrappers import FlattenObservationWrapper, LogWrapper, StickyActionWrapper
from gymnax.wrappers.compat import LegacyStepAPIWrapper
from gymnax.wrappers.purerl import GymnaxWrapper
from kit.agents import Tiny
from kit.quick import mostly_slow, quick_jit

import purerl
from purerl.envs import Box, as_env

SMALL = {"num_envs": 2, "update_every": 8, "total_timesteps": 32}


class Doubled(GymnaxWrapper):
    """Twice the reward."""

    def step(self, key, state, action, params=None):
        obs, state, reward, *rest = self._env.step(key, state, action, params)
        return obs, state, 2.0 * reward, *rest


class Negated:
    """The other sign of observations; the environment inside has another name."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def reset(self, key, params=None):
        obs, state = self.inner.reset(key, params)
        return -obs, state

    def step(self, key, state, action, params=None):
        obs, *rest = self.inner.step(key, state, action, params)
        return -obs, *rest


class Counted(GymnaxWrapper):
    """A state of its own, and dynamics by the raw names."""

    def reset_env(self, key, params):
        obs, state = self._env.reset_env(key, params)
        return obs, {"inner": state, "time": jnp.int32(0)}

    def step_env(self, key, state, action, params):
        obs, inner, _, *rest = self._env.step_env(key, state["inner"], action, params)
        time = state["time"] + 1
        return obs, {"inner": inner, "time": time}, time.astype(jnp.float32), *rest

    def is_truncated(self, state, params):
        return state["time"] >= params.max_steps_in_episode


def play(env, num_steps, action=1):
    """Time steps without a reset, stacked."""
    obs, state = env.reset(jax.random.key(0))

    def step(state, key):
        return env.step(key, state, jnp.int32(action))

    keys = jax.random.split(jax.random.key(1), num_steps)
    return obs, quick_jit(lambda: jax.lax.scan(step, state, keys)[1])()


PARAMS = EnvParams(max_steps_in_episode=4)


def test_a_wrapper_does_what_it_does():
    first, plain = play(as_env((CartPole(), PARAMS)), 8)
    assert not plain.terminated.any()
    for wrapper, reward in ((Doubled, 2.0), (Counted, [1, 2, 3, 4, 5, 6, 7, 8])):
        _, seen = play(as_env((wrapper(CartPole()), PARAMS)), 8)
        np.testing.assert_array_equal(seen.reward, np.broadcast_to(reward, 8))
        np.testing.assert_array_equal(seen.obs, plain.obs)
        np.testing.assert_array_equal(seen.truncated, np.arange(1, 9) >= 4)
    # The successor at the limit is the true one, as the wrapper has it, and not a reset's.
    negated_first, negated = play(as_env((Negated(CartPole()), PARAMS)), 8)
    np.testing.assert_array_equal(negated_first, -first)
    np.testing.assert_array_equal(negated.obs, -plain.obs)
    _, stuck = play(as_env((StickyActionWrapper(CartPole(), 1.0), PARAMS)), 8)
    _, left = play(as_env((CartPole(), PARAMS)), 8, action=0)
    np.testing.assert_array_equal(stuck.obs, left.obs)


@pytest.mark.parametrize(
    "wrap",
    [
        LogWrapper,
        LegacyStepAPIWrapper,
        FlattenObservationWrapper,
        lambda env: LogWrapper(FlattenObservationWrapper(LogWrapper(env))),
        lambda env: LogWrapper(Counted(env)),
    ],
)
def test_a_wrapper_that_changes_nothing_changes_nothing(wrap):
    plain, seen = (
        play(as_env((env, PARAMS)), 12)[1] for env in (Counted(CartPole()), wrap(CartPole()))
    )
    np.testing.assert_allclose(plain.obs, seen.obs, rtol=1e-5, atol=1e-6)  # as they are compiled
    for name in ("terminated", "truncated"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(seen, name))
    assert seen.terminated.any()


def test_wrappers_within_wrappers_add_up():
    env = as_env((Doubled(LogWrapper(Negated(Doubled(CartPole())))), PARAMS))
    assert env.spec.name == "Doubled(LogWrapper(Negated(Doubled(CartPole-v1))))"
    np.testing.assert_array_equal(play(as_env(Doubled(RawDoubled(CartPole()))), 3)[1].reward, 4.0)
    _, seen = play(env, 3)
    np.testing.assert_array_equal(seen.reward, 4.0)
    np.testing.assert_array_equal(seen.info["returned_episode"], [False, False, False])
    _, again = play(pickle.loads(pickle.dumps(env)), 3)
    np.testing.assert_array_equal(again.obs, seen.obs)
    purerl.check_env((Doubled(CartPole()), EnvParams(max_steps_in_episode=20)))


class Positions(GymnaxWrapper):
    """Without the velocities."""

    def observation_space(self, params):
        space = self._env.observation_space(params)
        return spaces.Box(space.low[::2], space.high[::2], (2,))

    def reset(self, key, params=None):
        obs, state = self._env.reset(key, params)
        return obs[::2], state

    def step(self, key, state, action, params=None):
        obs, *rest = self._env.step(key, state, action, params)
        return obs[::2], *rest


def test_a_wrapper_may_hide_the_velocity():
    env = as_env((Positions(Doubled(CartPole())), PARAMS))
    assert env.spec.observation_space.shape == (2,)
    first, seen = play(env, 4)
    whole, plain = play(as_env((CartPole(), PARAMS)), 4)
    np.testing.assert_array_equal(first, whole[::2])
    np.testing.assert_allclose(seen.obs, plain.obs[:, ::2], rtol=1e-5)
    np.testing.assert_array_equal(seen.reward, 2.0)
    # The observation at the limit is the last of the episode, without the velocities.
    assert seen.truncated[3]
    purerl.check_env((Positions(CartPole()), EnvParams(max_steps_in_episode=20)))
    config = purerl.TrainConfig(env=Positions(CartPole()), agent=Tiny(), **SMALL)
    out = quick_jit(purerl.make_train(config))(jax.random.key(0))
    assert out.state.buffer.data["obs"].shape[-1] == 2


def test_sticky_actions_are_taken_over_true_dynamics():
    """By a plain loop: the wrapper's draw, then the environment's step."""
    prob, core = 0.5, CartPole()
    env = as_env((StickyActionWrapper(core, prob), PARAMS))
    _, state = env.reset(jax.random.key(0))
    _, inner = core.reset_env(jax.random.key(0), PARAMS)
    last, stuck = 0, 0
    for t in range(8):
        key, action = jax.random.key(t), t % 2
        replay_key, step_key = jax.random.split(key)
        again = bool(jax.random.bernoulli(replay_key, prob))
        stuck += again and last != action
        last = last if again else action
        obs, inner, *_ = core.step_env(step_key, inner, jnp.int32(last), PARAMS)
        state, timestep = env.step(key, state, jnp.int32(action))
        np.testing.assert_allclose(timestep.obs, obs, rtol=1e-5, atol=1e-6)
        assert bool(timestep.truncated) == (t >= 3)
        assert not timestep.terminated
    assert stuck


def test_what_a_wrapper_changes_is_learned_from():
    run = quick_jit(lambda: purerl.run(Doubled(CartPole()), Tiny(), key=jax.random.key(0), **SMALL))
    np.testing.assert_array_equal(run()[0].buffer.data["reward"], 2.0)


class OverriddenStep(CartPole):
    def step(self, key, state, action, params=None):
        obs, state, reward, *rest = super().step(key, state, action, params)
        return obs, state, 2.0 * reward, *rest


class OverriddenReset(CartPole):
    def reset(self, key, params=None):
        obs, state = super().reset(key, params)
        return obs + 1.0, state


class OwnReset(GymnaxWrapper):
    def step(self, key, state, action, params=None):
        _, state, reward, terminated, info = self._env.step_env(key, state, action, params)
        obs, state = self._env.reset_env(key, params)
        return obs, state, reward, terminated, jnp.bool_(False), info


class Seven(GymnaxWrapper):
    def step(self, key, state, action, params=None):
        return (*self._env.step(key, state, action, params), 7)


class RawDoubled(GymnaxWrapper):
    def step_env(self, key, state, action, params):
        obs, state, reward, *rest = self._env.step_env(key, state, action, params)
        return obs, state, 2.0 * reward, *rest


class Uncalled(GymnaxWrapper):
    """The environment inside calls its own `get_obs`."""

    def get_obs(self, state, params=None, key=None):
        return 2.0 * self._env.get_obs(state, params, key)


class Undying(Doubled):
    def is_terminated(self, state, params):
        return jnp.bool_(False)


class Narrow(Positions):
    def observation_space(self, params):
        return self._env.observation_space(params)


class Failing(GymnaxWrapper):
    def step(self, key, state, action, params=None):
        raise RuntimeError("out of order")


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (OverriddenStep(), "Override step_env in place of step"),
        (OverriddenReset(), "Override reset_env in place of reset"),
        (LogWrapper(OverriddenStep()), "OverriddenStep overrides step, but not step_env"),
        (OwnReset(CartPole()), r"OwnReset\(CartPole-v1\) resets in its own step"),
        (Uncalled(CartPole()), "Uncalled overrides get_obs, which nothing in CartPole-v1 calls"),
        (Undying(CartPole()), "Undying overrides is_terminated, which nothing in Undying"),
        (RawDoubled(Doubled(CartPole())), "Doubled overrides step, which nothing in CartPole-v1"),
        (
            RawDoubled(StickyActionWrapper(CartPole(), 1.0)),
            "RawDoubled overrides step_env, which nothing in RawDoubled.Sticky",
        ),
        (
            Narrow(CartPole()),
            r"observations have shape \(2,\), and the observation_space has \(4,\)",
        ),
        (Seven(CartPole()), "Seven.step returns 7 values, expected"),
        (Failing(CartPole()), "can't be traced: RuntimeError in test_gymnax.py.*out of order"),
    ],
)
def test_what_cannot_be_run_is_refused(env, message):
    with pytest.raises(purerl.ConfigError, match=message):
        purerl.TrainConfig(env=env)


class Old(CartPole):
    """As environments were written for gymnax before 1.0."""

    def is_terminal(self, state, params):
        done = self.is_terminated(state, params)
        return jnp.logical_or(done, state.time >= params.max_steps_in_episode)


class OldOnPurpose(Old):
    def is_truncated(self, state, params):
        return jnp.bool_(False)


class New(CartPole):
    """As they are written now."""

    def is_terminated(self, state, params):
        return super().is_terminated(state, params) | (state.x > 1.0)


def test_an_old_time_limit_is_told():
    for env in (Old(), LogWrapper(Old()), (Old(), EnvParams(max_steps_in_episode=7))):
        with pytest.warns(UserWarning, match="takes its time limit for a death.*Old.is_terminal"):
            as_env(env)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for env in (OldOnPurpose(), New(), LogWrapper(New()), LegacyStepAPIWrapper(New())):
            as_env(env)


class Nested(CartPole):
    """Observations of several parts, categories among them."""

    def observation_space(self, params):
        pair = spaces.Tuple((spaces.Discrete(2), spaces.Box(-5.0, 5.0, (2,))))
        return spaces.Dict({"pair": pair, "side": spaces.Discrete(3)})

    def get_obs(self, state, params=None, key=None):
        pair = (jnp.int32(state.x > 0), jnp.stack([state.x, state.theta]))
        return {"pair": pair, "side": 1 + jnp.int32(state.theta > 0)}


def test_categories_inside_observations_are_one_hot():
    env = as_env(Nested())
    space = {"pair": (Box(0, 1, (2,)), Box(-5, 5, (2,))), "side": Box(0, 1, (3,))}
    assert env.spec.observation_space == space
    obs, state = env.reset(jax.random.key(0))
    timestep = env.step(jax.random.key(0), state, jnp.int32(0))[1]
    for seen in (obs, timestep.obs):
        category, numbers = seen["pair"]
        np.testing.assert_array_equal(category, np.eye(2)[int(numbers[0] > 0)])
        np.testing.assert_array_equal(seen["side"], np.eye(3)[1 + int(numbers[1] > 0)])
    config = purerl.TrainConfig(env=Nested(), agent=purerl.PPO(), total_timesteps=1024)
    jax.eval_shape(purerl.make_train(config), jax.random.key(0))


NAMES = ["CartPole-v1", "Pendulum-v1", "MountainCar-v0", "DeepSea-bsuite", "FourRooms-misc"]


@pytest.mark.parametrize("name", mostly_slow(NAMES, NAMES[:4], slow=()))
def test_a_config_may_be_made_under_jit(name):
    def by_run(key):
        return purerl.run(name, Tiny(), key=key, **SMALL)[1]

    def by_config(key):
        return purerl.make_train(purerl.TrainConfig(env=name, agent=Tiny(), **SMALL))(key).metrics

    for made_inside in (by_run, by_config, lambda key: jax.vmap(by_run)(jax.random.split(key, 2))):
        with jax.checking_leaks():
            jax.eval_shape(made_inside, jax.random.key(0))
    pickle.loads(pickle.dumps(purerl.make(name).spec))  # which no tracer can be


def test_a_run_made_under_jit_is_the_run():
    def run(key):
        return purerl.run("CartPole-v1", Tiny(), key=key, **SMALL)[0].rollout.env.obs

    config = purerl.TrainConfig(env="CartPole-v1", agent=Tiny(), **SMALL)
    key = jax.random.key(3)
    expected = quick_jit(lambda key: purerl.make_train(config)(key).state.rollout.env.obs)(key)
    np.testing.assert_array_equal(quick_jit(run)(key), expected)


def test_parameters_may_be_mapped_over():
    def run(gravity):
        env = (CartPole(), EnvParams(gravity=gravity, max_steps_in_episode=5))
        return purerl.run(env, Tiny(), key=jax.random.key(0), **SMALL)[0].rollout.env.obs

    gravities = jnp.array([1.0, 9.8, 30.0])
    together = quick_jit(jax.vmap(run))(gravities)
    for gravity, seen in zip(gravities.tolist(), together, strict=True):
        np.testing.assert_allclose(seen, quick_jit(lambda g=gravity: run(g))(), rtol=1e-5)
    assert len(np.unique(together[..., 3])) == 6  # how fast the poles fall

    def spec(params):
        seen.append(as_env((gymnax.make("Pendulum-v1")[0], params)).spec)
        return 0

    seen = []
    default = gymnax.make("Pendulum-v1")[1]
    jax.vmap(spec)(jax.tree.map(lambda x: jnp.stack([x, 2 * x]), default))
    # Bounds of the default parameters; a limit that is traced isn't known.
    assert seen[0] == purerl.make("Pendulum-v1").spec._replace(max_episode_steps=None)


def test_a_users_wrapper_may_inherit_from_gymnaxs_base_class():
    """What it has from there alone, nobody has written to be called."""
    from gymnax.environments.environment import Environment

    class Doubled(Environment):
        def __init__(self):
            self.inner = CartPole()

        default_params = property(lambda self: self.inner.default_params)

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def reset_env(self, key, params):
            return self.inner.reset_env(key, params)

        def step_env(self, key, state, action, params):
            obs, state, reward, *rest = self.inner.step_env(key, state, action, params)
            return obs, state, 2.0 * reward, *rest

        def is_truncated(self, state, params):
            return self.inner.is_truncated(state, params)

        def observation_space(self, params):
            return self.inner.observation_space(params)

        def action_space(self, params=None):
            return self.inner.action_space(params)

    env = as_env(Doubled())
    obs, state = env.reset(jax.random.key(0))
    assert env.step(obs, state, 0)[1].reward == 2.0
