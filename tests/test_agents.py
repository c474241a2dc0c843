"""What agents share, and the contract, over all agents and kinds of environments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from toys import reward_forever, target_env, walk

import purerl
from purerl.agents.base import shuffle, successor_values

AGENTS = {name: cls() for name, cls in purerl.AGENTS.items()}
ENVS = {
    "discrete": walk(5, limit=3),
    "time limit": reward_forever(10),
    "continuous": target_env(),
    "scalar action": target_env(0.0, 0.1, ()),
    "matrix action": target_env(-1.0, 3.0, (2, 2)),
    "image": "Breakout-MinAtar",
}


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize("agent", AGENTS)
def test_contract(agent, env):
    purerl.check_agent(AGENTS[agent], ENVS[env])


@pytest.mark.parametrize(
    ("num_steps", "num_envs", "batch_size"),
    [(128, 4, 128), (16, 64, 256), (32, 48, 96), (7, 5, 7), (6, 17, 34), (5, 1, 1), (4, 6, 24)],
)
def test_shuffle_shows_everything_once_an_epoch(key, num_steps, num_envs, batch_size):
    batches = shuffle(key, num_steps, num_envs, batch_size, num_epochs=3)
    number = jnp.arange(num_steps * num_envs).reshape(num_steps, num_envs)
    batch = {"number": number, "pair": jnp.stack([number, -number], axis=-1)}
    taken = jax.lax.map(lambda chosen: batches.take(batch, chosen), batches.blocks)
    assert taken["number"].shape == (3 * num_steps * num_envs // batch_size, batch_size)
    np.testing.assert_array_equal(taken["pair"][..., 0], taken["number"])
    np.testing.assert_array_equal(taken["pair"][..., 1], -taken["number"])
    for epoch in np.asarray(taken["number"]).reshape(3, -1):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(num_steps * num_envs))


def test_shuffle_is_uniform():
    # Where a transition lands is uniform over the minibatches, for each of them.
    def landing(key):
        batches = shuffle(key, 8, 6, 12, num_epochs=1)
        number = jnp.arange(48).reshape(8, 6)
        taken = jax.vmap(lambda chosen: batches.take(number, chosen))(batches.blocks)
        return jnp.argsort(taken.reshape(-1)) // 12

    where = np.asarray(jax.vmap(landing)(jax.random.split(jax.random.key(0), 4000)))
    for transition in range(48):
        counts = np.bincount(where[:, transition], minlength=4)
        assert scipy.stats.chisquare(counts).pvalue > 1e-5


def test_different_epochs_have_different_orders(key):
    blocks = shuffle(key, 64, 16, 256, num_epochs=4).blocks.reshape(4, -1)
    assert len(np.unique(blocks, axis=0)) == 4


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_successor_values_are_those_of_the_successors(share):
    rng = np.random.default_rng(0)
    truncated = rng.random((9, 4)) < share
    terminated = (rng.random((9, 4)) < 0.2) & ~truncated
    obs = jnp.asarray(rng.normal(size=(9, 4, 2)), jnp.float32)
    # Inside a path the successor is the next row's observation; where one ends, it is not.
    next_obs = jnp.concatenate([obs[1:], obs[:1]])
    terminated, truncated = jnp.asarray(terminated), jnp.asarray(truncated)
    ended = terminated | truncated
    next_obs = jnp.where(ended[..., None], next_obs + 100.0, next_obs).at[-1].add(7.0)

    def value_fn(obs):
        return obs["x"] @ jnp.array([1.0, 3.0])

    value = jax.vmap(value_fn)({"x": obs})
    found = successor_values(value_fn, value, {"x": next_obs}, terminated, truncated)
    exact = jax.vmap(value_fn)({"x": next_obs})
    alive = ~terminated
    np.testing.assert_allclose(found[alive], exact[alive], rtol=1e-5)
    assert np.all(np.isfinite(found))


def test_successor_values_under_vmap():
    # Lanes have different numbers of time limits, and each gets its own.
    obs = jnp.arange(24.0).reshape(2, 6, 2)
    truncated = jnp.zeros((2, 6, 2), bool).at[0, 1:4].set(True)
    no = jnp.zeros((2, 6, 2), bool)
    args = (obs, obs + 50.0, no, truncated)
    together = jax.vmap(lambda *a: successor_values(lambda o: 2 * o, *a))(*args)
    for lane in range(2):
        alone = successor_values(lambda o: 2 * o, *(a[lane] for a in args))
        np.testing.assert_array_equal(together[lane], alone)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"act": lambda s, o, k: (jnp.zeros(3), {})}, "act's action has shape"),
        (
            {"act": lambda s, o, k: (jnp.zeros(4, jnp.int32), {"value": jnp.float32(0)})},
            "extra 'value'",
        ),
        ({"policy": lambda s, o, k=None: jnp.zeros(4)}, "policy's action has"),
        ({"value": lambda s, o: jnp.zeros((4, 1))}, "value has shape"),
        ({"update": lambda s, b, bs, k: (s, bs, {})}, "another key gave the same agent"),
    ],
)
def test_check_agent_finds(changes, message):
    if message.startswith("another"):
        changes["init"] = lambda key, spec: jnp.zeros(3)
        changes["act"] = lambda s, o, k: (jnp.zeros(4, jnp.int32), {"value": jnp.zeros(4)})
        changes["policy"] = lambda s, o, k=None: jnp.zeros(4, jnp.int32)
        changes["value"] = lambda s, o: jnp.zeros(4)
    methods = {name: staticmethod(function) for name, function in changes.items()}
    broken = type("Broken", (purerl.PPO,), methods)
    with pytest.raises(purerl.AgentError, match=message):
        purerl.check_agent(broken(), walk())


def test_check_agent_finds_a_loss_that_is_not_a_float_scalar():
    class Chatty(purerl.PPO):
        def update(self, *args):
            state, buffer_state, losses = super().update(*args)
            return state, buffer_state, {**losses, "count": state.updates}

    with pytest.raises(purerl.AgentError, match=r"loss 'count'.*int32"):
        purerl.check_agent(Chatty(), walk())


def test_check_agent_finds_an_impure_update():
    calls = []

    class Impure(purerl.PPO):
        def init(self, key, spec):
            calls.append(1)
            return super().init(jax.random.fold_in(jax.random.key(0), len(calls)), spec)

    with pytest.raises(purerl.AgentError, match="another"):
        purerl.check_agent(Impure(), walk())


def test_check_agent_wants_an_agent():
    with pytest.raises(purerl.AgentError, match=r"is not a purerl\.Agent"):
        purerl.check_agent(purerl.PPO, walk())
