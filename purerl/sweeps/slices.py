"""A sweep's members in slices: one program, compiled once, takes so many of them at a time."""

import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from purerl.accelerator.devices import map_members
from purerl.accelerator.machine import check_memory, free_memory, program_memory
from purerl.accelerator.transfer import to_host
from purerl.sweeps.plan import Group
from purerl.training.train import TrainOutput, make_train

# Members that a core trains at once, unless memory allows fewer: with more of them what they touch
# leaves its caches, and every step takes longer (benchmarks/sweep.py --slices).
MEMBERS_PER_CORE = 4


@dataclasses.dataclass(frozen=True)
class CompiledGroup:
    """A group's training, compiled.

    Attributes:
        call: from key data `[S, ...]` and hyperparameters `[S]` to a `TrainOutput` of `[S, ...]`.
        slice_size: S.
        memory: bytes that it takes on each device, by its own account; 0 where it has none.
        compiled: how often was compiled; twice or more where the first one didn't fit the memory.
        seconds: what that took.
    """

    call: Any
    slice_size: int
    memory: int
    compiled: int
    seconds: float


def compile_group(
    group: Group, num_members: int, slice_size: int | None, keep_buffer: bool
) -> CompiledGroup:
    """The program for slices of a group.

    Args:
        group: what is trained.
        num_members: how many of it.
        slice_size: how many at a time, rounded up to a multiple of the devices; None for as many as
            the memory takes by the compiled program's own account (and a core has use for).
        keep_buffer: whether the buffer is in its output.
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
    """Members on each device, so that slices are alike and the last has little padding."""
    num_slices = -(-num_members // largest)
    return -(-num_members // (num_slices * num_devices))


def one_member(group: Group, keep_buffer: bool) -> Any:
    """`(key data, hyperparams) -> TrainOutput`: `train`, perhaps without the buffer."""
    train = make_train(group.config)

    def member(key: jax.Array, hyperparams: dict[str, jax.Array]) -> TrainOutput:
        out: Any = train(jax.random.wrap_key_data(key), hyperparams)
        return out if keep_buffer else out.replace(state=out.state._replace(buffer=None))

    return member


def member_shapes(group: Group, keep_buffer: bool) -> TrainOutput:
    """What a member's output looks like, as `jax.ShapeDtypeStruct`s."""
    example = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (group.keys, group.hyperparams)
    )
    return jax.eval_shape(one_member(group, keep_buffer), *example)


def run_slices(
    group: Group, program: CompiledGroup, todo: np.ndarray
) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Trains members slice by slice.

    Args:
        group: whose members.
        program: from `compile_group`.
        todo: `[n]` integers, which of them: places in the group.

    Yields:
        Places in the group, `[S]` at most, and the leaves of their outputs, `[S, ...]` each, on the
        host; keys as their data.
    """
    for start in range(0, len(todo), program.slice_size):
        places = todo[start : start + program.slice_size]
        padded = np.resize(places, program.slice_size)
        hyperparams = {name: x[padded] for name, x in group.hyperparams.items()}
        out = program.call(group.keys[padded], hyperparams)
        yield places, [to_host(x)[: len(places)] for x in jax.tree.leaves(out)]
