"""What users get wrong, and the sentence for it: one line that names the field and what is allowed,
before anything is compiled."""

import decimal
import functools
from types import SimpleNamespace

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.agents import Tiny
from kit.environments import push_env, walk
from kit.quick import quick_jit

import purerl
from purerl.envs import Box, Discrete, Env
from purerl.training.policy import Interface, Policy

Config = functools.partial(purerl.TrainConfig, total_timesteps=64, num_envs=4, update_every=4)
BASE, GOAL = walk(3), push_env()
KEY = jax.eval_shape(lambda: jax.random.key(0))
HUGE = 10**400


def tiny(env=BASE, **changes):
    return Config(env, Tiny(), **changes)


def spec(**changes):
    """`walk` with another spec."""
    return BASE._replace(spec=BASE.spec._replace(**changes))


def env(base=BASE, *, reset=lambda obs, state: (obs, state), step=lambda state, ts: (state, ts)):
    """`walk` whose reset or step gives something else."""

    def other_step(key, state, action):
        return step(*base.step(key, state, action))

    return Env(lambda key: reset(*base.reset(key)), other_step, base.spec)


def step(**changes):
    """`walk` with other fields of its time step."""
    return env(step=lambda state, ts: (state, ts._replace(**changes)))


def agent(base=Tiny, **methods):
    """An agent with other methods."""
    return type("Mine", (base,), methods)()


def act(function):
    """An agent that acts otherwise: `(action, obs) -> (action, extras)`."""

    def other(self, state, obs, key):
        return function(Tiny.act(self, state, obs, key)[0], obs)

    return agent(act=other)


def update(function):
    """An agent that learns otherwise: `(state, buffer_state, losses) -> ...`."""

    def other(self, *args):
        return function(*Tiny.update(self, *args))

    return agent(update=other)


still = purerl.memoryless(lambda obs, key: (obs, {}))


def network(base, function):
    """A network: `(self, obs) -> output`."""
    return type("Net", (base,), {"create_network": nn.compact(function)})


def actor(function):
    return Config(BASE, purerl.PPO(actor=network(purerl.Actor, function)))


def critic(function, env=BASE):
    return Config(env, purerl.PPO(critic=network(purerl.Critic, function)))


def rewarder(init=lambda self, n: (), call=lambda self, state, r, *ends: (state, r)):
    cls = type("Mine", (), {"init": init, "__call__": call})
    return tiny(rewarder=cls())


def processor(function, base=GOAL):
    return Config(base, Tiny(), action_processor=function)


class MyNoise(purerl.Noise):
    """Noise of another shape."""

    def next_value(self, value, key):
        return jnp.zeros(3)


def dense(n):
    return lambda self, obs: nn.Dense(n)(obs)


def raises(self, *args):
    raise RuntimeError("my own words")


TRAIN = functools.partial(purerl.make_train, {"env": BASE, "agent": Tiny(), "total_timesteps": 64})

NO_DISTRIBUTION = functools.partial(purerl.DefaultActor, distribution=None)

iqm_interval = functools.partial(purerl.statistics.bootstrap_interval, purerl.statistics.iqm)

NUMBERS = [
    ("real-huge", lambda g: purerl.PPO(lr=HUGE), "PPO.lr: got 1000"),
    ("real-beyond-float32", lambda g: purerl.PPO(lr=1e39), "PPO.lr: got 1e[+]39, expected a float"),
    ("real-zero-in-float32", lambda g: purerl.PPO(eps_clip=1e-50), "eps_clip: got 1e-50, expected"),
    ("real-complex", lambda g: purerl.PPO(lr=1j), "PPO.lr: got 1j, expected a float"),
    ("real-numpy-complex", lambda g: purerl.PPO(lr=np.complex64(1)), "PPO.lr: got .*expected a f"),
    ("real-array-of-bool", lambda g: purerl.PPO(lr=np.array(True)), "PPO.lr: got .*expected a fl"),
    ("real-numpy-bool", lambda g: purerl.PPO(lr=np.bool_(True)), "PPO.lr: got .*expected a float"),
    ("real-array-of-text", lambda g: purerl.PPO(lr=np.array("0.1")), "PPO.lr: got .*expected a f"),
    ("real-array-of-none", lambda g: purerl.PPO(lr=np.array(None)), "PPO.lr: got .*expected a fl"),
    ("real-nan-array", lambda g: purerl.PPO(lr=np.array(np.nan)), "PPO.lr: got .*expected a float"),
    ("real-decimal", lambda g: purerl.PPO(lr=decimal.Decimal("0.1")), "got Decimal.*expected a fl"),
    ("real-list", lambda g: purerl.PPO(lr=[1e-3]), r"PPO.lr: got \[0.001\], expected a float"),
    ("real-none", lambda g: purerl.PPO(lr=None), "PPO.lr: got None, expected a float"),
    ("real-minus-inf", lambda g: purerl.Scale(-np.inf), "Scale.factor: got -inf, expected a fl"),
    ("real-key", lambda g: purerl.PPO(lr=g.key), "PPO.lr: got .*expected a float"),
    ("traced-complex", lambda g: TRAIN()(KEY, {"lr": 1j}), "Tiny.lr: got 1j, expected a float"),
    ("integer-huge", lambda g: tiny(total_timesteps=HUGE), "total_timesteps: got 1000.*at most 92"),
    ("integer-unprintable", lambda g: tiny(total_timesteps=10**5000), "got a int that can't be pr"),
    ("integer-int64", lambda g: tiny(num_envs=2**63), "num_envs: got 9223372036854775808.*at most"),
    ("integer-1e12", lambda g: tiny(num_envs=1e12), "num_envs: got 1.*, expected an int.*at most"),
    ("integer-complex", lambda g: tiny(num_envs=4j), "num_envs: got 4j, expected an integer >= 1"),
    ("integer-nan", lambda g: tiny(num_envs=np.nan), "num_envs: got nan, expected an integer >= 1"),
    ("integer-text", lambda g: tiny(num_envs="4"), "num_envs: got '4', expected an integer >= 1"),
    (
        "integer-array",
        lambda g: tiny(num_envs=np.ones(2)),
        r"num_envs: got an array of shape \(2,\)",
    ),
    (
        "integer-bytes",
        lambda g: tiny(num_envs=b"4"),
        "num_envs: got b'4', expected an integer >= 1",
    ),
    (
        "too-many-envs",
        lambda g: tiny(num_envs=2**30, update_every=2**20),
        "num_envs=1073741824 x update_every=1048576: got 1.*expected at most",
    ),
    (
        "too-large-a-buffer",
        lambda g: purerl.make_train({"env": BASE, "agent": "dqn", "buffer": {"maxlen": 2**33}})(
            KEY
        ),
        "Buffer.maxlen: got 8589934592, expected at most 1073741824 on a device",
    ),
    ("sizes-huge", lambda g: purerl.PPO(hidden=2**40), "PPO.hidden: got 1099511627776.*at most"),
    (
        "sizes-float",
        lambda g: purerl.PPO(hidden=64.5),
        "hidden: got 64.5, expected a sequence of p",
    ),
    (
        "sizes-text",
        lambda g: purerl.PPO(hidden="64,64"),
        "hidden: got '64,64', expected a sequence",
    ),
    ("sizes-negative", lambda g: purerl.PPO(hidden=-64), "hidden: got -64, expected a sequence"),
    ("flag-array", lambda g: tiny(normalize_obs=np.ones(2)), "normalize_obs: got an array of shap"),
    ("choice-list", lambda g: purerl.PPO(activation=["tanh"]), "activation: got .*expected one of"),
    (
        "named-list",
        lambda g: purerl.DQN(target_fn=["q"]),
        r"target_fn: got \['q'\], expected a func",
    ),
    (
        "too-many-values",
        lambda g: purerl.GaussianNoise(1, 0, 0, 0, 0, 0),
        "got 6 values, expected at",
    ),
    ("given-twice", lambda g: purerl.Scale(1.0, factor=2.0), "Scale.factor: given twice"),
    ("by-the-loop", lambda g: purerl.PPO(progress=0.5), "PPO: no field 'progress'; known"),
]

