import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.environments import pytree_env, reward_forever, target_env, walk
from kit.quick import mostly_slow

import purerl
from purerl.envs import (
    Box,
    Discrete,
    Env,
    EnvError,
    EnvSpec,
    MultiDiscrete,
    TimeStep,
    as_env,
    auto_reset,
)
from purerl.envs.gymnax import NEEDS_DOWNLOAD, names

ALL = [name for name in names() if name not in NEEDS_DOWNLOAD]


def test_gymnax_has_the_environments_that_we_know():
    assert len(ALL) == 25
    assert set(ALL) <= set(purerl.env_names())


# Of MinAtar's games, which take long to compile, one is in the default suite.
QUICK = [x for x in ALL if not x.endswith("-MinAtar") or x.startswith("Breakout")]


@pytest.mark.parametrize("name", mostly_slow(ALL, QUICK))
@pytest.mark.filterwarnings("ignore:step. all 8 episodes were terminated after:UserWarning")
def test_every_gymnax_environment_keeps_the_contract(name):
    purerl.check_env(name)


def test_an_environment_that_wants_a_download_says_so():
    with pytest.raises(
        purerl.ConfigError, match=r"MNISTBandit-bsuite.*wants to download a data set"
    ):
        purerl.make("MNISTBandit-bsuite")


def test_what_environments_leave_loose_is_put_right():
    lake = purerl.make("FrozenLake-misc")
    obs, _ = lake.reset(jax.random.key(0))
    assert lake.spec.observation_space == Box(0.0, 1.0, (16,))
    np.testing.assert_array_equal(obs, np.eye(16)[0])
    assert purerl.make("Catch-bsuite").spec.observation_space.dtype == np.float32
    assert purerl.make("FourRooms-misc").spec.observation_space.dtype == np.int32
    assert purerl.make("Pong-misc").spec.observation_space.shape == (30, 40, 3)


def play(env, key, num_steps, action=None):
    """Steps of one auto-resetting environment, stacked."""
    reset_key, step_key, action_key = jax.random.split(key, 3)

    def step(state, keys):
        chosen = env.spec.action_space.sample(keys[1]) if action is None else action
        before = state.obs
        state, timestep = env.step(keys[0], state, chosen)
        return state, (before, timestep, state.obs)

    keys = jax.random.split(step_key, num_steps), jax.random.split(action_key, num_steps)
    _, state = env.reset(reset_key)
    return jax.lax.scan(step, state, keys)[1]


def test_deep_sea_terminates_and_is_not_truncated():
    env = auto_reset(purerl.make("DeepSea-bsuite"))
    _, timestep, _ = play(env, jax.random.key(0), 24)
    np.testing.assert_array_equal(np.flatnonzero(timestep.terminated), [7, 15, 23])
    assert not timestep.truncated.any()


def test_cartpole_is_truncated_at_its_own_limit():
    env = purerl.make("Pendulum-v1")
    _, timestep, _ = play(auto_reset(env), jax.random.key(0), 400)
    np.testing.assert_array_equal(np.flatnonzero(timestep.truncated), [199, 399])
    assert not timestep.terminated.any()


def test_gymnax_cartpole_moves_as_gymnasium_does():
    ours = purerl.make("CartPole-v1")
    theirs = gymnasium.make("CartPole-v1")
    theirs.reset(seed=0)
    obs, state = ours.reset(jax.random.key(0))
    theirs.unwrapped.state = np.asarray(obs, np.float64)
    step = jax.jit(ours.step)
    for t in range(200):
        action = t % 3 % 2
        state, timestep = step(jax.random.key(t), state, jnp.int32(action))
        expected, reward, terminated, _, _ = theirs.step(action)
        np.testing.assert_allclose(timestep.obs, expected, rtol=1e-3, atol=1e-4)
        assert float(timestep.reward) == reward
        assert bool(timestep.terminated) == terminated
        if terminated:
            return
    pytest.fail("the pole never fell")


