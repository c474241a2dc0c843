"""Memory of recurrent networks, for single steps and whole rollouts.

A network has a memory if its `create_network` has a parameter `memory`. The functions here accept
networks without one too, with `()` as memory.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from purerl.envs.spaces import where_legal
from purerl.nn.networks import Actor, Critic, apply, q_values, takes_memory, takes_sequences
from purerl.records.types import PyTree

Network = Actor | Critic
Pair = tuple[jax.Array, jax.Array]


def remembers(network: Network | None) -> bool:
    """Whether a network has a memory."""
    return network is not None and takes_memory(type(network))


def init_memory(network: Network, num: int) -> PyTree:
    """The initial memory for N environments, `[N, ...]`."""
    return network.initial_memory(num) if remembers(network) else ()


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
    """T steps of a network.

    A network without a memory is applied to all steps at once, as is one that takes sequences (see
    `Actor.initial_memory`). Every other one is scanned.

    Args:
        network, params: the network, and its variables.
        memory: before the first step, `[N, ...]`.
        fresh: `[T, N]` bool, whether an episode begins at the step.
        *inputs: observations, and actions for a Q critic, `[T, N, ...]`.
        method: the method to call in place of `__call__`, such as "policy_and_value".

    Returns:
        The memory after each step, before a reset, `[T, N, ...]`; and the outputs in order of time,
        `[T N, ...]`.
    """
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), inputs)
    if not takes_memory(type(network)):
        return memory, apply(network, params, *flat, method=method)
    if takes_sequences(type(network)):
        out, after = apply(network, params, *flat, method=method, memory=memory, fresh=fresh)
        return after, out

    def body(memory: PyTree, row: tuple[jax.Array, PyTree]) -> tuple[PyTree, PyTree]:
        fresh, inputs = row
        memory = reset_memory(network, memory, fresh)
        memory, out = step(network, params, memory, *inputs, method=method)
        return memory, (memory, out)

    def join(x: jax.Array, batched: bool) -> jax.Array:
        return x.reshape(-1, *x.shape[2:]) if batched else x[0]

    _, (after, out) = jax.lax.scan(body, memory, (fresh, inputs))
    now = jax.tree.map(lambda x: x[0], inputs)
    return after, jax.tree.map(join, out, _batched(network, params, memory, now, method))


def _batched(
    network: Network, params: PyTree, memory: PyTree, inputs: PyTree, method: str | None
) -> PyTree:
    """Whether each leaf of a network's output has an axis of environments; bounds of actions may be
    the same for all. By comparing shapes for two numbers of them: a size alone doesn't tell."""

    def shapes(more: int) -> PyTree:
        def longer(x: jax.Array) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((x.shape[0] + more, *x.shape[1:]), x.dtype)

        one = functools.partial(step, network, method=method)
        return jax.eval_shape(one, params, *jax.tree.map(longer, (memory, *inputs)))[1]

    return jax.tree.map(lambda x, y: x.shape != y.shape, shapes(0), shapes(1))


def begins(terminated: jax.Array, truncated: jax.Array) -> jax.Array:
    """Whether an episode begins at each step of a rollout, `[T, N]` bool: after an end. False in
    the first row, whose memory is stored after its reset.

    Args:
        terminated, truncated: `[T, N]` bool.
    """
    done = terminated | truncated
    return jnp.concatenate([jnp.zeros_like(done[:1]), done[:-1]])


