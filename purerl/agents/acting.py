"""`Acting`: what playing needs of an agent, and nothing else; and what can be put around one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purerl.agents.noise import Noise
from purerl.envs.base import EnvSpec
from purerl.experience.experience import see
from purerl.experience.normalize import RunningStats
from purerl.records.errors import ConfigError, shown
from purerl.records.types import PyTree

Memory = PyTree
Obs = PyTree
Extras = dict[str, PyTree]


def _no_memory(num_envs: int) -> tuple:
    return ()


def _as_it_is(memory: Memory, done: jax.Array) -> Memory:
    return memory


class Acting(NamedTuple):
    """Actions for N environments, step by step.

    Attributes:
        step: `(memory, obs [N, *obs_shape], key) -> (memory, action [N, *action_shape], extras)`;
            extras are what `Agent.update` wants back with the transition, `[N, ...]` each by name.
        init: `N -> memory`, arrays `[N, ...]`; `()` where nothing is remembered.
        reset: `(memory, done [N]) -> memory`, with a fresh one where an episode has ended.
    """

    step: Callable[[Memory, Obs, Any], tuple[Memory, jax.Array, Extras]]
    init: Callable[[int], Memory] = _no_memory
    reset: Callable[[Memory, jax.Array], Memory] = _as_it_is


def memoryless(act: Callable[[Obs, Any], tuple[jax.Array, Extras]]) -> Acting:
    """An `Acting` of a function from observations and a key to actions and extras.

    Raises:
        ConfigError: from its step, where the function returns something else.
    """

    def step(memory: Memory, obs: Obs, key: Any) -> tuple[Memory, jax.Array, Extras]:
        out = act(obs, key)
        if not (isinstance(out, tuple) and len(out) == 2 and isinstance(out[1], dict)):
            raise ConfigError(
                f"memoryless: the function returns {shown(out)}, expected (action, extras), extras "
                "a dict of arrays [N, ...]"
            )
        return memory, *out

    return Acting(step)


def seeing(acting: Acting, stats: RunningStats | None) -> Acting:
    """Acting that sees observations through statistics, if there are any."""
    if stats is None:
        return acting
    return acting._replace(step=lambda memory, obs, key: acting.step(memory, see(stats, obs), key))


def mapping(acting: Acting, fn: Callable[[jax.Array], jax.Array]) -> Acting:
    """Acting whose actions are mapped, such as to what an environment outside takes."""

    def step(memory: Memory, obs: Obs, key: Any) -> tuple[Memory, jax.Array, Extras]:
        memory, action, extras = acting.step(memory, obs, key)
        return memory, fn(action), extras

    return acting._replace(step=step)


class Explorer(NamedTuple):
    """Memory of acting with noise: that of the agent, and the noise's process."""

    agent: Memory
    noise: Any


def exploring(acting: Acting, noise: Noise | None, space: Any) -> Acting:
    """Acting with noise, if there is any, on actions of a `Box`, which stay inside its bounds; the
    noise is remembered."""
    if noise is None:
        return acting

    def step(memory: Explorer, obs: Obs, key: Any) -> tuple[Explorer, jax.Array, Extras]:
        inner, action, extras = acting.step(memory.agent, obs, jax.random.fold_in(key, 2))
        process, drawn = noise.step(memory.noise, key)
        half, low, high = (x[None] for x in (space.half_range, space.low, space.high))
        return Explorer(inner, process), jnp.clip(action + half * drawn, low, high), extras

    def reset(memory: Explorer, done: jax.Array) -> Explorer:
        return Explorer(acting.reset(memory.agent, done), noise.restart(memory.noise, done))

    return Acting(
        step,
        lambda num_envs: Explorer(acting.init(num_envs), noise.init(num_envs, space.shape)),
        reset,
    )


def at_random(acting: Acting, spec: EnvSpec, condition: jax.Array) -> Acting:
    """Acting by draws from the legal actions where a condition, `[]` bool, holds."""

    def step(memory: Memory, obs: Obs, key: Any) -> tuple[Memory, jax.Array, Extras]:
        memory, action, extras = acting.step(memory, obs, key)
        keys = jax.random.split(jax.random.fold_in(key, 1), action.shape[0])
        drawn = jax.vmap(spec.random_action)(keys, obs).astype(action.dtype)
        return memory, jnp.where(condition, drawn, action), extras

    return acting._replace(step=step)
