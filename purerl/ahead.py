"""A scan that draws its random numbers for many steps at once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend.core import Literal

PyTree = Any

# Bytes that what is drawn ahead may take. More would leave a core's cache before it is used.
MAX_BYTES = 1 << 22

# Calls whose inside is looked into.
CALLS = ("jit", "pjit", "closed_call")


def scan_ahead(
    step: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    start: PyTree,
    keys: PyTree,
    max_bytes: int = MAX_BYTES,
) -> tuple[PyTree, PyTree]:
    """`jax.lax.scan(step, start, keys)` that computes ahead what follows from the keys alone.

    Random numbers don't depend on what was done before, and neither does what is made of them only:
    the noise of actions, the states that environments are reset to. To draw four numbers takes as
    many operations as to draw four thousand, so they are drawn for many steps at once. They are the
    same numbers.

    Args:
        step: `(carry, keys of a step) -> (carry, result)`.
        start: the carry at first.
        keys: leading axis `[T]`.
        max_bytes: how much memory what is drawn may take; it is drawn for as many steps.

    Returns:
        The last carry, and the results `[T, ...]`.
    """
    num_steps = jax.tree.leaves(keys)[0].shape[0]
    program = _Program(step, start, jax.tree.map(lambda x: x[0], keys))

    def block(carry: PyTree, keys: PyTree) -> tuple[PyTree, PyTree]:
        return jax.lax.scan(program.rest, carry, (keys, jax.vmap(program.ahead)(keys)))

    size = max(min(num_steps, max_bytes // max(program.num_bytes, 1)), 1)
    while num_steps % size:
        size -= 1
    if size == num_steps:
        return block(start, keys)
    blocks = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), keys)
    end, results = jax.lax.scan(block, start, blocks)
    return end, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results)


class _Operation(NamedTuple):
    """An equation of a jaxpr, on values that have numbers in place of names."""

    equation: Any
    inputs: list[Any]
    outputs: list[int]


class _Program:
    """A step, taken apart into what follows from its keys and the rest.

    Attributes:
        num_bytes: what the rest is handed by each step's share of what was computed ahead.
    """

    def __init__(self, step: Callable, start: PyTree, keys: PyTree) -> None:
        closed, shape = jax.make_jaxpr(step, return_shape=True)(start, keys)
        self._tree = jax.tree.structure(shape)
        self._shapes: list[Any] = []
        constants, inputs = (
            [self._number(v.aval) for v in variables]
            for variables in (closed.jaxpr.constvars, closed.jaxpr.invars)
        )
        num_carried = len(jax.tree.leaves(start))
        self._carried, self._keys = inputs[:num_carried], inputs[num_carried:]
        self._constants = dict(zip(constants, closed.consts, strict=True))
        names = dict(
            zip(
                [*closed.jaxpr.constvars, *closed.jaxpr.invars],
                [*constants, *inputs],
                strict=True,
            )
        )
        operations: list[_Operation] = []
        self._results = self._inline(closed.jaxpr, names, operations)

        fixed, drawn = set(self._constants), set(self._keys)
        self._ahead, self._rest = [], []
        for operation in operations:
            known = {x for x in operation.inputs if not isinstance(x, Literal)}
            if operation.equation.effects or not known <= drawn | fixed:
                self._rest.append(operation)
                continue
            self._ahead.append(operation)
            if known & drawn:
                drawn.update(operation.outputs)
            else:  # a constant, such as a range: at hand on both sides
                fixed.update(operation.outputs)
                self._rest.append(operation)
        used = [x for operation in self._rest for x in operation.inputs] + self._results
        handed = {x for x in used if not isinstance(x, Literal)} & drawn
        self._handed = sorted(handed - set(self._keys))
        self.num_bytes = sum(
            self._shapes[x].size * self._shapes[x].dtype.itemsize for x in self._handed
        )

    def ahead(self, keys: PyTree) -> list[jax.Array]:
        """What follows from the keys of a step and is used by the rest."""
        values = self._evaluate(self._ahead, _named(self._keys, keys))
        return [values[x] for x in self._handed]

    def rest(self, carry: PyTree, inputs: tuple[PyTree, list[jax.Array]]) -> tuple[PyTree, PyTree]:
        """The step, given its keys and what followed from them."""
        keys, handed = inputs
        given = _named(self._carried, carry) | _named(self._keys, keys)
        values = self._evaluate(self._rest, given | _named(self._handed, handed))
        results = [x.val if isinstance(x, Literal) else values[x] for x in self._results]
        carry, result = jax.tree.unflatten(self._tree, results)
        return carry, result

    def _number(self, shape: Any) -> int:
        self._shapes.append(shape)
        return len(self._shapes) - 1

    def _inline(self, jaxpr: Any, names: dict[Any, Any], operations: list[_Operation]) -> list[Any]:
        """Notes the operations of a jaxpr and of the calls in it; returns its results' numbers."""

        def numbers(variables: Any) -> list[Any]:
            return [x if isinstance(x, Literal) else names[x] for x in variables]

        for equation in jaxpr.eqns:
            inputs = numbers(equation.invars)
            inner = equation.params.get("jaxpr")
            if equation.primitive.name in CALLS and inner is not None and not inner.consts:
                called = dict(zip(inner.jaxpr.invars, inputs, strict=True))
                outputs = self._inline(inner.jaxpr, called, operations)
            else:
                outputs = [self._number(x.aval) for x in equation.outvars]
                operations.append(_Operation(equation, inputs, outputs))
            names.update(zip(equation.outvars, outputs, strict=True))
        return numbers(jaxpr.outvars)

    def _evaluate(self, operations: list[_Operation], values: dict[int, Any]) -> dict[int, Any]:
        values = self._constants | values
        for equation, inputs, outputs in operations:
            given = [x.val if isinstance(x, Literal) else values[x] for x in inputs]
            primitive = equation.primitive
            result = primitive.bind(*given, **primitive.get_bind_params(equation.params))
            result = result if primitive.multiple_results else [result]
            values.update(zip(outputs, result, strict=True))
        return values


def _named(numbers: list[int], values: PyTree) -> dict[int, Any]:
    return dict(zip(numbers, jax.tree.leaves(values), strict=True))
