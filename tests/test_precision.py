"""JAX's flags, other precisions than float32, and derivatives through training: over all agents."""

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.agents import Tiny
from kit.buffers import one_rollout
from kit.environments import push_env, walk
from kit.quick import full_jit, mostly_slow, quick_jit
from kit.trees import assert_close

import purerl
from purerl.agents.gradients import adam, descend, global_norm, standardize
from purerl.agents.learning import successor_values
from purerl.records.fields import field_names

SMALL = {"hidden": (8,)}
REPLAY = {"num_envs": 2, "update_after": 8}
PRIORITIES = purerl.Buffer(64, priority_sampling=True)
# Agent, whether actions are continuous, options: together they go through every branch.
RUNS = {
    "PPO": (
        purerl.PPO(target_kl=0.5, **SMALL),
        False,
        {"num_envs": 4, "update_every": 8, "normalize_obs": True},
    ),
    "PPO continuous": (
        purerl.PPO(**SMALL),
        True,
        {"num_envs": 4, "update_every": 8, "normalize_reward": True},
    ),
    "REINFORCE": (
        purerl.REINFORCE(n_episodes=4, episode_length=8, baseline=True, **SMALL),
        False,
        {"rewarder": purerl.NStep(2, normalize=True)},
    ),
    "ActorCritic V": (
        purerl.ActorCritic(n_episodes=4, **SMALL),
        True,
        {"eval_every": 2, "eval_max_episodes": 2, "max_episodes": 20},
    ),
    "ActorCritic Q": (
        purerl.ActorCritic(n_episodes=4, critic=purerl.DefaultQCritic, **SMALL),
        True,
        {},
    ),
    "ActorCritic Q discrete": (
        purerl.ActorCritic(n_episodes=4, critic=purerl.DefaultQCritic, **SMALL),
        False,
        {},
    ),
    "DQN": (
        purerl.DQN(batch_size=8, **SMALL),
        False,
        {**REPLAY, "buffer": PRIORITIES, "normalize_obs": True},
    ),
    "PQN": (
        purerl.PQN(dueling=True, **SMALL),
        False,
        {"num_envs": 4, "update_every": 8, "normalize_obs": True},
    ),
    "DDPG": (
        purerl.DDPG(batch_size=8, **SMALL),
        True,
        {**REPLAY, "buffer": purerl.Buffer(64), "noise": purerl.OrnsteinUhlenbeckNoise()},
    ),
    "TD3": (
        purerl.TD3(batch_size=8, layer_norm=True, **SMALL),
        True,
        {**REPLAY, "buffer": PRIORITIES},
    ),
    "SAC": (
        purerl.SAC(batch_size=8, n_step=2, **SMALL),
        True,
        {**REPLAY, "buffer": purerl.Buffer(64), "normalize_obs": True},
    ),
}


def trainer(name, num_updates=3):
    """A small run's `train`, in an environment with deaths and time limits."""
    agent, continuous, options = RUNS[name]
    env = push_env() if continuous else walk(5, limit=3)
    size = {
        n: options.get(n) or getattr(agent.run_defaults, n) for n in ("num_envs", "update_every")
    }
    if size["update_every"] == 1:
        num_updates += options["update_after"]
    steps = num_updates * size["num_envs"] * size["update_every"]
    return purerl.make_train(
        purerl.TrainConfig(env=env, agent=agent, total_timesteps=steps, **options)
    )


@contextlib.contextmanager
def strict():
    """Each of the two refuses beside the other what it refuses alone."""
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


FLAGS = {"x64": lambda: jax.enable_x64(True), "strict": strict}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("flag", FLAGS)
def test_under_a_flag_of_jax(name, flag):
    """What these flags refuse they refuse while a program is traced."""
    with FLAGS[flag]():
        values = {n: jnp.array([0.5, 0.25]) for n in ("lr", "gamma")}
        train = trainer(name)
        keys = jax.random.split(jax.random.key(0))
        out = jax.eval_shape(jax.vmap(train), keys, values)
        learned = {x.dtype for x in jax.tree.leaves((out.state.agent, out.metrics))}
        assert learned <= {np.dtype(np.float32), np.dtype(np.int32)}


