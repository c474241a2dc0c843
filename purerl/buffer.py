"""The buffer of experience: one time-major ring for every agent.

A `Buffer` is a spec; what it holds is a `BufferState`, a pytree that its methods take and return.
Entries are `[maxlen // N, N, ...]`: row t is one step of all N environments, so that a rollout is
pushed as one block and a path lies in one column.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purerl import returns
from purerl.fields import ConfigError, Record, integer, real, static
from purerl.types import Transition

PyTree = Any

# Filled in by `finish_path`.
PATH_ENTRIES = ("advantage", "reward_to_go", "td_error")


class BufferState(NamedTuple):
    """What a buffer holds.

    Attributes:
        data: entries by name, each `[L, N, ...]` with L = maxlen // N rows: obs, action, reward,
            next_obs, terminated, truncated, episode, what the agent records (value, log_prob, ...),
            and what `finish_path` computes (advantage, reward_to_go, td_error).
        position: `[]` int32, the row that is written next.
        size: `[]` int32, how many rows are written.
    """

    data: dict[str, PyTree]
    position: jax.Array
    size: jax.Array


def _identity(obs: PyTree) -> PyTree:
    return obs


class Buffer(Record):
    """Spec of a buffer.

    Attributes:
        maxlen: how many transitions it holds; None for one rollout.
        gamma: discount of `reward_to_go` and `advantage`; None for the agent's.
        lam: lambda of GAE(lambda); None for the agent's.
        transform_obs: applied to observations when they are read. The loop sets it, to normalise
            by the statistics of the moment what is stored as the environment gave it.
    """

    maxlen: int | None = integer(default=None, at_least=1, optional=True)
    gamma: Any = real(default=None, at_least=0.0, at_most=1.0, optional=True)
    lam: Any = real(default=None, at_least=0.0, at_most=1.0, optional=True)
    transform_obs: Callable[[PyTree], PyTree] = static(default=_identity)

    def num_rows(self, num_envs: int) -> int:
        """L, how many steps of all N environments it holds.

        Raises:
            ConfigError: `maxlen` is not set, or N doesn't divide it.
        """
        if self.maxlen is None or self.maxlen % num_envs:
            raise ConfigError(
                f"Buffer.maxlen: got {self.maxlen}, expected a multiple of num_envs={num_envs}"
            )
        return self.maxlen // num_envs

    def init(self, example: Transition, num_envs: int) -> BufferState:
        """An empty buffer.

        Args:
            example: one step of all N environments, `[N, ...]`, or its shapes.
            num_envs: N.
        """
        rows = self.num_rows(num_envs)

        def empty(x: Any) -> jax.Array:
            return jnp.zeros((rows, *x.shape), x.dtype)

        data = jax.tree.map(empty, _entries(example))
        zeros = jnp.zeros((rows, num_envs), jnp.float32)
        data |= dict.fromkeys(PATH_ENTRIES, zeros)
        return BufferState(data, jnp.int32(0), jnp.int32(0))

    def push(self, state: BufferState, transitions: Transition) -> BufferState:
        """Writes `[T, N, ...]`, in place of the oldest rows where it is full.

        Raises:
            ValueError: T is more than the buffer holds.
        """
        num_rows = state.data["reward"].shape[0]
        num_steps = transitions.reward.shape[0]
        if num_steps > num_rows:
            raise ValueError(f"Buffer.push: {num_steps} steps do not fit into {num_rows} rows")
        new = _entries(transitions)
        if num_steps == num_rows:
            # A rollout that fills the ring replaces it: no index, no copy.
            data = {**state.data, **new}
            return BufferState(data, jnp.int32(0), jnp.int32(num_rows))
        row = (state.position + jnp.arange(num_steps)) % num_rows
        old = {name: state.data[name] for name in new}
        written = jax.tree.map(lambda ring, x: ring.at[row].set(x), old, new)
        position = (state.position + num_steps) % num_rows
        size = jnp.minimum(state.size + num_steps, num_rows)
        return BufferState({**state.data, **written}, position, size)

    def read(self, state: BufferState) -> dict[str, PyTree]:
        """All rows as they lie, `[L, N, ...]`, observations transformed.

        They are in order where one rollout fills the buffer; else `state.position` is the oldest of
        a full buffer, and rows from `state.size` on are zeros.
        """
        transformed = {name: self.transform_obs(state.data[name]) for name in ("obs", "next_obs")}
        return {**state.data, **transformed}

    def finish_path(self, state: BufferState, next_value: jax.Array) -> BufferState:
        """Fills in advantage (GAE), reward_to_go and td_error of a full buffer.

        Args:
            state: full, its rows in order (position 0), as after one rollout's push.
            next_value: `[L, N]`, V of each transition's true successor. Only read where a path
                goes on beyond it; V(s_t) itself is the entry `value`.
        """
        data = state.data
        rest = (data["terminated"], data["truncated"], self.gamma)
        value = data["value"]
        advantage = returns.gae(data["reward"], value, next_value, *rest, self.lam)
        to_go = returns.reward_to_go(data["reward"], next_value, *rest)
        error = returns.td_error(data["reward"], value, next_value, data["terminated"], self.gamma)
        path = dict(zip(PATH_ENTRIES, (advantage, to_go, error), strict=True))
        return state._replace(data={**data, **path})

    def reset(self, state: BufferState) -> BufferState:
        """Empties it: what was written can't be read any more."""
        return state._replace(position=jnp.int32(0), size=jnp.int32(0))


def _entries(transitions: Transition) -> dict[str, PyTree]:
    entries: Mapping[str, PyTree] = transitions._asdict()
    extras = entries["extras"]
    return {**{name: x for name, x in entries.items() if name != "extras"}, **extras}
