import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.oracles import assert_proportional, assert_sums
from kit.quick import quick_jit

from purerl.experience import sumtree

BEYOND = 2**30  # the index of what is to be dropped

write = quick_jit(sumtree.write)
sample = quick_jit(sumtree.sample, static_argnums=2)


def built(weight):
    """The tree of these weights, written at once."""
    tree = sumtree.init(len(weight))
    leaves = jnp.zeros(len(tree[0])).at[: len(weight)].set(weight)
    blocks = jnp.arange(0, len(weight), sumtree.FANOUT)
    return quick_jit(sumtree.refresh)((leaves, *tree[1:]), blocks)


@pytest.mark.parametrize("num_leaves", [1, 16, 17, 1_000_000])
def test_sums_follow_the_leaves(num_leaves):
    rng = np.random.default_rng(num_leaves)
    tree, leaves = sumtree.init(num_leaves), np.zeros(num_leaves)
    for _ in range(15):
        index = rng.choice([*rng.integers(0, num_leaves, 30), BEYOND], 64)  # many of them twice
        weight = rng.integers(0, 100, 64)  # whole, so that no sum is rounded
        tree = write(tree, jnp.asarray(index), jnp.asarray(weight, jnp.float32))
        for i in set(index) - {BEYOND}:
            assert float(tree[0][i]) in weight[index == i]
            leaves[i] = tree[0][i]
        np.testing.assert_array_equal(tree[0][:num_leaves], leaves)
        assert not tree[0][num_leaves:].any()
        assert_sums(tree, rtol=0)


@pytest.mark.parametrize("num_leaves", [1, 16, 17])
def test_few_leaves_are_drawn_in_proportion(num_leaves, key):
    weight = np.arange(num_leaves) % 5 + (num_leaves == 1)
    tree = built(jnp.asarray(weight, jnp.float32))
    assert_proportional(sample(tree, key, 20_000), weight)


@pytest.mark.parametrize("at", [0, 5, 16, 39])
def test_the_only_leaf_with_a_weight_is_always_drawn(at, key):
    tree = built(jnp.zeros(40).at[at].set(1e-30))  # however small
    assert (sample(tree, key, 1_000) == at).all()


@pytest.mark.parametrize("u", [0.0, 1.0 - 2.0**-24])
def test_the_ends_of_the_interval_draw_no_leaf_of_weight_zero(u, key, monkeypatch):
    # So rare that no sample would show it: the smallest and the largest float below 1.
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: jnp.full(shape, u, dtype))
    rng = np.random.default_rng(0)
    weights = np.exp(5.0 * rng.normal(size=(200, 40))) * (rng.random((200, 40)) < 0.3)
    weights = jnp.asarray(weights, jnp.float32).at[:, 17].set(1.0)

    def draw(weight):
        tree = sumtree.write(sumtree.init(40), jnp.arange(40), weight)
        return weight[sumtree.sample(tree, key, 1)]

    assert (quick_jit(jax.vmap(draw))(weights) > 0).all()


def test_a_million_leaves_are_drawn_in_proportion_at_every_level(key):
    rng = np.random.default_rng(0)
    weight = np.exp(3.0 * rng.normal(size=1_000_000)).astype(np.float32)
    weight[rng.random(len(weight)) < 0.3] = 0.0
    weight[-1] = weight[:-1].sum(dtype=np.float64)  # half of the mass on the last
    tree = built(jnp.asarray(weight))
    assert_sums(tree, rtol=1e-5)
    drawn = np.array(sample(tree, key, 100_000))
    while len(weight) > 1:
        assert_proportional(drawn, weight)
        drawn //= sumtree.FANOUT
        weight = np.pad(weight, (0, -len(weight) % sumtree.FANOUT))
        weight = weight.reshape(-1, sumtree.FANOUT).sum(axis=1, dtype=np.float64)


def test_nothing_drifts_over_millions_of_updates(key):
    # Weights of a million first, of one at last: were sums corrected by differences, what rounding
    # left behind of the large ones would be most of the mass.
    num_leaves, num_writes = 1_000, 20_000

    def step(tree, inputs):
        key, scale = inputs
        index_key, weight_key, zero_key = jax.random.split(key, 3)
        index = jax.random.randint(index_key, (256,), 0, num_leaves)
        weight = scale * jax.random.uniform(weight_key, (256,))
        weight = jnp.where(jax.random.bernoulli(zero_key, 0.2, (256,)), 0.0, weight)
        return sumtree.write(tree, index, weight), None

    @jax.jit
    def run(key):
        keys = jax.random.split(key, num_writes)
        scales = 10.0 ** jnp.linspace(6.0, 0.0, num_writes)
        return jax.lax.scan(step, sumtree.init(num_leaves), (keys, scales))[0]

    tree = run(key)
    weight = np.asarray(tree[0])[:num_leaves]
    assert 0.1 < (weight == 0).mean() < 0.3
    assert all((np.asarray(level) >= 0).all() for level in tree)
    assert_sums(tree, rtol=1e-5)
    assert_proportional(sample(tree, key, 100_000), weight)


def test_a_tree_under_vmap_is_the_tree_alone():
    rng = np.random.default_rng(0)
    index = jnp.asarray(rng.permutation(np.append(np.arange(50), [BEYOND] * 3)))
    weights = jnp.asarray(rng.integers(0, 9, (4, len(index))), jnp.float32)
    keys = jax.random.split(jax.random.key(1), 4)

    def program(weight, key):
        tree = sumtree.write(sumtree.init(50), index, weight)
        return tree, sumtree.sample(tree, key, 200)

    together = quick_jit(jax.vmap(program))(weights, keys)
    one = quick_jit(program)
    for member, alone in enumerate(map(one, weights, keys)):
        jax.tree.map(lambda x, y, m=member: np.testing.assert_array_equal(x[m], y), together, alone)
