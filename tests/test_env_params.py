"""Parameters of an environment: by name, in files, as hyperparameters, drawn for each episode."""

import argparse
import json
import pickle
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments.bsuite.deep_sea import DeepSea
from gymnax.environments.classic_control.cartpole import CartPole, EnvParams
from kit.agents import Tiny
from kit.environments import walk
from kit.quick import quick_jit

import purerl
from purerl.cli import main, playing
from purerl.cli.playing import Chosen, environment
from purerl.envs import Box, Discrete, Env, EnvSource, EnvSpec, TimeStep, as_env
from purerl.envs.base import dynamics_of
from purerl.envs.params import followed, replace_params, rules_of
from purerl.envs.registry import plain_env, source_of, with_params
from purerl.records.toml import to_toml
from purerl.runs.view import RunView, read_toml
from purerl.sweeps.plan import make_plan
from purerl.training.describe import describe
from purerl.training.train import program_key

pytestmark = pytest.mark.usefixtures("quick_programs")

SMALL = {"agent": Tiny(), "num_envs": 2, "update_every": 4, "total_timesteps": 16}
STEPS = 2


class Fall(NamedTuple):
    time: jax.Array


def make_fall(gravity=9.8, steps=STEPS, *, sign="+", weights=(1.0, 1.0)):
    """Episodes whose return is `steps * gravity`, in the sign's direction."""

    def reset(key):
        return jnp.zeros(1), Fall(jnp.int32(0))

    def step(key, state, action):
        time = state.time + 1
        reward = gravity * (1.0 if sign == "+" else -1.0) * weights[0]
        obs = jnp.full(1, time, jnp.float32)
        info = {"fallen": gravity * time}
        return Fall(time), TimeStep(obs, reward, time >= steps, jnp.bool_(False), info)

    spec = EnvSpec("fall", Box(0.0, 99.0, (1,)), Discrete(2), metrics=("fallen",))
    return Env(reset, step, spec)


@pytest.fixture(scope="module", autouse=True)
def fall():
    purerl.register("fall", make_fall)


LIGHT = (CartPole(), EnvParams(gravity=1.0))


def params_of(env):
    """Of the gymnax environment inside."""
    dynamics = dynamics_of(as_env(env))
    while not hasattr(dynamics, "given"):
        dynamics = dynamics_of(dynamics.env)
    return dynamics.given


def written(config):
    """The config as it comes back from a file."""
    mapping = config.to_mapping()
    return purerl.TrainConfig.from_mapping(json.loads(json.dumps(mapping)))


@pytest.mark.parametrize(
    ("env", "plain"),
    [
        (LIGHT, {"name": "CartPole-v1", "gravity": 1.0}),
        ((CartPole, EnvParams(gravity=1.0)), {"name": "CartPole-v1", "gravity": 1.0}),
        (purerl.gymnax_env(*LIGHT), {"name": "CartPole-v1", "gravity": 1.0}),
        ((CartPole(), EnvParams()), "CartPole-v1"),
        (CartPole, "CartPole-v1"),
        ({"name": "CartPole-v1", "gravity": 9.8}, "CartPole-v1"),
        (
            {"name": "CartPole-v1", "max_steps_in_episode": 7, "gravity": 2},
            {"name": "CartPole-v1", "gravity": 2.0, "max_steps_in_episode": 7},
        ),
        (DeepSea(size=5), {"name": "DeepSea-bsuite", "size": 5}),
        (
            {"name": "Acrobot-v1", "available_torque": [-2, 0, 2]},
            {"name": "Acrobot-v1", "available_torque": [-2.0, 0.0, 2.0]},
        ),
        ({"name": "fall", "sign": "-"}, {"name": "fall", "sign": "-"}),
        ({"name": "fall", "weights": [2.0, 3]}, {"name": "fall", "weights": [2.0, 3]}),
        (
            purerl.randomize("CartPole-v1", gravity=(4.9, 9.8)),
            {"name": "CartPole-v1", "gravity": "uniform(4.9, 9.8)"},
        ),
    ],
)
def test_an_environment_comes_back_from_a_file_with_its_parameters(env, plain, tmp_path):
    config = purerl.TrainConfig(env=env, **SMALL | {"agent": purerl.PPO(hidden=(4,))})
    assert config.to_mapping()["env"] == plain
    file = tmp_path / "config.toml"
    file.write_text(to_toml(config.to_mapping()))
    back = purerl.TrainConfig.from_mapping(read_toml(file))
    assert source_of(back.env) == source_of(config.env)
    assert back.env.spec == config.env.spec
    if not isinstance(env, Env):  # of `gymnax_env`, which knows no constructor
        assert purerl.env_params(back.env).keys() == purerl.env_params(config.env).keys()
    if back.env.spec.name != "fall":  # whose functions are local ones
        assert pickle.loads(pickle.dumps(back.env)).spec == back.env.spec

    def step(env):
        state = env.reset(jax.random.key(1))[1]
        return env.step(jax.random.key(0), state, jnp.int32(1))[1].obs

    np.testing.assert_array_equal(step(as_env(env)), step(back.env))


