"""Push, sample and set priorities: purerl's buffer next to flashbax's.

    pip install 'purerl[bench]'
    python benchmarks/buffer.py                              # the whole table, some 15 minutes
    python benchmarks/buffer.py --sizes 100_000 --members 1

As off-policy training uses a buffer: in every iteration 16 environments push a step each, 256
transitions are sampled and, with priorities, get new ones ("all"); and each of these operations
alone. 1,000 iterations are one jitted `lax.scan` into which the state is donated; the buffers are
full before. Both libraries in one process and interleaved, A B A B; medians, compile time apart.

flashbax's trajectory buffer with sequences of length 1 stores and samples just the same fields, one
copy of each; its flat buffer would store pairs of steps. purerl stores two more fields (`episode`,
`valid`), and `td_error` with priorities. flashbax returns probabilities, from which the importance
weights are computed here as purerl does. All samples are summed, so that XLA can't leave any out.
"""

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

import purerl

try:
    import flashbax
except ImportError:
    sys.exit("benchmarks/buffer.py needs flashbax: pip install 'purerl[bench]'")

NUM_ENVS, BATCH_SIZE, ALPHA, BETA = 16, 256, 0.6, 0.4
FIELDS = ("obs", "action", "reward", "next_obs", "terminated", "truncated")


class Library(NamedTuple):
    """One library's buffer, as functions of its state.

    Attributes:
        fill: key to a full buffer.
        push: state and fields `[N, ...]` to state.
        sample: state and key to fields `[B, ...]`, indices, and importance weights.
        prioritise: state, indices `[B]` and errors `[B]` to state.
    """

    fill: Callable
    push: Callable
    sample: Callable
    prioritise: Callable


def fields(key, *shape):
    """Transitions `[*shape, ...]` by name."""
    noise = jax.random.uniform(key, (*shape, 4))
    return {
        "obs": noise,
        "action": (2 * noise[..., 0]).astype(jnp.int32),
        "reward": noise[..., 1],
        "next_obs": 1.0 - noise,
        "terminated": noise[..., 2] < 0.01,
        "truncated": noise[..., 3] < 0.01,
    }


