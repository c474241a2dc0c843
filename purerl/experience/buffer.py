"""The buffer: a time-major ring of transitions, for on-policy and off-policy agents.

A `Buffer` is a spec; its contents are a `BufferState`, a pytree that its methods take and return.
Entries are `[maxlen // N, N, ...]`: row t is one step of all N environments, so that a rollout is
pushed as one block and a path is in one column.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purerl.accelerator.devices import ALONE, Devices
from purerl.envs.base import where
from purerl.experience import returns, sumtree
from purerl.experience.successors import NOWHERE, Lookup, Successors, num_blocks
from purerl.experience.transition import Transition
from purerl.records.errors import ConfigError, suggest
from purerl.records.fields import Record, check_count, check_key, flag, integer, real
from purerl.records.types import PyTree

Batch = dict[str, PyTree]
Writable = jax.Array | None  # `[]` bool; None for True

DEFAULT_ALPHA, DEFAULT_BETA = 0.6, 0.4


class BufferState(NamedTuple):
    """Contents of a buffer.

    Attributes:
        data: entries by name, each `[L, N, ...]` with L = maxlen // N rows: obs, action, reward,
            terminated, truncated, episode, valid, and the agent's extras (value, log_prob, ...);
            with priority sampling also td_error, 0 before its first update; without `successors`
            also next_obs.
        position: `[]` int32, the row to write next.
        size: `[]` int32, the number of rows written.
        priorities: with priority sampling, the sum tree over `priority`; else `()`.
        max_priority: `[]` float32, the highest priority so far, given to new transitions.
        successors: `next_obs` where the next row doesn't hold it; `()` if the entry is stored.
    """

    data: dict[str, PyTree]
    position: jax.Array
    size: jax.Array
    priorities: sumtree.Tree
    max_priority: jax.Array
    successors: Successors | tuple[()] = ()


class Buffer(Record):
    """Spec of a buffer: storage, sampling and importance weights.

    With `writable` False an operation leaves the contents unchanged, without a branch, which would
    copy them.

    Attributes:
        maxlen: capacity, in transitions; None for the agent's default.
        priority_sampling: sample in proportion to (|td_error| + 1e-6) ** alpha instead of uniformly
            (Schaul et al. 2015, arXiv:1511.05952).
        gamma: discount of `reward_to_go`, `advantage` and n-step returns; None for the agent's.
        lam: lambda of GAE(lambda); None for the agent's, or 1 if it has none.
        alpha: exponent of priorities, 0 for uniform sampling; None for 0.6.
        beta: exponent of importance weights, 1 for a full correction; None for 0.4.
        anneal_beta: raise beta linearly to 1 over the run.
    """

    maxlen: int | None = integer(default=None, at_least=1, optional=True, counter=True, total=True)
    priority_sampling: bool = flag(default=False)
    gamma: Any = real(default=None, at_least=0.0, at_most=1.0, optional=True)
    lam: Any = real(default=None, at_least=0.0, at_most=1.0, optional=True)
    alpha: float | None = real(default=None, at_least=0.0, optional=True)
    beta: float | None = real(default=None, at_least=0.0, at_most=1.0, optional=True)
    anneal_beta: bool | None = flag(default=None, optional=True)

    def check(self) -> None:
        for name in ("alpha", "beta", "anneal_beta"):
            if getattr(self, name) is not None and not self.priority_sampling:
                raise ConfigError(f"Buffer.{name}: is for priority_sampling=True")

    def num_rows(self, num_envs: int) -> int:
        """L, the capacity in steps of all N environments.

        Raises:
            ConfigError: `maxlen` is not set, or N doesn't divide it.
        """
        num_envs = check_count("num_envs", num_envs)
        if self.maxlen is None or self.maxlen % num_envs:
            raise ConfigError(
                f"Buffer.maxlen: got {self.maxlen}, expected a multiple of num_envs={num_envs}"
            )
        return self.maxlen // num_envs

    def init(
        self,
        example: Transition,
        num_envs: int,
        *,
        limit: int | None = None,
        num_steps: int | None = None,
    ) -> BufferState:
        """An empty buffer.

        Args:
            example: one step of all N environments, `[N, ...]`, or its shapes.
            num_envs: N.
            limit: the environment's time limit. If it is known, true successors are stored only
                where paths are cut: about L / limit rows of them instead of L.
            num_steps: T, the steps of every push, if they are known to be the same.
        """
        rows = self.num_rows(num_envs)
        blocks = num_blocks(rows, limit, whole=num_steps == rows)
        successors: Successors | tuple[()] = ()
        entries = _entries(example)
        if blocks is not None:
            assert limit is not None
            successors = Successors.empty(example.obs, rows, blocks, limit)
            del entries["next_obs"]
        else:
            entries["next_obs"] = example.obs
        data = jax.tree.map(lambda x: jnp.zeros((rows, *x.shape), x.dtype), entries)
        if self.priority_sampling:
            data["td_error"] = jnp.zeros((rows, num_envs), jnp.float32)
        tree = sumtree.init(rows * num_envs) if self.priority_sampling else ()
        return BufferState(data, jnp.int32(0), jnp.int32(0), tree, jnp.float32(1.0), successors)

    def push(
        self, state: BufferState, transitions: Transition, writable: Writable = None
    ) -> BufferState:
        """Appends transitions `[T, N, ...]`; a full buffer overwrites the oldest rows."""
        num_rows, num_envs = state.data["reward"].shape
        num_steps = transitions.reward.shape[0]
        if num_steps > num_rows:
            raise ConfigError(f"Buffer.push: {num_steps} steps do not fit into {num_rows} rows")
        start = jnp.int32(0) if num_steps == num_rows else state.position
        rows = (start + jnp.arange(num_steps, dtype=jnp.int32)) % num_rows
        new = _entries(transitions)
        successors = _successors(state, new, start, writable)
        if self.priority_sampling:
            new["td_error"] = jnp.zeros_like(new["reward"])
        old = {name: state.data[name] for name in new}
        written = jax.tree.map(lambda ring, x: _write(ring, rows, x, writable), old, new)
        pushed = BufferState(
            {**state.data, **written},
            (start + num_steps) % num_rows,
            jnp.minimum(state.size + num_steps, num_rows),
            state.priorities,
            state.max_priority,
            successors,
        )
        if self.priority_sampling:
            index = rows[0] * num_envs + jnp.arange(num_steps * num_envs, dtype=jnp.int32)
            index = index % (num_rows * num_envs)
            to = _droppable(index, writable)
            tree = sumtree.write_range(state.priorities, index, to, state.max_priority)
            pushed = pushed._replace(priorities=tree)
        return _keep(writable, pushed, state, ("position", "size"))

    def read(self, state: BufferState) -> Batch:
        """All rows, `[L, N, ...]`: in order of time if one rollout fills the buffer; else row
        `position` is the oldest, and rows from `size` on are empty.

        `next_obs` are true successors; after a termination they have no meaning. A step whose
        successor is lost (see `EnvSpec.max_episode_steps`) isn't `valid`, and the path before it is
        `truncated` a step earlier.
        """
        data = dict(state.data)
        if isinstance(state.successors, Successors):
            found = state.successors.everywhere(data, state.position)
            data["next_obs"] = state.successors.all_of(data["obs"], found)
            last = found.follows & jnp.roll(found.lost, -1, axis=0)
            data |= {"truncated": data["truncated"] | last, "valid": data["valid"] & ~found.lost}
        if self.priority_sampling:
            shape = data["reward"].shape
            data["priority"] = state.priorities[0][: shape[0] * shape[1]].reshape(shape)
        return data

    def sample(
        self,
        state: BufferState,
        key: jax.Array | None = None,
        batch_size: int | None = None,
        *,
        keys: Sequence[str] | None = None,
        indices: jax.Array | None = None,
        n_step: int = 1,
        progress: jax.Array | float = 0.0,
        devices: Devices = ALONE,
    ) -> Batch:
        """A batch of transitions: sampled with replacement, or at given indices.

        Args:
            state: with at least one row.
            key, batch_size: to sample B transitions, uniformly or by priority.
            keys: names of the entries to return; None for all.
            indices: `[B]` int32, row * N + environment, instead of `key` and `batch_size`.
            n_step: `reward` becomes the discounted sum of at most n rewards, up to the end of the
                path or of the data; `next_obs`, `terminated` and `truncated` are those of its last
                step, and `discount`, the factor of the value of `next_obs`, is gamma to the number
                of steps, or 0 after a termination.
            progress: `[]`, the elapsed fraction of the run, for `anneal_beta`.
            devices: that share the batch, each with a separate buffer.

        Returns:
            The entries, `[B, ...]` each; `indices` `[B]`, `discount` `[B]`, and `weight` `[B]`:
            importance weights (1 / (size P(i))) ** beta, divided by the batch's largest; ones if
            sampling is uniform. The weight is 0 if `next_obs` is lost, as in `read`.

        Raises:
            ConfigError: an unknown entry; neither or both of indices and batch_size.
        """
        check_count("Buffer.sample: n_step", n_step)
        if key is not None:
            check_key(key)
        if batch_size is not None:
            check_count("Buffer.sample: batch_size", batch_size)
        if isinstance(keys, str):
            raise ConfigError(f"Buffer.sample: keys are {keys!r}, expected a sequence of names")
        known = [*state.data, *(["priority"] if self.priority_sampling else [])]
        known += [] if "next_obs" in known else ["next_obs"]
        keys = known if keys is None else keys
        for name in set(keys) - set(known):
            raise ConfigError(f"Buffer.sample: no entry {name!r}; {suggest(name, known)}")
        if (indices is None) == (key is None or batch_size is None):
            raise ConfigError("Buffer.sample: expected either key and batch_size, or indices")
        if indices is None:
            assert key is not None
            assert batch_size is not None
            indices = self._draw(state, key, batch_size)
        # The arrays that `update_priorities` writes are read before the other entries, or XLA:CPU
        # would copy them (JAX 0.11.2, November 2026).
        read = {"priority": self._priority(state, indices)}
        if self.priority_sampling and "td_error" in keys:
            read["td_error"] = returns.take(state.data["td_error"], indices)
        indices = indices + (0.0 * sum(read.values(), jnp.float32(0))).astype(jnp.int32)
        ahead, last, found = self._look_ahead(state, indices, n_step)
        batch = read | ahead
        weight = self._weight(state, read["priority"], progress, devices)
        if "next_obs" in keys:
            batch["next_obs"] = _next_obs(state, last, found)
            weight = weight if found is None else jnp.where(found.lost, 0.0, weight)
        for name in keys:
            if name not in batch:
                batch[name] = returns.take(state.data[name], indices)
        batch |= {"indices": indices, "weight": weight}
        wanted = {*keys, "indices", "discount", "weight"}
        return {name: x for name, x in batch.items() if name in wanted}

    def update_priorities(
        self,
        state: BufferState,
        indices: jax.Array,
        td_error: jax.Array,
        writable: Writable = None,
    ) -> BufferState:
        """Stores the TD errors `[B]` of the transitions at indices `[B]`, finite ones only; a no-op
        without priority sampling, and for an empty buffer."""
        if not self.priority_sampling:
            return state
        # A transition drawn twice, by an agent whose targets are random, has two errors: the first.
        td_error = td_error[jnp.argmax(indices[:, None] == indices[None], axis=1)]
        begun = state.size > 0
        writable = begun if writable is None else writable & begun
        alpha = DEFAULT_ALPHA if self.alpha is None else self.alpha
        priority = (jnp.abs(td_error) + 1e-6) ** alpha
        finite = jnp.isfinite(priority)
        to = jnp.where(finite, _droppable(indices, writable), NOWHERE)
        errors = state.data["td_error"]
        errors = errors.at[divmod(to, errors.shape[1])].set(td_error, mode="drop")
        noted = state._replace(
            data={**state.data, "td_error": errors},
            priorities=sumtree.write(state.priorities, to, priority),
            max_priority=jnp.max(priority, initial=state.max_priority, where=finite),
        )
        return _keep(writable, noted, state, ("max_priority",))

    def path_entries(self, state: BufferState, next_value: jax.Array) -> dict[str, jax.Array]:
        """Entries `[L, N]` computed from a critic's values, by name: `advantage` (GAE(lam)),
        `reward_to_go` and `td_error`. They aren't stored.

        Args:
            state: full, with its rows in order (position 0), as after the push of one rollout, and
                the critic's values as the entry `value`.
            next_value: `[L, N]`, V of each transition's true successor, unused after a termination.

        Raises:
            ConfigError: no entry `value`, or no `gamma`.
        """
        data = self.read(state)
        if "value" not in data:
            raise ConfigError("Buffer.path_entries: no entry 'value', which the agent records")
        if self.gamma is None:
            raise ConfigError("Buffer.gamma: missing, returns need a discount")
        rest = (data["terminated"], data["truncated"], self.gamma)
        value = data["value"]
        lam = 1.0 if self.lam is None else self.lam
        return {
            "advantage": returns.gae(data["reward"], value, next_value, *rest, lam),
            "reward_to_go": returns.reward_to_go(data["reward"], next_value, *rest),
            "td_error": returns.td_error(
                data["reward"], value, next_value, data["terminated"], self.gamma
            ),
        }

    def reset(self, state: BufferState, writable: Writable = None) -> BufferState:
        """An empty buffer; the data stay in memory, but can't be sampled."""
        empty = state._replace(
            position=jnp.int32(0),
            size=jnp.int32(0),
            priorities=jax.tree.map(jnp.zeros_like, state.priorities),
        )
        return _keep(writable, empty, state, ("position", "size", "priorities"))

    def _draw(self, state: BufferState, key: jax.Array, batch_size: int) -> jax.Array:
        if self.priority_sampling:
            return sumtree.sample(state.priorities, key, batch_size)
        return sumtree.uniform(key, batch_size, state.size * state.data["reward"].shape[1])

    def _priority(self, state: BufferState, indices: jax.Array) -> jax.Array:
        """`[B]`, proportional to the sampling probabilities; ones if sampling is uniform."""
        if not self.priority_sampling:
            return jnp.ones(indices.shape, jnp.float32)
        return jnp.maximum(state.priorities[0][indices], jnp.finfo(jnp.float32).tiny)

    def _weight(
        self, state: BufferState, priority: jax.Array, progress: jax.Array | float, devices: Devices
    ) -> jax.Array:
        if not self.priority_sampling:
            return priority
        if devices.count > 1:  # each probability depends on the sum in its buffer
            priority /= sumtree.total(state.priorities)
        beta: jax.Array | float = DEFAULT_BETA if self.beta is None else self.beta
        if self.anneal_beta is not False:
            beta = beta + (1.0 - beta) * progress
        # Relative to the batch's largest the size cancels, and with one buffer the sum too.
        weight: jax.Array = (devices.min(jnp.min(priority)) / priority) ** beta
        return weight

    def _look_ahead(
        self, state: BufferState, indices: jax.Array, n_step: int
    ) -> tuple[Batch, jax.Array, Lookup | None]:
        """Entries that depend on the next `n_step` steps, or fewer if the path ends; the last of
        these steps; and where its successor is, unless the buffer holds it as an entry."""
        if n_step > 1 and self.gamma is None:
            raise ConfigError("Buffer.gamma: missing, n-step returns need a discount")
        data, successors = state.data, state.successors
        if n_step == 1 and not isinstance(successors, Successors):
            return self._discount(returns.take(data["terminated"], indices)), indices, None
        ahead = returns.look_ahead(data, state.position, indices, n_step)
        found = None
        if isinstance(successors, Successors):
            found = successors.after(ahead, state.position, len(data["episode"]))
        if n_step == 1:
            return self._discount(ahead.terminated[:, 0]), indices, found
        if found is not None:
            earlier = found.lost & (ahead.length > 1)  # the path ends before the lost step
            ahead = ahead._replace(length=ahead.length - earlier.astype(jnp.int32))
            found = found._replace(stored=found.stored & ~earlier, lost=found.lost & ~earlier)
        return returns.discounted(data, ahead, self.gamma), ahead.last(ahead.at), found

    def _discount(self, terminated: jax.Array) -> Batch:
        return {} if self.gamma is None else {"discount": jnp.where(terminated, 0.0, self.gamma)}


