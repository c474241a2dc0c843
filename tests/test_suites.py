"""Suites of other packages: names without any, and each against the suite's own step by hand."""

import contextlib
import importlib
import importlib.metadata
import math
import os
import pickle
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.policies import make_policy
from kit.trees import equal

import purerl
from purerl.accelerator.compiling import jit
from purerl.envs import suites
from purerl.envs.gymnax import construct
from purerl.envs.params import replace_params
from purerl.envs.registry import plain_env
from purerl.envs.suites.names import NAMES
from purerl.records.errors import ConfigError
from purerl.training.describe import describe
from purerl.training.run import limit_env

pytestmark = pytest.mark.filterwarnings(  # of its environments that are made by hand
    "ignore:Brax System, piplines and environments are not:UserWarning"
)

# --- without any suite -------------------------------------------------------------------------


def test_names_are_listed_and_nothing_is_imported():
    code = """
import sys
import purerl
from purerl.envs import suites
assert "brax/ant" in purerl.env_names("brax")
assert purerl.env_suites()[0] == "brax"
for suite in purerl.env_suites():
    assert purerl.env_names(suite) == suites.names(suite) != []
    suites.installed(suite)
try:
    purerl.make("brax/aant")
except purerl.ConfigError as error:
    print(error)
loaded = {name.partition(".")[0] for name in sys.modules}
print(loaded & {module for facts in suites.SUITES.values() for module in facts.modules})
adapters = [name for name in sys.modules if name.startswith("purerl.envs.suites.")]
print(sorted(adapters))
"""
    if suites.installed("brax"):  # which asks it for names that it has gained
        code = code.replace('"brax/aant"', '"brx/ant"')
    run = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    error, loaded, adapters = done.stdout.splitlines()
    assert "did you mean 'brax" in error
    assert loaded == "set()"
    assert adapters == "['purerl.envs.suites.dynamics', 'purerl.envs.suites.names']"


def test_names_of_gymnax_are_as_before():
    assert "CartPole-v1" in purerl.env_names()
    assert not any("/" in name for name in purerl.env_names())
    assert purerl.make("CartPole-v1").spec.resets == "fresh"


@pytest.mark.parametrize("suite", suites.SUITES)
def test_a_missing_package_is_answered_by_the_line_that_brings_it(suite, monkeypatch):
    monkeypatch.setattr(suites, "installed", lambda suite: False)
    with pytest.raises(ConfigError, match=re.escape(f"pip install 'purerl[{suite}]'")):
        purerl.make(purerl.env_names(suite)[0])
    with pytest.raises(ConfigError, match=f"env: {suite} isn't installed"):
        purerl.TrainConfig(env=purerl.env_names(suite)[0])


def test_a_python_that_is_too_old_is_said(monkeypatch):
    monkeypatch.setattr(suites, "installed", lambda suite: False)
    monkeypatch.setattr(suites.sys, "version_info", (3, 11, 4))
    with pytest.raises(ConfigError, match=r"navix isn't installed, and needs Python 3\.12"):
        purerl.make("navix/Navix-Empty-8x8-v0")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ant", "did you mean 'brax/ant'"),
        ("Snake-v1", "did you mean 'jumanji/Snake-v1'"),
        ("pgx/conect_four", "did you mean 'pgx/connect_four'"),
        ("CartPole-v2", "did you mean 'CartPole-v1'"),
        ("nothing like it", "and those of brax, playground"),
        ("brax", "is a suite; name one of its environments, such as 'brax/ant'"),
        ("braxx/ant", "no suite 'braxx'; did you mean 'brax'"),
        ("kinetix/anything", "no suite 'kinetix': it needs JAX 0.9 or older"),
        ("popgym-arcade/CartPoleEasy", "stable-gymnax overwrites files of gymnax"),
    ],
)
def test_nearest_names(name, message, monkeypatch):
    monkeypatch.setattr(suites, "installed", lambda suite: False)
    with pytest.raises(ConfigError, match=re.escape(message)):
        purerl.make(name)


def test_unknown_suites_have_no_names():
    with pytest.raises(ConfigError, match="env_names: no suite 'brx'; did you mean 'brax'"):
        purerl.env_names("brx")


def test_a_name_of_a_suite_is_taken():
    with pytest.raises(ConfigError, match="'brax/ant' exists already"):
        purerl.register("brax/ant", lambda: None)
    purerl.register("mine/Cart", lambda: purerl.make("CartPole-v1"))
    assert purerl.make("mine/Cart").spec.source.name == "mine/Cart"


def test_other_packages_bring_environments(monkeypatch):
    points = [
        importlib.metadata.EntryPoint("Theirs-v0", "theirs:make", suites.GROUP),
        importlib.metadata.EntryPoint("Broken-v0", "not_there:make", suites.GROUP),
    ]
    module = type(sys)("theirs")
    module.make = lambda gravity=1.6: purerl.make("CartPole-v1", gravity=gravity)
    monkeypatch.setitem(sys.modules, "theirs", module)
    monkeypatch.setattr(suites.importlib.metadata, "entry_points", lambda group: points)
    assert {"Theirs-v0", "Broken-v0"} <= set(purerl.env_names())
    env = purerl.make("Theirs-v0", gravity=2.5)
    assert plain_env(env) == {"name": "Theirs-v0", "gravity": 2.5}
    assert purerl.env_params(purerl.make("Theirs-v0"))["gravity"] == 1.6
    with pytest.raises(ConfigError, match="'Broken-v0', of the entry point 'not_there:make'"):
        purerl.make("Broken-v0")


def test_what_overwrites_gymnax_is_said(monkeypatch):
    class Old:
        pass

    base = importlib.import_module("gymnax.environments.environment")
    monkeypatch.setattr(base, "Environment", Old)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1")
    with pytest.raises(ConfigError, match="overwritten by the package stable-gymnax"):
        construct("CartPole-v1", {})


