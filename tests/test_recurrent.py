"""Agents that train networks with a memory, against plain loops over single steps."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.environments import walk
from kit.quick import mostly_slow, quick_jit
from kit.recurrent import recall_env
from kit.trees import assert_close

import purerl
from purerl.agents import gradients
from purerl.agents.learning import next_values, shuffle_environments
from purerl.experience import returns
from purerl.experience.transition import Transition
from purerl.nn.cells import CELLS
from purerl.nn.memory import begins, init_memory
from purerl.nn.memory import step as single_step

T, N = 6, 4
DISCOUNTS = {"gamma": 0.9, "lam": 0.8}


class Cell(purerl.Critic):
    """A user's own."""

    def initial_memory(self, batch):
        return jnp.full((batch, 3), 0.5)

    @nn.compact
    def create_network(self, obs, memory):
        memory = nn.tanh(nn.Dense(3)(jnp.concatenate([obs, memory], -1)))
        return nn.Dense(1)(memory), memory


KINDS = {
    "gru": {"network": "gru"},
    "lstm": {"network": "lstm", "memory": 3},
    "min_gru, shared": {"network": "min_gru", "share_network": True},
    "the actor alone": {"network": "gru", "critic": "plain"},
    "the critic alone": {"critic": Cell},
}


class Plain(purerl.Critic):
    @nn.compact
    def create_network(self, obs):
        return nn.Dense(1)(nn.tanh(nn.Dense(4)(obs)))


def agent_of(kind, base=purerl.PPO, **options):
    given = {n: Plain if x == "plain" else x for n, x in KINDS[kind].items()}
    return base(hidden=(5,), **given, **options)


def sharp(params):
    """Parameters with which the policy isn't about uniform."""
    return jax.tree.map(lambda x: jnp.where(jnp.abs(x) < 0.02, 60.0 * x, 1.5 * x), params)


def rollout_of(state, key):
    """A rollout with ends of both kinds inside, and a memory before it that isn't the initial."""
    keys = iter(jax.random.split(key, 20))
    obs, after = (jax.random.normal(next(keys), (T, N, 2)) for _ in range(2))
    ends = np.zeros((2, T, N), bool)
    ends[0, 2, 1] = ends[1, 1, 0] = ends[1, 3, 2] = ends[1, 4, 2] = ends[0, 5, 3] = True
    ends[1, 5, 0] = True
    extras = {
        "log_prob": -0.7 + 0.1 * jax.random.normal(next(keys), (T, N)),
        "value": jax.random.normal(next(keys), (T, N)),
    }
    rollout = Transition(
        obs=obs,
        action=jax.random.randint(next(keys), (T, N), 0, 2),
        reward=jax.random.normal(next(keys), (T, N)),
        next_obs=after,
        terminated=jnp.asarray(ends[0]),
        truncated=jnp.asarray(ends[1]),
        episode=jnp.zeros((T, N), jnp.int32),
        valid=jnp.ones((T, N), bool),
        extras=extras,
    )
    memory = jax.tree.map(
        lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape), state.networks.init(N)
    )
    return rollout, memory


def one_at_a_time(networks, params, memory, obs, ends, also=None):
    """Logits and values of a rollout, step by step; and V of other observations under the memory
    after each step."""
    actor, critic = networks

    def look(memory, obs):
        if critic is None:
            after, out = single_step(
                actor, params["actor"], memory[0], obs, method="policy_and_value"
            )
            return (after, ()), (out[0].logits, out[1])
        first, policy = single_step(actor, params["actor"], memory[0], obs)
        second, value = single_step(critic, params["critic"], memory[1], obs)
        return (first, second), (policy.logits, value)

    initial = tuple(() if x is None else init_memory(x, N) for x in networks)
    rows, beyond = [], []
    for t in range(T):
        memory, row = look(memory, obs[t])
        rows.append(row)
        beyond.append(None if also is None else look(memory, also[t])[1][1])
        for i in np.flatnonzero(ends[t]):
            memory = jax.tree.map(lambda x, y, i=i: x.at[i].set(y[i]), memory, initial)
    logits, values = (jnp.stack(x) for x in zip(*rows, strict=True))
    return logits, values, None if also is None else jnp.stack(beyond)