CONFIG = [
    (
        "preset-agent",
        lambda g: purerl.preset("CartPole-v1", 3),
        "preset: none for 'CartPole-v1' with 3",
    ),
    ("mapping-of-numbers", lambda g: purerl.make_train({3: 4}), "TrainConfig: no field 3"),
    (
        "mapping-is-text",
        lambda g: purerl.TrainConfig.from_mapping("x"),
        "expected a mapping of its",
    ),
    (
        "agent-mapping",
        lambda g: Config(BASE, {"name": "ppo"}),
        "TrainConfig.agent: got .*expected an",
    ),
    (
        "agent-names-none",
        lambda g: purerl.make_train({"env": BASE, "agent": {"name": None}}),
        "agent: no",
    ),
    (
        "agent-names-7",
        lambda g: purerl.make_train({"env": BASE, "agent": {7: 1}}),
        "PPO: no field 7",
    ),
    (
        "agent-list",
        lambda g: purerl.make_train({"env": BASE, "agent": ["ppo"]}),
        "agent: got .*expe",
    ),
    (
        "rewarder-function",
        lambda g: tiny(rewarder=lambda r: r),
        "TrainConfig.rewarder: got .*expected a r",
    ),
    (
        "rewarder-class",
        lambda g: tiny(rewarder=purerl.Clip),
        r"rewarder: got .*; call it: Clip\(\)",
    ),
    (
        "rewarder-noise",
        lambda g: tiny(rewarder=purerl.GaussianNoise()),
        "rewarder: got .*expected a",
    ),
    (
        "processor-list",
        lambda g: tiny(action_processor=[]),
        "action_processor: got .*expected a func",
    ),
    (
        "noise-for-discrete",
        lambda g: tiny(noise=purerl.GaussianNoise()),
        "noise: walk has discrete act",
    ),
    (
        "buffer-mapping",
        lambda g: tiny(buffer={"maxlen": 4}),
        "TrainConfig.buffer: got .*expected a pur",
    ),
    (
        "replace-unknown",
        lambda g: g.config.replace(env_nam="x"),
        "no field 'env_nam'; did you mean 'env",
    ),
    ("no-devices", lambda g: tiny(num_devices=0), "num_devices: got 0, expected an integer >= 1"),
    ("preset-none", lambda g: purerl.preset("walk"), "preset: none for 'walk' with 'ppo'"),
    ("preset-list", lambda g: purerl.preset(["CartPole-v1"]), "preset: none for"),
    ("purejaxrl", lambda g: purerl.TrainConfig.from_purejaxrl(3), "expected a mapping"),
    (
        "clip-bounds",
        lambda g: purerl.Clip(2.0, 1.0),
        "Clip.low: got 2.0, expected at most high=1.0",
    ),
    ("n-step-missing", lambda g: purerl.NStep(), "NStep.n: missing, expected an integer >= 1"),
    ("buffer-alpha", lambda g: purerl.Buffer(alpha=0.5), "Buffer.alpha: is for priority_sampling"),
    (
        "buffer-rows",
        lambda g: purerl.Buffer(maxlen=10).num_rows(4),
        "maxlen: got 10, expected a mult",
    ),
]

