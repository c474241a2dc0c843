"""Networks with a memory, and their passes through whole rollouts."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.environments import walk
from kit.quick import quick_jit
from kit.trees import assert_close

import purerl
from purerl import Actor, ActorCriticNetwork, Box, Critic, Discrete
from purerl.nn.cells import CELLS
from purerl.nn.defaults import DefaultActor, RecurrentActor, RecurrentActorCritic
from purerl.nn.distributions import TanhNormal
from purerl.nn.memory import init_memory, reset_memory, step, unroll
from purerl.nn.networks import apply, init_critic, init_network, takes_action, takes_memory


class Gru(Actor):
    width: int = 4

    def initial_memory(self, batch):
        return jnp.full((batch, self.width), 0.5)

    @nn.compact
    def create_network(self, obs, memory):
        memory, x = nn.GRUCell(self.width)(memory, obs)
        return nn.Dense(self.action_dim)(x), memory


class Counting(Critic):
    """Q(s, a): the sum of all observations of the episode so far, and the action's number."""

    def initial_memory(self, batch):
        return {"sum": jnp.zeros(batch), "steps": jnp.zeros(batch, jnp.int32)}

    @nn.compact
    def create_network(self, obs, memory, action):
        total = memory["sum"] + obs.sum(-1)
        chosen = action @ jnp.arange(self.action_dim, dtype=jnp.float32)
        return total + 100 * chosen, {"sum": total, "steps": memory["steps"] + 1}


class Both(ActorCriticNetwork):
    initial_memory = Gru.initial_memory
    width: int = 4

    @nn.compact
    def create_network(self, obs, memory):
        memory, x = nn.GRUCell(self.width)(memory, obs)
        return (nn.Dense(self.action_dim)(x), nn.Dense(1)(x)), memory


T, N = 6, 3
OBS = jax.random.normal(jax.random.key(0), (T, N, 2))
FRESH = jnp.asarray(np.random.default_rng(1).random((T, N)) < 0.3)


def test_who_has_a_memory():
    assert [takes_memory(x) for x in (Gru, Counting, Both, DefaultActor)] == [True] * 3 + [False]
    assert takes_action(Counting)
    assert init_memory(DefaultActor(Discrete(2)), 5) == ()
    assert jax.tree.map(jnp.shape, init_memory(Counting(Discrete(2)), 5)) == {
        "sum": (5,),
        "steps": (5,),
    }


def test_a_sum_over_each_episode():
    critic = Counting(Discrete(3))
    action = jnp.asarray(np.random.default_rng(2).integers(0, 3, (T, N)), jnp.int32)
    params = init_critic(critic, jax.random.key(0), OBS[0])
    memory = {"sum": jnp.array([1.0, 2.0, 3.0]), "steps": jnp.array([1, 1, 1])}
    after, values = unroll(critic, params, memory, FRESH, OBS, action)
    values = values.reshape(T, N)
    totals, steps = np.array([1.0, 2.0, 3.0]), np.ones(3, int)
    for t in range(T):
        totals = np.where(FRESH[t], 0.0, totals) + np.asarray(OBS[t]).sum(-1)
        steps = np.where(FRESH[t], 0, steps) + 1
        np.testing.assert_allclose(values[t], totals + 100 * np.asarray(action[t]), rtol=1e-5)
    np.testing.assert_allclose(after["sum"][-1], totals, rtol=1e-5)
    np.testing.assert_array_equal(after["steps"][-1], steps)


DEFAULTS = [
    functools.partial(network, hidden=(5, 4), network=cell)
    for cell in CELLS
    for network in (RecurrentActor, RecurrentActorCritic)
]


@pytest.mark.parametrize("network", [Gru, Both, *DEFAULTS])
def test_a_rollout_in_one_pass_is_one_step_after_another(network):
    """Also from a memory that isn't the initial one, with episodes that begin on the way."""
    actor = network(Discrete(2))
    params = init_network(actor, jax.random.key(1), OBS[0])
    both = isinstance(actor, ActorCriticNetwork)
    method = "policy_and_value" if both else None

    def distribution(out):
        return out[0] if both else out

    start = jax.tree.map(
        lambda x: 0.1 * jnp.arange(12.0).reshape(x.shape) + x, actor.initial_memory(3)
    )
    memory, memories = start, []
    rows = []
    for t in range(T):
        memory = reset_memory(actor, memory, FRESH[t])
        memory, out = step(actor, params, memory, OBS[t], method=method)
        rows.append(out)
        memories.append(memory)
    after, outs = quick_jit(lambda params: unroll(actor, params, start, FRESH, OBS, method=method))(
        params
    )
    for t in range(T):
        assert_close(jax.tree.map(lambda x, t=t: x[t], after), memories[t], 1e-5, 1e-6)
        part = slice(t * N, t * N + N)
        assert_close(jax.tree.map(lambda x, p=part: x[p], outs), rows[t], 1e-5, 1e-6)
    reset = reset_memory(actor, start, jnp.array([True, False, True]))
    for x, y, first in zip(
        *map(jax.tree.leaves, (reset, start, actor.initial_memory(3))), strict=True
    ):
        np.testing.assert_array_equal(x[::2], first[::2])
        np.testing.assert_array_equal(x[1], y[1])

    # What was seen before counts, up to the episode's beginning.
    def last(obs):
        _, outs = unroll(actor, params, start, FRESH, obs, method=method)
        return distribution(outs).log_prob(jnp.zeros(T * N, jnp.int32))[-N:].sum()

    slopes = np.abs(jax.grad(last)(OBS)).sum(-1)
    for i in range(N):
        begun = max([t for t in range(T) if FRESH[t, i]], default=0)
        assert np.all(slopes[begun:, i] > 0)
        assert not slopes[:begun, i].any()