@pytest.fixture(scope="module", params=mostly_slow(KINDS, {"lstm", "min_gru, shared"}))
def case(request):
    agent = agent_of(request.param)
    state = agent.init(jax.random.key(0), walk().spec)
    state = state.replace(params=sharp(state.params))
    rollout, memory = rollout_of(state, jax.random.key(1))
    buffer = purerl.Buffer(maxlen=T * N, **DISCOUNTS)
    stored = buffer.push(buffer.init(jax.tree.map(lambda x: x[0], rollout), N), rollout)
    return request.param, state, purerl.Experience(buffer, stored, memory=memory)


def test_what_follows_a_path_is_worth_what_its_memory_says(case):
    _, state, experience = case
    data = experience.read()
    ends = np.asarray(data["terminated"] | data["truncated"])

    @quick_jit
    def both(params, data):
        networks, memory = state.networks, experience.memory
        others = one_at_a_time(networks, params, memory, data["obs"], ends, data["next_obs"])
        return next_values(networks, params, experience), others[2]

    found, beyond = both(state.params, data)
    cut = np.array(data["truncated"])
    cut[-1] = True
    np.testing.assert_allclose(found[cut], beyond[cut], rtol=1e-5, atol=1e-6)
    inside = ~ends[:-1]
    np.testing.assert_array_equal(found[:-1][inside], data["value"][1:][inside])


def plain_loss(agent, networks, params, rows, memory, envs):
    """PPO's loss over the environments of a minibatch."""
    ends = np.asarray(rows["terminated"]) | np.asarray(rows["truncated"])
    logits, value, _ = one_at_a_time(networks, params, memory, rows["obs"], ends)
    rows = {name: rows[name][:, envs] for name in ("log_prob", "value", "action", "advantage")}
    logits, value = logits[:, envs], value[:, envs]
    target = rows["advantage"] + rows["value"]
    advantage = (rows["advantage"] - rows["advantage"].mean()) / rows["advantage"].std()
    log_probs = jax.nn.log_softmax(logits)
    chosen = jnp.where(rows["action"] == 0, log_probs[..., 0], log_probs[..., 1])
    ratio = jnp.exp(chosen - rows["log_prob"])
    bounds = 1 - agent.eps_clip, 1 + agent.eps_clip
    policy = -jnp.minimum(ratio * advantage, jnp.clip(ratio, *bounds) * advantage)
    change = jnp.clip(value - rows["value"], -agent.eps_clip, agent.eps_clip)
    error = jnp.maximum((value - target) ** 2, (rows["value"] + change - target) ** 2)
    entropy = -(jnp.exp(log_probs) * log_probs).sum(-1)
    return jnp.mean(policy + 0.5 * agent.value_coef * error - agent.entropy_beta * entropy)


def test_an_update_is_gradient_descent_through_whole_sequences(case, monkeypatch):
    """Two minibatches of two environments, one at a time of each, with the gradient of a plain loop
    over single steps."""
    monkeypatch.setattr(gradients, "ROWS_AT_ONCE", T)
    monkeypatch.setattr(gradients, "ENVIRONMENTS_AT_ONCE", 1)
    monkeypatch.setattr(gradients, "num_cores", lambda: 1)
    kind, state, experience = case
    agent = agent_of(
        kind, optimizer="sgd", lr=0.1, max_grad_norm=1e6, K_epochs=1, anneal=False, batch_size=2 * T
    )
    state = state.replace(opt_state=agent.init(jax.random.key(0), walk().spec).opt_state)
    key, networks = jax.random.key(2), state.networks
    new, _, losses = quick_jit(agent.update)(state, experience, key, purerl.Clock())

    data = experience.read()
    following = next_values(networks, state.params, experience)
    ends = data["terminated"], data["truncated"]
    data["advantage"] = returns.gae(data["reward"], data["value"], following, *ends, **DISCOUNTS)
    params = state.params
    gradient = quick_jit(
        jax.grad(
            lambda params, envs: plain_loss(agent, networks, params, data, experience.memory, envs)
        )
    )
    for envs in shuffle_environments(key, N, 2, 1).blocks:
        grads = gradient(params, envs)
        assert all(np.any(x) for x in jax.tree.leaves(grads))
        params = jax.tree.map(lambda x, g: x - 0.1 * g, params, grads)
    assert_close(new.params, params, 1e-4, 1e-5)
    assert np.isfinite([*losses.values()]).all()