def test_gymnax_under_every_flag_at_once():
    with contextlib.ExitStack() as stack:
        for flag in FLAGS.values():
            stack.enter_context(flag())
        config = purerl.TrainConfig("CartPole-v1", purerl.PPO(), total_timesteps=2048)
        out = jax.eval_shape(purerl.make_train(config), jax.random.key(0))
        assert out.metrics.episode_return.dtype == np.float32


# An update before which nothing is learned, and one after the run's end, have no losses.
@pytest.mark.parametrize("name", mostly_slow(RUNS, ["DQN"]))
def test_nothing_is_nan_where_jax_looks_for_nan(name):
    with jax.debug_nans(True):
        out = quick_jit(trainer(name))(jax.random.key(0))
        assert not any(np.isnan(x).any() for x in jax.tree.leaves(out.metrics))
        nothing = np.asarray(out.metrics.num_episodes) == 0
        np.testing.assert_array_equal(np.isinf(out.metrics.episode_return), nothing)


def test_what_is_missing_does_not_depend_on_what_was_traced_before():
    def evaluations():
        config = purerl.TrainConfig(
            walk(limit=4), Tiny(), 64, num_envs=2, update_every=8, eval_every=3
        )
        returns = quick_jit(purerl.make_train(config))(
            jax.random.key(0)
        ).metrics.eval.episode_return
        return np.asarray(returns)

    usual = evaluations()
    with jax.debug_nans(True):
        np.testing.assert_array_equal(np.isinf(evaluations()), np.isnan(usual))
    np.testing.assert_array_equal(evaluations(), usual)
    assert np.isnan(usual).any()
    assert np.isfinite(usual).any()


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_in_double_precision_mode_is_finite(name):
    with jax.enable_x64(True):
        out = quick_jit(trainer(name))(jax.random.key(0))
        assert int(out.state.nonfinite_updates) == 0
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(out.state.agent))


def odd(x, size, module):
    """A layer with all that isn't a float32 parameter: one of 16 bits that computes in them, one of
    integers, constants of a collection of their own, statistics of another."""
    gain = module.variable("constants", "gain", lambda: jnp.full((), 0.7))
    module.variable("constants", "version", lambda: jnp.int32(3))
    number = module.param("number", lambda key: jnp.int32(2))
    x = nn.BatchNorm(use_running_average=True)(x.astype(jnp.float32))
    x = nn.tanh(nn.Dense(8, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)(x))
    x = nn.Dense(size, dtype=jnp.bfloat16)(x)
    return x * (gain.value * number).astype(jnp.bfloat16)


class OddActor(purerl.Actor):
    @nn.compact
    def create_network(self, obs):
        return odd(obs, self.action_dim, self)


class OddCritic(purerl.Critic):
    @nn.compact
    def create_network(self, obs):
        return odd(obs, 1, self)


class OddQCritic(purerl.Critic):
    @nn.compact
    def create_network(self, obs, action):
        return odd(jnp.concatenate([obs, action], axis=-1), 1, self)


class OddQNetwork(purerl.Critic):
    @nn.compact
    def create_network(self, obs):
        return odd(obs, self.action_dim, self)


ODD = {
    "PPO": {"actor": OddActor, "critic": OddCritic},
    "REINFORCE": {"actor": OddActor, "critic": OddCritic},
    "ActorCritic Q discrete": {"actor": OddActor, "critic": OddQNetwork},
    "DQN": {"critic": OddQNetwork},
    "DDPG": {"actor": OddActor, "critic": OddQCritic},
    "TD3": {"actor": OddActor, "critic": OddQCritic, "layer_norm": False},
    "SAC": {"actor": OddActor, "critic": OddQCritic},
}


