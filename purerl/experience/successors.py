"""True successors of transitions, stored only where the next row doesn't hold them.

Row t + 1 of a buffer holds the observation that follows row t, unless the path is cut there: by a
time limit, by a reset in the middle of an episode, or because t is the newest row. After a
termination nothing follows that has a value.

An environment that truncates nothing but episodes of `limit` steps does so at most once in `limit`
consecutive rows: two episodes that end so lie `limit` steps apart. Rows are therefore taken in
blocks of `limit`, by their time, and each block has one row for the successors `[N, ...]` of its
cuts. That holds for any number of wrappers, of which the spec has the smallest limit, counted in
the actions of the agent.

An environment may also truncate for other reasons, and earlier. Of several cuts of an environment
in one block the newest keeps its successor; the other transitions are *lost*, which is seen by the
row that each successor is stored with. A lost transition is left out: the path ends a step earlier,
and bootstraps from the lost one's observation.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import struct

from purerl.envs.base import where
from purerl.experience.returns import Ahead, quotient, row_and_env, take, wrapped
from purerl.records.types import PyTree

NOWHERE = 2**30  # an index beyond every array, whose write is dropped
_TERMINATED, _TRUNCATED = -1, -2  # in place of an episode's number


class Lookup(NamedTuple):
    """Where the successors of some transitions are.

    Attributes:
        stored: bool, whether it is stored apart, in row `place`; if not, it is the observation in
            the next row.
        place: int32, row of `Successors`.
        lost: bool, whether it is nowhere.
        follows: bool, whether the next row continues the path.
    """

    stored: jax.Array
    place: jax.Array
    lost: jax.Array
    follows: jax.Array


class Successors(struct.PyTreeNode):
    """The true successors that no next row holds, of a rollout or a ring of L rows.

    Attributes:
        obs: `[K + 1, N, *obs_shape]`, one row a block, by turns; the last row has the successors of
            the newest transitions.
        row: `[K + 1, N]` int32, the row of the transition that each belongs to; L where there is
            none.
        episode: `[N]` int32, the episode that goes on after the newest row, or `_TERMINATED` or
            `_TRUNCATED`. The buffer's last row says that too, but to read it before a push would
            make XLA:CPU copy the whole entry.
        clock: `[]` int32, rows written so far, modulo K `block`.
        block: rows in a block.
    """

    obs: PyTree
    row: jax.Array
    episode: jax.Array
    clock: jax.Array
    block: int = struct.field(pytree_node=False)

    @classmethod
    def empty(cls, obs: PyTree, num_rows: int, num_blocks: int, limit: int) -> Self:
        """Storage for a ring of L rows, of observations like `obs`, `[N, *obs_shape]`."""
        num_envs = jax.tree.leaves(obs)[0].shape[0]
        stored = jax.tree.map(lambda x: jnp.zeros((num_blocks + 1, *x.shape), x.dtype), obs)
        row = jnp.full((num_blocks + 1, num_envs), num_rows, jnp.int32)
        none = jnp.full(num_envs, _TERMINATED, jnp.int32)
        return cls(stored, row, none, jnp.int32(0), min(limit, num_rows))

    @classmethod
    def of_rollout(
        cls, obs: PyTree, head: PyTree, data: Mapping[str, jax.Array], block: int
    ) -> Self:
        """The successors of a rollout.

        Args:
            obs: `[K, N, *obs_shape]`, those of the last cut in each block.
            head: `[N, *obs_shape]`, those of the last row.
            data: entries `[T, N]`: terminated, truncated, episode.
            block: rows in a block.
        """
        num_steps = len(data["episode"])
        row = last_cuts(data["truncated"] & ~data["terminated"], block)
        newest = jnp.full((1, row.shape[1]), num_steps - 1, jnp.int32)
        both = jax.tree.map(lambda x, last: jnp.concatenate([x, last[None]]), obs, head)
        clock = num_steps % (len(row) * block)
        return cls(both, jnp.concatenate([row, newest]), _continues(data), jnp.int32(clock), block)

    @classmethod
    def of_all(cls, next_obs: PyTree, data: Mapping[str, jax.Array], block: int) -> Self:
        """The successors of T rows, from those of every transition, `[T, N, *obs_shape]`, and the
        entries `[T, N]`: terminated, truncated, episode."""
        num_steps, num_envs = data["episode"].shape
        same = data["episode"][1:] == data["episode"][:-1]
        cut = ~data["terminated"][:-1] & (data["truncated"][:-1] | ~same)
        row = last_cuts(cut, block) if num_steps > 1 else jnp.zeros((0, num_envs), jnp.int32)
        row = jnp.where(row == num_steps - 1, num_steps, row)  # the last row's `none`
        newest = jnp.full((1, num_envs), num_steps - 1, jnp.int32)
        row = jnp.concatenate([row, newest])
        env = jnp.arange(num_envs, dtype=jnp.int32)
        obs = jax.tree.map(lambda x: x.at[row, env].get(mode="clip"), next_obs)
        clock = num_steps % max((len(row) - 1) * block, 1)
        return cls(obs, row, _continues(data), jnp.int32(clock), block)

    def append(
        self,
        new: "Successors",
        episode: jax.Array,
        position: jax.Array,
        num_rows: int,
        writable: jax.Array | None,
    ) -> Self:
        """The storage after a push.

        Args:
            new: those of the T rows that are pushed.
            episode: `[T, N]`, of these rows.
            position: `[]`, the row where the first one goes.
            num_rows: L.
            writable: `[]` bool, whether they are written; None for True.
        """
        num_steps, num_envs = episode.shape
        count, env = len(self.row) - 1, jnp.arange(num_envs, dtype=jnp.int32)
        # The newest row so far: whether its path goes on is known now.
        cut = (self.episode != _TERMINATED) & (self.episode != episode[0])
        if num_steps == num_rows:  # the row will be gone
            cut = jnp.zeros_like(cut)
        written = jnp.concatenate([cut[None], new.row[:-1] < num_steps])
        time = jnp.concatenate([jnp.full((1, num_envs), -1, jnp.int32), new.row[:-1]])
        to = quotient(wrapped(self.clock + time, count * self.block), self.block)
        # Of two cuts in one block the later one is written. They are neighbours here.
        later = jnp.concatenate([to[1:], jnp.full((1, num_envs), -1, jnp.int32)])
        written &= ~((to == later) & jnp.concatenate([written[1:], jnp.zeros_like(cut)[None]]))
        written = jnp.concatenate([written, jnp.ones_like(cut)[None]])
        if writable is not None:
            written &= writable
        to = jnp.concatenate([to, jnp.full((1, num_envs), count, jnp.int32)])
        to = jnp.where(written, to, NOWHERE)
        time = jnp.concatenate([time, jnp.full((1, num_envs), num_steps - 1, jnp.int32)])

        def write(old: jax.Array, x: jax.Array) -> jax.Array:
            return old.at[to, env].set(x, mode="drop", unique_indices=True)

        obs = jax.tree.map(
            lambda old, x: write(old, jnp.concatenate([old[-1:], x])), self.obs, new.obs
        )
        row = write(self.row, (position + time) % num_rows)
        last = new.episode, (self.clock + num_steps) % (count * self.block)
        if writable is not None:
            last = where(writable, last, (self.episode, self.clock))
        return self.replace(obs=obs, row=row, episode=last[0], clock=last[1])

    def after(self, ahead: Ahead, position: jax.Array, num_rows: int) -> Lookup:
        """The lookup of the last transitions of paths `[B]`, in a ring of L rows; `position` is the
        row to write next."""
        num_envs = self.row.shape[1]
        row, env = row_and_env(ahead.last(ahead.at), num_envs)
        return self._lookup(
            row,
            position,
            num_rows,
            ahead.last(ahead.terminated),
            ahead.last(ahead.follows),
            lambda place: take(self.row, place * num_envs + env),
        )

    def everywhere(self, data: dict[str, PyTree], position: jax.Array) -> Lookup:
        """The lookup of all transitions, `[L, N]`; `place` is `[L, 1]`."""
        num_rows = len(data["episode"])
        row = jnp.arange(num_rows, dtype=jnp.int32)[:, None]
        follows = jnp.roll(data["episode"], -1, axis=0) == data["episode"]
        follows &= ~(data["terminated"] | data["truncated"])
        follows &= row != wrapped(position - 1, num_rows)
        return self._lookup(
            row,
            position,
            num_rows,
            data["terminated"],
            follows,
            lambda place: self.row[place[:, 0]],
        )

    def take(self, obs: PyTree, indices: jax.Array, found: Lookup) -> PyTree:
        """Successors `[B, *obs_shape]` of transitions `[B]`, where their lookup found them; `obs`
        is the buffer's, `[L, N, *obs_shape]`. For a lost one it is another observation."""
        num_rows, num_envs = jax.tree.leaves(obs)[0].shape[:2]
        row, env = row_and_env(indices, num_envs)
        after = take(obs, wrapped(row + 1, num_rows) * num_envs + env)
        apart = take(self.obs, found.place * num_envs + env)
        return jax.tree.map(lambda x, y: _where(found.stored, x, y), apart, after)

    def all_of(self, obs: PyTree, found: Lookup) -> PyTree:
        """Successors `[L, N, *obs_shape]` of all transitions, by `everywhere`."""

        def pick(apart: jax.Array, obs: jax.Array) -> jax.Array:
            return _where(found.stored, apart[found.place[:, 0]], jnp.roll(obs, -1, axis=0))

        return jax.tree.map(pick, self.obs, obs)

    def _lookup(
        self,
        row: jax.Array,
        position: jax.Array,
        num_rows: int,
        terminated: jax.Array,
        follows: jax.Array,
        rows_at: Callable[[jax.Array], jax.Array],
    ) -> Lookup:
        """The lookup of transitions in some rows."""
        count = len(self.row) - 1
        age = wrapped(position - 1 - row, num_rows)
        newest = age == 0
        place = quotient(wrapped(self.clock - 1 - age, count * self.block), self.block)
        place = jnp.where(newest, count, place)
        stored = (~follows & ~terminated) | newest
        return Lookup(stored, place, stored & (rows_at(place) != row), follows)


