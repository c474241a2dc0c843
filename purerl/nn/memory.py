"""Memory of recurrent networks, for single steps and whole rollouts.

A network has a memory if its `create_network` has a parameter `memory`. The functions here accept
networks without one too, with `()` as memory.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from purerl.nn.networks import Actor, Critic, apply, takes_memory
from purerl.records.types import PyTree

Network = Actor | Critic


def init_memory(network: Network, num: int) -> PyTree:
    """The initial memory for N environments, `[N, ...]`."""
    return network.initial_memory(num) if takes_memory(type(network)) else ()


def reset_memory(network: Network, memory: PyTree, fresh: jax.Array) -> PyTree:
    """The memory `[N, ...]`, set to the initial one where `fresh`, `[N]` bool."""
    first = init_memory(network, fresh.shape[0])

    def choose(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.where(fresh.reshape(-1, *[1] * (x.ndim - 1)), x, y)

    return jax.tree.map(choose, first, memory)


def step(
    network: nn.Module, params: PyTree, memory: PyTree, *inputs: PyTree, method: str | None = None
) -> tuple[PyTree, PyTree]:
    """One step of a network: the memory after it, and the output.

    Args:
        network, params: the network, and its variables.
        memory: before the step, `[N, ...]`.
        *inputs: observations, and actions for a Q critic, `[N, ...]`.
        method: the method to call in place of `__call__`, such as "policy_and_value".
    """
    if not takes_memory(type(network)):
        return memory, apply(network, params, *inputs, method=method)
    out, memory = apply(network, params, *inputs, method=method, memory=memory)
    return memory, out


def unroll(
    network: Network,
    params: PyTree,
    memory: PyTree,
    fresh: jax.Array,
    *inputs: PyTree,
    method: str | None = None,
) -> tuple[PyTree, PyTree]:
    """T steps of a network: the memory after them, and the outputs `[T, N, ...]`.

    A network without a memory is applied to all steps at once; one with a memory is scanned.

    Args:
        network, params: the network, and its variables.
        memory: before the first step, `[N, ...]`.
        fresh: `[T, N]` bool, whether an episode begins at the step.
        *inputs: observations, and actions for a Q critic, `[T, N, ...]`.
        method: the method to call in place of `__call__`, such as "policy_and_value".
    """
    if not takes_memory(type(network)):
        size = fresh.shape
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), inputs)
        out = apply(network, params, *flat, method=method)
        return memory, jax.tree.map(lambda x: x.reshape(*size, *x.shape[1:]), out)

    def body(memory: PyTree, row: tuple[jax.Array, PyTree]) -> tuple[PyTree, PyTree]:
        fresh, inputs = row
        memory = reset_memory(network, memory, fresh)
        return step(network, params, memory, *inputs, method=method)

    return jax.lax.scan(body, memory, (fresh, inputs))