@pytest.mark.parametrize("name", mostly_slow(ODD, ["PPO", "DDPG"]))
def test_only_parameters_are_trained(name, monkeypatch):
    """Whatever else a network has stays bit for bit, in the target networks too, and costs the
    optimizer nothing; 16 bits stay 16 bits."""
    agent, *rest = RUNS[name]
    networks = {"hidden": None} | ODD[name]
    monkeypatch.setitem(RUNS, name, (agent.replace(**networks), *rest))
    train = trainer(name)

    def all_of(state):
        leaves = jax.tree_util.tree_leaves_with_path(state)
        return {jax.tree_util.keystr(path): x for path, x in leaves}

    env = push_env() if rest[0] else walk(5, limit=3)
    agent = RUNS[name][0]
    before = all_of(jax.eval_shape(lambda key: agent.init(key, env.spec), jax.random.key(0)))
    out = quick_jit(train)(jax.random.key(0))
    assert int(out.state.nonfinite_updates) == 0
    after = all_of(out.state.agent)
    assert {n: (x.shape, x.dtype) for n, x in before.items()} == {
        n: (x.shape, x.dtype) for n, x in after.items()
    }
    fixed = {"gain": 0.7, "version": 3, "number": 2, "mean": 0.0, "var": 1.0}
    seen = set()
    for path, x in after.items():
        name = path.split("'")[-2] if "'" in path else ""
        if name in fixed:
            seen.add(name)
            np.testing.assert_array_equal(x, np.asarray(fixed[name], x.dtype))
    assert seen == set(fixed)
    narrow = [x for x in after.values() if x.dtype == jnp.bfloat16]
    assert narrow
    learning = {
        path: x
        for path, x in after.items()
        if ("'params'" in path or path == ".params['alpha']")
        and x.dtype in (np.float32, jnp.bfloat16)
    }
    targets = sum(x.size for path, x in learning.items() if path.startswith(".target_params"))
    moments = [x for path, x in after.items() if ".mu" in path]
    assert all(x.dtype == jnp.float32 for x in moments)
    assert sum(x.size for x in learning.values()) == targets + sum(x.size for x in moments)
    assert (targets > 0) == hasattr(out.state.agent, "target_params")


def meta_loss(name):
    """A number that depends on every parameter after training, as a function of hyperparameters
    and of the scale of rewards."""
    agent, continuous, options = RUNS[name]
    env = push_env() if continuous else walk(5, limit=3)
    options = {k: v for k, v in options.items() if not k.startswith("eval")} | {
        "max_episodes": None
    }
    normalized = options.pop("normalize_reward", False)
    size = {
        n: options.get(n) or getattr(agent.run_defaults, n) for n in ("num_envs", "update_every")
    }
    steps = (12 if size["update_every"] == 1 else 2) * size["num_envs"] * size["update_every"]

    def loss(hyperparams, scale):
        rewarder = options.get("rewarder") or purerl.Scale(scale)
        if normalized:
            rewarder = purerl.RunningNormalize(gamma=0.9)
        arguments = options | {"rewarder": rewarder, "total_timesteps": steps}
        made = agent.replace(**hyperparams, activation="tanh")  # without the kinks of ReLU
        state, _ = purerl.run(env, made, key=jax.random.key(0), **arguments)
        params = [
            x
            for n in ("params", "actor_params", "critic_params")
            if hasattr(state.agent, n)
            for x in jax.tree.leaves(getattr(state.agent, n))
        ]
        return sum(jnp.sum(jnp.sin(3 * x)) for x in params)

    names = [n for n in field_names(type(agent), traced=True) if getattr(agent, n) is not None]
    return loss, {n: jnp.float32(getattr(agent, n)) for n in names}


# The loops of one of two that differ in their actions; the slow test below has all.
@pytest.mark.parametrize(
    "name", [n for n in RUNS if n not in ("PPO continuous", "ActorCritic Q discrete")]
)
def test_training_can_be_differentiated(name):
    """Both ways: which loops can't be is found while a program is traced."""
    loss, hyperparams = meta_loss(name)
    scale = jnp.float32(1.0)
    grads = jax.eval_shape(jax.grad(loss, (0, 1)), hyperparams, scale)
    assert jax.tree.structure(grads) == jax.tree.structure((hyperparams, scale))