def num_blocks(num_rows: int, limit: int | None, *, whole: bool) -> int | None:
    """K, the blocks that L rows of time are part of; None if storing all successors takes no more.

    Args:
        num_rows: L, of a rollout or a ring.
        limit: time limit of the environment, in steps; None if it is unknown.
        whole: whether a block always begins at the first row, as in a rollout; at any row of a ring
            the oldest block may be a part of one.
    """
    if limit is None:
        return None
    limit = min(limit, num_rows)
    count = -(-num_rows // limit) if whole else 1 - (1 - num_rows) // limit
    return count if count + 1 < num_rows else None


def last_cuts(cut: jax.Array, block: int) -> jax.Array:
    """`[K, N]` int32, the last row of each block where `cut`, `[T, N]` bool; T if there is none."""
    num_steps, num_envs = cut.shape
    rows = jnp.where(cut, jnp.arange(num_steps, dtype=jnp.int32)[:, None], -1)
    rows = jnp.pad(rows, ((0, -num_steps % block), (0, 0)), constant_values=-1)
    last = jnp.max(rows.reshape(-1, block, num_envs), axis=1)
    return jnp.where(last < 0, num_steps, last)


def _continues(data: Mapping[str, jax.Array]) -> jax.Array:
    """`[N]`, `Successors.episode` after rows `[T, N]`."""
    cut = jnp.where(data["truncated"][-1], _TRUNCATED, data["episode"][-1])
    return jnp.where(data["terminated"][-1], _TERMINATED, cut)


def _where(condition: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    shape = condition.shape + (1,) * (x.ndim - condition.ndim)
    return jnp.where(condition.reshape(shape), x, y)
