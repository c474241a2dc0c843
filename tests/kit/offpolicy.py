"""Linear networks and transitions for the closed forms of DDPG, TD3 and SAC: one number is
observed, one is the action, from LOW to HIGH."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import purerl

from .buffers import holding
from .environments import push_env

T, N, GAMMA = 8, 4, 0.9
LOW, HIGH = -1.0, 3.0
HALF, CENTER = (HIGH - LOW) / 2, (HIGH + LOW) / 2
SPEC = push_env().spec._replace(action_space=purerl.Box(LOW, HIGH, (1,)))


class LinearActor(purerl.Actor):
    distribution = None

    @nn.compact
    def create_network(self, obs):
        return nn.Dense(1, use_bias=False)(obs)


class BilinearCritic(purerl.Critic):
    """Q(s, a) = u s + w s a, the action in units of half its range."""

    @nn.compact
    def create_network(self, obs, action):
        kernel = self.param("kernel", nn.initializers.normal(1.0), (2, 1))
        return obs * kernel[0] + obs * action * kernel[1]


def filled(**options):
    """A buffer with transitions of all kinds."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 3, size=(T, N))
    done = np.cumsum(kind > 0, axis=0)
    transitions = purerl.Transition(
        obs=jnp.asarray(rng.normal(size=(T, N, 1)), jnp.float32),
        action=jnp.asarray(rng.uniform(LOW, HIGH, size=(T, N, 1)), jnp.float32),
        reward=jnp.asarray(5 * rng.normal(size=(T, N)), jnp.float32),
        next_obs=jnp.asarray(rng.normal(size=(T, N, 1)), jnp.float32),
        terminated=jnp.asarray(kind == 1),
        truncated=jnp.asarray(kind == 2),
        episode=jnp.asarray(np.vstack([np.zeros((1, N)), done[:-1]]), jnp.int32),
        valid=jnp.ones((T, N), bool),
        extras={},
    )
    return holding(transitions, gamma=GAMMA, **options)


def rows(stored):
    """What a buffer holds, `[T N]` each, in double precision."""
    data = {name: np.asarray(stored.data[name]) for name in ("obs", "action", "next_obs")}
    numbers = [data[name].reshape(T * N).astype(np.float64) for name in data]
    rest = (np.asarray(stored.data[n]).reshape(T * N) for n in ("reward", "terminated"))
    return (*numbers, *rest)


def doubles(params):
    """The only leaf of a network's parameters, in double precision."""
    (leaf,) = jax.tree.leaves(params)
    return np.asarray(leaf, np.float64)
