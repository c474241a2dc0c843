"""Members, such as the seeds of a run, over the cores or the devices of a process."""

import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Hashable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from purerl.accelerator.compiling import jit, remembered
from purerl.accelerator.devices import from_owner
from purerl.accelerator.machine import num_cores, program_memory
from purerl.accelerator.transfer import from_host, is_key, to_host
from purerl.records.types import PyTree

MEMBERS, THREAD = "members", "purerl-part"
# Pytrees whose leaves have the members of a part on their first axis, one for each call.
Parts = list[PyTree]


def programs_at_once() -> int:
    """Programs that this process runs at a time, each on a core.

    That is the number of cores, or NPROC if that is less, where JAX has a CPU as one device. It is
    1 on other devices, in one of several processes, and before JAX 0.11, where programs that run at
    a time deadlock (`use_all_cores` makes devices of the cores there).
    """
    if jax.default_backend() != "cpu" or jax.local_device_count() > 1 or jax.process_count() > 1:
        return 1
    if jax.__version_info__ < (0, 11):
        return 1
    threads = os.environ.get("NPROC", "")
    return min(num_cores(), int(threads)) if threads.isdigit() else num_cores()


def most_parts() -> int:
    """Parts that run at the same time at most: the devices of the process, or the cores."""
    return max(jax.local_device_count(), programs_at_once())


