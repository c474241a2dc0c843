"""Policies for tests: of every agent, without training; and one that was trained."""

import functools
import zlib

import jax
import jax.numpy as jnp
from toys import image_env, push_env, quick_jit, walk

import purerl
from purerl.normalize import init_stats, update_stats
from purerl.policy import Interface

AGENTS = {
    "ppo": (purerl.PPO(), walk),
    "ppo, continuous": (purerl.PPO(hidden=(8,), activation="relu"), push_env),
    "ppo, images": (purerl.PPO(), image_env),
    "reinforce": (purerl.REINFORCE(baseline=True), walk),
    "reinforce, continuous": (purerl.REINFORCE(), push_env),
    "actor-critic": (purerl.ActorCritic(critic=purerl.DefaultQNetwork), walk),
    "actor-critic, continuous": (purerl.ActorCritic(critic=purerl.DefaultQCritic), push_env),
    "ddpg": (purerl.DDPG(), push_env),
    "dqn": (purerl.DQN(epsilon_end=0.3), walk),
}


def observations(space, num=64, seed=5):
    """`[num, *obs_shape]`, of a space or a pytree of them."""
    leaves, structure = jax.tree.flatten(space, is_leaf=lambda x: hasattr(x, "shape"))
    keys = jax.random.split(jax.random.key(seed), len(leaves) * num).reshape(len(leaves), num)
    drawn = [jax.vmap(s.sample)(k) for s, k in zip(leaves, keys, strict=True)]
    return structure.unflatten(drawn)


def make_policy(agent, env, *, normalize_obs=False, action_processor=None):
    """A policy with random parameters, large enough that observations matter."""
    state = agent.init(jax.random.key(0), env.spec)

    def disturb(path, x):
        key = jax.random.key(zlib.crc32(jax.tree_util.keystr(path).encode()))
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        return x + 0.5 * jax.random.normal(key, x.shape, x.dtype) if floating else x

    state = jax.tree_util.tree_map_with_path(disturb, state)
    stats = None
    if normalize_obs:
        space = env.spec.observation_space
        stats = update_stats(init_stats(space), observations(space, seed=1), 1)
    return purerl.Policy(
        agent, agent.for_acting(state), stats, Interface(env.spec, action_processor)
    )


@functools.cache
def trained():
    """PPO after 4,096 steps of CartPole."""
    config = purerl.TrainConfig(env="CartPole-v1", total_timesteps=4_096, normalize_obs=True)
    return quick_jit(purerl.make_train(config))(jax.random.key(0))
