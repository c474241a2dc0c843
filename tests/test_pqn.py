import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit import values
from kit.agents import act, learn
from kit.buffers import holding
from kit.environments import doors, target_env, walk
from kit.networks import LinearQ, LinearQs, LinearV, kernel
from kit.oracles import numpy_lambda_return
from kit.quick import quick_jit
from kit.trees import assert_close
from kit.trials import params

import purerl
from purerl.agents.learning import shuffle_environments
from purerl.nn.memory import step as single_step

T, N, GAMMA, LAM = 12, 4, 0.9, 0.7
SPEC = walk().spec
update = quick_jit(learn)


def pqn(**changes):
    options = {"critic": LinearQs, "gamma": GAMMA, "lam": LAM, "optimizer": "sgd", **changes}
    return purerl.PQN(lr=0.1, anneal=False, max_grad_norm=1e9, **options)


def filled(value_fn):
    """A rollout with ends of all kinds, several in each environment, and invalid steps; inside an
    episode each observation is the successor of the one before."""
    rng = np.random.default_rng(0)
    kind = rng.choice(3, p=[0.6, 0.2, 0.2], size=(T, N))
    ended = np.cumsum(kind > 0, axis=0)
    obs = rng.normal(size=(T + 1, N, 2)).astype(np.float32)
    other = rng.normal(size=(T, N, 2)).astype(np.float32)
    next_obs = np.where((kind > 0)[..., None], other, obs[1:])
    transitions = purerl.Transition(
        obs=jnp.asarray(obs[:-1]),
        action=jnp.asarray(rng.integers(0, 2, size=(T, N)), jnp.int32),
        reward=jnp.asarray(rng.normal(size=(T, N)), jnp.float32),
        next_obs=jnp.asarray(next_obs),
        terminated=jnp.asarray(kind == 1),
        truncated=jnp.asarray(kind == 2),
        episode=jnp.asarray(ended - (kind > 0), jnp.int32),
        valid=jnp.asarray(rng.random((T, N)) < 0.8),
        extras={},
    )
    value = jnp.asarray(value_fn(transitions), jnp.float32)
    rollout = transitions._replace(extras={"value": value})
    return rollout, *holding(rollout, gamma=GAMMA, lam=LAM)


def largest(state):
    return lambda rollout: (np.asarray(rollout.obs) @ kernel(state.params)).max(-1)


def numpy_targets(rollout, beyond):
    """The mean of all n-step returns that bootstrap from the largest Q of the true successor."""
    ends = np.asarray(rollout.terminated), np.asarray(rollout.truncated)
    return numpy_lambda_return(np.asarray(rollout.reward), np.asarray(beyond), *ends, GAMMA, LAM)


@pytest.mark.parametrize("critic", [LinearQs, LinearQ])
def test_three_epochs_are_a_plain_loop(critic):
    """The targets are those of the network that acted, in every epoch."""
    agent = pqn(critic=critic, K_epochs=3, batch_size=T * N)
    state = agent.init(jax.random.key(0), SPEC)
    rollout, buffer, stored = filled(largest(state))
    after, _, losses = update(agent, state, buffer, stored, jax.random.key(1))
    w, obs, valid = kernel(state.params), np.asarray(rollout.obs), np.asarray(rollout.valid)
    target = numpy_targets(rollout, (np.asarray(rollout.next_obs) @ w).max(-1))
    onehot, weight = np.eye(2)[rollout.action], valid / valid.sum()
    expected = []
    for _ in range(3):
        error = weight * (((obs @ w) * onehot).sum(-1) - target)
        expected.append((0.5 * error**2 / np.maximum(weight, 1e-9)).sum())
        w = w - 0.1 * np.einsum("tn,tni,tna->ia", error, obs, onehot)
    np.testing.assert_allclose(kernel(after.params), w, rtol=1e-4)
    assert float(losses["loss"]) == pytest.approx(np.mean(expected), rel=1e-4)
    assert np.abs(w - kernel(state.params)).max() > 0.05


def test_every_transition_is_learned_from_once_an_epoch():
    """In minibatches too: with a learning rate of 0 their mean loss is that of the whole."""
    state = pqn().init(jax.random.key(0), SPEC)
    _, buffer, stored = filled(largest(state))
    stored.data["valid"] = jnp.ones((T, N), bool)
    found = [
        update(agent, state, buffer, stored, jax.random.key(1))[2]["loss"]
        for agent in (
            pqn(batch_size=size, K_epochs=epochs).replace(lr=0.0)
            for size, epochs in ((T * N, 1), (8, 3), (None, 2))
        )
    ]
    np.testing.assert_allclose(found, found[0], rtol=1e-5)


def one_at_a_time(state, params, memory, rollout):
    """Q(s, .) of a rollout, step by step, and max_a Q of each step's true successor."""

    def body(memory, row):
        obs, next_obs, done = row
        memory, q = single_step(state.critic, params, memory, obs)
        _, after = single_step(state.critic, params, memory, next_obs)
        return jnp.where(done[:, None], state.network.init(N), memory), (q, after.max(-1))

    rows = rollout.obs, rollout.next_obs, rollout.terminated | rollout.truncated
    return jax.lax.scan(body, memory, rows)[1]


