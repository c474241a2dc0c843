"""Returns and advantages along paths, by one reverse `lax.scan`.

All arrays are time-major, `[T, N, ...]` or `[T]`. A path ends where `terminated | truncated`, and
at the last row of the data. Only `terminated` zeroes the bootstrap value: a truncated or unfinished
path bootstraps from `next_value`, the value of its true successor.
"""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from purerl.records.errors import ConfigError, shown
from purerl.records.fields import check_count
from purerl.records.types import PyTree

Arrays: TypeAlias = tuple[jax.Array, ...]


def gae(
    reward: jax.Array,
    value: jax.Array,
    next_value: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    gamma: jax.Array | float,
    lam: jax.Array | float,
) -> jax.Array:
    """Generalized advantage estimates (Schulman et al. 2016, arXiv:1506.02438, eq. 16).

    A_t = delta_t + gamma lam A_{t+1} within a path, with
    delta_t = r_t + gamma V(s_{t+1}) - V(s_t), and V = 0 after a termination.

    Args:
        reward, value: `[T, ...]`, r_t and V(s_t).
        next_value: `[T, ...]`, V of the true successor of s_t, also where the path is cut.
        terminated, truncated: `[T, ...]` bool.
        gamma, lam: discount and trace decay, each in [0, 1].

    Returns:
        `[T, ...]` advantages.
    """
    _check_paths("gae", reward, (value, next_value), (terminated, truncated), gamma, lam)
    delta = td_error(reward, value, next_value, terminated, gamma)
    decay = jnp.where(terminated | truncated, 0.0, gamma * lam)

    def step(advantage: jax.Array, inputs: Arrays) -> tuple[jax.Array, jax.Array]:
        delta, decay = inputs
        advantage = delta + decay * advantage
        return advantage, advantage

    return jax.lax.scan(step, jnp.zeros_like(delta[0]), (delta, decay), reverse=True)[1]


def _check_paths(
    name: str, reward: PyTree, values: Arrays, ends: Arrays, gamma: object, lam: object = 1.0
) -> None:
    """Raises ConfigError unless all are arrays `[T, ...]` of one shape, the ends boolean, and gamma
    and lambda numbers."""
    for word, x in (("gamma", gamma), ("lam", lam)):
        if not isinstance(x, (int, float, np.ndarray, np.number, jax.Array)):
            raise ConfigError(f"{name}: {word} is {shown(x)}, expected a number in [0, 1]")
    words = ("value", "next_value")[-len(values) :]
    arrays = {"reward": reward, **dict(zip(words, values, strict=True))}
    arrays |= dict(zip(("terminated", "truncated"), ends, strict=True))
    shape = jnp.shape(reward) if hasattr(reward, "dtype") else ()
    for word, x in arrays.items():
        if not hasattr(x, "dtype"):
            raise ConfigError(f"{name}: {word} is a {type(x).__name__}, expected an array [T, ...]")
        expected = shape if shape and shape[0] else "[T, ...], T >= 1"
        if x.shape != expected:
            raise ConfigError(f"{name}: {word} has shape {x.shape}, expected {expected}")
    for word in ("terminated", "truncated"):
        dtype = arrays[word].dtype
        if not any(jnp.issubdtype(dtype, kind) for kind in (np.bool_, np.integer)):
            raise ConfigError(f"{name}: {word} has dtype {dtype}, expected bool")


def td_error(
    reward: jax.Array,
    value: jax.Array,
    next_value: jax.Array,
    terminated: jax.Array,
    gamma: jax.Array | float,
) -> jax.Array:
    """One-step TD errors r_t + gamma V(s_{t+1}) - V(s_t), with V = 0 after a termination."""
    return reward + gamma * jnp.where(terminated, 0.0, next_value) - value


