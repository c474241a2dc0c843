"""Drawing ahead: the same numbers, and only what follows from keys alone."""

import functools

import jax
import jax.numpy as jnp
import pytest
from kit.trees import assert_close

from purerl.accelerator.lean_scan import lean_scan

NUM_STEPS = 12


def step(carry, keys):
    """A step with draws, some of which nothing else goes into, others that need the carry."""
    position, key_of_its_own = carry
    first, second = keys
    kick = jax.nn.relu(jax.random.normal(first, (3,)))
    fresh = jax.jit(lambda key: jax.random.uniform(jax.random.split(key)[0], (3,)))(second)
    key_of_its_own, drawn = jax.random.split(key_of_its_own)
    position = jnp.where(position > 1.0, fresh, position + kick * jax.random.normal(drawn, (3,)))
    return (position, key_of_its_own), {
        "kick": kick,
        "sum": position.sum(),
        "one": 1.0,
        "key": first,
    }


# Fused otherwise, an operation on the same numbers may differ in its last digit.
assert_same = functools.partial(assert_close, rtol=1e-6, atol=1e-7)


def start(seed):
    return jnp.zeros(3), jax.random.key(100 + seed)


def keys(seed):
    return tuple(jax.random.split(key, NUM_STEPS) for key in jax.random.split(jax.random.key(seed)))


@pytest.mark.parametrize(
    "max_bytes", [1 << 20, 24 * 5, 1], ids=["all", "blocks of 4", "one by one"]
)
def test_it_is_a_scan(max_bytes):
    expected = jax.jit(lambda: jax.lax.scan(step, start(0), keys(0)))()
    assert_same(jax.jit(lambda: lean_scan(step, start(0), keys(0), max_bytes))(), expected)


def test_it_is_a_scan_under_vmap():
    seeds = jnp.arange(3)
    expected = jax.vmap(lambda seed: jax.lax.scan(step, start(seed), keys(seed)))(seeds)
    assert_same(jax.vmap(lambda seed: lean_scan(step, start(seed), keys(seed)))(seeds), expected)


def test_it_can_be_differentiated():
    def end(scan, scale):
        def scaled(carry, keys):
            return step((carry[0] * scale, carry[1]), keys)

        return scan(scaled, start(0), keys(0))[0][0].sum()

    slopes = [
        jax.grad(lambda x, scan=scan: end(scan, x))(0.9) for scan in (lean_scan, jax.lax.scan)
    ]
    assert float(slopes[0]) == pytest.approx(float(slopes[1]), rel=1e-5)
    assert slopes[0] != 0.0


def draws_in_a_step(scan):
    """How many draws of random bits the inside of the scan still has."""

    def count(jaxpr):
        inner = [x.params["jaxpr"].jaxpr for x in jaxpr.eqns if "jaxpr" in x.params]
        here = sum(x.primitive.name == "random_bits" for x in jaxpr.eqns)
        return here + sum(count(x) for x in inner)

    return count(body_of(lambda: scan(step, start(0), keys(0))).jaxpr)


def body_of(scanning):
    """The inside of the one loop that a function makes."""
    equations = jax.make_jaxpr(scanning)().jaxpr.eqns
    (body,) = [x.params["jaxpr"] for x in equations if x.primitive.name == "scan"]
    return body


def test_draws_leave_the_loop_where_nothing_but_keys_goes_into_them():
    # Of the three draws in a step, one has a key that the carry gives.
    assert draws_in_a_step(jax.lax.scan) == 3
    assert draws_in_a_step(lean_scan) == 1


def test_what_has_an_effect_stays_in_its_step():
    seen = []

    def telling(carry, keys):
        jax.debug.callback(
            lambda x: seen.append(float(x)), jax.random.uniform(keys[0]), ordered=True
        )
        return step(carry, keys)

    assert_same(
        jax.jit(lambda: lean_scan(telling, start(0), keys(0)))(),
        jax.jit(lambda: jax.lax.scan(step, start(0), keys(0)))(),
    )
    jax.effects_barrier()
    assert seen == [float(jax.random.uniform(key)) for key in keys(0)[0]]
    assert "debug_callback" in str(body_of(lambda: lean_scan(telling, start(0), keys(0))))


def test_functions_with_a_derivative_of_their_own_and_inner_loops():
    @jax.custom_vjp
    def double(x):
        return 2.0 * x

    double.defvjp(lambda x: (2.0 * x, None), lambda _, g: (2.0 * g,))

    def with_them(carry, keys):
        (position, key), result = step(carry, keys)
        position = double(position) / jax.checkpoint(lambda x: 2.0 + 0.0 * x)(position)
        position = jax.lax.fori_loop(0, 3, lambda i, x: x + 0.1 * i, position)
        position = jax.lax.cond(position[0] > 0.5, lambda x: x - 1.0, lambda x: x, position)
        with jax.default_matmul_precision("highest"):
            seen = jnp.ones((2, 3)) @ position
        return (position, key), (result, seen)

    found = jax.jit(lambda: lean_scan(with_them, start(0), keys(0)))()
    assert_same(found, jax.jit(lambda: jax.lax.scan(with_them, start(0), keys(0)))())


def test_what_is_only_noted_leaves_the_loop():
    kernel = jnp.ones((3, 7))

    def noting(carry, keys):
        carry, result = step(carry, keys)
        return carry, (result, jnp.tanh(carry[0] @ kernel).sum(-1))

    def tanhs(scan):
        return str(body_of(lambda: scan(noting, start(0), keys(0)))).count("tanh")

    assert tanhs(jax.lax.scan) == 1
    assert tanhs(lean_scan) == 0
    assert_same(
        jax.jit(lambda: lean_scan(noting, start(0), keys(0)))(),
        jax.jit(lambda: jax.lax.scan(noting, start(0), keys(0)))(),
    )


def test_constants_and_what_is_traced_around_it():
    @jax.jit
    def both(offset):
        table = jnp.arange(3.0)

        def with_table(carry, keys):
            (position, key), result = step(carry, keys)
            return (position + offset * table * jax.random.uniform(keys[1]), key), result

        return [scan(with_table, start(0), keys(0)) for scan in (lean_scan, jax.lax.scan)]

    assert_same(*both(0.5))
