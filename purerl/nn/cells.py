"""Recurrent layers: GRU, LSTM and minGRU, for single steps and whole rollouts.

Each maps inputs `[B, m]` and a memory `[B, ...]` to outputs `[B, width]` and the memory after the
step. With `fresh`, `[T, N]` bool, it maps the inputs `[T N, m]` of T steps and the memory
`[N, ...]` before them to outputs `[T N, width]` and the memories `[T, N, ...]` after each step; the
memory is 0 where an episode begins.

The products with the inputs are computed for all steps at once, and those with the memory are one
product a step.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from purerl.records.types import PyTree

Step = Callable[[PyTree, jax.Array], PyTree]


class Cell(nn.Module):
    """Base of the layers.

    Attributes:
        width: of the outputs.
    """

    width: int

    def initial(self, batch: int) -> PyTree:
        """The memory at the start of an episode, zeros `[batch, ...]`."""
        return jnp.zeros((batch, self.width), jnp.float32)

    def __call__(
        self, x: jax.Array, memory: PyTree, fresh: jax.Array | None = None
    ) -> tuple[jax.Array, PyTree]:
        """Outputs and memory; see the module."""
        raise NotImplementedError

    def _recurrent(self, gates: int) -> jax.Array:
        """The weights of the memory, an orthogonal matrix for each gate."""

        def init(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            one = nn.initializers.orthogonal()
            keys = jax.random.split(key, gates)
            return jnp.concatenate([one(k, (shape[0], self.width)) for k in keys], axis=1)

        return self.param("recurrent", init, (self.width, gates * self.width))


def _scan(step: Step, inputs: jax.Array, memory: PyTree, fresh: jax.Array | None) -> PyTree:
    """The memory after one step, or after each of T."""
    if fresh is None:
        return step(memory, inputs)

    def body(memory: PyTree, row: tuple[jax.Array, jax.Array]) -> tuple[PyTree, PyTree]:
        fresh, inputs = row
        memory = jax.tree.map(lambda x: jnp.where(fresh[:, None], 0.0, x), memory)
        memory = step(memory, inputs)
        return memory, memory

    rows = (fresh, inputs.reshape(*fresh.shape, -1))
    return jax.lax.scan(body, memory, rows)[1]


LONGEST = 5.0  # the logit of 0.993, the share that a unit keeps of its memory in a step


def time_constants(*gates: int) -> Callable[[jax.Array, tuple[int, ...], DTypeLike], jax.Array]:
    """An initializer of biases: of each gate in turn the share of the memory that is kept (1), that
    is replaced (-1), or neither (0).

    They are spread from 0 to 5, so that the units' time constants range from 1 to 150 steps, evenly
    on a logarithmic scale (in the spirit of Tallec and Ollivier 2018, arXiv:1804.11188). With all
    at 0 little of an input is left after some 50 steps, and of the gradient to it: MemoryChain over
    100 steps, with its preset, PPO then learned with none of four seeds, whichever the cell, and
    with the spread with all of them (a minGRU halfway; JAX 0.11.2, November 2026).
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        kept = jnp.linspace(0.0, LONGEST, shape[0] // len(gates), dtype=dtype)
        return jnp.concatenate([gate * kept for gate in gates])

    return init


class GRU(Cell):
    """Gated recurrent unit (Cho et al. 2014, arXiv:1406.1078), with the reset gate after the
    product, as in cuDNN.

    The update gate begins with `time_constants`.
    """

    @nn.compact
    def __call__(
        self, x: jax.Array, memory: PyTree, fresh: jax.Array | None = None
    ) -> tuple[jax.Array, PyTree]:
        kernel = self._recurrent(3)
        bias = self.param("bias", nn.initializers.zeros, (self.width,))

        def step(h: jax.Array, inputs: jax.Array) -> jax.Array:
            product, width = h @ kernel, 2 * self.width
            r, z = jnp.split(nn.sigmoid(inputs[:, :width] + product[:, :width]), 2, axis=1)
            n = jnp.tanh(inputs[:, width:] + r * (product[:, width:] + bias[None]))
            return (1.0 - z) * n + z * h

        inputs = nn.Dense(3 * self.width, bias_init=time_constants(0, 1, 0))(x)
        after = _scan(step, inputs, memory, fresh)
        return after.reshape(-1, self.width), after


class LSTM(Cell):
    """Long short-term memory (Hochreiter and Schmidhuber 1997), with a forget gate (Gers et al.
    2000). The memory is a pair: cell and output.

    The input and the forget gate begin with `time_constants`.
    """

    def initial(self, batch: int) -> PyTree:
        zeros = jnp.zeros((batch, self.width), jnp.float32)
        return zeros, zeros

    @nn.compact
    def __call__(
        self, x: jax.Array, memory: PyTree, fresh: jax.Array | None = None
    ) -> tuple[jax.Array, PyTree]:
        kernel = self._recurrent(4)

        def step(memory: PyTree, inputs: jax.Array) -> PyTree:
            cell, h = memory
            sums = jnp.split(inputs + h @ kernel, 4, axis=1)
            i, f, o = (nn.sigmoid(s) for s in sums[:3])
            cell = f * cell + i * jnp.tanh(sums[3])
            return cell, o * jnp.tanh(cell)

        biases = time_constants(-1, 1, 0, 0)
        inputs = nn.Dense(4 * self.width, bias_init=biases, name="gates")(x)
        after = _scan(step, inputs, memory, fresh)
        return after[1].reshape(-1, self.width), after


class MinGRU(Cell):
    """minGRU (Feng et al. 2024, arXiv:2410.01201): the gate and the candidate depend on the input
    alone, h_t = (1 - z_t) h_{t-1} + z_t n_t, so that T steps are an associative scan.

    The gate begins with `time_constants`.
    """

    @nn.compact
    def __call__(
        self, x: jax.Array, memory: PyTree, fresh: jax.Array | None = None
    ) -> tuple[jax.Array, PyTree]:
        gates = nn.Dense(2 * self.width, bias_init=time_constants(-1, 0))(x)
        gate, n = jnp.split(gates, 2, axis=1)
        decay, new = nn.sigmoid(-gate), nn.sigmoid(gate) * n
        if fresh is None:
            after = decay * memory + new
            return after, after
        decay, new = (y.reshape(*fresh.shape, self.width) for y in (decay, new))
        decay = jnp.where(fresh[..., None], 0.0, decay)
        new = new.at[0].add(decay[0] * memory)

        def join(
            first: tuple[jax.Array, jax.Array], then: tuple[jax.Array, jax.Array]
        ) -> tuple[jax.Array, jax.Array]:
            return first[0] * then[0], then[0] * first[1] + then[1]

        _, after = jax.lax.associative_scan(join, (decay, new))
        return after.reshape(-1, self.width), after


CELLS: dict[str, type[Cell]] = {"gru": GRU, "lstm": LSTM, "min_gru": MinGRU}