ENVS = [
    (
        "vector-of-name",
        lambda g: purerl.vector_env("CartPole-v1", 3),
        "env: got 'CartPole-v1', expec",
    ),
    (
        "vectorize-name",
        lambda g: purerl.vectorize("CartPole-v1"),
        "env: got 'CartPole-v1', expec",
    ),
    (
        "limit-of-name",
        lambda g: purerl.time_limit("CartPole-v1", 5),
        "env: got 'CartPole-v1', expec",
    ),
    (
        "repeat-none",
        lambda g: purerl.action_repeat(None, 2),
        "env: got None, expected a purerl.Env",
    ),
    ("vectorize-3", lambda g: purerl.vectorize(3), "env: got 3, expected a purerl.Env, such as"),
    ("auto-reset-3", lambda g: purerl.auto_reset(3), "env: got 3, expected a purerl.Env, such as"),
    ("gymnax-env-3", lambda g: purerl.gymnax_env(3), "env: got 3, expected a gymnax Environment"),
    (
        "make-argument",
        lambda g: purerl.make("bad-2", lenght=3),
        "bad-2 has no parameter 'lenght'; did you mean 'length'",
    ),
    (
        "make-module",
        lambda g: purerl.make("kit.environments:walk", lenght=3),
        "kit.environments:walk has no parameter 'lenght'; did you mean 'length'",
    ),
    ("make-no-env", lambda g: purerl.make("bad-3"), "env: got 3, expected a name, a purerl.Env"),
    (
        "keys-of-two-kinds",
        lambda g: tiny(spec(observation_space={1: Discrete(2), "a": Discrete(2)})),
        "space is no pytree",
    ),
    ("name-number", lambda g: tiny(spec(name=3)), "spec.name is 3, expected text"),
    ("env-class", lambda g: tiny(Env), "env: got .*expected a name, a purerl.Env"),
    ("env-bytes", lambda g: tiny(b"CartPole-v1"), "env: got b'CartPole-v1', expected a name"),
    ("env-tuple", lambda g: tiny((1, 2, 3)), r"env: got \(1, 2, 3\), expected a name"),
    ("env-empty", lambda g: tiny(""), "env: no environment ''"),
    ("env-gymnasium", lambda g: tiny(g.gym), "env: got .*expected a name, a purerl.Env"),
    ("env-no-module", lambda g: tiny("no_such:thing"), "env: can't import 'no_such'"),
    (
        "env-no-attribute",
        lambda g: tiny("kit.environments:wolk"),
        "env: 'kit.environments' has no 'wolk'; did you mean 'walk",
    ),
    (
        "env-factory-raises",
        lambda g: tiny("kit.environments:faulty"),
        "env: 'kit.environments:faulty' can't be made: TypeError",
    ),
    ("env-only-colon", lambda g: tiny(":"), "env: can't import ''"),
    ("make-number", lambda g: purerl.make(3), "env: got 3, expected a name"),
    ("make-wrong-argument", lambda g: purerl.make("CartPole-v1", g=1), "no parameter 'g'"),
    ("register-number", lambda g: purerl.register(3, walk), "register: got 3, expected a name"),
    ("register-env", lambda g: purerl.register("bad-1", BASE), "register: .*expected a function"),
    ("check-env-number", lambda g: purerl.check_env(3), "env: got 3, expected a name"),
    (
        "check-env-steps",
        lambda g: purerl.check_env(BASE, num_steps=0),
        "num_steps: got 0, expected",
    ),
    ("check-env-key", lambda g: purerl.check_env(BASE, key=3), "key: got 3, expected a typed key"),
    (
        "spec-none",
        lambda g: tiny(BASE._replace(spec=None)),
        "Env.spec: got None, expected a purerl.E",
    ),
    (
        "reset-none",
        lambda g: tiny(BASE._replace(reset=None)),
        "Env.reset: got None, expected a function",
    ),
    ("step-number", lambda g: tiny(BASE._replace(step=3)), "Env.step: got 3, expected a function"),
    (
        "actions-none",
        lambda g: tiny(spec(action_space=None)),
        "action_space is None, expected Discrete",
    ),
    (
        "actions-number",
        lambda g: tiny(spec(action_space=2)),
        "action_space is 2, expected Discrete, MultiDiscrete or B",
    ),
    (
        "actions-tuple",
        lambda g: tiny(spec(action_space=(Discrete(2),) * 2)),
        "action_space is .*expected D",
    ),
    (
        "actions-class",
        lambda g: tiny(spec(action_space=Discrete)),
        "action_space is .*expected Discrete, ",
    ),
    (
        "actions-dict",
        lambda g: tiny(spec(action_space=gymnasium.spaces.Dict(a=gymnasium.spaces.Discrete(2)))),
        "action_space is .*expected Discrete",
    ),
    (
        "actions-start",
        lambda g: tiny(spec(action_space=gymnasium.spaces.Discrete(2, start=1))),
        "expected a Discrete that starts at 0",
    ),
    (
        "actions-text",
        lambda g: tiny(spec(action_space=gymnasium.spaces.Text(3))),
        "action_space is .*expected Discrete",
    ),
    (
        "observations-none",
        lambda g: tiny(spec(observation_space=None)),
        "observation_space is None, exp",
    ),
    (
        "observations-shape",
        lambda g: tiny(spec(observation_space=(2,))),
        r"observation_space is \(2,\), exp",
    ),
    (
        "observations-empty",
        lambda g: tiny(spec(observation_space={})),
        "observation_space is {}, expected",
    ),
    (
        "observations-array",
        lambda g: tiny(spec(observation_space=np.zeros(2))),
        "observation_space is .*expe",
    ),
    (
        "observations-text",
        lambda g: tiny(spec(observation_space="Box")),
        "observation_space is 'Box', expec",
    ),
    (
        "limit-text",
        lambda g: tiny(spec(max_episode_steps="500")),
        "max_episode_steps is '500', expected",
    ),
    (
        "limit-float",
        lambda g: tiny(spec(max_episode_steps=2.5)),
        "max_episode_steps is 2.5, expected a po",
    ),
    (
        "limit-bool",
        lambda g: tiny(spec(max_episode_steps=True)),
        "max_episode_steps is True, expected a po",
    ),
    ("name-list", lambda g: tiny(spec(name=["walk"])), r"spec.name is \['walk'\], expected text"),
    ("reset-alone", lambda g: tiny(env(reset=lambda o, s: o)), "reset must return .obs, env_state"),
    (
        "reset-gymnax-order",
        lambda g: tiny(env(reset=lambda o, s: (s, o))),
        "reset: the observation is",
    ),
    (
        "reset-shape",
        lambda g: tiny(env(reset=lambda o, s: (o[:1], s))),
        r"reset: the observation has shape",
    ),
    (
        "reset-raises",
        lambda g: tiny(BASE._replace(reset=raises)),
        "reset.key. can't be traced.*my own wor",
    ),
    (
        "reset-no-argument",
        lambda g: tiny(BASE._replace(reset=lambda: 0)),
        "reset.key. can't be traced.*Type",
    ),
    (
        "reset-state-text",
        lambda g: tiny(env(reset=lambda o, s: (o, "s"))),
        "reset.key. can't be traced",
    ),
    (
        "reset-obs-list",
        lambda g: tiny(env(reset=lambda o, s: ([o[0], o[1]], s))),
        "reset: the observation is",
    ),
    (
        "step-five-values",
        lambda g: tiny(env(step=lambda s, ts: (ts.obs, s, ts.reward, ts.terminated, {}))),
        "step must return .env_state, TimeStep",
    ),
    (
        "step-obs-first",
        lambda g: tiny(env(step=lambda s, ts: (ts, s))),
        "step must return .env_state, TimeSt",
    ),
    (
        "step-none",
        lambda g: tiny(env(step=lambda s, ts: None)),
        "step must return .*and returns NoneType",
    ),
    (
        "step-obs-shape",
        lambda g: tiny(step(obs=np.zeros(3, np.float32))),
        r"step: the observation has shape \(3,\)",
    ),
    (
        "step-obs-dict",
        lambda g: tiny(step(obs={"a": np.zeros(2)})),
        "step: the observation is PyTreeDef",
    ),
    (
        "step-obs-complex",
        lambda g: tiny(step(obs=np.zeros(2, np.complex64))),
        "observation has .*complex64",
    ),
    (
        "step-reward-none",
        lambda g: tiny(step(reward=None)),
        "the reward is a NoneType, expected an array",
    ),
    ("step-reward-shape", lambda g: tiny(step(reward=np.ones(1))), r"the reward has shape \(1,\)"),
    (
        "step-reward-text",
        lambda g: tiny(step(reward="1")),
        "the reward is a str, expected an array",
    ),
    (
        "step-reward-complex",
        lambda g: tiny(step(reward=np.complex64(1))),
        "the reward has .*complex64",
    ),
    (
        "step-terminated-shape",
        lambda g: tiny(step(terminated=np.zeros(2, bool))),
        r"terminated has shape \(2,\)",
    ),
    (
        "step-terminated-none",
        lambda g: tiny(step(terminated=None)),
        "terminated is a NoneType, expected",
    ),
    (
        "step-truncated-text",
        lambda g: tiny(step(truncated="no")),
        "truncated is a str, expected an array",
    ),
    ("step-info-none", lambda g: tiny(step(info=None)), "info must be a dict, and is NoneType"),
    (
        "step-state-dtype",
        lambda g: tiny(env(step=lambda s, ts: (s._replace(time=s.time * 1.0), ts))),
        r"env_state.time has .*float32",
    ),
    (
        "step-state-shape",
        lambda g: tiny(env(step=lambda s, ts: (s._replace(time=s.time[None]), ts))),
        r"env_state.time has shape \(1,\)",
    ),
    (
        "step-state-structure",
        lambda g: tiny(env(step=lambda s, ts: (tuple(s), ts))),
        "reset's state is .*step's is",
    ),
    (
        "step-branches",
        lambda g: tiny(env(step=lambda s, ts: (s, ts) if ts.reward > 0 else None)),
        "can't be traced by jax.jit: Tracer.* in test_bad_inputs.py, line",
    ),
    (
        "step-numpy",
        lambda g: tiny(
            env(step=lambda s, ts: (s, ts._replace(reward=np.sum(np.asarray(ts.reward)))))
        ),
        "can't be traced by jax.jit: Tracer",
    ),
    (
        "step-two-arguments",
        lambda g: tiny(BASE._replace(step=lambda key, state: 0)),
        "can't be traced.*TypeError",
    ),
    (
        "time-limit-text",
        lambda g: purerl.time_limit(BASE, "5"),
        "max_episode_steps: got '5', expected an",
    ),
    (
        "time-limit-0",
        lambda g: purerl.time_limit(BASE, 0),
        "max_episode_steps: got 0, expected an integ",
    ),
    (
        "action-repeat-0",
        lambda g: purerl.action_repeat(BASE, 0),
        "num_repeats: got 0, expected an integer",
    ),
    ("box-text", lambda g: Box("low", 1), "Box.low: got 'low', expected a number"),
    ("box-none", lambda g: Box(None, 1, "x"), "Box.*got .*expected"),
    ("box-complex", lambda g: Box(1j, 2), "Box.low: got 1j, expected a number"),
    ("box-huge", lambda g: Box(0, HUGE), "Box.high: got 1000.*expected a number"),
    ("box-nan", lambda g: Box(np.nan, 1), "Box: low nan is not below high 1"),
    ("box-order", lambda g: Box(1, 0), "Box: low 1 is not below high 0"),
    ("box-shapes", lambda g: Box(np.zeros(2), np.ones(3)), "Box: low and high have shapes"),
    ("box-shape", lambda g: Box(np.zeros(2), 1, (3,)), r"Box.shape: got \(3,\), expected"),
    (
        "box-shape-negative",
        lambda g: Box(0, 1, (-1,)),
        r"Box.shape: got \(-1,\), expected a sequence of",
    ),
    (
        "box-shape-float",
        lambda g: Box(0, 1, (1.5,)),
        r"Box.shape: got \(1.5,\), expected a sequence of",
    ),
    (
        "box-shape-text",
        lambda g: Box(0, 1, "ab"),
        "Box.shape: got 'ab', expected a sequence of sizes",
    ),
    (
        "box-dtype",
        lambda g: Box(0, 1, (1,), "number"),
        "Box.dtype: got 'number', expected one of floats",
    ),
    (
        "box-dtype-complex",
        lambda g: Box(0, 1, (1,), complex),
        "Box.dtype: got .*expected one of floats",
    ),
    ("discrete-0", lambda g: Discrete(0), "Discrete.n: got 0, expected an integer >= 1"),
    ("discrete-text", lambda g: Discrete("3"), "Discrete.n: got '3', expected an integer >= 1"),
    ("discrete-none", lambda g: Discrete(None), "Discrete.n: got None, expected an integer >= 1"),
    ("discrete-bool", lambda g: Discrete(True), "Discrete.n: got True, expected an integer >= 1"),
    ("discrete-2.5", lambda g: Discrete(2.5), "Discrete.n: got 2.5, expected an integer >= 1"),
    ("discrete-huge", lambda g: Discrete(2**31), "Discrete.n: got 2147483648, expected .*below 2"),
]