def test_parameters_are_those_of_the_dynamics():
    assert params_of(purerl.make("CartPole-v1", gravity=1)).gravity == 1.0
    assert params_of(written(purerl.TrainConfig(env=LIGHT, agent=purerl.PPO())).env).gravity == 1.0
    assert purerl.make("CartPole-v1", max_steps_in_episode=7).spec.max_episode_steps == 7
    assert purerl.make("Pendulum-v1", max_torque=1.0).spec.action_space == Box(-1.0, 1.0, (1,))
    assert purerl.make("DeepSea-bsuite", size=5).spec.max_episode_steps == 5
    known = purerl.env_params(purerl.make("fall", gravity=2.0))
    assert known == {"gravity": 2.0, "steps": STEPS, "sign": "+", "weights": (1.0, 1.0)}
    assert purerl.env_params(walk()) == {}
    obs, state = purerl.make("fall", gravity=2.0).reset(jax.random.key(0))
    assert purerl.make("fall", gravity=2.0).step(obs, state, 0)[1].reward == 2.0


def test_a_gymnax_environment_that_no_name_makes_has_no_source():
    class Mine(CartPole):
        pass

    changed = CartPole()
    changed.obs_shape = (5,)
    many = DeepSea(action_mapping_key=jax.random.key(3))
    for env in (Mine(), changed, many):
        made = as_env(env)
        assert made.spec.source is source_of(made) is None
    assert purerl.gymnax_env(*LIGHT, name="light").spec.source is None
    # Traced parameters have no plain form either.
    seen = []
    jax.eval_shape(
        lambda g: seen.append(as_env((CartPole(), EnvParams(gravity=g))).spec.source) or g, 1.0
    )
    assert seen == [None]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: purerl.make("CartPole-v1", gravty=1), "no parameter 'gravty'; did you mean 'grav"),
        (lambda: purerl.make("fall", gravty=1), "fall has no parameter 'gravty'; did you mean"),
        (lambda: purerl.make("CartPole-v1", gravity="low"), r"env\.gravity: got 'low', expected a"),
        (lambda: purerl.make("CartPole-v1", gravity=True), r"env\.gravity: got True, expected a f"),
        (lambda: purerl.make("CartPole-v1", gravity=None), r"env\.gravity: got None, expected a f"),
        (lambda: purerl.make("CartPole-v1", gravity=np.nan), r"env\.gravity: got nan, expected"),
        (lambda: purerl.make("CartPole-v1", gravity="unifrom(1, 2)"), "did you mean 'uniform'"),
        (lambda: purerl.make("CartPole-v1", gravity="uniform(2, 1)"), "expected .*low < high"),
        (lambda: purerl.make("CartPole-v1", max_steps_in_episode=1.5), "expected an integer"),
        (lambda: purerl.make("DeepSea-bsuite", deterministic=1), "got 1, expected True or False"),
        (lambda: purerl.make("fall", sign=3), r"env\.sign: got 3, expected text"),
        (lambda: purerl.make("Acrobot-v1", available_torque=[1.0]), r"expected \(3,\)"),
        (lambda: as_env({"gravity": 1.0}), "expected a name and parameters"),
        (lambda: purerl.randomize("CartPole-v1"), "expected either a function, or ranges"),
        (lambda: purerl.randomize("CartPole-v1", gravity=3.0), "two bounds or a distribution"),
        (lambda: purerl.randomize("CartPole-v1", gravty=(1, 2)), "did you mean 'gravity'"),
        (lambda: purerl.randomize("Pendulum-v1", max_torque=(1, 2)), "spec of Pendulum-v1 follows"),
        (lambda: purerl.randomize("fall", steps=(1, 2)), "got Uniform.*expected an integer"),
        (lambda: purerl.randomize("Acrobot-v1", link_length_2=(1, 2)), "nothing in Acrobot-v1 dep"),
        (
            lambda: purerl.make("Acrobot-v1", link_length_2=2.0),
            r"env\.link_length_2: got 2\.0, but nothing in Acrobot-v1 depends on it",
        ),
        (
            lambda: purerl.make("SimpleBandit-bsuite", optimal_return=2.0),  # summed in the state
            r"env\.optimal_return: got 2\.0, but nothing in SimpleBandit-bsuite depends on it",
        ),
        (
            lambda: as_env((CartPole(), EnvParams(masscart=2.0))),  # with a total of its own
            r"env\.masscart: got 2\.0, but nothing in CartPole-v1 depends on it",
        ),
        (
            lambda: purerl.gymnax_env(CartPole(), EnvParams(masscart=2.0)),
            r"env\.masscart: got 2\.0, but nothing in CartPole-v1 depends on it",
        ),
        (lambda: purerl.randomize(walk(), gravity=(1, 2)), "no parameter 'gravity'; it has none"),
        (lambda: purerl.randomize("fall", lambda key: key), r"sample\(key\) gives"),
        (lambda: purerl.randomize("fall", lambda key: {"gravity": jnp.ones(2)}), "one number"),
        (lambda: purerl.randomize("fall", lambda key: {"g": 1.0 * key}), "can't be traced"),
    ],
)
def test_what_is_wrong_with_a_parameter_is_said(call, message):
    with pytest.raises(purerl.ConfigError, match=message):
        call()


