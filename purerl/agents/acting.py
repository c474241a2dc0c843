"""`Acting`, the interface between an agent and everything that plays episodes, and its wrappers."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from purerl.agents.noise import Noise
from purerl.envs.base import EnvSpec
from purerl.envs.spaces import Box, Space
from purerl.experience.experience import see
from purerl.experience.normalize import RunningStats
from purerl.records.errors import ConfigError, shown
from purerl.records.types import PyTree

Memory = PyTree
Obs = PyTree
Extras = dict[str, PyTree]
Key = Any  # a typed key, or None where nothing is drawn


def _no_memory(num_envs: int) -> tuple[()]:
    return ()


def _as_it_is(memory: Memory, done: jax.Array) -> Memory:
    return memory


class Acting(NamedTuple):
    """Actions for N environments, step by step.

    Attributes:
        step: `(memory, obs [N, *obs_shape], key) -> (memory, action [N, *action_shape], extras)`;
            extras, `[N, ...]` each by name, are stored with the transition, for `Agent.update`.
        init: `N -> memory`, arrays `[N, ...]`; `()` without a memory.
        reset: `(memory, done [N]) -> memory`, with fresh rows where an episode has ended.
    """

    step: Callable[[Memory, Obs, Key], tuple[Memory, jax.Array, Extras]]
    init: Callable[[int], Memory] = _no_memory
    reset: Callable[[Memory, jax.Array], Memory] = _as_it_is


def memoryless(act: Callable[[Obs, Key], tuple[jax.Array, Extras]]) -> Acting:
    """An `Acting` without a memory, of a function `(obs, key) -> (action, extras)`.

    Raises:
        ConfigError: from its step, if the function returns something else.
    """

    def step(memory: Memory, obs: Obs, key: Key) -> tuple[Memory, jax.Array, Extras]:
        out = act(obs, key)
        if not (isinstance(out, tuple) and len(out) == 2 and isinstance(out[1], dict)):
            raise ConfigError(
                f"memoryless: the function returns {shown(out)}, expected (action, extras), extras "
                "a dict of arrays [N, ...]"
            )
        return memory, *out

    return Acting(step)


def seeing(acting: Acting, stats: RunningStats | None) -> Acting:
    """An `Acting` on observations that are normalised by running statistics, if there are any."""
    if stats is None:
        return acting
    return acting._replace(step=lambda memory, obs, key: acting.step(memory, see(stats, obs), key))


def mapping(acting: Acting, fn: Callable[[jax.Array], jax.Array]) -> Acting:
    """An `Acting` whose actions are mapped by a function of `[N, *action_shape]`."""

    def step(memory: Memory, obs: Obs, key: Key) -> tuple[Memory, jax.Array, Extras]:
        memory, action, extras = acting.step(memory, obs, key)
        return memory, fn(action), extras

    return acting._replace(step=step)


class Explorer(NamedTuple):
    """Memory of an `Acting` with noise: the agent's memory and the noise's state."""

    agent: Memory
    noise: PyTree


def another_key(key: Key, number: int) -> jax.Array:
    """A key for what happens beside something that gets `key` itself, at no cost where it isn't
    used: none that `split`, or a draw, makes of `key`, as these count from 0 and this one from
    2^32 - 1 down."""
    return jax.random.fold_in(key, np.uint32(2**32 - 1 - number))


def exploring(acting: Acting, noise: Noise | None, space: Space) -> Acting:
    """An `Acting` that adds exploration noise, if there is any, to actions of a `Box`, clipped to
    its bounds. The noise's state is part of the memory."""
    if noise is None:
        return acting
    box = cast(Box, space)

    def step(memory: Explorer, obs: Obs, key: Key) -> tuple[Explorer, jax.Array, Extras]:
        inner, action, extras = acting.step(memory.agent, obs, another_key(key, 0))
        process, drawn = noise.step(memory.noise, key)
        half, low, high = (x[None] for x in (box.half_range, box.low, box.high))
        return Explorer(inner, process), jnp.clip(action + half * drawn, low, high), extras

    def reset(memory: Explorer, done: jax.Array) -> Explorer:
        return Explorer(acting.reset(memory.agent, done), noise.restart(memory.noise, done))

    return Acting(
        step,
        lambda num_envs: Explorer(acting.init(num_envs), noise.init(num_envs, box.shape)),
        reset,
    )


def at_random(acting: Acting, spec: EnvSpec, condition: jax.Array) -> Acting:
    """An `Acting` that draws uniformly from the legal actions while a condition, `[]` bool, holds.
    Extras and memory remain those of the agent."""

    def step(memory: Memory, obs: Obs, key: Key) -> tuple[Memory, jax.Array, Extras]:
        memory, action, extras = acting.step(memory, obs, key)
        keys = jax.random.split(another_key(key, 1), action.shape[0])
        drawn = jax.vmap(spec.random_action)(keys, obs).astype(action.dtype)
        return memory, jnp.where(condition, drawn, action), extras

    return acting._replace(step=step)
