"""A sum tree: draws an index in proportion to its weight, in O(log n).

A tree is a tuple of arrays. The first holds the weights; each entry of a level is the sum of
`FANOUT` neighbours in the level below, up to a level of one block. A sum is always added up anew
from its children and never corrected by a difference, so that nothing drifts, however often the
weights change, and no sum of weights can turn negative.
"""

import jax
import jax.numpy as jnp

FANOUT = 16  # children of a node lie side by side: one gather reads them all

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
        tree: as it is.
        index: `[B]` int32; where one comes twice, either of its weights may stay. What is to be
            dropped has one far beyond the last leaf, such as 2**30.
        weight: `[B]`, none negative.
    """
    return refresh((tree[0].at[index].set(weight, mode="drop"), *tree[1:]), index)


def write_range(tree: Tree, index: jax.Array, to: jax.Array, weight: jax.Array) -> Tree:
    """Gives one weight to neighbouring leaves, for the price of the blocks that they fill.

    Args:
        tree: as it is.
        index: `[B]` int32, one after the other; they may go round once, from the last leaf that is
            in use to the first.
        to: `[B]`, the same, or beyond the last leaf where nothing is to be written.
        weight: `[]`.
    """
    leaves = tree[0].at[to].set(weight, mode="drop", unique_indices=True)
    # A leaf of every block that has changed: each FANOUT-th, the last, and both sides of the seam.
    ends = jnp.stack([index[-1], jnp.max(index), jnp.min(index)])
    return refresh((leaves, *tree[1:]), jnp.append(index[::FANOUT], ends))


def refresh(tree: Tree, index: jax.Array) -> Tree:
    """Adds up the sums above some leaves anew: one leaf of each block that has changed will do."""
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
    """Draws leaves with replacement, each in proportion to its weight.

    A number is drawn for every level: a float32 has too few bits to tell a million leaves apart by
    one. A leaf of weight 0 is never drawn while there is any other.

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
        # Added one by one they never fall, and stand still at a child of weight 0; and u < 1 keeps
        # the mark below the last.
        mark = u * sums[-1]
        child = sum(((x <= mark).astype(jnp.int32) for x in sums[:-1]), jnp.int32(0))
        # Without the barrier XLA:CPU works out the whole descent again for whatever reads it.
        node = jax.lax.optimization_barrier(node * FANOUT + child)
    return node


def uniform(key: jax.Array, batch_size: int, num_leaves: jax.Array) -> jax.Array:
    """Draws leaves with replacement, all of them alike: no tree is needed.

    What `jax.random.randint` computes, 64 bits modulo the span, in one draw in place of three: in a
    loop a draw costs as much for two numbers as for a thousand.

    Returns:
        `[B]` int32.
    """
    span = num_leaves.astype(jnp.uint32)
    high, low = jax.random.bits(key, (2, batch_size), jnp.uint32)
    half = jnp.uint32(1 << 16) % span
    return ((high % span * (half * half % span) + low % span) % span).astype(jnp.int32)


def _children(level: jax.Array, parent: jax.Array) -> jax.Array:
    """`[B, FANOUT]`, the entries below the parents `[B]`."""
    return level.reshape(-1, FANOUT).at[parent].get(mode="clip")