@dataclasses.dataclass(frozen=True)
class Layout:
    """S members in parts of equal size, which run at the same time.

    On a CPU a part is a call of one program, in a thread and on a core; each operation then is
    narrow, and none waits for another core. That makes eight seeds of PPO 1.5 times as fast on two
    cores as operations that are split over both (benchmarks/README.md). Where a process has several
    devices, each has a part. One device of another kind has all members.

    The last part may be filled up with members that are there already, and left out of the results.
    A member's result doesn't depend on the layout, to rounding; with as many members in a part it
    is the same to the bit.

    Attributes:
        num_members: S; None for one agent without an axis.
        num_parts: C.
        on_devices: whether parts are on devices, not on cores.
        mapped: whether members are mapped by `jax.vmap`; if not there is one.
    """

    num_members: int | None = None
    num_parts: int = 1
    on_devices: bool = False
    mapped: bool = True

    @classmethod
    def of(cls, num_members: int | None, num_devices: int = 1, *, mapped: bool = True) -> "Layout":
        """The layout for S members in this process, each over a number of devices: in one part
        where that is more than one. Starts JAX."""
        if num_members is None or num_devices > 1 or not mapped:
            return cls(num_members, mapped=mapped)
        size = -(-num_members // most_parts())
        parts = -(-num_members // size)
        return cls(num_members, parts, jax.local_device_count() > 1 and parts > 1)

    @property
    def size(self) -> int:
        """Members in a part."""
        return -(-(self.num_members or 1) // self.num_parts)

    @property
    def on_a_device(self) -> int:
        """Members that a device has."""
        return self.size if self.on_devices else self.num_members or 1

    @property
    def on_cores(self) -> bool:
        """Whether each part is on a core."""
        return self.num_parts > 1 and not self.on_devices

    def split(self, tree: PyTree) -> Parts:
        """A tree with leaves `[S, ...]` in parts."""
        if self.num_parts == 1:
            return [tree]
        places = np.arange(self.num_parts * self.size) % (self.num_members or 1)
        if not self.on_devices:
            return [_take(tree, part, None) for part in places.reshape(self.num_parts, -1)]
        return [_take(tree, places, NamedSharding(self._mesh, PartitionSpec(MEMBERS)))]

    def join(self, parts: Parts) -> PyTree:
        """The tree `[S, ...]` of parts: of several devices as numpy arrays."""
        if self.num_parts == 1:
            return parts[0]

        def whole(*leaves: jax.Array) -> jax.Array | np.ndarray:
            on_host = np.concatenate([to_host(x) for x in leaves])[: self.num_members]
            return from_host(jnp.asarray(on_host) if self.on_cores else on_host, leaves[0])

        return jax.tree.map(whole, *parts)

    def copy(self, parts: Parts, source: np.ndarray, most: int) -> Parts:
        """The trees with some members replaced by copies of others.

        Leaves are changed in place: beside the trees, memory is needed for the copied members only.
        Typed random keys aren't copied: every member keeps its keys, so that a copy doesn't draw
        the numbers of its source.

        Args:
            parts: trees `[S, ...]`; their arrays are donated.
            source: `[S]` integers, for each member the one to copy, its index for none.
            most: K, members that are replaced at most; the program is compiled once for it.
        """
        replaced = np.flatnonzero(source != np.arange(len(source)))
        nowhere = self.num_parts * self.size  # where a write is dropped
        origin, place = np.zeros(most, np.int32), np.full(most, nowhere, np.int32)
        origin[: len(replaced)], place[: len(replaced)] = source[replaced], replaced
        leaves = [jax.tree.leaves(part) for part in parts]
        copied = [[x for x in part if not _stays(x)] for part in leaves]
        program = remembered(("copy", self, jit), self._jit_copy)
        done = [iter(part) for part in program(copied, origin, place)]
        structure = jax.tree.structure(parts[0])
        return [
            jax.tree.unflatten(structure, [x if _stays(x) else next(new) for x in part])
            for part, new in zip(leaves, done, strict=True)
        ]

    def _jit_copy(self) -> jax.stages.Wrapped:
        copied: Callable[..., PyTree] = functools.partial(_copied, on_devices=self.on_devices)
        if self.on_devices:
            members, all_of_it = PartitionSpec(MEMBERS), PartitionSpec()
            copied = jax.shard_map(
                copied,
                mesh=self._mesh,
                in_specs=(members, all_of_it, all_of_it),
                out_specs=members,
                check_vma=False,
            )
        return jit(copied, donate_argnums=0)

    def _parts_like(self, like: PyTree) -> PyTree:
        """Shapes of a part's tree, from those `[S, ...]` of all members."""
        if self.num_parts == 1:
            return like
        number = self.size * (self.num_parts if self.on_devices else 1)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((number, *x.shape[1:]), x.dtype), like)

    def lower(
        self,
        fn: Callable[..., PyTree],
        axes: tuple[int | None, ...],
        like: Sequence[PyTree],
        donate: int | tuple[int, ...] = (),
        key: Hashable = None,
    ) -> "Lowered":
        """The program of a part, to be compiled.

        Args:
            fn: of one member; not jitted. Its result is a member's in every leaf.
            axes: for each argument 0, or None if it is the same for all members.
            like: the arguments, or their shapes, with leaves `[S, ...]` where the axis is 0.
            donate: arguments whose memory the result may take.
            key: all that `fn` depends on; with an equal one, it isn't traced and compiled again.
                None to remember nothing.
        """
        shapes = [x if a is None else self._parts_like(x) for x, a in zip(like, axes, strict=True)]
        if key is not None:
            key = key, self, axes, donate, jit  # `jit` since tests replace it
        program = remembered(key, lambda: self._jit(fn, axes, donate))
        return Lowered(self, axes, program.lower(*shapes))

    def over(
        self, fn: Callable[..., PyTree], axes: tuple[int | None, ...]
    ) -> Callable[..., PyTree]:
        """A function of one member as one of all, with axes as in `lower`."""
        if self.num_members is None:
            return fn
        if self.mapped:
            return jax.vmap(fn, axes)
        assert self.num_members == 1, "several members are mapped"

        def alone(*args: PyTree) -> PyTree:
            taken = (
                x if axis is None else jax.tree.map(lambda leaf: leaf[0], x)
                for x, axis in zip(args, axes, strict=True)
            )
            return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], fn(*taken))

        return alone

    def _jit(
        self,
        fn: Callable[..., PyTree],
        axes: tuple[int | None, ...],
        donate: int | tuple[int, ...],
    ) -> jax.stages.Wrapped:
        mapped = self.over(fn, axes)
        if self.on_devices:
            specs = tuple(PartitionSpec() if x is None else PartitionSpec(MEMBERS) for x in axes)
            mapped = jax.shard_map(
                mapped,
                mesh=self._mesh,
                in_specs=specs,
                out_specs=PartitionSpec(MEMBERS),
                check_vma=False,
            )
        return jit(mapped, donate_argnums=donate, one_core=self.on_cores)

    @property
    def _mesh(self) -> Mesh:
        return Mesh(np.array(jax.local_devices()[: self.num_parts]), (MEMBERS,))


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A program of a part before it is compiled.

    Attributes:
        layout: of the members.
        axes: as in `Layout.lower`.
        lowered: the program.
    """

    layout: Layout
    axes: tuple[int | None, ...]
    lowered: jax.stages.Lowered

    def compile(self) -> "Parallel":
        """The compiled program."""
        return Parallel(self.layout, self.axes, self.lowered.compile())


@dataclasses.dataclass(frozen=True)
class Parallel:
    """A compiled program that all parts run at the same time.

    Attributes:
        layout: of the members.
        axes: as in `Layout.lower`.
        compiled: the program of a part.
    """

    layout: Layout
    axes: tuple[int | None, ...]
    compiled: jax.stages.Compiled

    @property
    def memory(self) -> int:
        """Bytes on each device for arguments, results and temporaries of all parts on it; 0 if
        unknown."""
        return program_memory(self.compiled) * self._num_calls

    @property
    def _num_calls(self) -> int:
        return self.layout.num_parts if self.layout.on_cores else 1

    def __call__(self, *args: PyTree) -> Parts:
        """The results of the parts.

        Args:
            *args: `Parts` where the axis is 0.
        """

        def call(part: int) -> PyTree:
            taken = (
                x if axis is None else x[part] for x, axis in zip(args, self.axes, strict=True)
            )
            return self.compiled(*taken)

        return in_threads([functools.partial(call, i) for i in range(self._num_calls)])


def in_threads(calls: Sequence[Callable[[], PyTree]]) -> list[PyTree]:
    """Results of functions that are called at the same time, each in a thread; one alone is called
    without.

    Raises the first exception of a function, once all have ended. The calling thread can be
    interrupted while it waits; the functions then run to their ends, and Python waits for these
    before it exits.
    """
    if len(calls) == 1:
        return [calls[0]()]
    results: list[PyTree] = [None] * len(calls)
    errors: list[BaseException | None] = [None] * len(calls)

    def work(i: int) -> None:
        try:
            results[i] = jax.block_until_ready(calls[i]())  # leaves other objects alone
        except BaseException as error:
            errors[i] = error

    # XLA would crash under threads that Python stops at its exit, as it does with daemons.
    threads = [threading.Thread(target=work, args=(i,), name=THREAD) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        if error is not None:
            raise error
    return results


def compile_all(programs: Sequence[Lowered]) -> list[Parallel]:
    """Compiles programs, at the same time where that works (see `programs_at_once`): a core does
    most of the work on one."""
    if programs_at_once() == 1:
        return [program.compile() for program in programs]
    compiled: list[Parallel] = in_threads([program.compile for program in programs])
    return compiled


def any_thread_runs() -> bool:
    """Whether functions still run after an interrupt of `in_threads`."""
    return any(thread.name == THREAD for thread in threading.enumerate())


def _stays(x: jax.Array) -> bool:
    """Whether members keep a leaf: keys, and what has no elements, of which XLA's sum over devices
    crashes (JAX 0.11.2, November 2026)."""
    return is_key(x) or not x.size


def _copied(parts: Parts, origin: jax.Array, place: jax.Array, *, on_devices: bool) -> Parts:
    """Parts with the members at `place` replaced by those at `origin`, `[K]` each, indices over all
    parts; on devices the parts are this device's."""

    def copy(*xs: jax.Array) -> list[jax.Array]:
        size = xs[0].shape[0]
        first: int | jax.Array = jax.lax.axis_index(MEMBERS) * size if on_devices else 0
        starts = [first + i * size for i in range(len(xs))]
        rows = jnp.zeros((origin.size, *xs[0].shape[1:]), xs[0].dtype)
        for x, start in zip(xs, starts, strict=True):
            here = (origin >= start) & (origin < start + size)
            found = x[jnp.clip(origin - start, 0, size - 1)]
            rows = jnp.where(here.reshape(-1, *[1] * (x.ndim - 1)), found, rows)
        rows = from_owner(rows, MEMBERS) if on_devices else rows
        return [
            x.at[jnp.where(place >= start, place - start, size)].set(rows, mode="drop")
            for x, start in zip(xs, starts, strict=True)
        ]

    copies = [copy(*xs) for xs in zip(*parts, strict=True)]
    return [list(part) for part in zip(*copies, strict=True)]


def _take(tree: PyTree, places: np.ndarray, sharding: NamedSharding | None) -> PyTree:
    """Some members of a tree `[S, ...]`."""

    def take(x: jax.Array) -> jax.Array | np.ndarray:
        on_host = to_host(x)[places]
        placed = jnp.asarray(on_host) if sharding is None else jax.device_put(on_host, sharding)
        return from_host(placed, x)

    return jax.tree.map(take, tree)
