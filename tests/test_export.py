"""An exported policy acts the same, without purerl."""

import subprocess
import sys

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from kit.environments import dict_env, push_env, walk
from kit.policies import AGENTS, actions, make_policy, observations, trained

import purerl


def load(path):
    return jax.export.deserialize(bytearray(path.read_bytes()))


def test_it_runs_without_purerl(tmp_path):
    policy = trained().policy
    purerl.export_policy(policy, tmp_path / "policy.stablehlo")
    assert load(tmp_path / "policy.stablehlo").platforms == ("cpu", "cuda", "tpu")
    np.save(tmp_path / "obs.npy", observations(policy.spec.observation_space))
    code = """
import pathlib, sys, numpy as np, jax, jax.export
folder = pathlib.Path(sys.argv[1])
exported = jax.export.deserialize(bytearray((folder / "policy.stablehlo").read_bytes()))
policy = jax.jit(exported.call)
obs = np.load(folder / "obs.npy")
np.save(folder / "action.npy", policy(obs))
np.save(folder / "one.npy", policy(obs[:1]))
assert not [name for name in sys.modules if name.startswith(("purerl", "flax", "gymnax"))]
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=250)
    action = np.load(tmp_path / "action.npy")
    np.testing.assert_array_equal(action, policy.act(np.load(tmp_path / "obs.npy")))
    assert action.dtype == np.int32
    np.testing.assert_array_equal(np.load(tmp_path / "one.npy"), action[:1])
    assert 0 < action.sum() < len(action)


@pytest.mark.parametrize(
    "name",
    ["ppo, images", "ppo, continuous", "actor-critic", "reinforce", "ddpg", "td3", "sac", "dqn"],
)
def test_every_agent(name, tmp_path):
    agent, env = AGENTS[name]
    policy = make_policy(agent, env(), normalize_obs=env is not walk)
    purerl.export_policy(policy, tmp_path / "policy", platforms=["cpu"])
    exported = load(tmp_path / "policy")
    for num in (3, 20):
        obs = observations(policy.spec.observation_space, num)
        expected = actions(policy, obs, jax.random.key(0))[2]
        np.testing.assert_allclose(exported.call(obs), expected, rtol=1e-4, atol=1e-5)


def test_actions_are_inside_their_bounds(tmp_path):
    policy = make_policy(purerl.PPO(), push_env())
    purerl.export_policy(policy, tmp_path / "policy", batch=40)
    obs = 9.0 * observations(policy.spec.observation_space, 40)
    found = load(tmp_path / "policy").call(obs)
    assert np.abs(policy(obs)).max() > 2.0
    np.testing.assert_allclose(found, np.clip(policy(obs), -2.0, 2.0), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="40"):
        load(tmp_path / "policy").call(obs[:2])


def test_pytree_observations(tmp_path):
    policy = make_policy(purerl.PPO(), dict_env())
    purerl.export_policy(policy, tmp_path / "policy", platforms=["cpu"])
    obs = observations(policy.spec.observation_space)
    found = load(tmp_path / "policy").call(obs)
    np.testing.assert_allclose(found, policy.act(obs), rtol=1e-4, atol=1e-5)


class Even(purerl.Actor):
    """A network that takes batches of an even size only."""

    @nn.compact
    def create_network(self, obs):
        if obs.shape[0] % 2:
            raise ValueError("odd")
        return nn.Dense(self.action_dim)(obs)


def test_what_cannot_be_exported(tmp_path):
    path = tmp_path / "policy"
    policy = make_policy(purerl.PPO(actor=Even), walk())
    with pytest.raises(purerl.ConfigError, match=r"^policy: can't be exported: .*; try batch=1$"):
        purerl.export_policy(policy, path)
    with pytest.raises(purerl.ConfigError, match=r"^policy: can't be exported: odd$"):
        purerl.export_policy(policy, path, batch=3)
    purerl.export_policy(policy, path, batch=2)
    assert load(path).call(jnp.ones((2, 2))).shape == (2,)
    with pytest.raises(purerl.ConfigError, match="batch: got 0, expected an integer >= 1"):
        purerl.export_policy(policy, path, batch=0)
    with pytest.raises(purerl.ConfigError, match=r"policy: got PPO, expected a Policy"):
        purerl.export_policy(purerl.PPO(), path)
    with pytest.raises(purerl.RunError, match="can't be written"):
        purerl.export_policy(policy, tmp_path / "none" / "policy", batch=2)