def test_the_command_lists_suites(command, monkeypatch):
    monkeypatch.setattr(suites, "installed", lambda suite: suite == "pgx")
    code, out, _ = command("envs", "brax")
    assert code == 0
    assert "brax/ant\n" in out
    assert "It isn't installed: pip install 'purerl[brax]'" in out
    _, out, _ = command("envs", "pgx")
    assert "isn't installed" not in out
    _, out, _ = command("envs")
    assert re.search(r"jumanji +26 +spare\(64\) +no", out)
    assert re.search(r"pgx +20 +fresh +yes", out)
    code, _, err = command("train", "brax/ant")
    assert code == 2
    assert "pip install 'purerl[brax]'" in err


def test_resets_follow_the_environment_unless_they_are_given():
    env = purerl.make("CartPole-v1")
    costly = env._replace(spec=env.spec._replace(resets="spare(4)"))
    options = {"num_envs": 8, "update_every": 4, "total_timesteps": 64}
    assert purerl.TrainConfig(env=costly, **options).make_loop().resets == "spare(4)"
    config = purerl.TrainConfig(env=costly, resets="fresh", **options)
    assert config.make_loop().resets == config.resets == "fresh"
    assert purerl.TrainConfig(env=env, **options).make_loop().resets == "fresh"
    config = purerl.TrainConfig(env=env, resets="spare(4)", **options)
    assert config.make_loop().resets == config.to_mapping()["resets"] == "spare(4)"
    with pytest.raises(ConfigError, match=r"spec\.resets: no 'sparse'"):
        purerl.check_env(env._replace(spec=env.spec._replace(resets="sparse")))
    odd = env._replace(spec=env.spec._replace(draw=3))
    with pytest.raises(ConfigError, match=r"spec\.draw is 3, expected a function"):
        purerl.check_env(odd)
    with pytest.raises(ConfigError, match=r"spec\.draw is 3"):  # though the rest was checked
        purerl.TrainConfig(env=odd, **options)