@pytest.mark.parametrize("name", mostly_slow(RUNS, quick=(), slow=["PPO", "DQN"]))
def test_derivatives_through_training_are_those_of_finite_differences(name):
    loss, hyperparams = meta_loss(name)
    scale = jnp.float32(1.0)
    # Without MLIR's emitters XLA's derivatives of TD3 are NaN.
    grads, by_scale = full_jit(jax.grad(loss, (0, 1)))(hyperparams, scale)
    assert all(np.isfinite(x) for x in jax.tree.leaves((grads, by_scale)))
    forward = quick_jit(loss)
    lr = float(hyperparams["lr"])
    up, down = (forward(hyperparams | {"lr": lr * (1 + x)}, scale) for x in (5e-3, -5e-3))
    assert float(grads["lr"]) == pytest.approx(float(up - down) / (0.01 * lr), rel=0.03)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_derivatives_of_successor_values(share):
    """Of parameters that the function closes over, of observations and of values, both ways."""
    rng = np.random.default_rng(0)
    truncated, terminated = (jnp.asarray(rng.random((6, 4)) < share) for _ in range(2))
    obs = jnp.asarray(rng.normal(size=(6, 4, 3)), jnp.float32)
    value = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)
    weight = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)

    def network(w, obs):
        return jnp.tanh(obs @ w)

    def ours(w, value, obs):
        experience = one_rollout(obs, terminated, truncated)
        found = successor_values(lambda x: network(w, x), experience, value)
        return jnp.sum(jnp.sin(found) * weight)

    def plain(w, value, obs):
        seen = network(w, obs)
        cut = (truncated & ~terminated).at[-1].set(True)
        found = jnp.where(cut, seen, jnp.concatenate([value[1:], value[:1]]))
        return jnp.sum(jnp.sin(found) * weight)

    primals = (jnp.arange(3.0) / 3, value, obs)
    for transform in (lambda f: jax.grad(f, (0, 1, 2)), jax.hessian):
        found, expected = (quick_jit(transform(f))(*primals) for f in (ours, plain))
        assert_close(found, expected, 1e-5, 1e-6)
    tangents = jax.tree.map(jnp.cos, primals)
    found, expected = (jax.jvp(f, primals, tangents) for f in (ours, plain))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_derivatives_where_nothing_is_learned():
    """Gradients of 0, as behind a dead ReLU; advantages that are all alike."""

    def moved(scale, grads):
        optimizer = adam(1e-3, 0.5)
        params = {"w": jnp.ones(3)}
        grads = {"w": scale * grads}
        new, _ = descend(optimizer, grads, optimizer.init(params), params)
        return jnp.sum(new["w"]) + global_norm(grads)

    for grads in (jnp.zeros(3), jnp.array([0.0, 0.0, 1e-3])):
        value, slope = jax.value_and_grad(moved)(jnp.float32(1.0), grads)
        assert np.isfinite(value)
        assert np.isfinite(slope)
    slope = jax.grad(lambda x: standardize(x, x, (x - x) ** 2))(jnp.float32(3.0))
    assert float(slope) == 0.0


def test_adam_is_that_of_optax(key):
    import optax

    params = {"a": jax.random.normal(key, (5, 3)), "b": jnp.zeros(3)}
    theirs = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-2, eps=1e-5))
    ours = adam(1e-2, 0.5)
    state, their_state = ours.init(params), theirs.init(params)
    mine = other = params
    for k in jax.random.split(key, 6):
        grads = jax.tree.map(lambda x, k=k: 0.1 * jax.random.normal(k, x.shape) ** 3, params)
        mine, state = descend(ours, grads, state, mine)
        updates, their_state = theirs.update(grads, their_state)
        other = optax.apply_updates(other, updates)
    assert_close(mine, other, 1e-6, 1e-7)


def test_constant_rewards_can_be_differentiated():
    """Every spread is 0: forever the same reward, normalised."""
    rewarder = purerl.NStep(2, normalize=True, gamma=0.5)
    ends = jnp.zeros((4, 2), bool).at[-1].set(True)

    def total(reward):
        _, normalized = rewarder((), jnp.zeros((4, 2)) + 0.0 * reward, ends, ~ends & ends)
        return jnp.sum(normalized)

    assert np.isfinite(jax.grad(total)(jnp.float32(1.0)))