def test_a_folder_is_of_one_environment(tmp_path):
    def fit(**params):
        config = purerl.TrainConfig(env={"name": "fall", **params}, **SMALL)
        return purerl.fit(config, tmp_path)

    fit(gravity=2.0)
    fit(gravity=2.0)
    with pytest.raises(purerl.ConfigError, match=r"gravity is 2\.0 there, got 9\.8"):
        fit()
    with pytest.raises(purerl.ConfigError, match=r"steps is 2 there, got 3"):
        fit(gravity=2.0, steps=3)
    cart = tmp_path / "cart"
    purerl.fit(purerl.TrainConfig(env=LIGHT, **SMALL), cart)
    with pytest.raises(purerl.ConfigError, match=r"params\.gravity is 1\.0 there, got 9\.8"):
        purerl.fit(purerl.TrainConfig(env="CartPole-v1", **SMALL), cart)
    # By a mapping and by a pair of gymnax's it is the same.
    purerl.fit(purerl.TrainConfig(env={"name": "CartPole-v1", "gravity": 1.0}, **SMALL), cart)


def returns_of(gravity):
    """By the definition of `make_fall`."""
    return STEPS * np.float32(gravity)


def test_parameters_are_hyperparameters():
    traced = []

    def make_counted(gravity=9.8):
        env = make_fall(gravity)

        def step(*args):
            traced.append(1)
            return env.step(*args)

        return env._replace(step=step)

    purerl.register("counted-fall", make_counted)
    train = purerl.make_train(purerl.TrainConfig(env="counted-fall", **SMALL))
    counts = []
    first = jnp.array([1.0, 2.0])  # when it is found out that it can be traced
    for gravities in (first, 2 * first, jnp.linspace(1.0, 7.0, 5)):
        del traced[:]
        both = jax.vmap(jax.vmap(train, (0, None)), (None, 0))
        keys = jax.random.split(jax.random.key(0), 3)
        out = quick_jit(both)(keys, {"env.gravity": gravities})
        counts.append(len(traced))
        expected = np.broadcast_to(returns_of(gravities)[:, None, None], (len(gravities), 3, 2))
        np.testing.assert_allclose(out.metrics.episode_return, expected)
        np.testing.assert_array_equal(out.env_params["gravity"][:, 0], gravities)
    assert counts[0] > counts[1] == counts[2]  # as often, for however many
    policy = out.member(1, 2).policy
    assert policy.spec.source == EnvSource("counted-fall", (("gravity", 2.5),))


def test_a_traced_parameter_trains_as_a_plain_one():
    options = SMALL | {"skip_frames": 2, "max_episode_steps": 3, "wait_end_path": True}
    config = purerl.TrainConfig(env="CartPole-v1", **options)
    alone = config.replace(env={"name": "CartPole-v1", "gravity": 3.0})

    def final(config, hyperparams):
        out = quick_jit(purerl.make_train(config))(jax.random.key(0), hyperparams)
        return np.asarray(out.state.rollout.env.obs)

    found = final(config, {"env.gravity": 3.0})
    np.testing.assert_allclose(found, final(alone, {}), rtol=1e-4)
    assert np.max(np.abs(found - final(config, {}))) > 1e-3