def test_auto_reset_keeps_the_successor_and_acts_on_every_start():
    before, timestep, after = play(auto_reset(walk(3)), jax.random.key(0), 30)
    names, times = before[:, 0], before[:, 1]
    done = np.asarray(timestep.terminated)
    np.testing.assert_array_equal(np.flatnonzero(done), np.arange(2, 30, 3))
    # The true successor belongs to the episode that ended: its name, and its last time.
    np.testing.assert_array_equal(timestep.obs[:, 0], names)
    np.testing.assert_array_equal(timestep.obs[done, 1], 3.0)
    # The next thing acted on is what the state holds: time 0 of an episode never seen before.
    np.testing.assert_array_equal(before[1:], after[:-1])
    np.testing.assert_array_equal(times, np.arange(30) % 3)
    assert len(np.unique(names)) == 10


def test_environments_that_end_together_start_apart():
    env = purerl.vectorize(auto_reset(walk(3)))
    _, state = env.reset(jax.random.split(jax.random.key(0), 64))
    seen = [state.obs[:, 0]]
    for t in range(1, 7):
        keys = jax.random.split(jax.random.key(t), 64)
        state, timestep = env.step(keys, state, jnp.zeros(64, jnp.int32))
        if timestep.terminated.all():
            seen.append(state.obs[:, 0])
    assert len(seen) == 3
    assert len(np.unique(np.concatenate(seen))) == 3 * 64


def test_vectorized_is_each_alone():
    env = purerl.make("CartPole-v1")
    keys = jax.random.split(jax.random.key(0), 5)
    obs, state = purerl.vectorize(env).reset(keys)
    _, timestep = purerl.vectorize(env).step(keys, state, jnp.ones(5, jnp.int32))
    for i in range(5):
        alone, alone_state = env.reset(keys[i])
        np.testing.assert_allclose(obs[i], alone, rtol=1e-6)
        _, one = env.step(keys[i], alone_state, jnp.int32(1))
        np.testing.assert_allclose(timestep.obs[i], one.obs, rtol=1e-5, atol=1e-6)


def test_time_limit_truncates_and_a_death_at_the_limit_is_a_death():
    _, cut, _ = play(auto_reset(walk(5, limit=2)), jax.random.key(0), 6)
    np.testing.assert_array_equal(np.flatnonzero(cut.truncated), [1, 3, 5])
    assert not cut.terminated.any()
    _, died, _ = play(auto_reset(walk(2, limit=2)), jax.random.key(0), 6)
    np.testing.assert_array_equal(np.flatnonzero(died.terminated), [1, 3, 5])
    assert not died.truncated.any()
    assert walk(5, limit=2).spec.max_episode_steps == 2


def test_action_repeat_sums_rewards_and_stops_at_the_end():
    env = purerl.action_repeat(walk(5), 3)
    _, timestep, after = play(auto_reset(env), jax.random.key(0), 4)
    # Times 1 + 2 + 3, then 4 + 5 and the end, with no step into the next episode.
    np.testing.assert_array_equal(timestep.reward, [6.0, 9.0, 6.0, 9.0])
    np.testing.assert_array_equal(timestep.terminated, [False, True, False, True])
    np.testing.assert_array_equal(timestep.obs[:, 1], [3.0, 5.0, 3.0, 5.0])
    np.testing.assert_array_equal(after[:, 1], [3.0, 0.0, 3.0, 0.0])
    assert purerl.action_repeat(reward_forever(10), 4).spec.max_episode_steps == 3