class Checking(purerl.PPO):
    """Compares what it recorded in a rollout with the pass through its sequences that it learns
    from; and with passes that are wrong."""

    def init(self, key, spec):
        state = super().init(key, spec)
        return state.replace(params=sharp(state.params))

    def update(self, state, experience, key, clock):
        new, _, losses = super().update(state, experience, key, clock)
        data, networks = experience.read(), state.networks
        fresh = begins(data["terminated"], data["truncated"])

        def far(memory, fresh):
            _, (policy, value) = networks.unroll(state.params, memory, fresh, data["obs"])
            log_prob = policy.log_prob(data["action"].reshape(-1))
            pairs = ((log_prob, data["log_prob"]), (value, data["value"]))
            apart = sum(jnp.abs(x.reshape(y.shape) - y) for x, y in pairs)
            return jnp.where(data["valid"], apart, 0.0).max()

        wrong = {
            "never reset": (experience.memory, jnp.zeros_like(fresh)),
            "reset one step late": (experience.memory, jnp.roll(fresh, 1, axis=0)),
            "from nothing": (networks.init(fresh.shape[1]), fresh),
        }
        losses |= {name: far(*args) for name, args in wrong.items()}
        return new, experience, losses | {"far": far(experience.memory, fresh)}


ROLLOUTS = [("gru", "normalize_obs"), ("lstm", "wait_end_path")]
ROLLOUTS += [("min_gru, shared", None), ("the critic alone", None)]


@pytest.mark.parametrize(("kind", "option"), mostly_slow(ROLLOUTS, ROLLOUTS[:1]))
def test_what_is_learned_from_is_what_acted(kind, option, key):
    """Ratios begin at 1, in rollouts that begin within episodes and end them; and not if the reset
    is left out, comes a step late, or the memory isn't that of the rollout's start."""
    agent = agent_of(kind, Checking, lr=0.0, K_epochs=1, target_kl=0.01)
    options = {"num_envs": 4, "update_every": 7, "total_timesteps": 4 * 7 * 6}
    options |= {} if option is None else {option: True}
    loop = purerl.make_loop(recall_env(4), agent, **options)
    _, metrics = quick_jit(lambda key: loop.scan(loop.init(key)))(key)
    losses = {name: np.asarray(x).max() for name, x in metrics.losses.items()}
    assert losses["far"] < 1e-5
    assert losses["approx_kl"] < 1e-9
    assert losses["clip_fraction"] == losses["stopped"] == 0.0
    if option != "wait_end_path":  # where what follows the first end isn't learned from
        wrong = [losses[x] for x in ("never reset", "reset one step late", "from nothing")]
        assert min(wrong) > 0.01


class RecurrentQ(Cell):
    @nn.compact
    def create_network(self, obs, memory, action):
        return nn.Dense(1)(jnp.concatenate([obs, action], -1)), memory