@pytest.mark.parametrize(
    ("env", "hyperparams", "message"),
    [
        ("CartPole-v1", {"env.gravty": 1.0}, "CartPole-v1 has no 'gravty'; did you mean 'env.grav"),
        ("CartPole-v1", {"env.max_steps_in_episode": 3}, "max_steps_in_episode is static, it fixe"),
        ("Pendulum-v1", {"env.max_torque": 1.0}, "spec of Pendulum-v1 follows from it"),
        ("CartPole-v1", {"env.gravity": jnp.ones(3)}, "shape .*give train its hyperparameters und"),
        ("CartPole-v1", {"env.gravity": "low"}, "got 'low', expected a float"),
        ("FrozenLake-misc", {"env.success_rate": 0.5}, "can't be traced with it"),
        ("Acrobot-v1", {"env.link_length_2": 1.0}, "nothing in Acrobot-v1 depends on it; expected"),
        ({"name": "fall", "gravity": "uniform(1, 2)"}, {"env.gravity": 1.0}, "drawn for every ep"),
        (walk(), {"env.gravity": 1.0}, "walk has no parameters"),
        ("fall", {"gravity": 1.0}, r"did you mean 'env\.gravity'"),
    ],
)
def test_what_is_wrong_with_a_hyperparameter_is_said(env, hyperparams, message):
    train = purerl.make_train(purerl.TrainConfig(env=env, **SMALL))
    with pytest.raises(purerl.ConfigError, match=message):
        jax.eval_shape(lambda: train(jax.random.key(0), hyperparams))