AGENTS = [
    (
        "defaults-text",
        lambda g: Config(BASE, agent(run_defaults=purerl.RunDefaults(num_envs="8"))),
        "Mine.run_defaults.num_envs: got '8', expected an integer >= 1",
    ),
    (
        "no-update",
        lambda g: Config(BASE, agent(update=purerl.Agent.update)),
        "Mine doesn't implement update, expected",
    ),
    (
        "nothing",
        lambda g: Config(BASE, agent(purerl.Agent)),
        "Mine doesn't implement init, acting, po",
    ),
    (
        "defaults-none",
        lambda g: Config(BASE, agent(run_defaults=None)),
        "run_defaults is None, expected a pu",
    ),
    (
        "defaults-raise",
        lambda g: Config(BASE, agent(run_defaults=property(raises))),
        "Mine.run_defaults fails.*m",
    ),
    (
        "check-run-signature",
        lambda g: Config(BASE, agent(check_run=lambda self: None)),
        "can't be put together: TypeError",
    ),
    (
        "make-buffer-none",
        lambda g: Config(BASE, agent(make_buffer=lambda self, n, t: None)),
        "can't be put together",
    ),
    (
        "init-raises",
        lambda g: Config(BASE, agent(init=raises)),
        "Mine.init can't be traced: RuntimeError in test_b",
    ),
    (
        "init-signature",
        lambda g: Config(BASE, agent(init=lambda self: 0)),
        "Mine.init can't be traced: TypeErr",
    ),
    (
        "init-text",
        lambda g: Config(BASE, agent(init=lambda self, key, spec: "state")),
        "Mine.init can't be traced",
    ),
    (
        "act-alone",
        lambda g: Config(BASE, act(lambda a, obs: a)),
        "memoryless: the function returns .*expected .action, extras",
    ),
    (
        "act-extras-none",
        lambda g: Config(BASE, act(lambda a, obs: (a, None))),
        "memoryless: the function returns .*expected .action, e",
    ),
    (
        "act-shape",
        lambda g: Config(BASE, act(lambda a, obs: (a[:1], {}))),
        r"Mine.acting's action has shape \(1,\)",
    ),
    (
        "act-float",
        lambda g: Config(BASE, act(lambda a, obs: (a * 1.0, {}))),
        "acting's action has .*float32, expec",
    ),
    (
        "act-none",
        lambda g: Config(BASE, act(lambda a, obs: (None, {}))),
        "acting's action is a NoneType, expected",
    ),
    (
        "act-extra-shape",
        lambda g: Config(BASE, act(lambda a, obs: (a, {"value": a[0]}))),
        "acting's extra 'value' has sha",
    ),
    (
        "act-extra-name",
        lambda g: Config(BASE, act(lambda a, obs: (a, {"reward": a}))),
        "acting's extra 'reward' has the n",
    ),
    (
        "act-branches",
        lambda g: Config(BASE, act(lambda a, obs: (a if a[0] else a + 1, {}))),
        "Mine.acting can't be traced: Trac",
    ),
    (
        "policy-shape",
        lambda g: Config(
            BASE, agent(policy=lambda s, st, sample=False: purerl.memoryless(lambda o, k: (o, {})))
        ),
        r"policy's action has shape \(4, 2\)",
    ),
    (
        "policy-raises",
        lambda g: Config(BASE, agent(policy=raises)),
        "Mine.policy can't be traced.*my own words",
    ),
    (
        "policy-signature",
        lambda g: Config(BASE, agent(policy=lambda self: self)),
        "Mine.policy can't be traced",
    ),
    (
        "update-raises",
        lambda g: Config(BASE, agent(update=raises)),
        "Mine.update can't be traced.*my own words",
    ),
    (
        "update-two-values",
        lambda g: Config(BASE, update(lambda s, b, x: (s, b))),
        "Mine.update must return .state",
    ),
    (
        "update-losses-none",
        lambda g: Config(BASE, update(lambda s, b, x: (s, b, None))),
        "update must return .*losse",
    ),
    (
        "update-loss-shape",
        lambda g: Config(BASE, update(lambda s, b, x: (s, b, {"loss": jnp.ones(2)}))),
        "the loss 'loss' is float32 of sh",
    ),
    (
        "update-loss-text",
        lambda g: Config(BASE, update(lambda s, b, x: (s, b, {"loss": "low"}))),
        "the loss 'loss'",
    ),
    (
        "update-loss-complex",
        lambda g: Config(BASE, update(lambda s, b, x: (s, b, {"loss": jnp.complex64(1)}))),
        "the loss 'loss'",
    ),
    (
        "update-structure",
        lambda g: Config(BASE, update(lambda s, b, x: ((s,), b, x))),
        "the agent's state changes its str",
    ),
    (
        "update-dtype",
        lambda g: Config(BASE, update(lambda s, b, x: ({**s, "calls": s["calls"] * 1.0}, b, x))),
        r"state\['calls'\] has .*float32 after",
    ),
    (
        "update-shape",
        lambda g: Config(BASE, update(lambda s, b, x: ({**s, "calls": s["calls"][None]}, b, x))),
        r"state\['calls'\] has shape \(1,\)",
    ),
    (
        "update-buffer",
        lambda g: Config(BASE, update(lambda s, b, x: (s, None, x))),
        "the experience changes its str",
    ),
    (
        "update-entry",
        lambda g: Config(
            BASE,
            agent(update=lambda self, st, ex, key, clock: (st, ex, {"x": ex.read()["advantage"]})),
        ),
        "update can't be traced: KeyError",
    ),
    (
        "check-agent-class",
        lambda g: purerl.check_agent(purerl.PPO, BASE),
        "PPO.*is not a purerl.Agent",
    ),
    (
        "check-agent-key",
        lambda g: purerl.check_agent(purerl.PPO(), BASE, 3),
        "key: got 3, expected a typed",
    ),
    (
        "ddpg-discrete",
        lambda g: Config(BASE, purerl.DDPG(), update_after=0),
        "agent: DDPG is for continuous actions",
    ),
    (
        "dqn-target-shape",
        lambda g: Config(BASE, purerl.DQN(target_fn=lambda q, t: t), update_after=0),
        r"DQN.target_fn: got shape \(128, 2\), expected \(128,\)",
    ),
    (
        "dqn-target-column",
        lambda g: Config(BASE, purerl.DQN(target_fn=lambda q, t: t[:, :1]), update_after=0),
        r"DQN.target_fn: got shape \(128, 1\), expected \(128,\)",
    ),
    (
        "dqn-target-raises",
        lambda g: Config(BASE, purerl.DQN(target_fn=raises), update_after=0),
        "my own words",
    ),
]

NETWORKS = [
    (
        "actor-too-wide",
        lambda g: actor(dense(3)),
        r"create_network: got shape \(2, 3\), expected \(2, 2\)",
    ),
    (
        "actor-none",
        lambda g: actor(lambda self, obs: None),
        "create_network: got NoneType, expected",
    ),
    (
        "actor-raises",
        lambda g: actor(raises),
        "PPO.init can't be traced: RuntimeError.*my own words",
    ),
    (
        "actor-no-argument",
        lambda g: actor(lambda self: 0),
        r"got the parameters \(self\), expected create_network\(self, obs\)",
    ),
    (
        "actor-no-network",
        lambda g: Config(BASE, purerl.PPO(actor=type("Net", (purerl.Actor,), {}))),
        "Net has to implement create_network",
    ),
    (
        "actor-batch",
        lambda g: actor(lambda self, obs: nn.Dense(2)(obs)[:2]),
        r"create_network: got shape \(2, 2\), expected \(4, 2\)",
    ),
    (
        "actor-int",
        lambda g: actor(lambda self, obs: nn.Dense(2)(obs).astype(int)),
        "Net.create_network: got int32, expected floats",
    ),
    (
        "actor-complex",
        lambda g: actor(lambda self, obs: nn.Dense(2)(obs) * 1j),
        "Net.create_network: got complex64, expected floats",
    ),
    (
        "actor-pair",
        lambda g: actor(lambda self, obs: (nn.Dense(2)(obs),) * 2),
        "create_network: got a pair, expected",
    ),
    (
        "actor-distribution",
        lambda g: Config(
            BASE, purerl.PPO(actor=type("Net", (purerl.DefaultActor,), {"distribution": "normal"}))
        ),
        "distribution: got normal, expected Categ",
    ),
    (
        "actor-instance",
        lambda g: purerl.PPO(actor=purerl.DefaultActor(Discrete(2))),
        "PPO.actor: got .*uninstantiated",
    ),
    (
        "actor-flax",
        lambda g: purerl.PPO(actor=nn.Dense),
        "PPO.actor: got .*expected a subclass of purerl.Actor",
    ),
    (
        "actor-lambda",
        lambda g: purerl.PPO(actor=lambda space: 0),
        "PPO.actor: got .*expected a subclass",
    ),
    (
        "actor-partial",
        lambda g: Config(BASE, purerl.PPO(actor=functools.partial(purerl.DefaultActor, widths=3))),
        "PPO.init can't be traced: TypeError.*widths",
    ),
    ("critic-two", lambda g: critic(dense(3)), r"create_network: got shape \(2, 3\), expected"),
    (
        "critic-scalar",
        lambda g: critic(lambda self, obs: jnp.sum(obs)),
        r"create_network: got shape \(\), expe",
    ),
    (
        "critic-raises",
        lambda g: critic(raises),
        "PPO.init can't be traced: RuntimeError.*my own words",
    ),
    (
        "critic-complex",
        lambda g: critic(lambda self, obs: nn.Dense(1)(obs) * 1j),
        "Net.create_network: got complex64, expected floats",
    ),
    (
        "critic-q",
        lambda g: critic(lambda self, obs, action: nn.Dense(1)(obs)),
        "PPO.critic: Net is a Q critic",
    ),
    (
        "critic-branches",
        lambda g: critic(lambda self, obs: nn.Dense(1)(obs) if obs[0, 0] > 0 else 0),
        "can't be traced: Tracer",
    ),
]