class Bounded(Gru):
    """With a distribution whose bounds are the same for all environments."""

    wide: bool = True

    @nn.compact
    def create_network(self, obs, memory):
        memory, out = nn.GRUCell(memory.shape[-1])(memory, obs)
        return nn.Dense(self.action_dim)(out), memory

    def create_distribution(self, out, legal):
        space = self.action_space
        bounds = (space.low, space.high) if self.wide else (-2.0, 2.0)
        return TanhNormal(out, jnp.ones_like(out), *bounds)


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("num_envs", [1, 2, 3])
def test_what_is_the_same_for_all_environments_stays_so(num_envs, wide):
    """Also where its size is the number of environments, or 1."""
    actor = Bounded(Box([-2.0, -2.0], [2.0, 2.0]), wide=wide)
    obs, fresh = OBS[:, :num_envs], FRESH[:, :num_envs]
    params = init_network(actor, jax.random.key(1), obs[0])
    memory = actor.initial_memory(num_envs)
    _, policy = unroll(actor, params, memory, fresh, obs)
    x = jnp.full((T * num_envs, 2), 0.3)
    found = policy.log_prob_before(x).reshape(T, num_envs)
    for t in range(T):
        memory = reset_memory(actor, memory, fresh[t])
        memory, one = step(actor, params, memory, obs[t])
        np.testing.assert_allclose(found[t], one.log_prob_before(x[:num_envs]), rtol=1e-5)


def test_networks_without_a_memory_go_through_a_rollout_too():
    actor = DefaultActor(Discrete(2))
    params = init_network(actor, jax.random.key(1), OBS[0])
    memory, outs = unroll(actor, params, (), FRESH, OBS)
    assert memory == ()
    logits = outs.logits.reshape(T, N, 2)
    for t in range(T):
        memory, out = step(actor, params, (), OBS[t])
        assert memory == ()
        np.testing.assert_allclose(logits[t], out.logits, rtol=1e-5, atol=1e-6)
    assert reset_memory(actor, (), FRESH[0]) == ()


def test_wrong_memories():
    class Narrower(Gru):
        @nn.compact
        def create_network(self, obs, memory):
            return nn.Dense(self.action_dim)(obs), memory[:, :2]

    class Alone(Gru):
        @nn.compact
        def create_network(self, obs, memory):
            return nn.Dense(self.action_dim)(obs)

    class Empty(Actor):
        def create_network(self, obs, memory):
            return obs, memory

    for network, message in (
        (Narrower, r"Narrower.create_network: got the memory \(\(3, 2\).*expected what it was"),
        (Alone, r"Alone.create_network: got shape \(3, 2\), expected a pair"),
    ):
        with pytest.raises(purerl.ConfigError, match=message):
            init_network(network(Discrete(2)), jax.random.key(0), OBS[0])
    with pytest.raises(NotImplementedError, match="Empty has to implement initial_memory"):
        init_network(Empty(Discrete(2)), jax.random.key(0), OBS[0])
    actor = Gru(Discrete(2))
    params = init_network(actor, jax.random.key(0), OBS[0])
    with pytest.raises(purerl.ConfigError, match="Gru: has a memory, and got none"):
        apply(actor, params, OBS[0])
    with pytest.raises(purerl.ConfigError, match="DefaultActor: has no memory, and was given one"):
        DefaultActor(Discrete(2)).init(jax.random.key(0), OBS[0], 3)


def test_agents_that_learn_from_single_steps_take_no_memory():
    for agent in (purerl.REINFORCE(actor=Gru), purerl.DQN(critic=Counting)):
        with pytest.raises(purerl.ConfigError, match=r"(actor|critic): \w+ has a memory, expected"):
            purerl.TrainConfig(walk(), agent)
