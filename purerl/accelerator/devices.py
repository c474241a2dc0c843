"""Devices: one program on several of them, and its collectives.

Every collective is here. A run over D devices is one `shard_map` body on each of them, over one
mesh axis, `AXIS`; unlike `pmap` it works under `jit` even if the devices belong to several
processes. A function that communicates across devices takes a `Devices`.
"""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from purerl.accelerator.machine import COUNT_FLAG
from purerl.records.errors import ConfigError
from purerl.records.types import PyTree

AXIS = "devices"
# Pytree of bools, a prefix of another one: whether its parts are sharded or replicated.
Sharded: TypeAlias = PyTree


def spread(
    fn: Callable[..., PyTree], num_devices: int, *, args: tuple[Sharded, ...], result: Sharded
) -> Callable[..., PyTree]:
    """The function mapped over D devices, along the mesh axis `AXIS`.

    Composes with `jit` and with `vmap`, whose axes come before the devices'. With one device the
    function is returned as it is.

    Args:
        fn: the function that runs on each device.
        num_devices: D, the first ones that JAX sees.
        args: for each argument a bool, or a prefix pytree of bools: whether it is sharded. If so,
            its leaves have a leading axis `[D]`, of which each device's `fn` gets one entry; if
            not, it is replicated.
        result: the same for the result. A replicated part has to be equal on all devices: that of
            one is returned.

    Raises:
        ConfigError: when the result is called, if there are fewer devices.
    """
    if num_devices == 1:
        return fn

    def local(*xs: PyTree) -> PyTree:
        out = fn(*_map_sharded(args, xs, lambda x: x[0]))
        return _map_sharded(result, out, lambda x: x[None])

    def call(*xs: PyTree) -> PyTree:
        check_devices(num_devices)
        mesh = Mesh(np.array(jax.devices()[:num_devices]), (AXIS,))
        # JAX could prove that replicated values are equal, but not through a scan that starts from
        # constants; the tests check it instead.
        return jax.shard_map(
            local, mesh=mesh, in_specs=_specs(args), out_specs=_specs(result), check_vma=False
        )(*xs)

    return call


def from_owner(x: jax.Array, axis: str) -> jax.Array:
    """An array of which each element is zero on all devices of a mesh axis but one, as it is there,
    bit for bit; inside `shard_map`."""
    floats = jnp.issubdtype(x.dtype, jnp.floating)
    # As integers: -0.0 + 0.0 would be 0.0.
    whole = jnp.dtype(f"u{x.dtype.itemsize}") if floats else x.dtype
    bits = jax.lax.bitcast_convert_type(x, whole) if floats else x
    wide = jnp.uint32 if bits.dtype.itemsize < 4 else bits.dtype  # which every backend can sum
    found: jax.Array = jax.lax.psum(bits.astype(wide), axis).astype(whole)
    return jax.lax.bitcast_convert_type(found, x.dtype) if floats else found


def _map_sharded(sharded: Sharded, tree: PyTree, fn: Callable[[jax.Array], jax.Array]) -> PyTree:
    return jax.tree.map(lambda each, x: jax.tree.map(fn, x) if each else x, sharded, tree)


def _specs(sharded: Sharded) -> PyTree:
    return jax.tree.map(lambda each: PartitionSpec(AXIS) if each else PartitionSpec(), sharded)


def host_device() -> jax.Device:
    """A CPU as a device, for arrays that don't fit one of the others; the first device if JAX has
    no CPU."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


def place(
    like: PyTree,
    num_devices: int,
    sharded: Sharded,
    num_axes: int,
    device: jax.Device | None = None,
) -> PyTree:
    """Shapes of arrays, with the shardings that `spread` gives them.

    Args:
        like: pytree of shapes.
        num_devices: D.
        sharded: as `result` in `spread`.
        num_axes: the number of `vmap` axes before the devices' axis.
        device: of arrays of a run on one device; None for the first.
    """
    if num_devices == 1:
        sharded = False
        shardings: list[jax.sharding.Sharding] = [
            jax.sharding.SingleDeviceSharding(device or jax.local_devices()[0])
        ] * 2
    else:
        mesh = Mesh(np.array(jax.devices()[:num_devices]), (AXIS,))
        specs = (PartitionSpec(), PartitionSpec(*[None] * num_axes, AXIS))
        shardings = [NamedSharding(mesh, spec) for spec in specs]

    def placed(each: bool, tree: PyTree) -> PyTree:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[each]), tree
        )

    return jax.tree.map(placed, sharded, like)


def check_devices(num_devices: int) -> None:
    """Raises ConfigError if there are fewer devices, or if several hosts don't use all devices."""
    count, hosts = jax.device_count(), jax.process_count()
    if num_devices > count:
        raise ConfigError(
            f"num_devices: got {num_devices}, expected at most {count}, what jax.device_count() "
            f"says (on a CPU, XLA_FLAGS={COUNT_FLAG}={num_devices} makes that many)"
        )
    if hosts > 1 and num_devices != count:
        raise ConfigError(
            f"num_devices: got {num_devices}, expected {count}, all the devices of {hosts} hosts"
        )


