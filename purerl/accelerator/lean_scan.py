"""A scan whose loop body has only the operations that depend on the carry."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from purerl.records.types import PyTree

# The body of a scan, `(carry, x) -> (carry, y)`.
Step: TypeAlias = Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]

# Bytes computed at once before and after the loop: more than this exceeds a core's cache.
MAX_BYTES = 1 << 20

# The number of a value, or a constant.
Operand: TypeAlias = int | Literal

# Primitives whose inner jaxpr is inlined.
CALLS = ("jit", "pjit", "closed_call")


def lean_scan(
    step: Step,
    start: PyTree,
    keys: PyTree,
    max_bytes: int = MAX_BYTES,
) -> tuple[PyTree, PyTree]:
    """`jax.lax.scan(step, start, keys)` with a smaller loop body.

    Operations that depend on the keys alone run before the loop: the noise of actions, the states
    that environments are reset to. Operations that the carry doesn't depend on run after it: values
    and log probabilities that are only recorded. Both are batched over many steps, since an
    operation on a few numbers costs as much as on thousands. The results are those of the scan, up
    to rounding.

    PPO is 1.16 times as fast with 4 environments and 1.05 with 64, for 4 to 13 % more compile time;
    with 2,048, and for DQN, it makes no difference (benchmarks/tricks.py, one core, JAX 0.11.2,
    November 2026). The plain path is `jax.lax.scan`. PPO written so that it draws ahead and records
    afterwards reaches 0.99 of the speed with 4 environments, 0.96 with 64, at the price of further
    methods in `Acting`, `VectorEnv` and every distribution (benchmarks/README.md).

    Args:
        step: `(carry, keys of a step) -> (carry, result)`.
        start: the initial carry.
        keys: leading axis `[T]`.
        max_bytes: the memory of a batch, which sets its number of steps.

    Returns:
        The last carry, and the results `[T, ...]`.
    """
    num_steps = jax.tree.leaves(keys)[0].shape[0]
    of_a_step = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), keys)
    program = _Program(step, start, of_a_step, num_steps, max_bytes)

    def block(carry: PyTree, keys: PyTree) -> tuple[PyTree, PyTree]:
        return jax.lax.scan(program.loop, carry, (keys, jax.vmap(program.before)(keys)))

    end, recorded = _in_blocks(
        block, start, keys, _block(num_steps, max_bytes, program.bytes_before)
    )
    return end, program.results(recorded)


def _block(num_steps: int, max_bytes: int, num_bytes: int) -> int:
    """The steps in a batch: the largest divisor of their number that fits the memory."""
    size = max(min(num_steps, max_bytes // max(num_bytes, 1)), 1)
    while num_steps % size:
        size -= 1
    return size


def _in_blocks(block: Step, carry: PyTree, xs: PyTree, size: int) -> tuple[PyTree, PyTree]:
    """Scans over blocks of `size` steps."""
    num_steps = jax.tree.leaves(xs)[0].shape[0]
    if size == num_steps:
        return block(carry, xs)
    blocks = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), xs)
    carry, results = jax.lax.scan(block, carry, blocks)
    return carry, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results)


class _Operation(NamedTuple):
    """An equation of a jaxpr, whose values are referred to by number."""

    equation: JaxprEqn
    inputs: list[Operand]
    outputs: list[int]

    @property
    def known(self) -> set[int]:
        return {x for x in self.inputs if not isinstance(x, Literal)}


class _Program:
    """A step, split into the operations before, in and after the loop.

    Attributes:
        bytes_before: the size of a step's inputs to the loop that are computed before it.
    """

    def __init__(
        self, step: Step, start: PyTree, keys: PyTree, num_steps: int, max_bytes: int
    ) -> None:
        closed, shape = jax.make_jaxpr(step, return_shape=True)(start, keys)
        self._carry_tree, self._result_tree = (jax.tree.structure(x) for x in shape)
        self._num_steps = num_steps
        self._shapes: list[Any] = []
        variables = [*closed.jaxpr.constvars, *closed.jaxpr.invars]
        inputs = [self._number(v.aval) for v in variables]
        num_constants, num_carried = len(closed.consts), len(jax.tree.leaves(start))
        self._constants = dict(zip(inputs, closed.consts, strict=False))
        self._carried = inputs[num_constants:][:num_carried]
        self._keys = inputs[num_constants + num_carried :]
        operations: list[_Operation] = []
        outputs = self._inline(closed.jaxpr, dict(zip(variables, inputs, strict=True)), operations)
        self._carry, self._results = outputs[:num_carried], outputs[num_carried:]

        rest, drawn = self._split_before(operations)
        self._split_after(rest, max_bytes)
        wanted = self._used(self._loop, [*self._carry, *self._recorded])
        self._handed = sorted((wanted & drawn) - set(self._keys))
        self.bytes_before = self._bytes(self._handed)

    def _split_before(self, operations: list[_Operation]) -> tuple[list[_Operation], set[int]]:
        """Splits off the operations on keys alone; returns the others, and the split-off values."""
        fixed, drawn = set(self._constants), set(self._keys)
        self._before: list[_Operation] = []
        self._fixed: list[_Operation] = []  # constants such as ranges, computed in every part
        rest = []
        for operation in operations:
            if operation.equation.effects or not operation.known <= drawn | fixed:
                rest.append(operation)
            elif operation.known & drawn:
                self._before.append(operation)
                drawn.update(operation.outputs)
            else:
                self._fixed.append(operation)
                fixed.update(operation.outputs)
        self._everywhere = fixed
        return rest, drawn

    def _split_after(self, rest: list[_Operation], max_bytes: int) -> None:
        """Splits off the operations that the carry doesn't depend on.

        The loop records their inputs. If these are larger than the results, or if a single step is
        a whole batch, every operation stays in the loop.
        """
        waited = {x for x in self._carry if not isinstance(x, Literal)}
        self._loop: list[_Operation] = []
        self._after: list[_Operation] = []
        for operation in reversed(rest):
            if operation.equation.effects or waited & set(operation.outputs):
                waited |= operation.known
                self._loop.insert(0, operation)
            else:
                self._after.insert(0, operation)
        later = {x for operation in self._after for x in operation.outputs}
        results = self._used([], self._results)
        self._deferred = sorted(results & later)
        direct = results - later - self._everywhere
        recorded = direct | (self._used(self._after, []) - later - self._everywhere)
        self._bytes_after = self._bytes(later)
        too_much = self._bytes(recorded - direct) > self._bytes(results)
        if too_much or _block(self._num_steps, max_bytes, self._bytes_after) == 1:
            self._loop, self._after, self._deferred = rest, [], []
            recorded = results - self._everywhere
        self._recorded = sorted(recorded)
        self._max_bytes = max_bytes

    def before(self, keys: PyTree) -> list[jax.Array]:
        """The values for the loop that depend on the keys of a step alone."""
        values = self._evaluate(self._before, _named(self._keys, keys))
        return [values[x] for x in self._handed]

    def loop(self, carry: PyTree, inputs: tuple[PyTree, list[jax.Array]]) -> tuple[PyTree, PyTree]:
        """The loop's body: from carry, keys and their values of `before` to carry and records."""
        keys, handed = inputs
        values = _named(self._carried, carry) | _named(self._keys, keys)
        values = self._evaluate(self._loop, values | _named(self._handed, handed))
        carry = jax.tree.unflatten(self._carry_tree, self._read(values, self._carry))
        return carry, [values[x] for x in self._recorded]

    def results(self, recorded: list[jax.Array]) -> PyTree:
        """The results of all steps, from the loop's records `[T, ...]`."""
        values = _named(self._recorded, recorded)

        def one(recorded: list[jax.Array]) -> list[jax.Array]:
            values = self._evaluate(self._after, _named(self._recorded, recorded))
            return [values[x] for x in self._deferred]

        if self._deferred:
            size = _block(self._num_steps, self._max_bytes, self._bytes_after)
            _, later = _in_blocks(
                lambda _, recorded: (None, jax.vmap(one)(recorded)), None, recorded, size
            )
            values |= _named(self._deferred, later)
        fixed = self._evaluate([], {})

        def all_steps(x: Operand) -> jax.Array:
            if isinstance(x, int) and x in values:
                return values[x]
            value = jnp.asarray(self._read(fixed, [x])[0])
            return jnp.broadcast_to(value, (self._num_steps, *value.shape))

        return jax.tree.unflatten(self._result_tree, [all_steps(x) for x in self._results])

    def _number(self, shape: object) -> int:
        self._shapes.append(shape)
        return len(self._shapes) - 1

    def _bytes(self, numbers: Iterable[int]) -> int:
        return sum(self._shapes[x].size * self._shapes[x].dtype.itemsize for x in numbers)

    def _used(self, operations: list[_Operation], results: Sequence[Operand]) -> set[int]:
        used = {x for x in results if not isinstance(x, Literal)}
        return used.union(*(operation.known for operation in operations))

    def _read(self, values: dict[int, jax.Array], numbers: Sequence[Operand]) -> list[jax.Array]:
        return [x.val if isinstance(x, Literal) else values[x] for x in numbers]

    def _inline(
        self, jaxpr: Jaxpr, names: dict[Var, Operand], operations: list[_Operation]
    ) -> list[Operand]:
        """Collects the operations of a jaxpr and its inner calls; returns its results' numbers."""

        def numbers(variables: Iterable[Var | Literal]) -> list[Operand]:
            return [x if isinstance(x, Literal) else names[x] for x in variables]

        for equation in jaxpr.eqns:
            inputs = numbers(equation.invars)
            inner = equation.params.get("jaxpr")
            if equation.primitive.name in CALLS and inner is not None and not inner.consts:
                called = dict(zip(inner.jaxpr.invars, inputs, strict=True))
                outputs = self._inline(inner.jaxpr, called, operations)
            else:
                new = [self._number(x.aval) for x in equation.outvars]
                operations.append(_Operation(equation, inputs, new))
                outputs = list(new)
            names.update(zip(equation.outvars, outputs, strict=True))
        return numbers(jaxpr.outvars)

    def _evaluate(
        self, operations: list[_Operation], values: dict[int, jax.Array]
    ) -> dict[int, jax.Array]:
        values = self._constants | values
        for equation, inputs, outputs in [*self._fixed, *operations]:
            primitive = equation.primitive
            params = primitive.get_bind_params(equation.params)
            with equation.ctx.manager:  # the settings under which it was traced
                result = primitive.bind(*self._read(values, inputs), **params)
            result = result if primitive.multiple_results else [result]
            values.update(zip(outputs, result, strict=True))
        return values


def _named(numbers: list[int], values: PyTree) -> dict[int, jax.Array]:
    return dict(zip(numbers, jax.tree.leaves(values), strict=True))