PARTS = [
    (
        "rewarder-two-arguments",
        lambda g: rewarder(call=lambda self, state, r: (state, r)),
        "rewarder: Mine can't be traced: TypeErr",
    ),
    (
        "rewarder-alone",
        lambda g: rewarder(call=lambda self, state, r, *ends: r),
        "rewarder: Mine must return .state, rewa",
    ),
    (
        "rewarder-shape",
        lambda g: rewarder(call=lambda self, state, r, *ends: (state, r.sum(0))),
        r"the reward has shape \(4,\) and",
    ),
    (
        "rewarder-dtype",
        lambda g: rewarder(call=lambda self, state, r, *ends: (state, r > 0)),
        "the reward has .*bool, expected",
    ),
    (
        "rewarder-state",
        lambda g: rewarder(call=lambda self, state, r, *ends: (r, r)),
        "rewarder: Mine: its state changes",
    ),
    (
        "rewarder-init",
        lambda g: rewarder(init=lambda self: ()),
        "rewarder: Mine.init can't be traced: TypeError",
    ),
    (
        "rewarder-raises",
        lambda g: rewarder(call=raises),
        "rewarder: Mine can't be traced: RuntimeError.*my own",
    ),
    (
        "noise-shape",
        lambda g: Config(GOAL, purerl.DDPG(), noise=MyNoise(), update_after=0),
        r"noise: MyNoise.*shape",
    ),
    (
        "noise-abstract",
        lambda g: Config(GOAL, purerl.DDPG(), noise=purerl.Noise(), update_after=0),
        "noise: Noise can't be traced: NotImplementedError",
    ),
    (
        "processor-shape",
        lambda g: processor(lambda a: a[0]),
        r"action_processor: the action has shape \(1,\) and dtype",
    ),
    (
        "processor-broadcasts",
        lambda g: processor(lambda a: jnp.repeat(a, 2, -1)),
        r"action_processor: the action has shape \(4, 2\) and dt",
    ),
    (
        "processor-none",
        lambda g: processor(lambda a: None),
        "action_processor: the action is a NoneType, expected an array",
    ),
    (
        "processor-floats",
        lambda g: processor(lambda a: a * 1.0, BASE),
        r"action_processor: .*float32, expected \(4,\) and integers",
    ),
    (
        "processor-raises",
        lambda g: processor(raises),
        "action_processor: can't be traced: .*",
    ),
    (
        "processor-signature",
        lambda g: processor(lambda: 0),
        "action_processor: can't be traced: TypeError",
    ),
    (
        "processor-numpy",
        lambda g: processor(np.sin),
        "action_processor: can't be traced: Tracer",
    ),
]