@pytest.mark.parametrize("network", ["gru", pytest.param("min_gru", marks=pytest.mark.slow)])
def test_a_memory_is_trained_through_whole_sequences(network, key):
    """Two minibatches of two environments, with the gradient of a plain loop over single steps,
    and targets under the memory that the true successor had."""
    options = {"critic": None, "network": network, "hidden": (4,), "memory": 3, "dueling": True}
    agent = pqn(**options, K_epochs=1, batch_size=2 * T)
    state = agent.init(key, SPEC)
    state = state.replace(params=jax.tree.map(lambda x: 2.0 * x + 0.1, state.params))
    memory = jax.random.normal(key, (N, 3))
    seen = []

    def value_fn(rollout):
        seen.extend(one_at_a_time(state, state.params, memory, rollout))
        return seen[0].max(-1)

    rollout, buffer, stored = filled(value_fn)
    target = numpy_targets(rollout, seen[1])
    experience = purerl.Experience(buffer, stored, memory=memory)
    new, _, losses = quick_jit(agent.update)(state, experience, key, purerl.Clock())

    def loss(params, envs):
        q, _ = one_at_a_time(state, params, memory, rollout)
        chosen = jnp.where(rollout.action == 0, q[..., 0], q[..., 1])
        error, valid = (chosen - target)[:, envs], rollout.valid[:, envs]
        return jnp.sum(jnp.where(valid, 0.5 * error**2, 0.0)) / jnp.sum(valid)

    params, step, expected = state.params, quick_jit(jax.value_and_grad(loss)), []
    for envs in shuffle_environments(key, N, 2, 1).blocks:
        value, grads = step(params, envs)
        expected.append(float(value))
        assert all(np.any(x) for x in jax.tree.leaves(grads))
        params = jax.tree.map(lambda x, g: x - 0.1 * g, params, grads)
    assert float(losses["loss"]) == pytest.approx(np.mean(expected), rel=1e-4)
    assert_close(new.params, params, 1e-4, 1e-5)


def test_a_rollout_records_the_value_of_the_greedy_action(key):
    agent = pqn(epsilon_start=1.0)
    state, obs = agent.init(key, SPEC), jax.random.normal(key, (1_000, 2))
    q = np.asarray(obs) @ kernel(state.params)
    drawn, extras = act(agent.acting(state, purerl.Clock()), obs, key)
    assert 400 < np.sum(np.asarray(drawn) == q.argmax(-1)) < 600
    np.testing.assert_allclose(extras["value"], q.max(-1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(agent.value(state, (), obs), q.max(-1), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(act(agent.policy(state), obs)[0], q.argmax(-1))
    sampled, _ = act(agent.replace(epsilon_end=0.2).policy(state, sample=True), obs, key)
    assert 60 < np.sum(np.asarray(sampled) != q.argmax(-1)) < 140


def test_an_illegal_action_is_in_no_target(key):
    agent = pqn(critic=None, hidden=(), epsilon_start=0.0)
    state = agent.init(key, doors().spec)
    obs, _ = jax.vmap(doors().reset)(jax.random.split(key, 200))
    q = np.asarray(state.critic.apply(state.params, obs))
    legal = np.where(obs["mask"], q, -np.inf)
    assert np.mean(q.argmax(-1) != legal.argmax(-1)) > 0.2
    action, extras = act(agent.acting(state, purerl.Clock()), obs, key)
    np.testing.assert_array_equal(action, legal.argmax(-1))
    np.testing.assert_allclose(extras["value"], legal.max(-1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(agent.value(state, (), obs), legal.max(-1), rtol=1e-4, atol=1e-6)


def test_epsilon_is_what_a_run_reports():
    agent = pqn(epsilon_end=0.2, epsilon_steps=64)
    run = functools.partial(purerl.run, walk(), agent, num_envs=4, update_every=4)
    _, metrics = quick_jit(lambda key: run(key=key, total_timesteps=160))(jax.random.key(0))
    expected = np.maximum(1.0 - 0.8 * np.arange(10) * 16 / 64, 0.2)
    np.testing.assert_allclose(metrics.losses["epsilon"], expected, atol=1e-6)


def test_what_it_cannot_use_is_refused():
    def config(agent=None, env=None, **options):
        return purerl.TrainConfig(env or walk(), agent or pqn(), **options)

    for options, message in (
        ({"agent": pqn(critic=LinearV)}, "PQN.critic: got a V critic"),
        ({"env": target_env()}, "PQN is for discrete actions, and target has Box"),
        ({"agent": pqn(batch_size=7)}, "PQN.batch_size: got 7, expected a divisor of"),
        ({"noise": purerl.GaussianNoise()}, "noise: got .*: PQN explores by epsilon_start"),
        ({"buffer": purerl.Buffer(9_984)}, "maxlen: got 9984, expected .*PQN learns from exactly"),
        ({"buffer": purerl.Buffer(priority_sampling=True)}, "Buffer.priority_sampling: got True"),
    ):
        with pytest.raises(purerl.ConfigError, match=message):
            config(**options)
    for options in ({"dueling": True}, {"hidden": (8,)}):
        with pytest.raises(purerl.ConfigError, match=r"default (network|critic)s?, but critic is"):
            pqn(**options)


def test_the_values_of_the_two_policies_are_far_apart():
    found = values.pengs_q(0.5)
    for other in (values.optimal_q(), values.uniform_q()):
        assert np.abs(found / other - 1).min() > values.MOST_ERROR


@pytest.mark.parametrize("trial", params({n: t for n, t in values.VALUES.items() if "PQN" in n}))
def test_values_of_an_mdp_are_learned(trial):
    trial.check()
