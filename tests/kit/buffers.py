"""Buffers that hold what a test has made up."""

import jax
import jax.numpy as jnp

import purerl


def holding(transitions: purerl.Transition, **options):
    """A buffer of transitions `[T, N]` and its state, full of them."""
    num_steps, num_envs = transitions.reward.shape
    buffer = purerl.Buffer(maxlen=num_steps * num_envs, **options)
    empty = buffer.init(jax.tree.map(lambda x: x[0], transitions), num_envs)
    return buffer, buffer.push(empty, transitions)


def everything(buffer, stored):
    """All that a full buffer holds, as one batch."""
    return buffer.sample(stored, indices=jnp.arange(buffer.maxlen))


def one_rollout(next_obs, terminated, truncated):
    """An `Experience` of a rollout `[T, N]` in which every successor is stored."""
    data = {"next_obs": next_obs, "terminated": terminated, "truncated": truncated}
    size = jnp.int32(len(terminated))
    state = purerl.BufferState(data, jnp.int32(0), size, (), jnp.float32(1))
    return purerl.Experience(purerl.Buffer(maxlen=terminated.size), state)