TRAINING = [
    (
        "fit-keep-half",
        lambda g: purerl.fit(g.config, keep=2.5),
        "keep: got 2.5, expected an integer",
    ),
    (
        "fit-resume-text",
        lambda g: purerl.fit(g.config, resume="no"),
        "resume: got 'no', expected Tr",
    ),
    ("loop-agent", lambda g: purerl.make_loop(BASE, "ppo"), "agent: got 'ppo', expected an agent"),
    (
        "run-steps-text",
        lambda g: purerl.run(BASE, Tiny(), key=g.key, total_timesteps="9"),
        "total_timesteps: got '9', exp",
    ),
    ("result-member", lambda g: g.result.member(2), "member 2 of 2, counted from 0"),
    ("result-member-text", lambda g: g.result.member("0"), "member: got '0', expected an integer"),
    ("result-config", lambda g: g.result.config(-3), "member -3 of 2, counted from 0"),
    ("result-best", lambda g: g.result.best("loss"), "by: got 'loss', expected one of"),
    ("key-number", lambda g: TRAIN()(0), "key: got 0, expected a typed key"),
    ("key-none", lambda g: TRAIN()(None), "key: got None, expected a typed key"),
    (
        "key-raw",
        lambda g: TRAIN()(np.zeros(2, np.uint32)),
        r"key: got uint32 \(2,\), expected a typed key",
    ),
    (
        "key-many",
        lambda g: TRAIN()(jax.eval_shape(lambda k: jax.random.split(k, 3), KEY)),
        "key: got 3 keys, exp",
    ),
    (
        "hyperparams-text",
        lambda g: TRAIN()(KEY, "abc"),
        "hyperparams: got 'abc', expected a mapping",
    ),
    (
        "hyperparams-list",
        lambda g: TRAIN()(KEY, [0.1]),
        r"hyperparams: got \[0.1\], expected a mapping",
    ),
    (
        "hyperparams-array",
        lambda g: TRAIN()(KEY, np.ones(2)),
        "hyperparams: got .*expected a mapping",
    ),
    ("hyperparams-name", lambda g: TRAIN()(KEY, {3: 0.1}), "hyperparams: Tiny has no 3"),
    (
        "hyperparams-shape",
        lambda g: TRAIN()(KEY, {"lr": np.ones(2)}),
        r"Tiny.lr: got an array of shape \(2,\)",
    ),
    (
        "hyperparams-none",
        lambda g: TRAIN()(KEY, {"lr": None}),
        "Tiny.lr: got None, expected a float",
    ),
    (
        "hyperparams-static",
        lambda g: TRAIN()(KEY, {"repeats": 2}),
        "hyperparams: Tiny.repeats is static",
    ),
    (
        "make-train-none",
        lambda g: purerl.make_train(None),
        "TrainConfig: got None, expected a mapping",
    ),
    (
        "make-train-agent",
        lambda g: purerl.make_train(purerl.PPO()),
        "TrainConfig: got PPO.*expected a mapping",
    ),
    (
        "run-no-end",
        lambda g: purerl.run(BASE, Tiny(), key=g.key),
        "total_timesteps: got None, expected",
    ),
    (
        "run-key",
        lambda g: purerl.run(BASE, Tiny(), key=3, total_timesteps=64),
        "key: got 3, expected a typed",
    ),
    (
        "run-agent",
        lambda g: purerl.run(BASE, "ppo", key=g.key, total_timesteps=64),
        "agent: got 'ppo', expected an agent",
    ),
    (
        "run-option",
        lambda g: purerl.run(BASE, Tiny(), key=g.key, timestep=64),
        "run: no argument 'timestep'; did you mean 'total",
    ),
    (
        "run-negative",
        lambda g: purerl.run(BASE, Tiny(), key=g.key, total_timesteps=-64),
        "total_timesteps: got -64",
    ),
    (
        "run-num-envs",
        lambda g: purerl.run(BASE, Tiny(), key=g.key, total_timesteps=64, num_envs="4"),
        "num_envs: got '4'",
    ),
    (
        "fit-config",
        lambda g: purerl.fit("CartPole-v1"),
        "TrainConfig: got 'CartPole-v1', expected a mapping",
    ),
    (
        "fit-seeds-0",
        lambda g: purerl.fit(g.config, seeds=0),
        "seeds: got 0, expected an integer >= 1",
    ),
    (
        "fit-seeds-text",
        lambda g: purerl.fit(g.config, seeds="8"),
        "seeds: got '8', expected a sequence",
    ),
    (
        "fit-seeds-huge",
        lambda g: purerl.fit(g.config, seeds=HUGE),
        "seeds: got 1000.*expected an integer",
    ),
    (
        "fit-seeds-float",
        lambda g: purerl.fit(g.config, seeds=[0.5]),
        "seeds: got 0.5, expected an integer 0",
    ),
    (
        "fit-seeds-twice",
        lambda g: purerl.fit(g.config, seeds=[1, 1]),
        "seeds: some are there twice",
    ),
    (
        "fit-seeds-2**32",
        lambda g: purerl.fit(g.config, seeds=[2**32]),
        "seeds: got 4294967296, expected an int",
    ),
    (
        "fit-hyperparams-text",
        lambda g: purerl.fit(g.config, hyperparams="abc"),
        "hyperparams: got 'abc', expected",
    ),
    (
        "fit-hyperparams-value",
        lambda g: purerl.fit(g.config, hyperparams={"lr": "fast"}),
        "lr: got 'fast', expec",
    ),
    (
        "fit-hyperparams-none",
        lambda g: purerl.fit(g.config, hyperparams={"lr": None}),
        "lr: got None, expected",
    ),
    (
        "fit-hyperparams-complex",
        lambda g: purerl.fit(g.config, hyperparams={"lr": 1j}),
        "lr: got 1j, expected",
    ),
    (
        "fit-hyperparams-name",
        lambda g: purerl.fit(g.config, hyperparams={"rate": 1}),
        "hyperparams: Tiny has no 'ra",
    ),
    (
        "fit-hyperparams-shape",
        lambda g: purerl.fit(g.config, seeds=3, hyperparams={"lr": [1, 2]}),
        r"lr has shape \(2,\), expe",
    ),
    (
        "fit-callback",
        lambda g: purerl.fit(g.config, callback=3),
        "callback: got 3, expected a function",
    ),
    ("fit-keep", lambda g: purerl.fit(g.config, keep=0), "keep: got 0, expected an integer >= 1"),
    (
        "fit-keep-nan",
        lambda g: purerl.fit(g.config, keep=np.nan),
        "keep: got nan, expected an integer >= 1",
    ),
    (
        "fit-report-every",
        lambda g: purerl.fit(g.config, report_every="2"),
        "report_every: got '2', expected a numb",
    ),
    (
        "fit-checkpoint-every",
        lambda g: purerl.fit(g.config, checkpoint_every=-1),
        "checkpoint_every: got -1, expec",
    ),
    (
        "fit-resume",
        lambda g: purerl.fit(g.config, resume=True),
        "resume: got True, expected None where there is no",
    ),
    ("fit-dir-number", lambda g: purerl.fit(g.config, 3), "run_dir: got 3, expected a path"),
    (
        "fit-dir-bytes",
        lambda g: purerl.fit(g.config, b"runs/x"),
        "run_dir: got b'runs/x', expected a path",
    ),
    (
        "fit-dir-nul",
        lambda g: purerl.fit(g.config, "runs/\0x"),
        "run_dir: got .*expected a path",
    ),
    ("fit-dir-empty", lambda g: purerl.fit(g.config, ""), "run_dir: got '', expected a path"),
    (
        "member-too-large",
        lambda g: g.outs.member(7),
        r"member: got \(7\), but the runs have the shape \(3,\)",
    ),
    (
        "member-too-small",
        lambda g: g.outs.member(-4),
        r"member: got \(-4\), but the runs have the shape",
    ),
    ("member-two", lambda g: g.outs.member(1, 2), r"member: got \(1, 2\), expected 1 integer"),
    ("member-none", lambda g: g.outs.member(), r"member: got \(\), expected 1 integer"),
    ("member-float", lambda g: g.outs.member(1.0), r"member: got \(1.0\), expected 1 integer"),
    ("member-text", lambda g: g.outs.member("1"), r"member: got \('1'\), expected 1 integer"),
    ("member-bool", lambda g: g.outs.member(True), r"member: got \(True\), expected 1 integer"),
    ("member-of-one", lambda g: g.outs.member(0).member(0), "member: .*the output of one run"),
    (
        "policy-of-many",
        lambda g: g.outs.policy(np.zeros((1, 2))),
        r"output of \(3,\) runs: choose one",
    ),
]