def reward_to_go(
    reward: jax.Array,
    next_value: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    gamma: jax.Array | float,
) -> jax.Array:
    """Discounted sum of the rewards from each step to its path's end, G_t = r_t + gamma G_{t+1}.

    The bootstrap value at the end is `next_value` if the path was cut, 0 if it terminated.

    Args:
        reward, next_value, terminated, truncated: `[T, ...]`, as in `gae`.
        gamma: discount.

    Returns:
        `[T, ...]`.
    """
    _check_paths("reward_to_go", reward, (next_value,), (terminated, truncated), gamma)
    beyond = jnp.where(terminated, 0.0, next_value)

    def step(to_go: jax.Array, inputs: Arrays) -> tuple[jax.Array, jax.Array]:
        reward, beyond, done = inputs
        to_go = reward + gamma * jnp.where(done, beyond, to_go)
        return to_go, to_go

    inputs = (reward, beyond, terminated | truncated)
    return jax.lax.scan(step, next_value[-1], inputs, reverse=True)[1]


def lambda_return(
    reward: jax.Array,
    next_value: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    gamma: jax.Array | float,
    lam: jax.Array | float,
) -> jax.Array:
    """Lambda returns, G_t = r_t + gamma ((1 - lam) V(s_{t+1}) + lam G_{t+1}) within a path.

    (Sutton and Barto 2018, eq. 12.2.) With lam = 0 they are one-step targets, with lam = 1
    `reward_to_go`. If V is that of the acting policy, they estimate Q(s_t, a_t); minus V(s_t) they
    are `gae`.

    Args:
        reward, next_value, terminated, truncated: `[T, ...]`, as in `gae`.
        gamma, lam: discount and trace decay, each in [0, 1].

    Returns:
        `[T, ...]`.
    """
    _check_paths("lambda_return", reward, (next_value,), (terminated, truncated), gamma, lam)
    beyond = jnp.where(terminated, 0.0, next_value)

    def step(later: jax.Array, inputs: Arrays) -> tuple[jax.Array, jax.Array]:
        reward, beyond, done = inputs
        mixed = (1.0 - lam) * beyond + lam * jnp.where(done, beyond, later)
        returns = reward + gamma * mixed
        return returns, returns

    inputs = (reward, beyond, terminated | truncated)
    return jax.lax.scan(step, next_value[-1], inputs, reverse=True)[1]


def n_step_return(
    reward: jax.Array,
    next_value: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    gamma: jax.Array | float,
    n: int,
) -> jax.Array:
    """n-step returns, the sum of n discounted rewards and a discounted bootstrap value.

    G_t = r_t + gamma r_{t+1} + ... + gamma^m V(s_{t+m}), where m is n, or less if the path or the
    data ends before (Sutton and Barto 2018, eq. 7.1).

    Args:
        reward, next_value, terminated, truncated: `[T, ...]`, as in `gae`.
        gamma: discount.
        n: the number of rewards, at least 1.

    Returns:
        `[T, ...]`.

    Raises:
        ConfigError: n is no integer >= 1.
    """
    n = check_count("n_step_return: n", n)
    _check_paths("n_step_return", reward, (next_value,), (terminated, truncated), gamma)
    beyond = jnp.where(terminated, 0.0, next_value)

    def step(shorter: jax.Array, inputs: Arrays) -> tuple[jax.Array, jax.Array]:
        # shorter[k] is the (k + 1)-step return of the next step.
        reward, beyond, done = (x[None] for x in inputs)
        tail = jnp.concatenate([beyond, shorter[:-1]])
        returns = reward + gamma * jnp.where(done, beyond, tail)
        return returns, returns[-1]

    # After the last row only V is known, for every number of steps left.
    start = jnp.broadcast_to(next_value[-1], (n, *next_value.shape[1:]))
    inputs = (reward, beyond, terminated | truncated)
    return jax.lax.scan(step, start, inputs, reverse=True)[1]