def test_users_own_environments():
    import gymnax
    from gymnax.environments.classic_control.cartpole import CartPole, EnvParams

    class Mine(CartPole):
        """A user's environment that differs in its name."""

        @property
        def name(self):
            return "Mine"

    assert as_env(Mine()).spec.name == "Mine"
    assert as_env((Mine(), EnvParams(max_steps_in_episode=7))).spec.max_episode_steps == 7
    assert as_env(gymnax.make("CartPole-v1")[0]).spec == purerl.make("CartPole-v1").spec
    own = walk(3)
    assert as_env(own) is own
    for wrong in (3, None, int, ("CartPole-v1", 3)):
        with pytest.raises(purerl.ConfigError, match=r"expected a name, a purerl\.Env"):
            as_env(wrong)


def test_register():
    purerl.register("walk-3", lambda length=3: walk(length))
    assert purerl.make("walk-3").spec.name == "walk"
    assert "walk-3" in purerl.env_names()
    with pytest.raises(purerl.ConfigError, match="exists already"):
        purerl.register("walk-3", walk)
    with pytest.raises(purerl.ConfigError, match="exists already"):
        purerl.register("CartPole-v1", walk)
    with pytest.raises(purerl.ConfigError, match="did you mean 'walk-3'"):
        purerl.make("walk3")


@pytest.mark.parametrize("env", [reward_forever(), walk(), walk(5, limit=3), target_env()])
def test_the_small_ones_keep_the_contract(env):
    purerl.check_env(env)
    purerl.check_env(purerl.action_repeat(env, 2))


def test_pytree_observations_keep_the_contract():
    purerl.check_env(pytree_env())


def test_specs_with_dicts_are_hashable():
    one, other = pytree_env().spec, pytree_env().spec
    assert one == other
    assert hash(one) == hash(other)
    assert len({one, other, one._replace(max_episode_steps=3), walk(3).spec}) == 3


def broken(**changes):
    """`walk` with one thing wrong."""
    base = walk(3)
    spec = base.spec._replace(**changes.pop("spec", {}))

    def reset(key):
        obs, state = base.reset(key)
        return changes.get("obs", lambda x: x)(obs), state

    def step(key, state, action):
        new, timestep = base.step(key, state, action)
        timestep = changes.get("timestep", lambda t: t)(timestep)
        return changes.get("state", lambda s: s)(new), timestep

    return Env(changes.get("reset", reset), changes.get("step", step), spec)


calls = []


def impure(timestep):
    calls.append(1)
    return timestep._replace(reward=timestep.reward + len(calls))


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (broken(obs=lambda x: x[:1]), r"reset: the observation has shape \(1,\)"),
        (broken(timestep=lambda t: t._replace(obs=t.obs[:1])), "step: the observation has shape"),
        (broken(timestep=lambda t: t._replace(reward=jnp.int32(1))), "the reward has .*int32"),
        (broken(timestep=lambda t: t._replace(reward=1.0)), "the reward is a float"),
        (broken(timestep=lambda t: t._replace(reward=jnp.ones(1))), r"the reward has shape \(1,\)"),
        (broken(timestep=lambda t: t._replace(terminated=jnp.float32(0))), "terminated has"),
        (broken(timestep=lambda t: t._replace(truncated=t.terminated)), "set together"),
        (broken(timestep=lambda t: t._replace(reward=jnp.float32(jnp.nan))), "not finite"),
        (broken(timestep=lambda t: t._replace(info=None)), "info must be a dict"),
        (broken(timestep=lambda t: t._replace(obs=-t.obs)), "outside Box"),
        (broken(timestep=impure), "another result"),
        (broken(state=lambda s: s._replace(time=s.time.astype(jnp.float32))), r"\.time has shape"),
        (broken(state=lambda s: (s,)), "reset's state is"),
        (broken(step=lambda key, state, action: (state, 3)), "must return"),
        (broken(step=lambda key, state, action: (state, float(action))), "can't be traced"),
        (broken(reset=lambda key: jnp.ones(2)), "must return"),
        (broken(spec={"max_episode_steps": 2}), "an episode took"),
        (broken(spec={"max_episode_steps": 0}), "expected a positive integer"),
        (broken(spec={"action_space": 2}), "expected Discrete, MultiDiscrete or Box"),
        (broken(spec={"observation_space": None}), "expected a space"),
        (
            purerl.time_limit(walk(5), 2)._replace(spec=walk(5, limit=4).spec),
            "truncated after 2 steps",
        ),
    ],
)
def test_check_env_finds(env, message):
    with pytest.raises(EnvError, match=message):
        purerl.check_env(env)


