"""Policies for tests: of every agent, without training; and one that was trained."""

import functools
import zlib

import jax
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
    """Random ones, `[num, *obs_shape]`, of a space or a pytree of them."""
    leaves, structure = jax.tree.flatten(space, is_leaf=lambda x: hasattr(x, "shape"))
    keys = jax.random.split(jax.random.key(seed), len(leaves) * num).reshape(len(leaves), num)
    drawn = [_draw(space, key) for space, key in zip(leaves, keys, strict=True)]
    return structure.unflatten(drawn)


def _draw(space, keys):
    if isinstance(space, purerl.Discrete) or space.bounded:
        return quick_jit(jax.vmap(space.sample))(keys)
    return 3.0 * quick_jit(jax.vmap(lambda key: jax.random.normal(key, space.shape)))(keys)


def make_policy(agent, env, *, normalize_obs=False, action_processor=None):
    """A policy with random parameters, large enough that observations matter."""

    def disturb(path, x):
        key = jax.random.key(zlib.crc32(jax.tree_util.keystr(path).encode()))
        return x + jax.random.normal(key, x.shape, x.dtype) if x.ndim > 1 else x

    def init(key):
        state = agent.for_acting(agent.init(key, env.spec))
        return jax.tree_util.tree_map_with_path(disturb, state)

    state = quick_jit(init)(jax.random.key(0))
    stats = None
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
