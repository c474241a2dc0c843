"""Policies for tests: of every agent, without training; and one that was trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import purerl
from purerl.experience.normalize import init_stats, update_stats
from purerl.training.policy import Interface

from .environments import image_env, push_env, walk
from .quick import quick_jit

AGENTS = {
    "ppo": (purerl.PPO(), walk),
    "ppo, continuous": (purerl.PPO(hidden=(8,), activation="relu"), push_env),
    "ppo, images": (purerl.PPO(), image_env),
    "reinforce": (purerl.REINFORCE(baseline=True), walk),
    "reinforce, continuous": (purerl.REINFORCE(), push_env),
    "actor-critic": (purerl.ActorCritic(critic=purerl.DefaultQNetwork), walk),
    "actor-critic, continuous": (purerl.ActorCritic(critic=purerl.DefaultQCritic), push_env),
    "ddpg": (purerl.DDPG(), push_env),
    "pqn": (purerl.PQN(hidden=(16, 16), dueling=True), walk),
    "td3": (purerl.TD3(hidden=(8,)), push_env),
    "sac": (purerl.SAC(hidden=(8,)), push_env),
    "dqn": (purerl.DQN(epsilon_end=0.3), walk),
}


def observations(space, num=64, seed=5):
    """Random ones, `[num, *obs_shape]`, of a space or a pytree of them."""
    rng = np.random.default_rng(seed)

    def draw(space):
        shape = (num, *space.shape)
        if space.sizes is not None:
            drawn = rng.integers(0, space.high + 1, size=shape)
        elif space.bounded:
            drawn = rng.uniform(space.low, space.high, shape)
        else:
            drawn = 3.0 * rng.normal(size=shape)
        return jnp.asarray(drawn, space.dtype)

    return jax.tree.map(draw, space, is_leaf=lambda x: hasattr(x, "shape"))


def make_policy(agent, env, *, normalize_obs=False, action_processor=None, scale=1.0):
    """A policy with random parameters, large enough that observations matter."""
    rng = np.random.default_rng(1)

    def draw(x):
        drawn = rng.normal(size=x.shape) * scale * (1.0 if x.ndim > 1 else 0.3)
        return jnp.asarray(drawn, x.dtype)

    shapes = jax.eval_shape(lambda: agent.for_acting(agent.init(jax.random.key(0), env.spec)))
    state, stats = jax.tree.map(draw, shapes), None
    if normalize_obs:
        space = env.spec.observation_space
        stats = update_stats(init_stats(space), observations(space, seed=1), 1)
    return purerl.Policy(agent, state, stats, Interface(env.spec, action_processor))


@quick_jit
def actions(policy, obs, key):
    """The agent's own, a sample, and the environment's."""
    return policy(obs), policy(obs, key), policy.act(obs)


@functools.cache
def trained():
    """PPO after 4,096 steps of CartPole."""
    config = purerl.TrainConfig(env="CartPole-v1", total_timesteps=4_096, normalize_obs=True)
    return quick_jit(purerl.make_train(config))(jax.random.key(0))