def ours(size, priorities):
    buffer = purerl.Buffer(
        maxlen=size,
        priority_sampling=priorities,
        **({"alpha": ALPHA, "beta": BETA, "anneal_beta": False} if priorities else {}),
    )

    def transitions(values):  # [T, N, ...]
        shape = values["reward"].shape
        return purerl.Transition(
            **values, episode=jnp.zeros(shape, jnp.int32), valid=jnp.ones(shape, bool), extras={}
        )

    def fill(key):
        full = transitions(fields(key, size // NUM_ENVS, NUM_ENVS))
        state = buffer.init(jax.tree.map(lambda x: x[0], full), NUM_ENVS)
        return buffer.push(state, full)

    def push(state, values):
        return buffer.push(state, transitions(jax.tree.map(lambda x: x[None], values)))

    def sample(state, key):
        batch = buffer.sample(state, key, BATCH_SIZE, keys=FIELDS)
        return {name: batch[name] for name in FIELDS}, batch["indices"], batch["weight"]

    return Library(fill, push, sample, buffer.update_priorities)


def theirs(size, priorities):
    shape = {
        "add_batch_size": NUM_ENVS,
        "sample_batch_size": BATCH_SIZE,
        "sample_sequence_length": 1,
        "period": 1,
        "min_length_time_axis": 1,
        "max_length_time_axis": size // NUM_ENVS,
    }
    if priorities:
        buffer = flashbax.make_prioritised_trajectory_buffer(
            **shape, priority_exponent=ALPHA, device=jax.default_backend()
        )
    else:
        buffer = flashbax.make_trajectory_buffer(**shape)

    def fill(key):
        full = fields(key, NUM_ENVS, size // NUM_ENVS)
        return buffer.add(buffer.init(jax.tree.map(lambda x: x[0, 0], full)), full)

    def push(state, values):
        return buffer.add(state, jax.tree.map(lambda x: x[:, None], values))

    def sample(state, key):
        batch = buffer.sample(state, key)
        values = jax.tree.map(lambda x: x[:, 0], batch.experience)
        if priorities:
            weight = (jnp.min(batch.probabilities) / batch.probabilities) ** BETA
            return values, batch.indices, weight
        return values, jnp.zeros(BATCH_SIZE, jnp.int32), jnp.ones(BATCH_SIZE)

    def prioritise(state, indices, error):
        return buffer.set_priorities(state, indices, jnp.abs(error) + 1e-6)

    return Library(fill, push, sample, prioritise)


def programs(library, size, priorities):
    """Timed operations by name: bodies of a scan over the state and the sums of the samples."""

    def push(carry, inputs):
        (state, sums), (_, step) = carry, inputs
        return (library.push(state, step), sums), None

    def sample(carry, inputs):
        (state, sums), (key, _) = carry, inputs
        values, _, weight = library.sample(state, key)
        return (state, add(sums, values, weight)), None

    def prioritise(carry, inputs):
        (state, sums), (key, _) = carry, inputs
        indices = jax.random.randint(key, (BATCH_SIZE,), 0, size)
        error = jax.random.uniform(key, (BATCH_SIZE,))
        return (library.prioritise(state, indices, error), sums), None

    def everything(carry, inputs):
        (state, sums), (key, step) = carry, inputs
        state = library.push(state, step)
        values, indices, weight = library.sample(state, key)
        if priorities:
            state = library.prioritise(state, indices, values["reward"])
        return (state, add(sums, values, weight)), None

    alone = {"push": push, "sample": sample}
    return {"all": everything, **alone, **({"priorities": prioritise} if priorities else {})}


def add(sums, values, weight):
    """Adds entry by entry: a sum to one number would take longer than a sample."""
    return jax.tree.map(lambda total, x: total + x, sums, (values, weight))


def no_sums():
    batch = fields(jax.random.key(0), BATCH_SIZE), jnp.zeros(BATCH_SIZE)
    return jax.tree.map(lambda x: jnp.zeros(x.shape), batch)


class Timed:
    """A compiled scan over the buffers of all members, and the time that it takes."""

    def __init__(self, body, carry, inputs):
        def scan(carry, inputs):
            return jax.vmap(lambda *args: jax.lax.scan(body, *args)[0])(carry, inputs)

        start = time.perf_counter()
        # The state goes in and comes out in the same memory.
        self.compiled = jax.jit(scan, donate_argnums=0).lower(carry, inputs).compile()
        self.compile_seconds = time.perf_counter() - start

    def __call__(self, carry, inputs):
        start = time.perf_counter()
        carry = jax.block_until_ready(self.compiled(carry, inputs))
        return carry, time.perf_counter() - start


def measure(size, priorities, members, iterations, repeats):
    """Rows of the table, one for each operation."""
    keys = jax.random.split(jax.random.key(0), members)

    @jax.jit
    @jax.vmap
    def draw(key):
        key, step_key = jax.random.split(key)
        return jax.random.split(key, iterations), fields(step_key, iterations, NUM_ENVS)

    inputs = draw(keys)
    libraries = {"purerl": ours(size, priorities), "flashbax": theirs(size, priorities)}
    bodies = {name: programs(x, size, priorities) for name, x in libraries.items()}
    carries = {
        name: jax.jit(jax.vmap(lambda key, fill=x.fill: (fill(key), no_sums())))(keys)
        for name, x in libraries.items()
    }
    rows = []
    for operation in bodies["purerl"]:
        timed = {n: Timed(bodies[n][operation], carries[n], inputs) for n in libraries}
        seconds = {name: [] for name in libraries}
        for repeat in range(repeats + 1):
            for name in libraries:
                carries[name], taken = timed[name](carries[name], inputs)
                if repeat > 0:  # the first one only warms up
                    seconds[name].append(taken)
        ratios = [b / a for a, b in zip(seconds["purerl"], seconds["flashbax"], strict=True)]
        rows.append(
            {
                "operation": operation,
                "microseconds": {
                    name: 1e6 * statistics.median(x) / iterations for name, x in seconds.items()
                },
                "ratio": statistics.median(ratios),
                "spread": (min(ratios), max(ratios)),
                "compile_seconds": {name: x.compile_seconds for name, x in timed.items()},
            }
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    whole = functools.partial(int, base=10)
    parser.add_argument("--sizes", type=whole, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--members", type=whole, nargs="+", default=[1, 16], help="under vmap")
    parser.add_argument("--iterations", type=whole, default=1_000)
    parser.add_argument("--repeats", type=whole, default=5)
    args = parser.parse_args()

    console = Console(width=None if sys.stdout.isatty() else 140)
    table = Table(
        "transitions",
        "priorities",
        "operation",
        "purerl",
        "flashbax",
        "ratio",
        "ratio min-max",
        "compile purerl",
        "flashbax",
        box=None,
    )
    start = time.perf_counter()
    for members in args.members:
        for size in args.sizes:
            for priorities in (False, True):
                rows = measure(size, priorities, members, args.iterations, args.repeats)
                name = f"{members} x {size:,}" if members > 1 else f"{size:,}"
                for row in rows:
                    micro, compiling = row["microseconds"], row["compile_seconds"]
                    table.add_row(
                        name,
                        "yes" if priorities else "no",
                        row["operation"],
                        f"{micro['purerl']:,.1f}",
                        f"{micro['flashbax']:,.1f}",
                        f"{row['ratio']:.2f}",
                        "{:.2f}-{:.2f}".format(*row["spread"]),
                        f"{compiling['purerl']:.1f} s",
                        f"{compiling['flashbax']:.1f} s",
                    )
                ratio = rows[0]["ratio"]
                word = "with" if priorities else "without"
                console.print(f"{name} {word} priorities: all {ratio:.2f}")
    console.print(table)
    console.print(
        "microseconds an iteration, of all members together; ratio over 1: purerl is faster; "
        f"{time.perf_counter() - start:.0f} s in all"
    )


if __name__ == "__main__":
    main()
