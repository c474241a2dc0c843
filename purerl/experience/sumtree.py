"""A sum tree: samples indices in proportion to weights, in O(log n).

A tree is a tuple of arrays. The first has the weights; each entry of a level is the sum of `FANOUT`
neighbours in the level below, up to a level of one block. Sums are always recomputed from their
children and never corrected by a difference, so that rounding errors don't accumulate, and no sum
can become negative.
"""

import jax
import jax.numpy as jnp

FANOUT = 16  # a node's children are contiguous: one gather reads them all

Tree = tuple[jax.Array, ...]


def init(num_leaves: int) -> Tree:
    """A tree of zeros."""
    levels = []
    while True:
        blocks = -(-num_leaves // FANOUT)
        levels.append(jnp.zeros(blocks * FANOUT, jnp.float32))
        if blocks == 1:
            return tuple(levels)
        num_leaves = blocks


def write(tree: Tree, index: jax.Array, weight: jax.Array) -> Tree:
    """Sets the weights of some leaves.

    Args:
        tree: before the write.
        index: `[B]` int32; for a repeated index, any of its weights may win. A write is dropped if
            its index is far beyond the last leaf, such as 2**30.
        weight: `[B]`, not negative.
    """
    return refresh((tree[0].at[index].set(weight, mode="drop"), *tree[1:]), index)


def write_range(tree: Tree, index: jax.Array, to: jax.Array, weight: jax.Array) -> Tree:
    """Sets consecutive leaves to one weight, at the cost of one update for each of their blocks.

    Args:
        tree: before the write.
        index: `[B]` int32, consecutive; may wrap around once, from the last leaf in use to the
            first.
        to: `[B]`, the same indices, or ones beyond the last leaf for dropped writes.
        weight: `[]`, of every leaf.
    """
    leaves = tree[0].at[to].set(weight, mode="drop", unique_indices=True)
    # A leaf of each changed block: every FANOUT-th, the last, and both sides of the wrap-around.
    ends = jnp.stack([index[-1], jnp.max(index), jnp.min(index)])
    return refresh((leaves, *tree[1:]), jnp.append(index[::FANOUT], ends))


def refresh(tree: Tree, index: jax.Array) -> Tree:
    """Recomputes the sums above some leaves, at least one of each changed block."""
    levels = [tree[0]]
    for level in tree[1:]:
        index = index // FANOUT
        total = jnp.sum(_children(levels[-1], index), axis=-1)
        levels.append(level.at[index].set(total, mode="drop"))
    return tuple(levels)


def total(tree: Tree) -> jax.Array:
    """`[]`, the sum of all weights."""
    return jnp.sum(tree[-1])


def sample(tree: Tree, key: jax.Array, batch_size: int) -> jax.Array:
    """Samples leaves with replacement, in proportion to their weights.

    Each level takes a random number: one float32 has too few bits for a million leaves. A leaf of
    weight 0 is never drawn unless all are 0.

    Returns:
        `[B]` int32.
    """
    node = jnp.zeros(batch_size, jnp.int32)
    uniform = jax.random.uniform(key, (len(tree), batch_size), jnp.float32)
    for level, u in zip(reversed(tree), uniform, strict=True):
        weight = _children(level, node)
        sums = [weight[:, 0]]
        for k in range(1, FANOUT):
            sums.append(sums[-1] + weight[:, k])
        # Added one by one the sums never decrease, and are constant at a child of weight 0; u < 1
        # keeps the mark below the last.
        mark = u * sums[-1]
        child = sum(((x <= mark).astype(jnp.int32) for x in sums[:-1]), jnp.int32(0))
        # Without the barrier XLA:CPU repeats the whole descent for each use of the result: training
        # DQN and DDPG takes 1.5 to 1.6 times as long (benchmarks/tricks.py, JAX 0.11.2, November
        # 2026).
        node = jax.lax.optimization_barrier(node * FANOUT + child)
    return node


def uniform(key: jax.Array, batch_size: int, num_leaves: jax.Array) -> jax.Array:
    """Samples leaves uniformly with replacement, without a tree.

    The method of `jax.random.randint` with one call of the generator instead of three: in a loop a
    call costs as much for two numbers as for a thousand. Up to 65,536 leaves it is 64 bits modulo
    their number n; beyond, 32 bits, by which a leaf may be drawn n / 2^32 more often than another:
    2e-4 at a million.

    Returns:
        `[B]` int32.
    """
    span = num_leaves.astype(jnp.uint32)
    high, low = jax.random.bits(key, (2, batch_size), jnp.uint32)
    half = jnp.uint32(1 << 16) % span
    index: jax.Array = (high % span * (half * half % span) + low % span) % span
    return index.astype(jnp.int32)


def _children(level: jax.Array, parent: jax.Array) -> jax.Array:
    """`[B, FANOUT]`, the entries below the parents `[B]`."""
    return level.reshape(-1, FANOUT).at[parent].get(mode="clip")