class PolicyAndValue(NamedTuple):
    """An actor and a V critic as one network, with both memories.

    Its memory is a pair, of the actor and of the critic, and `()` if neither has any. Outputs are
    pairs of a distribution and V(s).

    Attributes:
        actor: an `Actor`; without a critic an `ActorCriticNetwork`.
        critic: a V critic, or None.
    """

    actor: Actor
    critic: Critic | None = None

    @property
    def remembers(self) -> bool:
        """Whether actor or critic has a memory."""
        return remembers(self.actor) or remembers(self.critic)

    def init(self, num: int) -> PyTree:
        """The initial memory for N environments, `[N, ...]`."""
        if not self.remembers:
            return ()
        return init_memory(self.actor, num), self._init_critic(num)

    def reset(self, memory: PyTree, fresh: jax.Array) -> PyTree:
        """The memory, set to the initial one where `fresh`, `[N]` bool."""
        if not self.remembers:
            return memory
        actor = reset_memory(self.actor, memory[0], fresh)
        return actor, () if self.critic is None else reset_memory(self.critic, memory[1], fresh)

    def step(
        self, params: dict[str, PyTree], memory: PyTree, obs: PyTree
    ) -> tuple[PyTree, tuple[PyTree, jax.Array]]:
        """One step: the memory after it; the distribution, and V(s) `[N]`.

        Args:
            params: the variables of "actor" and "critic".
            memory: before the step.
            obs: `[N, *obs_shape]`.
        """
        both = memory if self.remembers else ((), ())
        if self.critic is None:
            actor, out = step(self.actor, params["actor"], both[0], obs, method="policy_and_value")
            return self._pair(actor, ()), out
        actor, policy = step(self.actor, params["actor"], both[0], obs)
        critic, value = step(self.critic, params["critic"], both[1], obs)
        return self._pair(actor, critic), (policy, value)

    def unroll(
        self, params: dict[str, PyTree], memory: PyTree, fresh: jax.Array, obs: PyTree
    ) -> tuple[PyTree, tuple[PyTree, jax.Array]]:
        """T steps, with arguments and result as in the function `unroll`."""
        both = memory if self.remembers else ((), ())
        if self.critic is None:
            actor, out = unroll(
                self.actor, params["actor"], both[0], fresh, obs, method="policy_and_value"
            )
            return self._pair(actor, ()), out
        actor, policy = unroll(self.actor, params["actor"], both[0], fresh, obs)
        critic, value = unroll(self.critic, params["critic"], both[1], fresh, obs)
        return self._pair(actor, critic), (policy, value)

    def _init_critic(self, num: int) -> PyTree:
        return () if self.critic is None else init_memory(self.critic, num)

    def _pair(self, actor: PyTree, critic: PyTree) -> PyTree:
        return (actor, critic) if self.remembers else ()


class ActionValues(NamedTuple):
    """A Q network for n discrete actions, with its memory; `()` if it has none.

    Outputs are pairs: Q(s, .), `[N, n]`, minus infinity for illegal actions, and the largest,
    max_a Q(s, a), `[N]`.

    Attributes:
        critic: the network; with a memory one that returns the values of all actions.
    """

    critic: Critic

    @property
    def remembers(self) -> bool:
        """Whether the network has a memory."""
        return remembers(self.critic)

    def init(self, num: int) -> PyTree:
        """The initial memory for N environments, `[N, ...]`."""
        return init_memory(self.critic, num)

    def reset(self, memory: PyTree, fresh: jax.Array) -> PyTree:
        """The memory, set to the initial one where `fresh`, `[N]` bool."""
        return reset_memory(self.critic, memory, fresh)

    def step(self, params: PyTree, memory: PyTree, obs: PyTree) -> tuple[PyTree, Pair]:
        """One step: the memory after it, and the outputs at observations `[N, *obs_shape]`."""
        if not self.remembers:
            return memory, _with_largest(q_values(self.critic, params, obs))
        memory, values = step(self.critic, params, memory, obs)
        return memory, self._of(values, obs)

    def unroll(
        self, params: PyTree, memory: PyTree, fresh: jax.Array, obs: PyTree
    ) -> tuple[PyTree, Pair]:
        """T steps, with arguments and result as in the function `unroll`."""
        after, values = unroll(self.critic, params, memory, fresh, obs)
        return after, self._of(values, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), obs))

    def _of(self, values: jax.Array, obs: PyTree) -> Pair:
        values = values.reshape(-1, self.critic.action_dim)  # of one action they may be `[N]`
        return _with_largest(where_legal(values, self.critic.view.mask(obs)))


def _with_largest(values: jax.Array) -> Pair:
    return values, jnp.max(values, axis=-1)


def memories(
    networks: PolicyAndValue | ActionValues,
    params: PyTree,
    memory: PyTree,
    fresh: jax.Array,
    obs: PyTree,
) -> PyTree:
    """The memory after each step of a rollout, before a reset, `[T, N, ...]`.

    By single steps: a pass through whole sequences needs several times the memory.

    Args:
        networks, params: the networks, and their variables.
        memory: before the first step, `[N, ...]`.
        fresh: `[T, N]` bool, whether an episode begins at the step.
        obs: `[T, N, *obs_shape]`.
    """

    def step(memory: PyTree, row: tuple[jax.Array, PyTree]) -> tuple[PyTree, PyTree]:
        fresh, obs = row
        memory, _ = networks.step(params, networks.reset(memory, fresh), obs)
        return memory, memory

    return jax.lax.scan(step, memory, (fresh, obs))[1]