def _entries(transitions: Transition) -> dict[str, PyTree]:
    entries: Mapping[str, PyTree] = transitions._asdict()
    extras = entries["extras"]
    return {**{name: x for name, x in entries.items() if name != "extras"}, **extras}


def _successors(
    state: BufferState, new: dict[str, PyTree], start: jax.Array, writable: Writable
) -> Successors | tuple[()]:
    """The stored successors after a push of entries `[T, N, ...]` to row `start`, and `next_obs`
    taken out of these; or unchanged, and `next_obs` as an entry."""
    old, given = state.successors, new.pop("next_obs")
    num_steps, num_rows = len(new["episode"]), len(state.data["episode"])
    if not isinstance(old, Successors):
        if isinstance(given, Successors):
            position = jnp.int32(0)  # after the last of T rows
            given = given.all_of(new["obs"], given.everywhere(new, position))
        new["next_obs"] = given
        return ()
    if not isinstance(given, Successors):
        given = Successors.of_all(given, new, old.block)
    if num_steps == num_rows and len(given.row) == len(old.row):
        return given if writable is None else where(writable, given, old)
    if (len(old.row) - 2) * old.block < num_rows - 1:
        raise ConfigError(
            f"Buffer.push: got {num_steps} steps, expected {num_rows}, as `init` was called with"
        )
    return old.append(given, new["episode"], start, num_rows, writable)


def _next_obs(state: BufferState, indices: jax.Array, found: Lookup | None) -> PyTree:
    if found is None:
        return returns.take(state.data["next_obs"], indices)
    assert isinstance(state.successors, Successors)
    return state.successors.take(state.data["obs"], indices, found)


def _droppable(index: jax.Array, writable: Writable) -> jax.Array:
    """The index, or one out of bounds unless `writable`, so that the write is dropped."""
    return index if writable is None else jnp.where(writable, index, NOWHERE)


def _keep(
    writable: Writable, new: BufferState, old: BufferState, names: tuple[str, ...]
) -> BufferState:
    """The new state, with some fields of the old one unless `writable`."""
    if writable is None:
        return new
    pairs = {name: (getattr(new, name), getattr(old, name)) for name in names}
    return new._replace(**{name: where(writable, *pair) for name, pair in pairs.items()})


def _write(ring: jax.Array, rows: jax.Array, x: jax.Array, writable: Writable) -> jax.Array:
    if x.shape == ring.shape:  # a rollout that fills the ring replaces it
        return x if writable is None else jnp.where(writable, x, ring)
    return ring.at[_droppable(rows, writable)].set(x, mode="drop", unique_indices=True)
