"""Slices of a sweep: one program, compiled once, trains a fixed number of members at a time."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from purerl.accelerator.machine import check_memory, free_memory
from purerl.accelerator.members import Layout, Parallel, most_parts
from purerl.accelerator.transfer import to_host
from purerl.records.types import PyTree
from purerl.sweeps.plan import Group
from purerl.training.train import TrainOutput, program_key, train_on

# Members that a core trains at once, unless memory allows fewer: with more of them their data
# leaves its caches, and every step takes longer (benchmarks/sweep.py --slices).
MEMBERS_PER_CORE = 4
# From key data and hyperparameters to a `TrainOutput`.
Member = Callable[[PyTree, dict[str, PyTree]], TrainOutput]


@dataclasses.dataclass(frozen=True)
class CompiledGroup:
    """A group's training, compiled.

    Attributes:
        call: from key data and hyperparameters to a `TrainOutput`, in parts.
        memory: bytes on each device, as the compiler reports them; 0 where it doesn't.
        compiled: programs; two or more where the first one didn't fit the memory. One that this
            process had compiled already counts too.
        seconds: of compiling.
    """

    call: Parallel
    memory: int
    compiled: int
    seconds: float

    @property
    def slice_size(self) -> int:
        """S, members in a slice."""
        assert self.call.layout.num_members is not None
        return self.call.layout.num_members


def compile_group(
    group: Group, num_members: int, slice_size: int | None, keep_buffer: bool
) -> CompiledGroup:
    """Compiles the program that trains slices of a group.

    Args:
        group: the members.
        num_members: how many of them are to be trained.
        slice_size: S; None for as many as fit the memory, by the size that the compiler reports (on
            a CPU at most 4 a core).
        keep_buffer: whether the buffer is in the output.

    Raises:
        ConfigError: `slice_size` members, or a single one, don't fit the memory.
    """
    start, count = time.perf_counter(), 0
    largest = num_members
    on_host = group.config.make_loop().on_host  # one member at a time
    if on_host:
        largest = 1
    elif slice_size is not None:
        largest = min(largest, slice_size)
    elif jax.default_backend() == "cpu":
        largest = min(largest, MEMBERS_PER_CORE * most_parts())
    key = program_key(group.config, "sweep", keep_buffer)
    while True:
        size = -(-num_members // -(-num_members // largest))  # of slices that are equal
        layout = Layout.of(size, group.config.num_devices, mapped=not on_host)
        example = jax.tree.map(
            lambda x, n=size: jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype),
            (group.keys, group.hyperparams),
        )
        member = one_member(group, keep_buffer, one_core=layout.on_cores)
        call = layout.lower(member, (0, 0), example, key=key).compile()
        count += 1
        memory, free = call.memory, free_memory()
        fewer = (layout.size - 1) * most_parts() if layout.on_devices else size - 1
        if slice_size is not None or memory <= free or fewer < 1:
            check_memory(memory, f"{size} agents at once")
            return CompiledGroup(call, memory, count, time.perf_counter() - start)
        largest = max(1, min(fewer, math.floor(size * free / memory)))


def one_member(group: Group, keep_buffer: bool, *, one_core: bool = False) -> Member:
    """`train` of a group, from key data; without the buffer in its output unless it is kept."""
    train = train_on(group.config, one_core=one_core)

    def member(key: jax.Array, hyperparams: dict[str, jax.Array]) -> TrainOutput:
        out: PyTree = train(jax.random.wrap_key_data(key), hyperparams)
        return out if keep_buffer else out.replace(state=out.state._replace(buffer=None))

    return member


def member_shapes(group: Group, keep_buffer: bool) -> TrainOutput:
    """The shapes of a member's output, as `jax.ShapeDtypeStruct`s."""
    example = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (group.keys, group.hyperparams)
    )
    return jax.eval_shape(one_member(group, keep_buffer), *example)


def run_slices(
    group: Group, program: CompiledGroup, todo: np.ndarray
) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Trains members slice by slice.

    Args:
        group: the members.
        program: from `compile_group`.
        todo: `[n]` integers, indices in the group of those to be trained.

    Yields:
        Indices in the group, `[S]` at most, and the leaves of their outputs, `[S, ...]` each, on
        the host; keys as their data.
    """
    for start in range(0, len(todo), program.slice_size):
        places = todo[start : start + program.slice_size]
        padded = np.resize(places, program.slice_size)
        hyperparams = {name: x[padded] for name, x in group.hyperparams.items()}
        layout = program.call.layout
        out = layout.join(program.call(layout.split(group.keys[padded]), layout.split(hyperparams)))
        yield places, [to_host(x)[: len(places)] for x in jax.tree.leaves(out)]