ACTING = [
    ("policy-scalar", lambda g: g.policy(3.0), "obs: got .*expected observations of walk"),
    ("policy-text", lambda g: g.policy("obs"), "obs: got no numbers, expected observations of"),
    ("policy-none", lambda g: g.policy(None), "obs: got .*expected observations of walk"),
    (
        "policy-one",
        lambda g: g.policy(np.zeros(2)),
        r"obs: got .*shape \(2,\), expected.*policy.step",
    ),
    (
        "policy-wide",
        lambda g: g.policy(np.zeros((1, 3))),
        r"obs: got .*shape \(1, 3\), expected.*\(B, 2\)",
    ),
    (
        "policy-dict",
        lambda g: g.policy({"obs": np.zeros((1, 2))}),
        "obs: got .*expected observations of walk",
    ),
    (
        "policy-complex",
        lambda g: g.policy(np.zeros((1, 2), complex)),
        "obs: got complex128.*expected",
    ),
    ("policy-key", lambda g: g.policy(np.zeros((1, 2)), 3), "key: got 3, expected a typed key"),
    ("act-wide", lambda g: g.policy.act(np.zeros((1, 3))), r"obs: got .*shape \(1, 3\), expected"),
    (
        "value-wide",
        lambda g: g.policy.value(np.zeros((1, 3))),
        r"obs: got .*shape \(1, 3\), expected",
    ),
    ("step-wide", lambda g: g.policy.step(np.zeros(3)), r"obs: got .*shape \(3,\), expected"),
    (
        "step-batch",
        lambda g: g.policy.step(np.zeros((5, 2))),
        "expected one observation.*for a batch, call",
    ),
    (
        "step-ragged",
        lambda g: g.policy.step([[1], [2, 3]]),
        "obs: got list, expected one observation",
    ),
    (
        "step-key",
        lambda g: g.policy.step(np.zeros(2), "key"),
        "key: got 'key', expected a typed key",
    ),
    *(
        (
            f"{name.lower()}-deterministic",
            lambda g, name=name: purerl.make_train(
                {"env": GOAL, "agent": purerl.AGENTS[name](actor=NO_DISTRIBUTION)}
                | {"total_timesteps": 2**14}
            ),
            f"DefaultActor.distribution: got None, expected a distribution: {kind} draws",
        )
        for name, kind in (
            ("ppo", "PPO"),
            ("actor_critic", "ActorCritic"),
            ("reinforce", "REINFORCE"),
        )
    ),
    (
        "evaluate-env",
        lambda g: purerl.evaluate(3, g.policy, g.key, 1, 1),
        "env: got 3, expected a name",
    ),
    (
        "evaluate-policy",
        lambda g: purerl.evaluate(BASE, None, g.key, 1, 1),
        "policy: got None, expected a Policy, or a function",
    ),
    (
        "evaluate-key",
        lambda g: purerl.evaluate(BASE, g.policy, 0, 1, 1),
        "key: got 0, expected a typed key",
    ),
    (
        "evaluate-episodes",
        lambda g: purerl.evaluate(BASE, g.policy, g.key, 0, 1),
        "num_episodes: got 0, expected an",
    ),
    (
        "evaluate-steps",
        lambda g: purerl.evaluate(BASE, g.policy, g.key, 1, "9"),
        "max_steps: got '9', expected an int",
    ),
    (
        "evaluate-shape",
        lambda g: purerl.evaluate(BASE, lambda obs, key: obs, g.key, 2, 3),
        "policy: .*shape",
    ),
    (
        "evaluate-raises",
        lambda g: purerl.evaluate(BASE, raises, g.key, 2, 3),
        "policy: can't be traced: .*my own w",
    ),
    ("save-number", lambda g: purerl.save_policy(3, "x"), "policy: got int, expected a Policy"),
    (
        "save-many",
        lambda g: purerl.save_policy(g.outs.policy, "x"),
        "policy: .*choose one by out.member",
    ),
    ("save-path-number", lambda g: purerl.save_policy(g.policy, 3), "path: got 3, expected a path"),
    (
        "save-path-nul",
        lambda g: purerl.save_policy(g.policy, "a\0b"),
        "path: got .*expected a path",
    ),
    (
        "save-path-bytes",
        lambda g: purerl.save_policy(g.policy, b"x"),
        "path: got b'x', expected a path",
    ),
    (
        "save-path-empty",
        lambda g: purerl.save_policy(g.policy, ""),
        "path: got '', expected a path",
    ),
    ("load-path-none", lambda g: purerl.load_policy(None), "path: got None, expected a path"),
    ("load-path-nul", lambda g: purerl.load_policy("a\0b"), "path: got .*expected a path"),
    (
        "load-agent",
        lambda g: purerl.load_policy(g.file, agent="ppo"),
        "agent: got builtins.str, expected PPO",
        purerl.RunError,
    ),
    (
        "load-processor",
        lambda g: purerl.load_policy(g.file, action_processor=3),
        "action_processor",
        Exception,
    ),
    ("export-number", lambda g: purerl.export_policy(3, "x"), "policy: got int, expected a Policy"),
    (
        "export-batch",
        lambda g: purerl.export_policy(g.policy, "x", 0),
        "batch: got 0, expected an integer >= 1",
    ),
    (
        "export-batch-text",
        lambda g: purerl.export_policy(g.policy, "x", "4"),
        "batch: got '4', expected an int",
    ),
    (
        "export-platform",
        lambda g: purerl.export_policy(g.policy, "x", platforms=["gpux"]),
        "platforms: .*'gpux'",
    ),
    (
        "export-platforms",
        lambda g: purerl.export_policy(g.policy, "x", platforms=3),
        "platforms: got 3, expected",
    ),
    (
        "export-path",
        lambda g: purerl.export_policy(g.policy, None),
        "path: got None, expected a path",
    ),
    (
        "render-policy",
        lambda g: purerl.render(3, BASE, "x.gif"),
        "policy: got int, expected a Policy",
    ),
    ("render-env", lambda g: purerl.render(None, 3, "x.gif"), "env: got 3, expected a name"),
    (
        "render-path",
        lambda g: purerl.render(None, BASE, "x.png"),
        "path: got 'x.png', expected a name that",
    ),
    ("render-path-number", lambda g: purerl.render(None, BASE, 3), "path: got 3, expected a path"),
    (
        "render-path-nul",
        lambda g: purerl.render(None, BASE, "a\0.gif"),
        "path: got .*expected a path",
    ),
    (
        "render-steps",
        lambda g: purerl.render(None, BASE, "x.gif", max_steps=0),
        "max_steps: got 0, expected an in",
    ),
    (
        "render-seed",
        lambda g: purerl.render(None, BASE, "x.gif", seed="a"),
        "seed: got 'a', expected an integer",
    ),
    (
        "render-key",
        lambda g: purerl.render(g.policy, BASE, "x.gif", key=3),
        "key: got 3, expected a typed key",
    ),
    (
        "render-other",
        lambda g: purerl.render(g.policy, GOAL, "x.gif"),
        "env: push has .*expected the policy's",
    ),
    (
        "gymnasium-name",
        lambda g: purerl.evaluate_in_gymnasium(g.policy, "NoSuch-v1"),
        "gymnasium has no env",
    ),
    ("gymnasium-env", lambda g: purerl.evaluate_in_gymnasium(g.policy, 3), "env: got 3, expected"),
    (
        "gymnasium-policy",
        lambda g: purerl.evaluate_in_gymnasium(3, g.gym),
        "policy: got 3, expected",
    ),
    (
        "gymnasium-episodes",
        lambda g: purerl.evaluate_in_gymnasium(g.policy, g.gym, 0),
        "num_episodes: got 0, exp",
    ),
    ("to-gymnasium", lambda g: purerl.to_gymnasium(3), "env: got 3, expected a name"),
    (
        "to-gymnasium-0",
        lambda g: purerl.to_gymnasium(BASE, num_envs=0),
        "num_envs: got 0, expected an integ",
    ),
]

SWEEPS = [
    (
        "grid-list",
        lambda g: purerl.sweep(g.config, grid=[1]),
        r"grid: got \[1\], expected a mapping",
    ),
    (
        "grid-scalar",
        lambda g: purerl.sweep(g.config, grid={"lr": 0.1}),
        r"grid\['lr'\]: got 0.1, expected a seq",
    ),
    (
        "grid-text",
        lambda g: purerl.sweep(g.config, grid={"lr": "0.1"}),
        r"grid\['lr'\]: got '0.1', expected a",
    ),
    (
        "grid-none",
        lambda g: purerl.sweep(g.config, grid={"lr": []}),
        r"grid\['lr'\]: got no values",
    ),
    (
        "grid-name",
        lambda g: purerl.sweep(g.config, grid={"rate": [1]}),
        "neither TrainConfig nor Tiny has a field",
    ),
    (
        "grid-name-number",
        lambda g: purerl.sweep(g.config, grid={3: [1]}),
        "grid: got the name 3, expected names of fields",
    ),
    (
        "grid-value",
        lambda g: purerl.sweep(g.config, grid={"lr": ["fast"]}),
        "Tiny.lr: got 'fast', expected a fl",
    ),
    (
        "grid-nan",
        lambda g: purerl.sweep(g.config, grid={"lr": [np.nan]}),
        "Tiny.lr: got nan, expected a float",
    ),
    ("grid-huge", lambda g: purerl.sweep(g.config, grid={"lr": [HUGE]}), "Tiny.lr: got 1000"),
    (
        "grid-2d",
        lambda g: purerl.sweep(g.config, grid={"lr": np.ones((2, 2))}),
        r"got an array of shape \(2, 2\)",
    ),
    (
        "grid-dict",
        lambda g: purerl.sweep(g.config, grid={"lr": {"a": 1}}),
        r"grid\['lr'\]: got .*expected a seq",
    ),
    (
        "grid-agent",
        lambda g: purerl.sweep(g.config, grid={"agent": ["ppo"]}),
        "agent: got 'ppo', expected an ag",
    ),
    (
        "grid-arrays",
        lambda g: purerl.sweep(g.config, grid={"lr": [np.ones(2), np.ones(2)]}),
        r"lr: got an array of shape \(2,\)",
    ),
    (
        "samples-list",
        lambda g: purerl.sweep(g.config, samples=[1]),
        r"samples: got \[1\], expected a mapping",
    ),
    (
        "samples-number",
        lambda g: purerl.sweep(g.config, samples={"lr": 1}, num_samples=1),
        r"samples\['lr'\]: got 1, exp",
    ),
    (
        "samples-class",
        lambda g: purerl.sweep(g.config, samples={"lr": purerl.Uniform}, num_samples=1),
        r"samples\['lr'\]: got .*expected a dist",
    ),
    (
        "samples-count",
        lambda g: purerl.sweep(g.config, samples={"lr": purerl.Uniform(0, 1)}),
        "num_samples: got None, ex",
    ),
    (
        "samples-both",
        lambda g: purerl.sweep(
            g.config, grid={"lr": [1]}, samples={"lr": purerl.Uniform(0, 1)}, num_samples=1
        ),
        "'lr' is in the grid too",
    ),
    (
        "samples-key",
        lambda g: purerl.sweep(
            g.config, samples={"lr": purerl.Uniform(0, 1)}, num_samples=1, key=3
        ),
        "key: got 3, expected",
    ),
    (
        "samples-missing",
        lambda g: purerl.sweep(g.config, num_samples=3),
        "num_samples.*are for samples",
    ),
    (
        "uniform-order",
        lambda g: purerl.Uniform(1, 0),
        r"Uniform: got \(1, 0\), expected finite bounds",
    ),
    ("uniform-huge", lambda g: purerl.Uniform(0, HUGE), r"Uniform: got .*expected"),
    (
        "uniform-complex",
        lambda g: purerl.Uniform(0, 1j),
        r"Uniform: got \(0, 1j\), expected two floats",
    ),
    ("uniform-text", lambda g: purerl.Uniform("0", "1"), "Uniform: got .*expected two floats"),
    (
        "log-uniform-0",
        lambda g: purerl.LogUniform(0, 1),
        r"LogUniform: got \(0\.0, 1\.0\), expected low > 0",
    ),
    ("choice-none", lambda g: purerl.Choice([]), "Choice: got no values"),
    ("choice-number", lambda g: purerl.Choice(3), "Choice: got 3, expected a sequence"),
    (
        "slice-size",
        lambda g: purerl.sweep(g.config, slice_size=0),
        "slice_size: got 0, expected an integer",
    ),
    ("sweep-dir", lambda g: purerl.sweep(g.config, run_dir=3), "run_dir: got 3, expected a path"),
    (
        "sweep-dir-nul",
        lambda g: purerl.sweep(g.config, run_dir="a\0b"),
        "run_dir: got .*expected a path",
    ),
    ("sweep-config", lambda g: purerl.sweep(3), "TrainConfig: got 3, expected a mapping"),
    (
        "sweep-verbose",
        lambda g: purerl.sweep(g.config, verbose="no"),
        "verbose: got 'no', expected True or False or N",
    ),
]

