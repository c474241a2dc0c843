"""Slices of a sweep: one program, compiled once, trains a fixed number of members at a time."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from purerl.accelerator.devices import map_members
from purerl.accelerator.machine import check_memory, free_memory, program_memory
from purerl.accelerator.transfer import to_host
from purerl.records.types import PyTree
from purerl.sweeps.plan import Group
from purerl.training.train import TrainOutput, make_train

# Members that a core trains at once, unless memory allows fewer: with more of them their data
# leaves its caches, and every step takes longer (benchmarks/sweep.py --slices).
MEMBERS_PER_CORE = 4
# From key data and hyperparameters to a `TrainOutput`.
Member = Callable[[PyTree, dict[str, PyTree]], TrainOutput]


@dataclasses.dataclass(frozen=True)
class CompiledGroup:
    """A group's training, compiled.

    Attributes:
        call: from key data `[S, ...]` and hyperparameters `[S]` to a `TrainOutput` of `[S, ...]`.
        slice_size: S.
        memory: bytes on each device, as the compiler reports them; 0 where it doesn't.
        compiled: compilations; two or more where the first program didn't fit the memory.
        seconds: of compiling.
    """

    call: Member
    slice_size: int
    memory: int
    compiled: int
    seconds: float


def compile_group(
    group: Group, num_members: int, slice_size: int | None, keep_buffer: bool
) -> CompiledGroup:
    """Compiles the program that trains slices of a group.

    Args:
        group: the members.
        num_members: how many of them are to be trained.
        slice_size: S, rounded up to a multiple of the devices; None for as many as fit the memory,
            by the size that the compiler reports (on a CPU at most 4 a core).
        keep_buffer: whether the buffer is in the output.

    Raises:
        ConfigError: `slice_size` members, or a single one, don't fit the memory.
    """
    start, count = time.perf_counter(), 0
    num_devices = jax.local_device_count()
    most = -(-num_members // num_devices)
    if slice_size is not None:
        most = min(most, -(-slice_size // num_devices))
    elif jax.default_backend() == "cpu":
        most = min(most, MEMBERS_PER_CORE)
    program: Any = map_members(one_member(group, keep_buffer))
    while True:
        size = num_devices * _even(num_members, most * num_devices, num_devices)
        example = jax.tree.map(
            lambda x, size=size: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype),
            (group.keys, group.hyperparams),
        )
        call = program.lower(*example).compile()
        count += 1
        memory, free = program_memory(call), free_memory()
        if slice_size is not None or memory <= free or most == 1:
            check_memory(memory, f"{size} agents at once")
            return CompiledGroup(call, size, memory, count, time.perf_counter() - start)
        most = max(1, min(most - 1, math.floor(most * free / memory)))


def _even(num_members: int, largest: int, num_devices: int) -> int:
    """Members on each device, for slices of equal size and little padding of the last."""
    num_slices = -(-num_members // largest)
    return -(-num_members // (num_slices * num_devices))


def one_member(group: Group, keep_buffer: bool) -> Member:
    """`train` of a group, from key data; without the buffer in its output unless it is kept."""
    train = make_train(group.config)

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
        out = program.call(group.keys[padded], hyperparams)
        yield places, [to_host(x)[: len(places)] for x in jax.tree.leaves(out)]