def test_a_spec_may_draw(tmp_path):
    env = purerl.make("CartPole-v1")

    def draw(state):
        shade = int(np.clip(127 + 1000 * float(state.x), 0, 255))
        return np.full((30, 60, 3), shade, np.uint8)

    drawn = env._replace(spec=env.spec._replace(draw=draw, name="mine"))
    limited = purerl.time_limit(drawn, 5)
    assert limited.spec.draw is draw
    from PIL import Image

    _, length = purerl.render(None, limited, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == length + 1
        assert image.size == (400, 28 + 200)
        state = env.reset(jax.random.split(jax.random.key(0))[0])[1]
        pixel = np.asarray(image.convert("RGB"))[128, 200]
        assert abs(int(pixel[0]) - int(draw(state)[0, 0, 0])) < 16


# --- with each suite, where it is installed ----------------------------------------------------

CHOSEN = {
    "brax": ("fast", "inverted_pendulum"),
    "playground": ("CartpoleBalance", "PendulumSwingup"),
    "craftax": ("Craftax-Classic-Symbolic-v1", "Craftax-Classic-Pixels-v1"),
    "navix": ("Navix-Empty-5x5-v0", "Navix-DoorKey-5x5-v0", "Navix-GoToDoor-5x5-v0"),
    "xminigrid": ("MiniGrid-Empty-5x5", "MiniGrid-DoorKey-5x5"),
    "jumanji": ("Snake-v1", "Cleaner-v0"),
    "pgx": ("2048", "minatar-breakout"),
    "octax": ("brix", "pong"),
    "functional": ("CartPole-v1", "Pendulum-v0"),
}
PAIRS = [f"{suite}/{name}" for suite, names in CHOSEN.items() for name in names]
FIRST = [f"{suite}/{names[0]}" for suite, names in CHOSEN.items()]
COSTLY = ("playground", "craftax")  # half a minute to compile


def mostly_quick(names, quick=()):
    """Names as parameters of a test; those of costly suites that aren't in `quick` are slow."""
    slow = [x for x in names if x.startswith(COSTLY) and x not in quick]
    return [pytest.param(x, marks=pytest.mark.slow) if x in slow else x for x in names]


def need(name):
    suite = name.partition("/")[0]
    if not suites.installed(suite):
        pytest.skip(f"{suite} isn't installed")
    suites.adapter(suite)  # imports it; what it warns of then is ignored


def native(full_name):
    """The suite's own functions: `reset(key) -> obs, state`, `step(key, state, action) -> obs,
    state, reward, done`, as its documentation has them."""
    suite, _, name = full_name.partition("/")
    return globals()[f"native_{suite}"](name)


def native_brax(name):
    from brax import envs

    env = envs.get_environment(name)
    return of_states(env)


def native_playground(name):
    from mujoco_playground import registry

    return of_states(registry.load(name, config_overrides={"impl": "jax"}))


def of_states(env):
    def reset(key):
        state = env.reset(key)
        return state.obs, state

    def step(key, state, action):
        state = env.step(state, action)
        return state.obs, state, state.reward, state.done > 0

    return reset, step


def native_craftax(name):
    from craftax.craftax_env import make_craftax_env_from_name

    env = make_craftax_env_from_name(name, auto_reset=False)
    params = env.default_params

    def step(key, state, action):
        return env.step(key, state, action, params)[:4]

    return lambda key: env.reset(key, params), step


def native_navix(name):
    import navix

    env = navix.make(name)

    def reset(key):
        timestep = env.reset(key)
        return timestep.observation, timestep

    def step(key, timestep, action):
        timestep = env.step(timestep, action)
        return timestep.observation, timestep, timestep.reward, timestep.is_done()

    return reset, step


def native_xminigrid(name):
    import xminigrid

    env, params = xminigrid.make(name)

    def reset(key):
        timestep = env.reset(params, key)
        return timestep.observation, timestep

    def step(key, timestep, action):
        timestep = env.step(params, timestep, action)
        return timestep.observation, timestep, timestep.reward, timestep.last()

    return reset, step


def native_jumanji(name):
    env = importlib.import_module("jumanji").make(name)

    def plain(obs):
        obs = obs._asdict()
        mask = obs["action_mask"]
        some = jnp.any(mask, axis=-1 if name == "Cleaner-v0" else None, keepdims=True)
        obs["action_mask"] = (mask | ~some).reshape(-1)  # at the end there may be none
        obs["step_count"] = obs["step_count"] / LIMIT  # the adapter's limit
        return obs

    def reset(key):
        state, timestep = env.reset(key)
        return plain(timestep.observation), state

    def step(key, state, action):
        state, timestep = env.step(state, action)
        return plain(timestep.observation), state, timestep.reward, timestep.last()

    return reset, step


def native_pgx(name):
    env = importlib.import_module("pgx").make(name)

    def plain(state):
        mask = state.legal_action_mask
        obs = state.observation
        return obs if "minatar" in name else {"observation": obs, "action_mask": mask}

    def reset(key):
        state = env.init(jax.random.split(key)[0])
        return plain(state), state

    def step(key, state, action):
        state = env.step(state, action, jax.random.split(key)[0])
        return plain(state), state, state.rewards[0], state.terminated

    return reset, step


def native_octax(name):
    env, _ = importlib.import_module("octax.environments").create_environment(name)

    def reset(key):
        state, obs, _ = env.reset(key)
        return obs.T, state

    def step(key, state, action):
        state, obs, reward, terminated, truncated, _ = env.step(state, action)
        return obs.T, state, reward, terminated | truncated

    return reset, step


def native_functional(name):
    from gymnasium.envs.phys2d import cartpole, pendulum

    cls = {"C": cartpole.CartPoleFunctional, "P": pendulum.PendulumFunctional}[name[0]]
    env = cls()

    def reset(key):
        state = env.initial(jax.random.split(key)[0], env.get_default_params())
        return env.observation(state, key, env.get_default_params()), state

    def step(key, state, action):
        params = env.get_default_params()
        after = env.transition(state, action, key, params)
        reward = env.reward(state, action, after, key, params)
        return (
            env.observation(after, key, params),
            after,
            reward,
            env.terminal(after, key, params),
        )

    return reset, step


LIMIT = 6


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of suites that are called by hand
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", PAIRS)
def test_dynamics_are_the_suites_own(name):
    """Step by step, along random legal episodes that a limit of purerl's cuts: the suite's own
    step, called by hand, gives the same observations, rewards and ends."""
    need(name)
    limit = 2 if "inverted" in name else LIMIT  # it falls at once
    env = purerl.make(name, max_episode_steps=limit)
    assert env.spec.max_episode_steps == limit
    theirs = [jax.jit(function) for function in native(name)]
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    draw = jax.jit(env.spec.random_action)
    cut = 0
    for seed in range(3):
        key = jax.random.key(seed)
        obs, state = reset(key)
        expected, their_state = theirs[0](key)
        same(obs, expected)
        for t in range(limit):
            key, action_key, step_key = jax.random.split(key, 3)
            action = draw(action_key, obs)
            state, timestep = step(step_key, state, action)
            obs = timestep.obs
            expected, their_state, reward, done = theirs[1](step_key, their_state, action)
            same(obs, expected)  # the true successor, also where the episode is cut
            assert np.allclose(timestep.reward, reward, atol=1e-5)
            assert bool(timestep.terminated) == bool(done)
            assert bool(timestep.truncated) == (t == limit - 1 and not done)
            cut += bool(timestep.truncated)
            if done:
                break
    assert cut > 0


def same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.allclose(x, np.asarray(y, x.dtype), atol=1e-4), (x, y)


@pytest.mark.parametrize("name", mostly_quick(PAIRS))
def test_the_contract_holds(name):
    need(name)
    purerl.check_env(name, num_steps=64)


@pytest.mark.parametrize("name", FIRST)
def test_a_policy_goes_into_a_file(name, tmp_path):
    need(name)
    env = purerl.make(name, max_episode_steps=50)
    policy = make_policy(purerl.PPO() if env.spec.action_space.sizes else purerl.SAC(), env)
    purerl.save_policy(policy, tmp_path / "a.policy")
    loaded = purerl.load_policy(tmp_path / "a.policy")
    assert (
        loaded.spec.source
        == env.spec.source
        == purerl.envs.EnvSource(name, (("max_episode_steps", 50),))
    )
    obs = jax.tree.map(lambda x: x[None], env.reset(jax.random.key(1))[0])
    assert equal(policy(obs), loaded(obs))
    again = purerl.make(loaded.spec.source.name, **dict(loaded.spec.source.params))
    assert again.spec == env.spec


@pytest.mark.parametrize("name", mostly_quick(FIRST))
def test_it_trains_and_its_config_comes_back(name):
    need(name)
    config = purerl.TrainConfig(
        env=name, agent=purerl.PPO(batch_size=16, K_epochs=1), num_envs=4, update_every=8,
        total_timesteps=64, max_episode_steps=5,
    )  # fmt: skip
    assert config.make_loop().resets == suites.SUITES[name.partition("/")[0]].resets
    assert purerl.TrainConfig.from_mapping(config.to_mapping()).env.spec == config.env.spec
    out = jax.jit(purerl.make_train(config), compiler_options=purerl.compiler_options())(
        jax.random.key(0)
    )
    assert int(out.metrics.num_episodes.sum()) > 0
    assert np.isfinite(np.asarray(out.metrics.losses["loss"])).all()
    for metric in config.env.spec.metrics:
        assert metric in out.metrics.info


@pytest.mark.parametrize("name", mostly_quick(FIRST))
def test_it_is_drawn(name, tmp_path):
    need(name)
    from PIL import Image

    _, length = purerl.render(None, name, tmp_path / "a.gif", max_steps=4)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == length + 1
        assert np.ptp(np.asarray(image.convert("RGB"))[40:]) > 0


def test_pictures_leave_pygames_devices_as_they_were(monkeypatch):
    need("functional/CartPole-v1")
    env = purerl.make("functional/CartPole-v1")
    names = ("SDL_VIDEODRIVER", "SDL_AUDIODRIVER")
    monkeypatch.delenv(names[0], raising=False)
    monkeypatch.setenv(names[1], "chosen")
    during = []
    monkeypatch.setattr(
        importlib.import_module("gymnasium.envs.phys2d.cartpole").CartPoleFunctional,
        "render_init",
        lambda *_: during.append([os.environ.get(name) for name in names]),
    )
    state = env.reset(jax.random.key(0))[1]
    with pytest.warns(UserWarning, match="no picture, so that observations are drawn") as said:
        assert env.spec.draw(state) is env.spec.draw(state) is None
    assert len(said) == 1
    assert during[0] == ["dummy", "chosen"]
    assert [os.environ.get(name) for name in names] == [None, "chosen"]


def test_pictures_leave_mujocos_context_as_it_was(monkeypatch):
    need("brax/inverted_pendulum")
    context = importlib.import_module("mujoco.rendering.classic.gl_context")
    egl = type(sys)("mujoco.egl")
    egl.GLContext = object()
    monkeypatch.setitem(sys.modules, "mujoco.egl", egl)
    for name in ("DISPLAY", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    usual, used = context.GLContext, []

    class Renderer:
        def __init__(self, *_):
            used.append(context.GLContext)
            raise ValueError("no device")

    monkeypatch.setattr(importlib.import_module("mujoco"), "Renderer", Renderer)
    env = purerl.make("brax/inverted_pendulum")
    with pytest.warns(UserWarning, match="no OpenGL"):
        env.spec.draw(env.reset(jax.random.key(0))[1])
    assert context.GLContext is usual
    assert used == ([egl.GLContext] if sys.platform == "linux" else [usual])


@pytest.mark.parametrize("suite", suites.SUITES)
def test_listed_names_are_the_suites(suite):
    need(suite)
    assert set(suites.adapter(suite).known()) == set(NAMES[suite])


def test_a_time_limit_may_be_longer_than_the_suites():
    need("functional/CartPole-v1")
    config = purerl.TrainConfig(env="functional/CartPole-v1", max_episode_steps=700)
    assert config.make_loop().env.spec.max_episode_steps == 700
    config = purerl.TrainConfig(env="functional/CartPole-v1", max_episode_steps=7, skip_frames=2)
    assert config.make_loop().env.spec.max_episode_steps == 7


def test_a_longer_limit_keeps_what_a_user_replaced_in_the_spec():
    need("functional/CartPole-v1")
    env = purerl.make("functional/CartPole-v1")

    def draw(state):
        return None

    def legal(obs):
        return jnp.ones(2, bool)

    changed = env._replace(spec=env.spec._replace(resets="spare(4)", draw=draw, legal=legal))
    spec = limit_env(changed, 700, 1).spec
    assert (spec.max_episode_steps, spec.resets, spec.draw, spec.legal) == (
        700, "spare(4)", draw, legal,
    )  # fmt: skip


def test_a_longer_limit_keeps_hyperparameters():
    need("functional/CartPole-v1")
    env = purerl.make("functional/CartPole-v1")
    marked = env._replace(spec=env.spec._replace(resets="spare(4)"))
    for given in (env, marked):
        for limit in (400, 700):  # below and above the environment's
            config = purerl.TrainConfig(env=given, max_episode_steps=limit)
            made = config.make_loop({"env.gravity": 1.6}).env
            assert purerl.env_params(made)["gravity"] == np.float32(1.6)
            assert made.spec.max_episode_steps == limit
            assert made.spec.resets == given.spec.resets


def test_a_length_of_the_functional_cart_pole_is_of_all_that_follows_from_it():
    """In Gymnasium `polemass_length` is a sum, which keeps the physics of the defaults."""
    need("functional/CartPole-v1")
    name = "functional/CartPole-v1"
    usual = purerl.env_params(purerl.make(name))
    assert usual["polemass_length"] == usual["masspole"] + usual["length"]
    values = purerl.env_params(purerl.make(name, masscart=2.0, length=1.0))
    assert values["total_mass"] == np.float32(2.1)
    assert values["polemass_length"] == np.float32(1.1)
    whole = replace_params(purerl.make(name), {n: usual[n] for n in ("masscart", "length")})
    for word, x in purerl.env_params(whole).items():
        assert np.float32(x) == np.float32(usual[word])  # the same bits


def test_a_longer_limit_of_a_wrapped_environment_is_refused():
    need("functional/CartPole-v1")
    env = purerl.time_limit(purerl.make("functional/CartPole-v1"), 300)
    assert "max_episode_steps" in purerl.env_params(env)
    with pytest.raises(ConfigError, match="got 700, expected at most 300"):
        limit_env(env, 700, 1)


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("limit", [0, -1])
def test_a_time_limit_is_at_least_one(name, limit):
    need(name)
    with pytest.raises(ConfigError, match=rf"env\.max_episode_steps: got {limit}, expected"):
        purerl.make(name, max_episode_steps=limit)


def test_a_limit_in_frames_is_divided_by_the_action_repeat():
    need("playground/PendulumSwingup")
    env = purerl.make("playground/PendulumSwingup", action_repeat=4)
    assert env.spec.max_episode_steps == 250
    env = purerl.make("playground/PendulumSwingup", action_repeat=4, max_episode_steps=9)
    assert env.spec.max_episode_steps == 9


def test_the_config_of_a_robot_is_longer_than_the_limit(monkeypatch):
    """Aloha's handover and Franka's pick, which need a download, begin again when their count of
    steps, of `action_repeat` in each frame, reaches `episode_length`."""
    need("playground/CartpoleBalance")
    registry = importlib.import_module("mujoco_playground._src.registry")

    class LoadedError(Exception):
        pass

    def load(name, config, overrides):
        raise LoadedError(overrides["episode_length"])

    monkeypatch.setattr(registry, "load", load)
    for options, length in (
        ({}, 1001),
        ({"max_episode_steps": 3000}, 3001),
        ({"action_repeat": 4}, 250 * 16 + 1),  # 1000 frames are 250 steps
    ):
        with pytest.raises(ConfigError, match=rf"LoadedError.*: {length}$"):
            purerl.make("playground/CartpoleBalance", **options)


@pytest.mark.parametrize(("backend", "engine"), [("cpu", "jax"), ("tpu", "jax"), ("gpu", "warp")])
def test_the_engine_is_jax_without_a_gpu_unless_it_is_given(backend, engine, monkeypatch):
    need("playground/PendulumSwingup")
    registry = importlib.import_module("mujoco_playground._src.registry")
    load, given = registry.load, []

    def spy(name, config, overrides):
        given.append(overrides["impl"])
        return load(name, config, {**overrides, "impl": "jax"})

    monkeypatch.setattr(registry, "load", spy)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert purerl.make("playground/PendulumSwingup").spec.source.params == ()
    for impl in ("jax", "warp"):
        source = purerl.make("playground/PendulumSwingup", impl=impl).spec.source
        assert source.params == (("impl", impl),)
    assert given == [engine, "jax", "warp"]


ENGINES = [
    ("brax/inverted_pendulum", {"backend": "spring"}),
    *[("brax/inverted_pendulum", {"backend": x}) for x in ("generalized", "positional", "mjx")],
    ("playground/CartpoleBalance", {}),
]


@pytest.mark.parametrize(
    ("name", "params"),
    [ENGINES[0], *[pytest.param(*x, marks=pytest.mark.slow) for x in ENGINES[1:]]],
)
def test_masses_gears_and_gravity_are_hyperparameters(name, params):
    """A cart that is pushed: its acceleration is in proportion to the gear, falls with the mass,
    and its pole's follows gravity."""
    need(name)
    env = purerl.make(name, **params)
    cart, pole = (2, 3) if name.startswith("brax") else (3, 4)

    def push(scales):
        made = replace_params(env, scales)
        obs, state = made.reset(jax.random.key(0))
        return made.step(jax.random.key(1), state, jnp.full(1, 0.5))[1].obs - obs

    rows = [(1, 1, 1), (1, 1, 2), (1, 2, 1), (1, 2, 2), (0, 1, 1), (2, 1, 1)]
    names = ("gravity_scale", "mass_scale", "gear_scale")
    scales = dict(zip(names, jnp.array(rows, jnp.float32).T, strict=True))
    found = np.asarray(jit(jax.vmap(push), quick=True)(scales))
    plain, geared, heavy, both, free, pulled = found
    assert geared[cart] == pytest.approx(2 * plain[cart], rel=0.02)
    assert heavy[cart] == pytest.approx(plain[cart] / 2, rel=0.06)
    assert both[cart] == pytest.approx(plain[cart], rel=0.06)
    assert abs(plain[pole] - free[pole]) > 1e-6
    assert pulled[pole] - free[pole] == pytest.approx(2 * (plain[pole] - free[pole]), rel=0.05)
    rough = purerl.make(name, friction_scale=0.5, **params)
    assert rough.spec.source.params == (*params.items(), ("friction_scale", 0.5))
    models = [x.spec.draw._env for x in (env, rough)]
    usual, less = [x.sys if name.startswith("brax") else x.mjx_model for x in models]
    np.testing.assert_allclose(less.geom_friction, 0.5 * usual.geom_friction)


def test_floats_of_a_suites_params_are_hyperparameters():
    need("functional/Pendulum-v0")
    env = purerl.make("functional/Pendulum-v0")
    key = jax.random.key(0)

    def speed(g):
        changed = purerl.make("functional/Pendulum-v0", g=g)
        _, state = changed.reset(key)
        return changed.step(key, state, jnp.zeros(1))[1].obs[2]

    speeds = jax.vmap(speed)(jnp.array([0.0, 10.0]))
    assert speeds[0] != speeds[1]
    config = purerl.TrainConfig(env=env, num_envs=2, update_every=4, total_timesteps=8)
    train = jax.vmap(purerl.make_train(config), (None, 0))
    out = jax.eval_shape(train, key, {"env.g": jnp.array([5.0, 10.0])})
    assert out.metrics.episode_return.shape[0] == 2
    drawn = purerl.randomize("functional/Pendulum-v0", g=(5.0, 15.0))
    assert 5.0 <= float(drawn.reset(key)[1].params["g"]) <= 15.0


def test_arguments_of_a_suites_class_are_parameters():
    need("jumanji/Snake-v1")
    env = purerl.make("jumanji/Snake-v1", num_rows=5, num_cols=4)
    assert env.spec.observation_space["grid"].shape == (5, 4, 5)
    assert plain_env(env) == {"name": "jumanji/Snake-v1", "num_rows": 5, "num_cols": 4}
    with pytest.raises(ConfigError, match="has no parameter 'num_row'; did you mean 'num_rows'"):
        purerl.make("jumanji/Snake-v1", num_row=5)


@pytest.mark.parametrize("name", ["jumanji/BinPack-v2", "jumanji/RubiksCube-v0"])
def test_actions_of_several_numbers(name):
    """A mask over combinations makes an action of each; without a mask there are choices."""
    need(name)
    env = purerl.make(name)
    step, draw = jax.jit(env.step), jax.jit(env.spec.random_action)
    obs, state = jax.jit(env.reset)(jax.random.key(0))
    if "Rubik" in name:
        assert env.spec.action_space == purerl.MultiDiscrete([6, 1, 3])
        assert env.spec.legal is None
    else:
        assert env.spec.action_space.n == math.prod((40, 20)) == obs["action_mask"].size
    for key in jax.random.split(jax.random.key(1), 5):
        state, timestep = step(key, state, draw(key, obs))
        obs = timestep.obs
        assert not timestep.info.get("invalid_action", False)


def test_a_time_limit_of_a_suite_is_no_termination():
    need("jumanji/Cleaner-v0")
    env = purerl.make("jumanji/Cleaner-v0")
    assert env.spec.max_episode_steps == 100
    step, draw = jax.jit(env.step), jax.jit(env.spec.random_action)
    obs, state = jax.jit(env.reset)(jax.random.key(0))
    for i in range(100):
        key = jax.random.key(i)
        state, timestep = step(key, state, draw(key, obs))
        obs = timestep.obs
        assert not timestep.terminated
        assert bool(timestep.truncated) == (i == 99)
    assert float(obs["step_count"]) == 1.0


def first_legal(key, obs):
    return jnp.argmax(obs["action_mask"])


def test_an_opponent_is_a_part_of_the_environment():
    need("pgx/tic_tac_toe")
    env = purerl.make("pgx/tic_tac_toe", opponent=first_legal)
    assert "opponent" in purerl.env_params(env)
    step, draw = jax.jit(env.step), jax.jit(env.spec.random_action)
    won, first = [], 0
    for seed in range(12):
        key = jax.random.key(seed)
        obs, state = jax.jit(env.reset)(key)
        board = 9 - int(obs["observation"].sum())
        first += board == 9
        done = False
        while not done:
            assert int(state.current_player) == 0
            before = obs["observation"]
            key, action_key, step_key = jax.random.split(key, 3)
            action = draw(action_key, obs)
            state, timestep = step(step_key, state, action)
            obs, done = timestep.obs, bool(timestep.terminated)
            if not done:  # ours, and then theirs on the first free field
                placed = (obs["observation"] & ~before).reshape(9, 2)
                free = [i for i in range(9) if not before.reshape(9, 2)[i].any() and i != action]
                assert placed[int(action), 0]
                assert placed[free[0], 1]
        assert bool(timestep.info["win"]) == (float(timestep.reward) > 0)
        won.append(float(timestep.reward))
    assert {-1.0, 1.0} <= set(won)
    assert 0 < first < 12  # player 0 doesn't always begin


@pytest.mark.parametrize("played", ["taken", "outside"])
def test_an_opponent_that_plays_illegally_doesnt_lose_by_it(played):
    """Its fields are taken, or not on the board; every game ends by three in a row or when the
    board is full."""
    need("pgx/tic_tac_toe")

    def opponent(key, obs):
        return jnp.argmin(obs["action_mask"]) if played == "taken" else jnp.int32(9)

    env = purerl.make("pgx/tic_tac_toe", opponent=opponent)
    step, draw = jax.jit(env.step), jax.jit(env.spec.random_action)
    reset = jax.jit(env.reset)
    for seed in range(4):
        key = jax.random.key(seed)
        obs, state = reset(key)
        done = False
        while not done:
            key, action_key, step_key = jax.random.split(key, 3)
            state, timestep = step(step_key, state, draw(action_key, obs))
            obs, done = timestep.obs, bool(timestep.terminated)
        board = np.asarray(state._x.board).reshape(3, 3)
        rows = [*board, *board.T, board.diagonal(), board[::-1].diagonal()]
        winners = {int(row[0]) for row in rows if row[0] >= 0 and len(set(row.tolist())) == 1}
        assert bool(winners) or (board >= 0).all()


def test_a_pair_with_parameters_that_a_suite_hasnt_is_refused():
    need("brax/fast")
    with pytest.raises(ConfigError, match=r"got a pair of a Fast and 3, expected the first alone"):
        purerl.envs.as_env((instance("brax"), 3))


def test_a_policy_is_an_opponent():
    need("pgx/tic_tac_toe")
    env = purerl.make("pgx/tic_tac_toe")
    policy = make_policy(purerl.PPO(), env)
    purerl.check_env(purerl.make("pgx/tic_tac_toe", opponent=policy), num_steps=8)
    with pytest.raises(ConfigError, match=r"env\.opponent: got 3, expected a Policy"):
        purerl.make("pgx/tic_tac_toe", opponent=3)
    with pytest.raises(ConfigError, match="has 3 players"):
        purerl.make("pgx/sparrow_mahjong")


def instance(suite):
    name = CHOSEN[suite][0]
    if suite == "brax":
        return importlib.import_module("brax.envs").get_environment(name)
    if suite == "playground":
        registry = importlib.import_module("mujoco_playground").registry
        return registry.load(name, config_overrides={"impl": "jax"})
    if suite == "craftax":
        module = importlib.import_module("craftax.craftax_env")
        return module.make_craftax_env_from_name(name, auto_reset=True)
    if suite == "octax":
        return importlib.import_module("octax.environments").create_environment(name)[0]
    if suite == "functional":
        return importlib.import_module("gymnasium.envs.phys2d.cartpole").CartPoleFunctional()
    return importlib.import_module(suite).make(name)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of octax, called by hand
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("suite", mostly_quick(suites.SUITES))
def test_an_instance_of_a_suites_class_is_an_environment(suite):
    need(suite)
    env = purerl.envs.as_env(instance(suite))
    named = purerl.make(f"{suite}/{CHOSEN[suite][0]}")
    assert env.spec.source is None
    assert env.spec.observation_space == named.spec.observation_space
    assert env.spec.action_space == named.spec.action_space
    if suite not in ("functional", "brax"):  # whose classes know no limit
        assert env.spec.max_episode_steps == named.spec.max_episode_steps
    key = jax.random.key(3)
    assert equal(env.reset(key)[0], named.reset(key)[0])
    purerl.TrainConfig(env=instance(suite), total_timesteps=64, num_envs=2, update_every=4)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of octax, called by hand
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("suite", "attribute"), [("octax", "max_num_steps_per_episodes"), ("jumanji", "time_limit")]
)
def test_adapting_leaves_an_instance_as_it_was(suite, attribute):
    need(suite)
    env = instance(suite)
    before = getattr(env, attribute)
    for _ in range(2):
        assert purerl.envs.as_env(env).spec.max_episode_steps == before
        assert getattr(env, attribute) == before


def test_a_wrapper_around_a_limited_environment_is_copied_with_it():
    need("jumanji/Snake-v1")
    jumanji = importlib.import_module("jumanji")
    wrapper = importlib.import_module("jumanji.wrappers").Wrapper
    inner = jumanji.make("SearchAndRescue-v0")
    outer = wrapper(wrapper(inner))
    for _ in range(2):
        env = purerl.envs.as_env(outer)
        assert env.spec.max_episode_steps == inner.time_limit == outer.unwrapped.time_limit == 400
    pickle.loads(pickle.dumps(env))


def identities_of(suite):
    """Descriptions of two equal instances of a class, and of another one."""
    if suite == "brax":
        envs = importlib.import_module("brax.envs")
        made = [envs.get_environment("inverted_pendulum") for _ in range(3)]
        made[2].sys = made[2].sys.tree_replace({"opt.gravity": made[2].sys.opt.gravity * 0.1})
    elif suite == "craftax":
        module = importlib.import_module("craftax.craftax_env")
        name = "Craftax-Classic-Symbolic-v1"
        env = module.make_craftax_env_from_name(name, auto_reset=False)
        usual = env.default_params
        made = [(env, usual), (env, usual.replace()), (env, usual.replace(always_diamond=False))]
    elif suite == "pgx":
        game = importlib.import_module("pgx").make("tic_tac_toe")
        usual = purerl.make("pgx/tic_tac_toe")
        made = [(game, make_policy(purerl.PPO(), usual, scale=x)) for x in (1.0, 1.0, 2.0)]
    elif suite == "jumanji":
        wrapper = importlib.import_module("jumanji.wrappers").Wrapper
        make = importlib.import_module("jumanji").make
        made = [wrapper(make("Snake-v1", num_rows=n, num_cols=12)) for n in (12, 12, 11)]
    elif suite == "xminigrid":
        env, params = importlib.import_module("xminigrid").make("MiniGrid-Empty-5x5")
        made = [(env, params), (env, params), (env, params.replace(view_size=5))]
    elif suite == "playground":
        registry = importlib.import_module("mujoco_playground").registry
        given = {"impl": "jax"}
        made = [
            registry.load("CartpoleBalance", config_overrides=given | {"action_repeat": n})
            for n in (1, 1, 2)
        ]
    return [describe(purerl.envs.as_env(x)) for x in made]


@pytest.mark.parametrize("suite", ["brax", "craftax", "pgx", "jumanji", "xminigrid", "playground"])
def test_a_runs_identity_tells_instances_apart(suite):
    need(suite)
    first, same_again, other = identities_of(suite)
    assert first == same_again
    assert first["dynamics"] != other["dynamics"]
    assert " at 0x" not in str(first)


def test_wrappers_that_reset_are_refused():
    need("brax/fast")
    from brax import envs

    with pytest.raises(ConfigError, match="AutoResetWrapper resets, or counts time by itself"):
        purerl.TrainConfig(env=envs.create("fast"))
    with pytest.raises(ConfigError, match="EpisodeWrapper resets, or counts time"):
        purerl.TrainConfig(env=envs.create("fast", auto_reset=False))
    options = {"num_envs": 2, "update_every": 4, "total_timesteps": 64}
    for limit in (10, 2000):  # as the message has it
        config = purerl.TrainConfig(
            env=envs.get_environment("fast"), max_episode_steps=limit, **options
        )
        assert config.make_loop().env.spec.max_episode_steps == limit


def test_a_wrapper_of_a_suite_is_trained_as_it_is():
    need("brax/fast")
    from brax import envs

    class Doubled(envs.Wrapper):
        def step(self, state, action):
            state = self.env.step(state, action)
            return state.replace(reward=2 * state.reward + 1)

    plain = envs.get_environment("fast")
    key, action = jax.random.key(0), jnp.zeros(1)
    rewards = []
    for env in map(purerl.envs.as_env, (plain, Doubled(plain))):
        action = env.spec.action_space.example()
        rewards.append(float(env.step(key, env.reset(key)[1], action)[1].reward))
    assert rewards[1] == pytest.approx(2 * rewards[0] + 1)


def test_worlds_without_a_goal_are_said():
    need("xminigrid/XLand-MiniGrid-R1-9x9")
    with pytest.warns(UserWarning, match="has no goal, and its rewards are 0"):
        purerl.make("xminigrid/XLand-MiniGrid-R1-9x9")


@pytest.mark.parametrize("name", ["navix/Navix-Empty-5x5-v0", "xminigrid/MiniGrid-Empty-5x5"])
def test_a_goal_is_a_success(name):
    """Ahead, ahead, to the right, ahead, ahead."""
    need(name)
    env = purerl.make(name)
    ahead, right = (2, 1) if name.startswith("navix") else (0, 1)
    step = jax.jit(env.step)
    _, state = jax.jit(env.reset)(jax.random.key(0))
    for turns in range(4):  # until the first direction fits
        for action in [right] * turns + [ahead, ahead, right, ahead, ahead]:
            state, timestep = step(jax.random.key(1), state, jnp.int32(action))
            if timestep.terminated:
                break
        if timestep.terminated:
            break
        _, state = jax.jit(env.reset)(jax.random.key(0))
    assert timestep.terminated
    assert timestep.reward > 0
    assert timestep.info["success"] == 1.0


def test_a_wrong_end_is_no_success():
    """Of Memory's two objects one is the goal; both end the episode."""
    need("xminigrid/MiniGrid-MemoryS8")
    env = purerl.make("xminigrid/MiniGrid-MemoryS8")

    def play(key):
        def body(state, key):
            step_key, action_key = jax.random.split(key)
            action = jax.random.choice(action_key, jnp.array([0, 0, 0, 1, 2]))
            state, timestep = env.step(step_key, state, action)
            return state, (timestep.terminated, timestep.reward, timestep.info["success"])

        return jax.lax.scan(body, env.reset(key)[1], jax.random.split(key, 100))[1]

    ended, reward, success = jax.jit(jax.vmap(play))(jax.random.split(jax.random.key(0), 64))
    assert (ended & (reward > 0)).any()
    assert (ended & (reward == 0)).any()
    np.testing.assert_array_equal(success, ended & (reward > 0))


def first_layers(env, agent):
    policy = make_policy(agent, env)
    return [x.shape[0] for x in jax.tree.leaves(policy.state) if x.ndim == 2]


def test_what_a_networks_gets_of_codes_is_one_hot():
    need("xminigrid/MiniGrid-Empty-5x5")
    env = purerl.make("xminigrid/MiniGrid-Empty-5x5", direction=True)
    space = env.spec.observation_space
    obs, _ = env.reset(jax.random.key(0))
    tiles, colours = 13, 12  # each channel has as many codes as there are
    seen = np.asarray(space["img"].features(obs["img"][None]))
    assert seen.shape == (1, 7, 7, tiles + colours)
    np.testing.assert_array_equal(seen.sum(-1), 2)
    for channel, part in enumerate(np.split(seen[0], [tiles], axis=-1)):
        np.testing.assert_array_equal(part.argmax(-1), obs["img"][..., channel])
    assert space["direction"].shape == (4,)
    assert 49 * (tiles + colours) + 4 in first_layers(env, purerl.PPO())
    assert 9 * (tiles + colours) in first_layers(env, purerl.PPO(network="cnn"))


@pytest.mark.parametrize(
    ("view", "channels"),
    [
        ("symbolic", 11 + 6 + 4),
        ("symbolic_first_person", 11 + 6 + 4),
        ("categorical", 1 + 11 + 1),
        ("categorical_first_person", 1 + 11 + 1),
    ],
)
def test_views_of_navix_are_codes_inside_their_bounds(view, channels):
    """Each cell has one code of each of its channels: none is outside of the space's bounds."""
    need("navix/Navix-DoorKey-5x5-v0")
    env = purerl.make("navix/Navix-DoorKey-5x5-v0", observation=view)
    space = env.spec.observation_space

    def play(key):
        def body(state, key):
            step_key, action_key = jax.random.split(key)
            state, timestep = env.step(step_key, state, env.spec.action_space.sample(action_key))
            return state, timestep.obs

        first, state = env.reset(key)
        return first, jax.lax.scan(body, state, jax.random.split(key, 60))[1]

    first, obs = jax.jit(play)(jax.random.key(0))
    assert space.contains(first)
    assert all(space.contains(x) for x in np.asarray(obs))
    seen = np.asarray(space.features(obs))
    assert seen.shape[-1] == channels
    np.testing.assert_array_equal(seen.sum(-1), 3 if view.startswith("symbolic") else 1)
    if view == "categorical_first_person":
        assert obs.max() == 11  # outside of the grid


@pytest.mark.parametrize(
    ("name", "width"), [("CliffWalking-v0", 48), ("Blackjack-v0", None), ("Pendulum-v0", 3)]
)
def test_codes_of_functional_environments_are_one_hot(name, width):
    need(f"functional/{name}")
    env = purerl.make(f"functional/{name}")
    space = env.spec.observation_space
    assert isinstance(space, purerl.Box)
    obs, _ = env.reset(jax.random.key(0))
    assert space.contains(obs)
    if width is not None:
        assert space.features(obs[None]).shape[-1] == width


def test_a_functional_environments_pixels_are_no_choices():
    need("functional/Pendulum-v0")
    spaces = importlib.import_module("gymnasium.spaces")
    base = importlib.import_module("gymnasium.envs.phys2d.pendulum").PendulumFunctional

    class Pixels(base):
        observation_space = spaces.Box(0, 255, (8, 8, 3), np.uint8)

        def observation(self, state, rng, params):
            return jnp.full((8, 8, 3), 128, jnp.uint8)

    space = purerl.envs.as_env(Pixels()).spec.observation_space
    assert space == purerl.Box(0, 255, (8, 8, 3), np.uint8)
    assert space.codes is None


@pytest.mark.filterwarnings("ignore:env. XLand-MiniGrid-R4-9x9 has no goal:UserWarning")
@pytest.mark.parametrize(
    ("name", "values"),
    [("XLand-MiniGrid-R4-9x9", {"grid_type": "R4", "view_size": 5}), ("MiniGrid-MemoryS8", {})],
)
def test_defaults_of_xminigrid_are_those_of_the_environment(name, values):
    need(f"xminigrid/{name}")
    _, params = importlib.import_module("xminigrid").make(name)
    known = purerl.env_params(purerl.make(f"xminigrid/{name}"))
    theirs = {n: x for n, x in vars(params).items() if n in known and n != "ruleset"}
    assert {n: known[n] for n in theirs} == theirs
    assert values.items() <= known.items()


def test_pixels_of_xminigrid_are_no_choices():
    need("xminigrid/MiniGrid-Empty-5x5")
    suite = importlib.import_module("xminigrid")
    wrapper = importlib.import_module("xminigrid.wrappers").Wrapper

    class Pixels(wrapper):
        def _seen(self, timestep):
            image = jnp.repeat(timestep.observation[..., :1] * 20, 3, axis=-1)
            return timestep.replace(observation=image.astype(jnp.uint8))

        def reset(self, params, key):
            return self._seen(self._env.reset(params, key))

        def step(self, params, timestep, action):
            return self._seen(self._env.step(params, timestep, action))

    env, params = suite.make("MiniGrid-Empty-5x5")
    space = purerl.envs.as_env((Pixels(env), params)).spec.observation_space
    assert space == purerl.Box(0, 255, (7, 7, 3), np.uint8)


@pytest.mark.parametrize("name", ["brax/fast", "playground/CartpoleBalance"])
def test_a_suite_may_be_imported_where_deprecations_are_errors(name):
    need(name)
    code = f"""
import warnings
import purerl
warnings.filterwarnings("error", category=DeprecationWarning)
warnings.filterwarnings("error", category=UserWarning, message="Brax System")
purerl.make("{name}")
"""
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr


# --- all of them -------------------------------------------------------------------------------

# What can't be made here, and why.
NOT_MADE = {
    "brax/swimmer": "needs a JAX that brax doesn't support",
    "jumanji/Sokoban-v0": "wants to download levels",
    "pgx/sparrow_mahjong": "has 3 players",
}
MENAGERIE = NAMES["playground"][25:]  # these clone a repository of robots
ALL = [name for name in suites.names() if name.partition("/")[2] not in MENAGERIE]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # Craftax's pixels take ten minutes
@pytest.mark.parametrize("name", ALL)
def test_every_environment_keeps_the_contract(name):
    need(name)
    if name in NOT_MADE:
        with pytest.raises(ConfigError, match=NOT_MADE[name]):
            purerl.make(name)
        return
    goalless = (
        pytest.warns(UserWarning, match="no goal") if "XLand" in name else contextlib.nullcontext()
    )
    with goalless:
        env = purerl.make(name)
    purerl.check_env(env, num_steps=100)