FUNCTIONS = [
    (
        "gae-gamma",
        lambda g: purerl.gae(*g.rows(4, 4, 4, 4, 4), "0.9", 0.9),
        "gae: gamma is '0.9', expected a",
    ),
    (
        "gae-lam",
        lambda g: purerl.gae(*g.rows(4, 4, 4, 4, 4), 0.9, None),
        "gae: lam is None, expected a numb",
    ),
    (
        "rows-0",
        lambda g: purerl.Buffer(maxlen=8).num_rows(0),
        "num_envs: got 0, expected an integer >= 1",
    ),
    (
        "scores-text",
        lambda g: iqm_interval(["a"]),
        r"scores: got \['a'\], expected arrays of numbers",
    ),
    ("scores-none", lambda g: iqm_interval([]), "scores: got no scores, expected at least one"),
    (
        "confidence",
        lambda g: iqm_interval([1.0], confidence="0.9"),
        "confidence: got '0.9', expected a n",
    ),
    (
        "num-samples",
        lambda g: iqm_interval([1.0], num_samples=0),
        "num_samples: got 0, expected an int",
    ),
    ("rng", lambda g: iqm_interval([1.0], rng="seed"), "rng: got 'seed', expected an integer >= 0"),
    (
        "statistic",
        lambda g: purerl.statistics.bootstrap_interval("iqm", [1.0]),
        "statistic: got 'iqm', exp",
    ),
    (
        "gae-shapes",
        lambda g: purerl.gae(*g.rows(4, 3, 4, 4, 4), 0.9, 0.9),
        r"gae: value has shape \(3,\), expected \(4,\)",
    ),
    (
        "gae-next",
        lambda g: purerl.gae(*g.rows(4, 4, 1, 4, 4), 0.9, 0.9),
        r"gae: next_value has shape \(1,\), expected",
    ),
    (
        "gae-scalar",
        lambda g: purerl.gae(1.0, 1.0, 1.0, False, False, 0.9, 0.9),
        "gae: reward is a float, expected an array",
    ),
    (
        "gae-empty",
        lambda g: purerl.gae(*g.rows(0, 0, 0, 0, 0), 0.9, 0.9),
        r"gae: reward has shape \(0,\), expected",
    ),
    (
        "gae-text",
        lambda g: purerl.gae("r", *g.rows(4, 4, 4, 4), 0.9, 0.9),
        "gae: reward is a str, expected",
    ),
    (
        "gae-terminated-float",
        lambda g: purerl.gae(*[np.zeros(4, np.float32)] * 5, 0.9, 0.9),
        "gae: terminated has dtype float32, expected bool",
    ),
    (
        "reward-to-go-shapes",
        lambda g: purerl.reward_to_go(*g.rows(4, 3, 4, 4), 0.9),
        "reward_to_go: next_value has shape",
    ),
    (
        "lambda-return-shapes",
        lambda g: purerl.lambda_return(*g.rows(4, 4, 4, 3), 0.9, 0.9),
        "lambda_return: truncated has sh",
    ),
    (
        "n-step-0",
        lambda g: purerl.n_step_return(*g.rows(4, 4, 4, 4), 0.9, 0),
        "n_step_return: n: got 0, expected an int",
    ),
    (
        "n-step-float",
        lambda g: purerl.n_step_return(*g.rows(4, 4, 4, 4), 0.9, 1.5),
        "n: got 1.5, expected an int",
    ),
    (
        "curves-shape",
        lambda g: purerl.Curves("x", np.ones(3), np.ones((2, 2)), np.ones((2, 2))),
        r"timesteps has shape \(3,\)",
    ),
    (
        "curves-of-none",
        lambda g: purerl.Curves.of("x", None),
        "out: got NoneType, expected a TrainOutput",
    ),
    (
        "plot-nothing",
        lambda g: purerl.plot_curves([], "x.png"),
        "curves: got none, expected at least one",
    ),
    ("plot-number", lambda g: purerl.plot_curves(3, "x.png"), "curves: got .*expected"),
    ("plot-x", lambda g: purerl.plot_curves(g.curves, "x.png", x="hours"), "x: got 'hours'; "),
    ("plot-path", lambda g: purerl.plot_curves(g.curves, 3), "path: got 3, expected a path"),
    ("plot-format", lambda g: purerl.plot_curves(g.curves, "x.docx"), "x.docx"),
    (
        "plot-sweep-number",
        lambda g: purerl.plot_sweep(3, "lr", "x.png"),
        "result: got .*expected a SweepResult",
    ),
    ("read-run-number", lambda g: purerl.read_run(3), "path: got 3, expected a path"),
    ("read-run-nul", lambda g: purerl.read_run("a\0b"), "path: got .*expected a path"),
    ("read-runs-number", lambda g: purerl.read_runs(3), "paths: got 3, expected"),
    ("csv-path", lambda g: purerl.csv_sink(3), "path: got 3, expected a path"),
    ("tensorboard-folder", lambda g: purerl.tensorboard_sink(3), "folder: got 3, expected a path"),
    ("start-hosts", lambda g: purerl.start_hosts("host:1"), "num_processes, process_id missing"),
]

CASES = NUMBERS + CONFIG + ENVS + AGENTS + NETWORKS + PARTS + TRAINING + ACTING + SWEEPS + FUNCTIONS

compiled = []


@jax.monitoring.register_event_duration_secs_listener
def listen(event, seconds, **_):
    if event == "/jax/core/compile/backend_compile_duration":
        compiled.append(seconds)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """What the cases need that is right, made before the first of them; and all late imports."""
    purerl.register("bad-2", walk)
    purerl.register("bad-3", lambda: 3)
    purerl.make("CartPole-v1")
    import tensorboardX  # noqa: F401

    key = jax.random.key(0)
    config = tiny()
    outs = quick_jit(jax.vmap(purerl.make_train(config)))(jax.random.split(key, 3))
    ppo = purerl.PPO(hidden=(4,))
    policy = Policy(
        ppo, quick_jit(lambda key: ppo.init(key, BASE.spec))(key), None, Interface(BASE.spec)
    )
    file = tmp_path_factory.mktemp("policy") / "x.policy"
    purerl.save_policy(policy, file)
    updates = np.arange(2)
    result = purerl.sweep(config, seeds=2, verbose=False)
    curves = purerl.Curves("x", updates, np.ones((3, 2)), np.ones((3, 2)))
    jax.block_until_ready(outs.member(2))
    assert compiled  # or nothing below would be counted

    def rows(*sizes):
        kinds = [np.float32] * (len(sizes) - 2) + [bool] * 2
        return [np.zeros(size, kind) for size, kind in zip(sizes, kinds, strict=True)]

    return SimpleNamespace(
        config=config,
        curves=curves,
        file=file,
        gym=gymnasium.make("CartPole-v1"),
        key=key,
        outs=outs,
        policy=policy,
        result=result,
        rows=rows,
    )


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_bad_input(case, given, tmp_path, monkeypatch):
    _, call, fragment, *kinds = case
    monkeypatch.chdir(tmp_path)
    compiled.clear()
    with pytest.raises(tuple(kinds) or purerl.ConfigError, match=fragment) as caught:
        call(given)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    assert not compiled
    assert not list(tmp_path.iterdir())


def test_there_are_enough_cases_and_each_is_there_once():
    assert len(CASES) >= 150
    assert len({case[0] for case in CASES}) == len(CASES)