def check_one_host(what: str) -> None:
    """Raises ConfigError if there are several hosts, for what lays members over one's devices."""
    if jax.process_count() > 1:
        raise ConfigError(
            f"{what}: got {jax.process_count()} processes, expected one: members are laid over the "
            "devices of a process"
        )


def check_divides(num_devices: int, name: str, size: int) -> None:
    """Raises ConfigError unless the number of devices divides a size."""
    if size % num_devices:
        raise ConfigError(f"{name}: got {size}, expected a multiple of num_devices={num_devices}")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Devices:
    """The D devices of a run, as seen from inside it: its collectives.

    Every method works leaf by leaf. On one device they return their argument.

    Attributes:
        count: D.
        one_core: whether a device's work is done by one CPU core, while others do other work.
    """

    count: int = 1
    one_core: bool = False

    def mean(self, tree: PyTree) -> PyTree:
        """Mean over the devices."""
        return jax.tree.map(self.part, self.sum(tree))

    def sum(self, tree: PyTree) -> PyTree:
        """Sum over the devices."""
        if self.count == 1:
            return tree
        # CPU devices synchronise once for each array: arrays of one dtype are joined.
        leaves, structure = jax.tree.flatten(tree)
        leaves = [jnp.asarray(leaf) for leaf in leaves]
        for dtype in {leaf.dtype: None for leaf in leaves}:
            places = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
            vector, unravel = ravel_pytree([leaves[i] for i in places])
            for i, total in zip(places, unravel(jax.lax.psum(vector, AXIS)), strict=True):
                leaves[i] = total
        return jax.tree.unflatten(structure, leaves)

    def part(self, x: jax.Array) -> jax.Array:
        """x / D, the average contribution of a device to a total."""
        return x if self.count == 1 else x / self.count

    def min(self, tree: PyTree) -> PyTree:
        """Minimum over the devices."""
        return tree if self.count == 1 else jax.lax.pmin(tree, AXIS)

    def all(self, x: jax.Array) -> jax.Array:
        """Logical and over the devices."""
        return x if self.count == 1 else jax.lax.pmin(x.astype(jnp.int32), AXIS) > 0

    def first(self, tree: PyTree) -> PyTree:
        """Broadcast of the first device's values."""
        if self.count == 1:
            return tree
        is_first = jax.lax.axis_index(AXIS) == 0
        mine = jax.tree.map(lambda x: jnp.where(is_first, x, jnp.zeros_like(x)), tree)
        return jax.tree.map(lambda total, x: total.astype(x.dtype), self.sum(mine), tree)

    def key(self, key: jax.Array) -> jax.Array:
        """A different key on each device, from a key that is the same on all."""
        return key if self.count == 1 else jax.random.fold_in(key, jax.lax.axis_index(AXIS))


ALONE = Devices()


def start_hosts(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_seconds: int = 20,
    connect_seconds: int = 300,
) -> None:
    """Joins the processes of several hosts, so that each sees the devices of all. Has to be called
    before JAX is used.

    Every process runs the same script, and trains with `num_devices=jax.device_count()`. Without
    arguments JAX detects the cluster under SLURM, Open MPI, Kubernetes and on Cloud TPUs. If a
    process dies, the others stop with an error within about `heartbeat_seconds`.

    Args:
        coordinator: `"address:port"` of process 0, the same in all processes.
        num_processes: the number of processes.
        process_id: the index of this process, from 0.
        heartbeat_seconds: silence after which a process counts as dead.
        connect_seconds: timeout for the other processes to connect at the start.

    Raises:
        ConfigError: only some of the first three arguments are given; or none is, and JAX detects
            no cluster.
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise ConfigError(f"start_hosts: {', '.join(missing)} missing, expected all three or none")
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=connect_seconds,
            heartbeat_timeout_seconds=heartbeat_seconds,
            shutdown_timeout_seconds=heartbeat_seconds,
        )
    except ValueError as error:
        raise ConfigError(
            f"start_hosts: {error} Expected coordinator, num_processes and process_id, or a "
            "cluster that JAX knows (SLURM, Open MPI, Kubernetes, Cloud TPU)"
        ) from error


def is_first_host() -> bool:
    """Whether this process writes files and prints: the first of several hosts, or the only one."""
    return jax.process_index() == 0


def of_all_hosts(*values: float) -> np.ndarray:
    """`[hosts, values]` float64, every process's arguments; all processes have to call it."""
    if jax.process_count() == 1:
        return np.array([values], np.float64)
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(np.array(values, np.float32)), np.float64)


def wait_for_all_hosts(name: str) -> None:
    """Blocks until every process has called it with the same name."""
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import sync_global_devices

        sync_global_devices(name)