def test_a_parameter_without_effect_is_refused_only_where_it_is_given(capsys):
    """At its default it may be in a file of before."""
    purerl.make("Acrobot-v1", link_length_2=1.0)
    purerl.make("Acrobot-v1", link_length_1=2.0)
    config = purerl.TrainConfig(env={"name": "Acrobot-v1", "link_length_2": 1.0}, **SMALL)
    assert source_of(config.env) == EnvSource("Acrobot-v1")
    with pytest.raises(purerl.ConfigError, match="nothing in Acrobot-v1 depends on it"):
        purerl.sweep(config, seeds=1, grid={"env.link_length_2": [1.0, 2.0]})
    assert main(["envs", "Acrobot-v1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    notes = {line.split()[0]: line.split()[-1] for line in lines if "--env.link_length" in line}
    assert notes == {"--env.link_length_1": "hyperparameter", "--env.link_length_2": "effect"}

    def make_painted(gravity=1.0, unread=1.0, shade=1.0):
        env = make_fall(gravity)
        return env._replace(spec=env.spec._replace(draw=lambda state: shade)) if shade else env

    purerl.register("painted", make_painted)
    assert purerl.make("painted", shade=0.5).spec.draw(None) == 0.5
    with pytest.raises(purerl.ConfigError, match=r"env\.unread: got 2\.0, but nothing in fall"):
        purerl.make("painted", unread=2.0, shade=0.0)


def stepped(env):
    """The observation after two steps, from a tilted pole."""
    _, state = env.reset(jax.random.key(3))
    for action in (1, 0):
        state, timestep = env.step(jax.random.key(0), state, jnp.int32(action))
    return np.asarray(timestep.obs)


def test_masses_and_lengths_of_the_cart_pole_act_in_all_that_follows_from_them():
    values = {"masscart": 2.0, "length": 1.0}
    whole = {**values, "total_mass": 2.0 + 0.1, "polemass_length": 0.1 * 1.0}
    env = purerl.make("CartPole-v1", **values)
    np.testing.assert_array_equal(stepped(env), stepped(purerl.make("CartPole-v1", **whole)))
    assert source_of(env) == source_of(as_env((CartPole(), EnvParams(**whole))))

    def known(values):
        made = replace_params(purerl.make("CartPole-v1"), values)
        return {n: jnp.asarray(x) for n, x in purerl.env_params(made).items()}

    found = quick_jit(known)({n: jnp.float32(x) for n, x in values.items()})
    assert {n: float(found[n]) for n in whole} == pytest.approx(whole)
    drawn = purerl.make("CartPole-v1", masscart=purerl.Choice([2.0]))
    drawn = replace_params(drawn, {"length": 1.0})
    _, state = drawn.reset(jax.random.key(0))
    steps = [
        x.step(jax.random.key(0), y, jnp.int32(1))[1] for x, y in ((drawn, state), (env, state.env))
    ]
    np.testing.assert_allclose(steps[0].obs, steps[1].obs, rtol=1e-6)
    # The defaults keep their bits.
    usual = purerl.env_params(purerl.make("CartPole-v1"))
    same, _ = followed(usual, {n: np.float32(usual[n]) for n in values}, rules_of(usual))
    assert {n: np.float32(x) for n, x in same.items()} == {n: np.float32(usual[n]) for n in same}


def test_what_is_given_itself_does_not_follow():
    env = purerl.make("CartPole-v1", total_mass=3.0)
    for other in (
        replace_params(env, {"masspole": 0.2}),
        with_params(env, {"masspole": 0.2}),
        replace_params(replace_params(purerl.make("CartPole-v1"), {"total_mass": 3.0}),
                       {"masspole": 0.2}),
    ):  # fmt: skip
        values = purerl.env_params(other)
        assert values["total_mass"] == 3.0
        assert values["polemass_length"] == pytest.approx(0.2 * 0.5)
    # In files too: a default that doesn't follow is given.
    pair = as_env((CartPole(), EnvParams(masspole=0.2)))
    plain = {"name": "CartPole-v1", "masspole": 0.2, "polemass_length": 0.05, "total_mass": 1.1}
    assert plain_env(pair) == plain
    np.testing.assert_array_equal(stepped(as_env(plain)), stepped(pair))
    assert plain_env(purerl.make("CartPole-v1", masspole=0.2)) == {
        "name": "CartPole-v1", "masspole": 0.2,
    }  # fmt: skip


def make_two(a=1.0, b=2.0):
    """The reward is `b`, and `a` is in the info."""
    env = make_fall(b)

    def step(key, state, action):
        state, timestep = env.step(key, state, action)
        return state, timestep._replace(info={"fallen": jnp.float32(a)})

    return env._replace(step=step)


def test_what_is_replaced_stays_so():
    purerl.register("two", make_two)

    def outcome(env):
        _, timestep = env.step(jax.random.key(0), env.reset(jax.random.key(0))[1], jnp.int32(0))
        return float(timestep.info["fallen"]), float(timestep.reward)

    env = purerl.make("two")
    both = replace_params(replace_params(env, {"a": 5.0}), {"b": 7.0})
    assert outcome(both) == (5.0, 7.0)
    assert purerl.env_params(both) == {"a": 5.0, "b": 7.0}
    assert outcome(with_params(both, {"a": 6.0})) == (6.0, 7.0)
    drawn = replace_params(purerl.randomize("two", a=(10.0, 20.0)), {"b": 7.0})
    a, b = outcome(drawn)
    assert 10.0 <= a <= 20.0
    assert b == 7.0
    again, b = outcome(purerl.randomize(both, a=(10.0, 20.0)))
    assert (again, b) == (a, 7.0)


def test_an_environment_with_another_spec_is_of_no_call_of_make():
    def only_left(obs):
        return jnp.array([True, False])

    env, options = purerl.make("CartPole-v1"), SMALL | {"agent": purerl.PPO(hidden=(4,))}
    for changes in ({"legal": only_left}, {"resets": "spare(4)"}, {"draw": only_left}):
        changed = env._replace(spec=env.spec._replace(**changes))
        assert source_of(changed) is None
        for other in (
            purerl.randomize(changed, gravity=(4.9, 9.8)), with_params(changed, {"gravity": 1.6}),
        ):  # fmt: skip
            assert changes.items() <= other.spec._asdict().items()
        with pytest.raises(purerl.ConfigError, match="has no plain form"):
            plain_env(changed)
        keys = [program_key(purerl.TrainConfig(env=x, **options)) for x in (env, changed)]
        assert keys[0] is not None
        assert keys[1] is None
    assert source_of(env._replace(spec=env.spec._replace(legal=None))) == EnvSource("CartPole-v1")


def test_a_factory_of_any_names_takes_distributions():
    def make_any(**given):
        return make_fall(given["gravity"], STEPS)

    purerl.register("any", make_any)
    for env in (
        purerl.make("any", gravity=purerl.Uniform(1.0, 3.0)),
        as_env({"name": "any", "gravity": "uniform(1, 3)"}),
    ):
        assert plain_env(env) == {"name": "any", "gravity": "uniform(1.0, 3.0)"}
        states = [env.reset(jax.random.key(seed))[1] for seed in range(3)]
        rewards = [env.step(jax.random.key(0), x, jnp.int32(0))[1].reward for x in states]
        assert len(set(map(float, rewards))) == 3
        assert all(1.0 <= x <= 3.0 for x in rewards)
    purerl.make("any", gravity=purerl.Choice([1.0, 2.0]))


def test_a_sweep_over_a_parameter_is_one_program(tmp_path, capsys):
    config = purerl.TrainConfig(env="fall", **SMALL | {"agent": purerl.PPO(hidden=(4,))})
    grid = {"env.gravity": [1.0, 3.0, 2.0]}
    result = purerl.sweep(config, seeds=2, grid=grid, run_dir=tmp_path)
    assert result.effort.compiled == 1
    np.testing.assert_allclose(result.table["final_return"], np.repeat(returns_of([1, 3, 2]), 2))
    np.testing.assert_allclose(result.table["env.gravity"], np.repeat([1.0, 3.0, 2.0], 2))
    assert "env.gravity" in str(result)
    assert result.best().hyperparams == {"env.gravity": 3.0}
    best = EnvSource("fall", (("gravity", 3.0),))
    assert source_of(result.config(2).env) == best
    # The folder of the best is a run's, with the environment that it was trained in.
    view = RunView(tmp_path)
    assert view.read_config()["env"] == {"name": "fall", "gravity": 3.0}
    policy = view.policies([1])[1]
    assert policy.spec.source == best
    played = environment(policy, argparse.Namespace(env=None, target=str(tmp_path)))
    assert purerl.env_params(played)["gravity"] == 3.0
    assert main(["eval", str(tmp_path), "--episodes", "2"]) == 0
    assert "fall, gravity=3.0: 2 episodes each" in capsys.readouterr().out
    assert main(["eval", str(tmp_path), "--env.gravity", "2.0", "--episodes", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["env_params"] for row in rows] == [{"gravity": "2.0"}] * len(rows)
    with pytest.raises(purerl.ConfigError, match="holds another sweep"):
        purerl.sweep(
            config.replace(env={"name": "fall", "steps": 3}),
            seeds=2, grid=grid, run_dir=tmp_path,
        )  # fmt: skip


def test_what_fixes_a_program_is_swept_in_programs_of_its_own():
    config = purerl.TrainConfig(env="Pendulum-v1", agent=purerl.PPO(), total_timesteps=4096)
    grid = {"env.max_torque": [1.0, 2.0], "env.g": [1.0, 10.0]}
    plan = make_plan(config, 1, grid, None, None, None)
    assert [g.static for g in plan.groups] == [{"env.max_torque": x} for x in (1.0, 2.0)]
    bounds = [g.config.env.spec.action_space.high.item() for g in plan.groups]
    assert bounds == [1.0, 2.0]
    limits = make_plan(config, 1, {"env.max_steps_in_episode": [5, 6]}, None, None, None)
    assert [g.config.env.spec.max_episode_steps for g in limits.groups] == [5, 6]
    with pytest.raises(purerl.ConfigError, match=r"did you mean 'env\.g'"):
        make_plan(config, 1, {"env.gg": [1.0]}, None, None, None)


def test_fit_keeps_them(tmp_path, capsys, monkeypatch):
    config = purerl.TrainConfig(env="fall", **SMALL)
    values = {"env.gravity": [1.0, 3.0]}
    out = purerl.fit(config, tmp_path, seeds=2, hyperparams=values)
    expected = np.broadcast_to(returns_of([1.0, 3.0])[:, None], (2, 2))
    np.testing.assert_allclose(out.metrics.episode_return, expected)
    for seed in (0, 1):
        policy = purerl.load_policy(tmp_path / "policies" / f"seed-{seed}.policy", Tiny)
        source = EnvSource("fall", (("gravity", values["env.gravity"][seed]),))
        assert policy.spec.source == out.member(seed).policy.spec.source == source
    with pytest.raises(purerl.ConfigError, match=r"hyperparams\.env\.gravity is"):
        purerl.fit(config, tmp_path, seeds=2, hyperparams={"env.gravity": [1.0, 4.0]})
    # Each policy is evaluated in the environment that it was trained in, and the table says so.
    policies = {f"seed-{seed}": Chosen(out.member(seed).policy, None) for seed in (0, 1)}
    monkeypatch.setattr(playing, "_policies", lambda args: policies)
    assert main(["eval", str(tmp_path), "--episodes", "2"]) == 0
    shown = capsys.readouterr().out
    assert "fall: 2 episodes" in shown
    assert "seed-1, gravity=3.0" in shown


def test_identities_tell_draws_apart():
    def of(*args, **ranges):
        return describe(purerl.randomize("fall", *args, **ranges))

    def between(high):
        return lambda key: {"gravity": high * jax.random.uniform(key)}

    assert of(gravity=(1, 2)) == of(gravity=(1, 2)) != of(gravity=(1, 3))
    assert of(between(2.0)) == of(between(2.0)) != of(between(3.0))


def one_to_three(key):
    return {"gravity": 1.0 + 2.0 * jax.random.uniform(key)}


@pytest.mark.parametrize("make", [
    lambda: purerl.randomize("fall", gravity=(1.0, 3.0)),
    lambda: purerl.randomize(purerl.action_repeat(purerl.make("fall"), 1), one_to_three),
    lambda: purerl.randomize(purerl.time_limit(purerl.make("fall"), STEPS + 1), gravity=(1.0, 3.0)),
])  # fmt: skip
def test_parameters_are_drawn_for_every_episode(make):
    env = make()
    purerl.check_env(env)
    many = purerl.vectorize(purerl.auto_reset(env))
    num, steps = 200, 4 * STEPS
    _, state = many.reset(jax.random.split(jax.random.key(0), num))

    def step(state, key):
        state, timestep = many.step(jax.random.split(key, num), state, jnp.zeros(num, jnp.int32))
        return state, timestep.reward

    _, rewards = quick_jit(lambda s, k: jax.lax.scan(step, s, k))(
        state, jax.random.split(jax.random.key(1), steps)
    )
    episodes = np.asarray(rewards).reshape(4, STEPS, num)  # a reward is the gravity
    np.testing.assert_array_equal(episodes[:, 0], episodes[:, 1])  # one for a whole episode
    drawn = episodes[:, 0]
    assert len(np.unique(drawn)) == 4 * num  # another one for each
    assert 1.0 <= drawn.min() < 1.05
    assert 2.95 < drawn.max() <= 3.0
    assert abs(drawn.mean() - 2.0) < 4 * np.sqrt(4 / 12 / drawn.size)
    assert abs(np.corrcoef(drawn[:2])[0, 1]) < 0.3


def test_draws_are_those_of_the_distributions():
    def drawn(distribution):
        keys = jax.random.split(jax.random.key(0), 4000)
        return np.asarray(quick_jit(jax.vmap(distribution.sample))(keys))

    uniform = drawn(purerl.Uniform(2.0, 6.0))
    np.testing.assert_allclose(np.quantile(uniform, [0.25, 0.5, 0.75]), [3, 4, 5], atol=0.12)
    logs = np.log10(drawn(purerl.LogUniform(1e-3, 1e1)))
    np.testing.assert_allclose(np.quantile(logs, [0.25, 0.5, 0.75]), [-2, -1, 0], atol=0.12)
    assert logs.min() >= -3.0001
    counts = np.unique(drawn(purerl.Choice([1, 2.5, 4])), return_counts=True)
    np.testing.assert_array_equal(counts[0], [1.0, 2.5, 4.0])
    np.testing.assert_allclose(counts[1] / 4000, 1 / 3, atol=0.03)


def test_a_randomized_run_is_trained_saved_and_resumed(tmp_path):
    config = purerl.TrainConfig(env={"name": "fall", "gravity": "uniform(1, 3)"}, **SMALL)
    out = purerl.fit(config, tmp_path, seeds=2)
    assert 1.0 * STEPS < out.metrics.episode_return.min() < out.metrics.episode_return.max() < 6.0
    alone = quick_jit(purerl.make_train(config))(jax.random.key(1))
    np.testing.assert_allclose(
        alone.metrics.episode_return, out.member(1).metrics.episode_return, rtol=1e-5
    )
    source = EnvSource("fall", (("gravity", purerl.Uniform(1, 3)),))
    policy = purerl.load_policy(tmp_path / "policies" / "seed-0.policy", Tiny)
    assert policy.spec.source == source
    env = RunView(tmp_path).read_config()["env"]
    purerl.fit(config.replace(env=env), tmp_path, seeds=2)
    with pytest.raises(purerl.ConfigError, match=r"is 3\.0 there, got 4\.0"):
        purerl.fit(config.replace(env=purerl.randomize("fall", gravity=(1, 4))), tmp_path, seeds=2)


def command(line):
    return main(line.split("|") if "|" in line else line.split())


@pytest.mark.slow
def test_the_command_knows_parameters(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = "train CartPole-v1 --no-preset --num-envs 2 --update-every 4 --total-timesteps 16"
    run += " --hidden 4 --no-tensorboard --run-dir here"
    assert command(f"{run} --env.gravity 1.6 --env.max-steps-in-episode 3") == 0
    assert RunView("here").read_config()["env"] == {
        "name": "CartPole-v1",
        "gravity": 1.6,
        "max_steps_in_episode": 3,
    }
    assert command(f"{run} --env.gravity 2 --env.max_steps_in_episode 3") == 2
    assert "gravity is 1.6 there, got 2.0" in capsys.readouterr().err
    assert command("resume here --total-timesteps 16 --no-tensorboard") == 0
    capsys.readouterr()
    assert command("eval here --json --episodes 3") == 0
    assert json.loads(capsys.readouterr().out)[0]["length_mean"] == 3.0
    assert command("eval here --json --episodes 3 --env.max_steps_in_episode 5") == 0
    assert json.loads(capsys.readouterr().out)[0]["length_mean"] == 5.0
    assert command("render here --max-steps 2") == 0
    assert command("export here") == 0
    for line, message in (
        (f"{run} --env.gravty 1", "did you mean 'gravity'"),
        (f"{run} --env.gravity much", "env.gravity: got 'much', expected a float"),
        ("eval here --env.gravty 1", "did you mean 'gravity'"),
        (f"{run} --env.gravity", "expected one argument"),
        ("envs walker", "no environment 'walker'"),
    ):
        assert command(line) == 2
        assert message in capsys.readouterr().err
    assert command("envs CartPole-v1") == 0
    listed = capsys.readouterr().out
    assert "--env.gravity" in listed
    assert "9.8" in listed


@pytest.mark.slow
def test_the_command_sweeps_a_parameter(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = "sweep CartPole-v1 --no-preset --num-envs 2 --update-every 32 --total-timesteps 64"
    line += " --hidden 4 --seeds 1 --run-dir here --grid env.gravity=4.9,9.8"
    assert command(line) == 0
    assert "env.gravity" in capsys.readouterr().out
    assert RunView("here").label in ("env.gravity=4.9", "env.gravity=9.8")


def test_code_that_only_a_file_names_is_not_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.py").write_text("raise SystemExit('it ran')")
    (tmp_path / "config.toml").write_text('[env]\nname = "theirs:Env"\ngravity = 1.0\n')
    assert command("train --config config.toml") == 2
    assert "code that would be run" in capsys.readouterr().err


def test_a_curriculum_follows_the_runs_progress():
    """Each episode's gravity is that of the progress at the rollout in which it began."""
    env = purerl.randomize("CartPole-v1", lambda key, progress: {"gravity": 1.0 + 8.0 * progress})
    options = {"num_envs": 4, "update_every": 8, "total_timesteps": 4 * 8 * 16}
    config = purerl.TrainConfig(
        env=env, agent=Tiny(), max_episode_steps=4, skip_frames=2, eval_every=16, **options
    )
    loop = config.make_loop()
    state, seen = loop.start(jax.random.key(0)), []
    step = quick_jit(loop.step)
    for index in range(16):
        state, _ = step(state, index)
        drawn = [x for p, x in jax.tree_util.tree_leaves_with_path(state.rollout.env)
                 if "gravity" in jax.tree_util.keystr(p)]  # fmt: skip
        seen.append(np.asarray(drawn[0]))
    # An episode of 4 steps has begun within each rollout of 8.
    np.testing.assert_allclose(seen, np.broadcast_to(1 + np.arange(16)[:, None] / 2, (16, 4)))
    whole = quick_jit(purerl.make_train(config))(jax.random.key(0))
    assert np.isfinite(whole.metrics.eval.episode_return[-1])
    # Without a run it is at its end.
    _, alone = env.reset(jax.random.key(0))
    assert float(alone.params["gravity"]) == 9.0