def keyed_env(*, step_key=lambda key: jax.random.split(key)[0]):
    """`walk` with a typed key in its state, from which it draws."""
    base = walk(3)

    def reset(key):
        obs, state = base.reset(key)
        return obs, (state, key)

    def step(key, state, action):
        new, timestep = base.step(state[1], state[0], action)
        reward = jax.random.uniform(state[1])
        return (new, step_key(state[1])), timestep._replace(reward=reward)

    return Env(reset, step, base.spec)


def test_a_typed_key_in_the_state():
    purerl.check_env(keyed_env())
    purerl.TrainConfig(keyed_env())
    raw = keyed_env(step_key=jax.random.key_data)
    with pytest.raises(
        EnvError, match=r"env_state\[1\] has shape \(2,\) and dtype uint32, expected .*key"
    ):
        purerl.check_env(raw)


@pytest.mark.parametrize(
    ("cut", "message"), [(399, "truncated after 399 steps"), (401, "more than 400")]
)
def test_time_limits_are_played_out(cut, message):
    def limited(limit):
        return reward_forever(limit)._replace(spec=reward_forever(400).spec)

    purerl.check_env(limited(400))
    with pytest.raises(EnvError, match=message):
        purerl.check_env(limited(cut))
    purerl.check_env(limited(cut), num_steps=300)  # as far as it was asked to look
    purerl.check_env(limited(cut), quick=True)


def test_a_time_limit_that_may_be_taken_for_a_death_is_warned_of():
    def dying(limit):
        return walk(3)._replace(spec=walk(3).spec._replace(max_episode_steps=limit))

    with pytest.warns(UserWarning, match="all 8 episodes were terminated after 3 steps"):
        purerl.check_env(dying(3))
    with pytest.warns(UserWarning, match="none was truncated"):  # where the task ends as well
        purerl.check_env(purerl.make("DeepSea-bsuite", size=2))
    purerl.check_env(dying(4))  # they end before
    purerl.check_env(dying(3), num_steps=2)


@pytest.fixture
def compilations(monkeypatch):
    """What is compiled, whether it is in JAX's cache or not."""
    from jax._src import compiler

    seen, compile_it = [], compiler.compile_or_get_cached

    def counted(*args, **kwargs):
        seen.append(args)
        return compile_it(*args, **kwargs)

    monkeypatch.setattr(compiler, "compile_or_get_cached", counted)
    return seen


def test_one_program_is_compiled_and_none_by_the_quick_form(compilations, key):
    env = pytree_env()
    purerl.check_env(env, key, quick=True)
    assert not compilations
    purerl.check_env(env, key)
    assert len(compilations) == 1


def test_what_the_host_does_is_run_twice():
    calls = []

    def count(reward):
        calls.append(1)
        return np.float32(len(calls))

    def timestep(t):
        like = jax.ShapeDtypeStruct((), jnp.float32)
        return t._replace(reward=jax.pure_callback(count, like, t.reward, vmap_method="sequential"))

    with pytest.raises(EnvError, match="the same key gave another result"):
        purerl.check_env(broken(timestep=timestep))


