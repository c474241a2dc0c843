"""Devices: one program on several of them, and what it says across.

All that is collective is here. A run over D devices is the same `shard_map` body on each of them
(what `pmap` has become in JAX, and unlike it goes under `jit` also where the devices belong to
several processes), over one mesh axis, `AXIS`. What meets the other devices takes `Devices`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from purerl.accelerator.machine import COUNT_FLAG
from purerl.records.errors import ConfigError
from purerl.records.types import PyTree

AXIS = "devices"


def spread(fn: Callable, num_devices: int, *, args: tuple, result: Any) -> Callable:
    """The function, run on each of D devices at once; inside, `AXIS` names them.

    Composes with `jit` and with `vmap`, whose axes come before that of the devices. With one device
    it is the function itself.

    Args:
        fn: what each device does.
        num_devices: D, the first of all that JAX sees.
        args: for each argument a bool, or a pytree of them that it starts with: whether every
            device has its own. If so its leaves have a leading axis `[D]`, and `fn` sees an entry
            of it; else all devices get the same.
        result: likewise. What isn't a device's own has to be the same on all: one is taken.

    Raises:
        ConfigError: when it is called, and there are fewer devices.
    """
    if num_devices == 1:
        return fn

    def local(*xs: Any) -> Any:
        out = fn(*_where_own(args, xs, lambda x: x[0]))
        return _where_own(result, out, lambda x: x[None])

    def call(*xs: Any) -> Any:
        check_devices(num_devices)
        mesh = Mesh(np.array(jax.devices()[:num_devices]), (AXIS,))
        # Of what lies replicated JAX could prove that it is, but not through a scan that starts
        # from constants; the tests see to it instead.
        return jax.shard_map(
            local, mesh=mesh, in_specs=_specs(args), out_specs=_specs(result), check_vma=False
        )(*xs)

    return call


def _where_own(own: Any, tree: PyTree, fn: Callable) -> PyTree:
    return jax.tree.map(lambda own, x: jax.tree.map(fn, x) if own else x, own, tree)


def _specs(own: Any) -> Any:
    return jax.tree.map(lambda own: PartitionSpec(AXIS) if own else PartitionSpec(), own)


def map_members(fn: Callable) -> Callable:
    """`fn` of one member as a jitted function of many: arguments and results get a leading axis
    `[S]`, laid over all devices of this process; S is a multiple of their number."""
    devices = jax.local_devices()
    mapped = jax.vmap(fn)
    if len(devices) > 1:
        spec = PartitionSpec("members")
        mesh = Mesh(np.array(devices), ("members",))
        mapped = jax.shard_map(mapped, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    return jax.jit(mapped)


def place(like: PyTree, num_devices: int, own: Any, num_axes: int) -> PyTree:
    """Shapes of arrays, together with where `spread` leaves them.

    Args:
        like: their shapes.
        num_devices: D.
        own: as `result` in `spread`.
        num_axes: how many axes of `vmap` come before that of the devices.
    """
    if num_devices == 1:
        own = False
        shardings: list[jax.sharding.Sharding] = [
            jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        ] * 2
    else:
        mesh = Mesh(np.array(jax.devices()[:num_devices]), (AXIS,))
        specs = (PartitionSpec(), PartitionSpec(*[None] * num_axes, AXIS))
        shardings = [NamedSharding(mesh, spec) for spec in specs]

    def placed(own: bool, tree: PyTree) -> PyTree:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[own]), tree
        )

    return jax.tree.map(placed, own, like)


def check_devices(num_devices: int) -> None:
    """Raises ConfigError where there are fewer devices, or not all of several hosts are used."""
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


def check_divides(num_devices: int, name: str, size: int) -> None:
    """Raises ConfigError where the devices can't share something evenly."""
    if size % num_devices:
        raise ConfigError(f"{name}: got {size}, expected a multiple of num_devices={num_devices}")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Devices:
    """The D devices that a run is spread over, as each of them sees them: collectives by name.

    Every method works leaf by leaf. Of one device there are no others: what comes in comes out.
    """

    count: int = 1

    def mean(self, tree: PyTree) -> PyTree:
        """Mean over the devices."""
        return jax.tree.map(self.part, self.sum(tree))

    def sum(self, tree: PyTree) -> PyTree:
        """Sum over the devices."""
        if self.count == 1:
            return tree
        # On a CPU they wait for each other once for every array: all of a kind make one.
        leaves, structure = jax.tree.flatten(tree)
        leaves = [jnp.asarray(leaf) for leaf in leaves]
        for dtype in {leaf.dtype: None for leaf in leaves}:
            places = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
            vector, unravel = ravel_pytree([leaves[i] for i in places])
            for i, total in zip(places, unravel(jax.lax.psum(vector, AXIS)), strict=True):
                leaves[i] = total
        return jax.tree.unflatten(structure, leaves)

    def part(self, x: jax.Array) -> jax.Array:
        """x / D: of a total, what each device contributes on average."""
        return x if self.count == 1 else x / self.count

    def min(self, tree: PyTree) -> PyTree:
        """Minimum over the devices."""
        return tree if self.count == 1 else jax.lax.pmin(tree, AXIS)

    def all(self, x: jax.Array) -> jax.Array:
        """Whether it is true on all devices."""
        return x if self.count == 1 else jax.lax.pmin(x.astype(jnp.int32), AXIS) > 0

    def first(self, tree: PyTree) -> PyTree:
        """The first device's, on all."""
        if self.count == 1:
            return tree
        is_first = jax.lax.axis_index(AXIS) == 0
        mine = jax.tree.map(lambda x: jnp.where(is_first, x, jnp.zeros_like(x)), tree)
        return jax.tree.map(lambda total, x: total.astype(x.dtype), self.sum(mine), tree)

    def key(self, key: jax.Array) -> jax.Array:
        """A different key on each device, from one that all have."""
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
    """Joins the processes of several hosts, before anything of JAX is used; each then sees the
    devices of all.

    Every process runs the same script, and trains with `num_devices=jax.device_count()`. Without
    arguments JAX finds the others by itself under SLURM, Open MPI, Kubernetes and on Cloud TPUs.
    A process that dies takes the others down with an error, after `heartbeat_seconds` at the
    latest or a little more.

    Args:
        coordinator: `"address:port"` of process 0, the same in all.
        num_processes: how many there are.
        process_id: which one this is, from 0.
        heartbeat_seconds: silence after which a process counts as dead.
        connect_seconds: how long to wait for the others at the start.

    Raises:
        ConfigError: some of the first three arguments are given and others aren't, or none is and
            nothing is found.
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
    """Whether this process is the one that writes files and talks, of several hosts' or alone."""
    return jax.process_index() == 0


def of_all_hosts(*values: float) -> np.ndarray:
    """`[hosts, values]` float64, what every process has called it with; all have to."""
    if jax.process_count() == 1:
        return np.array([values], np.float64)
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(np.array(values, np.float32)), np.float64)


def wait_for_all_hosts(name: str) -> None:
    """Comes back once every process has called it, with the same name."""
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import sync_global_devices

        sync_global_devices(name)