class Ahead(NamedTuple):
    """The paths that begin at sampled transitions of a ring buffer.

    Attributes:
        at: `[B, n + 1]`, indices of the next rows, beyond the path's end too.
        terminated, truncated: `[B, n]` bool, of the first n of them.
        follows: `[B, n]` bool, whether the next row continues the path.
        length: `[B]` int32, steps of the path, at most n.
    """

    at: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    follows: jax.Array
    length: jax.Array

    def last(self, x: jax.Array) -> jax.Array:
        """`[B]`, of the last step of each path, from `[B, n]` or `[B, n + 1]`."""
        if self.follows.shape[1] == 1:
            return x[:, 0]
        return jnp.take_along_axis(x, self.length[:, None] - 1, axis=1)[:, 0]


def look_ahead(data: dict[str, PyTree], position: jax.Array, indices: jax.Array, n: int) -> Ahead:
    """The paths of at most n steps from sampled transitions.

    Args:
        data: entries `[L, N]`: terminated, truncated, episode.
        position: `[]` int32, the row to write next; the one before it is the newest.
        indices: `[B]`, row * N + environment, of written transitions.
        n: the most steps of a path. It ends where an episode does, where the episode's number
            changes (after a reset or a dropped rollout), and at the newest row.
    """
    num_rows, num_envs = data["episode"].shape
    row, env = row_and_env(indices[:, None], num_envs)
    rows = wrapped(row + jnp.arange(n + 1, dtype=jnp.int32)[None], num_rows)
    at = rows * num_envs + env
    terminated, truncated = (take(data[name], at[:, :-1]) for name in ("terminated", "truncated"))
    episode = take(data["episode"], at)
    follows = ~(terminated | truncated) & (episode[:, 1:] == episode[:, :-1])
    follows &= rows[:, :-1] != wrapped(position - 1, num_rows)
    before = jnp.pad(follows[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    count = jnp.sum(jnp.cumprod(before, axis=1), axis=1, dtype=jnp.int32)
    return Ahead(at, terminated, truncated, follows, count)


def discounted(
    data: dict[str, PyTree], ahead: Ahead, gamma: jax.Array | float
) -> dict[str, jax.Array]:
    """n-step returns along paths.

    Args:
        data: the entry `reward`, `[L, N]`.
        ahead: from `look_ahead`.
        gamma: discount.

    Returns:
        `reward` `[B]`, the discounted sum; `terminated` and `truncated` of the last step;
        `discount` `[B]`, gamma to the number of steps, or 0 after a termination.
    """
    n = ahead.follows.shape[1]
    ends = {name: ahead.last(getattr(ahead, name)) for name in ("terminated", "truncated")}
    powers = jnp.asarray(gamma, jnp.float32) ** jnp.arange(n, dtype=jnp.float32)
    taken = jnp.arange(n, dtype=jnp.int32)[None] < ahead.length[:, None]
    rewards = take(data["reward"], ahead.at[:, :-1])
    reward = jnp.sum(taken.astype(jnp.float32) * powers[None] * rewards, axis=1)
    beyond = jnp.asarray(gamma, jnp.float32) ** ahead.length.astype(jnp.float32)
    discount = jnp.where(ends["terminated"], 0.0, beyond)
    return {**ends, "reward": reward, "discount": discount}


def row_and_env(indices: jax.Array, num_envs: int) -> tuple[jax.Array, jax.Array]:
    """Row and environment of flat indices, row * N + environment."""
    return quotient(indices, num_envs), jax.lax.rem(indices, jnp.asarray(num_envs, indices.dtype))


def quotient(number: jax.Array, divisor: int) -> jax.Array:
    """`//` of numbers from 0 on, without its operations for negative ones."""
    return jax.lax.div(number, jnp.asarray(divisor, number.dtype))


def wrapped(row: jax.Array, num_rows: int) -> jax.Array:
    """Rows of a ring, from rows counted on beyond its end, or before its start by at most L.

    `%` would say that too, in more operations: it takes the sign of the divisor.
    """
    return jax.lax.rem(row + num_rows, jnp.asarray(num_rows, row.dtype))


def take(entry: PyTree, indices: jax.Array) -> PyTree:
    """A pytree of `[L, N, ...]` at flat indices, row * N + environment."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]).at[indices].get(mode="clip"), entry)