def test_foreign_spaces_become_ours():
    spaces = gymnasium.spaces
    theirs = spaces.Dict(
        a=spaces.Box(0.0, 1.0, (1,)),
        b=spaces.Tuple([spaces.Discrete(3), spaces.MultiDiscrete([2, 4]), spaces.MultiBinary(3)]),
    )
    parts = (Discrete(3), MultiDiscrete((2, 4)), MultiDiscrete((2, 2, 2)))
    ours = {"a": Box(0.0, 1.0, (1,)), "b": parts}
    spec = EnvSpec("theirs", theirs, spaces.Discrete(2))
    assert as_env(walk(3)._replace(spec=spec)).spec == EnvSpec("theirs", ours, Discrete(2))
    base = target_env()
    spec = EnvSpec("theirs", spaces.Box(0.0, 1.0, (1,)), spaces.Box(-2.0, 2.0, (1,)))
    env = base._replace(spec=spec)
    purerl.check_env(env)
    vectors = jax.eval_shape(purerl.vectorize(env).reset, jax.random.split(jax.random.key(0), 4))
    assert vectors[0].shape == (4, 1)
    config = purerl.TrainConfig(purerl.time_limit(env, 5), purerl.PPO())
    assert config.env.spec.action_space == Box(-2.0, 2.0, (1,))
    config = purerl.TrainConfig(env, purerl.PPO())
    assert config.env.spec == base.spec._replace(name="theirs")


def test_an_environment_is_traced_once_however_many_configs_are_made_of_it(compilations):
    traced = []
    base = walk(3)

    def step(key, state, action):
        traced.append(1)
        return base.step(key, state, action)

    config = purerl.TrainConfig(base._replace(step=step))
    assert len(traced) == 1
    config.replace(num_envs=4).replace(agent=purerl.PPO(lr=0.1))
    purerl.TrainConfig(config.env, purerl.PPO())
    assert len(traced) == 1
    assert not compilations
    # What is another environment is traced.
    purerl.TrainConfig(config.env._replace(spec=config.env.spec._replace(name="other")))
    assert len(traced) == 2


def test_spaces():
    assert Discrete(3) == Discrete(3) != Discrete(4)
    assert Box(-1, 1, (2,)) == Box([-1, -1], [1, 1])
    assert hash(Box(-1, 1, (2,))) == hash(Box([-1, -1], [1, 1]))
    assert Box(-1, 1, (2,)) != Box(-1, 2, (2,))
    assert repr(Box(-1, 1, (2,))) == "Box(-1, 1, (2,))"
    assert Box(-1, 1, (2,)).bounded
    assert not Box(-np.inf, 1, (2,)).bounded
    assert Discrete(3).contains(np.int32(2))
    assert not Discrete(3).contains(np.int32(3))
    assert not Discrete(3).contains(2.0)
    for space in (Discrete(5), Box(-2, 3, (2, 2)), Box(-np.inf, 1.0, (3,)), Box(0, 9, (2,), int)):
        for i in range(20):
            assert space.contains(space.sample(jax.random.key(i)))
    with pytest.raises(ValueError, match="Discrete"):
        Discrete(0)
    with pytest.raises(ValueError, match="not below"):
        Box(1, -1, (2,))


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(0, 1, bool), (0, 255, "uint8"), (-128, 127, "int8"), (0, 9, "int16"), (-1.5, 2.5, "int32")],
)
def test_integers_and_booleans_are_drawn_over_their_whole_range(low, high, dtype):
    space = Box(low, high, (2000,), dtype)
    drawn = np.asarray(space.sample(jax.random.key(0)))
    assert space.contains(drawn)
    values = np.arange(np.ceil(low), np.floor(high) + 1)
    assert set(drawn.astype(int)) >= {int(values[0]), int(values[-1])}
    np.testing.assert_allclose(drawn.astype(float).mean(), values.mean(), atol=values.std() / 8)


def test_the_largest_integers_are_drawn_too():
    drawn = Box(-(2**31), 2**31 - 1, (2000,), "int32").sample(jax.random.key(0))
    assert drawn.min() < -(2**30)
    assert drawn.max() > 2**30


def test_time_step_fields():
    assert TimeStep._fields == ("obs", "reward", "terminated", "truncated", "info")
