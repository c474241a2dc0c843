"""Networks of one weight matrix, whose gradients have a closed form."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import purerl


class LinearActor(purerl.Actor):
    @nn.compact
    def create_network(self, obs):
        return nn.Dense(self.action_dim, use_bias=False)(obs)


class LinearQs(purerl.Critic):
    @nn.compact
    def create_network(self, obs):
        return nn.Dense(self.action_dim, use_bias=False)(obs)


class LinearQ(purerl.Critic):
    @nn.compact
    def create_network(self, obs, action):
        return jnp.sum(nn.Dense(self.action_dim, use_bias=False)(obs) * action, axis=-1)


class LinearV(purerl.Critic):
    @nn.compact
    def create_network(self, obs):
        return nn.Dense(1, use_bias=False)(obs)


def kernel(params) -> np.ndarray:
    """The weight matrix of one that has no other, in double precision."""
    return np.asarray(jax.tree.leaves(params)[0], np.float64)