RUN = {"num_envs": 6, "update_every": 5, "total_timesteps": 60}
GRU = {"network": "gru"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: purerl.PPO(memory=4), "PPO.memory: got 4, but network=None has no memory, expec"),
        (lambda: purerl.PPO(hidden=(), **GRU), "PPO.memory: got None, expected a width"),
        (lambda: purerl.PPO(network="rnn"), "PPO.network: got 'rnn', expected one of .*'gru'"),
        (lambda: purerl.PPO(batch_size=8, **GRU), "got 8, .* multiple of update_every=5 .* as 10:"),
        (lambda: purerl.PPO(batch_size=7), "got 7, expected a divisor of 30, num_envs=6 times"),
        (lambda: purerl.DQN(**GRU), "DQN.network: got 'gru', which has a memory, and DQN learns f"),
        (lambda: purerl.REINFORCE(**GRU), "REINFORCE.network: got 'gru', which has a memory"),
        (lambda: purerl.DDPG(**GRU), "DDPG.network: got 'gru', which has a memory"),
        (lambda: purerl.PPO(share_network=True, critic=Plain), "share_network: .* but critic is"),
        (
            lambda: purerl.PPO(share_network=True, critic_obs="x"),
            "_network: .* critic_obs is given",
        ),
        (lambda: purerl.ActorCritic(share_network=True, critic_lr=0.1), "critic_lr: is for a sep"),
        (
            lambda: purerl.ActorCritic(value_coef=0.1),
            r"value_coef: is for one .*share_network=True",
        ),
        (
            lambda: purerl.ActorCritic(n_episodes=6, episode_length=5, critic=RecurrentQ),
            "RecurrentQ is a Q critic, expected",
        ),
        (
            lambda: purerl.ActorCritic(
                n_episodes=6, episode_length=5, critic=purerl.DefaultQNetwork, **GRU
            ),
            "is a Q critic",
        ),
    ],
)
def test_what_cannot_be(make, message):
    with pytest.raises(purerl.ConfigError, match=message):
        purerl.TrainConfig(walk(), make(), **RUN)


def test_values_under_a_memory_that_a_policy_has_not(key):
    """A critic with a memory of its own has no value for what a policy remembers."""
    obs, spec = jnp.zeros((3, 2)), walk().spec
    for agent in (agent_of("gru"), agent_of("gru", purerl.ActorCritic)):
        state = agent.init(key, spec)
        with pytest.raises(NotImplementedError, match="RecurrentCritic has a memory of its own"):
            agent.value(state, agent.policy(state).init(3), obs)
    for kind in ("min_gru, shared", "the actor alone"):
        agent = agent_of(kind)
        state = agent.init(key, spec)
        assert agent.value(state, agent.policy(state).init(3), obs).shape == (3,)


def test_a_sweep_of_floats_is_one_trace_and_each_member_as_alone(key):
    agent, traces = agent_of("gru", anneal=False), []
    config = purerl.TrainConfig(
        recall_env(4), agent, num_envs=4, update_every=7, total_timesteps=4 * 7 * 4
    )

    def train(key, lr):
        traces.append(lr)
        return purerl.make_train(config)(key, {"lr": lr}).state.agent.params

    keys, lrs = jax.random.split(key, 3), jnp.array([1e-2, 1e-3, 3e-3])
    together = quick_jit(jax.vmap(train))(keys, lrs)
    alone = quick_jit(train)(keys[1], lrs[1])
    assert_close(jax.tree.map(lambda x: x[1], together), alone, 1e-3, 1e-5)
    assert len(traces) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "base"),
    [
        *(("gru", purerl.PPO), ("min_gru, shared", purerl.PPO)),
        *(("lstm", purerl.ActorCritic), ("the critic alone", purerl.ActorCritic)),
    ],
)
def test_agents_with_a_memory_keep_the_contract(kind, base):
    purerl.check_agent(agent_of(kind, base), walk())


@pytest.mark.parametrize("name", CELLS)
def test_units_begin_with_time_constants_from_short_to_long(name):
    cell, width = CELLS[name](6), 6
    memory = jax.tree.map(jnp.ones_like, cell.initial(2))
    x = jnp.zeros((2, 3))
    params = cell.init(jax.random.key(0), x, memory)["params"]
    if "recurrent" in params:  # what is kept of a memory when nothing comes in
        params = {**params, "recurrent": jnp.zeros_like(params["recurrent"])}
    _, after = cell.apply({"params": params}, x, memory)
    kept = jax.tree.leaves(after)[0]
    expected = 1.0 / (1.0 + np.exp(-np.linspace(0.0, 5.0, width)))
    np.testing.assert_allclose(kept, np.broadcast_to(expected, (2, width)), rtol=1e-6)
