"""Checkpoints of a state: its arrays by orbax, with a digest of each.

    state/              the arrays
    about/host-0.json   a description, and a digest of each shard of each array; each of several
                        hosts writes those of the shards that it saves

Orbax and the formats under it have checksums of their indexes, not of the arrays. Here every bit of
every array is covered: the digest is that of the memory before saving, and is compared with that of
the memory after reading. Digests are of shards (a replicated array is one), so that no host has to
have the arrays of another.
"""

import concurrent.futures
import contextlib
import dataclasses
import gc
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from purerl.accelerator.transfer import is_key
from purerl.records.files import by_path, digest, read_text, reason, sealed, unsealed, write_whole
from purerl.records.types import Plain, PyTree

ABOUT, STATE = "about", "state"
# Suffix of an incomplete checkpoint's folder.
PARTIAL = ".orbax-checkpoint-tmp"


class DamageError(ValueError):
    """The files differ from those that were written, or can't be read."""


class Writer:
    """Writes states in the background, one after the other."""

    def __init__(self) -> None:
        self._checkpointer: ocp.AsyncCheckpointer | None = None
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._writing: concurrent.futures.Future | None = None

    @property
    def busy(self) -> bool:
        """Whether a state is still being written."""
        return self._writing is not None and not self._writing.done()

    def start(self, path: Path, state: PyTree, about: Mapping[str, Plain]) -> None:
        """Starts to write a state into a new folder, which appears once it is complete.

        Args:
            path: the folder.
            state: arrays, which must not be changed or donated before `wait`.
            about: plain values, saved with it.
        """
        self.wait()
        leaves = by_path(state)
        about = {**about, "state": shapes(leaves), "hosts": jax.process_count()}
        args: dict[str, ocp.args.CheckpointArgs] = {}
        arrays = {name: x for name, x in leaves.items() if x.size}  # orbax takes no empty ones
        if arrays:
            args[STATE] = ocp.args.StandardSave(arrays)
        args[ABOUT] = _DigestArgs(about, arrays)
        if self._checkpointer is None:
            self._checkpointer = _checkpointer()
        self._checkpointer.save(path, args=ocp.args.Composite(**args))
        self._writing = self._pool.submit(self._checkpointer.wait_until_finished)

    def wait(self) -> None:
        """Blocks until all is written; raises the errors of writing."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Waits, and ignores errors."""
        with contextlib.suppress(Exception):
            self.wait()
        with contextlib.suppress(Exception):
            if self._checkpointer is not None:
                self._checkpointer.close()
        self._pool.shutdown()


def _checkpointer() -> ocp.AsyncCheckpointer:
    options = ocp.AsyncOptions(create_directories_asynchronously=False)
    composite = ocp.CompositeOptions(async_options=options)
    handler = ocp.CompositeCheckpointHandler(composite_options=composite)
    return ocp.AsyncCheckpointer(handler, async_options=options)


def shapes(leaves: Mapping[str, jax.Array]) -> dict[str, str]:
    """Dtypes and shapes of leaves, in words."""
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in leaves.items()}


def read_about(path: Path, host: int = 0) -> dict[str, Plain]:
    """The values `about` of `Writer.start`, and with them:

        state    dtypes and shapes of the arrays
        hosts    number of hosts that wrote it
        digests  of the shards that this host wrote

    Raises:
        DamageError: it can't be read.
    """
    file = path / ABOUT / f"host-{host}.json"
    try:
        return unsealed(read_text(file))
    except (OSError, ValueError) as error:
        raise DamageError(f"{ABOUT}/{file.name}: {reason(error)}") from None


def read_state(path: Path, like: PyTree) -> PyTree:
    """A state that was written, bit for bit.

    Args:
        path: its folder.
        like: the shapes from `read_about`, with shardings.

    Raises:
        DamageError: it can't be read, or a digest differs.
    """
    wanted = by_path(like)
    digests = _digests(path)
    leaves = {name: _empty(x) for name, x in wanted.items() if not x.size}
    arrays = {name: x for name, x in wanted.items() if x.size}
    damage = None
    with _silent():
        try:
            if arrays:
                reader = ocp.Checkpointer(ocp.StandardCheckpointHandler())
                leaves |= reader.restore(path / STATE, args=ocp.args.StandardRestore(arrays))
        except Exception as error:  # orbax and its readers raise errors of every type
            damage = f"{type(error).__name__}: {reason(error)}"
        for _ in range(5 if damage else 0):  # until the readers of the other arrays have ended
            gc.collect()
            time.sleep(0.1)
    if damage is not None:
        raise DamageError(damage)
    for name, x in arrays.items():
        # Keys may differ: orbax has their type in another file.
        if (leaves[name].dtype, leaves[name].shape) != (x.dtype, x.shape):
            raise DamageError(f"{name} is no {x.dtype}{list(x.shape)}")
        for part, host_array in _parts(leaves[name], written_here=False):
            if digests.get(name, {}).get(part) != digest(host_array):
                raise DamageError(f"{name} doesn't match its checksum")
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in wanted])


def _digests(path: Path) -> dict[str, dict[str, str]]:
    """Digests of all hosts, by array and shard."""
    first = read_about(path)
    found = first["digests"]
    for host in range(1, first["hosts"]):
        for name, parts in read_about(path, host)["digests"].items():
            found.setdefault(name, {}).update(parts)
    return found


def _parts(x: jax.Array, *, written_here: bool) -> Iterator[tuple[str, np.ndarray]]:
    """Shards of an array on this host's devices, by their index ranges.

    Args:
        x: the array; of keys the data are taken.
        written_here: only the shards that this host writes.
    """
    array = jax.random.key_data(x) if is_key(x) else jnp.asarray(x)
    for shard in array.addressable_shards:
        if shard.replica_id == 0 or not written_here:
            ranges = zip(shard.index, array.shape, strict=True)
            bounds = (cut.indices(size)[:2] for cut, size in ranges)
            yield ",".join(f"{low}:{high}" for low, high in bounds), np.asarray(shard.data)


def _empty(like: jax.ShapeDtypeStruct) -> jax.Array:
    """An array without elements, with the sharding of `like`."""
    zeros = jax.jit(lambda: jnp.zeros(like.shape, like.dtype), out_shardings=like.sharding)
    return zeros()


class _DigestHandler(ocp.AsyncCheckpointHandler):
    """An orbax handler that writes the digests beside the arrays, in the same operation."""

    async def async_save(
        self, directory: os.PathLike, args: "_DigestArgs"
    ) -> list[concurrent.futures.Future]:
        """Copies the arrays to the host, and starts a thread that writes their digests."""
        for x in args.leaves.values():  # all copies start before the first is awaited
            if not is_key(x) and isinstance(x, jax.Array):
                x.copy_to_host_async()
        parts = {name: dict(_parts(x, written_here=True)) for name, x in args.leaves.items()}
        pool = concurrent.futures.ThreadPoolExecutor(1)
        written = pool.submit(_write_digests, Path(os.fspath(directory)), args.about, parts)
        pool.shutdown(wait=False)
        return [written]

    def save(self, directory: os.PathLike, args: "_DigestArgs") -> None:
        """Required by the base class; not used."""
        raise NotImplementedError

    def restore(self, directory: os.PathLike, args: object = None) -> None:
        """Required by the base class; `read_about` reads."""
        raise NotImplementedError


@ocp.args.register_with_handler(_DigestHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class _DigestArgs(ocp.args.CheckpointArgs):
    about: Mapping[str, Plain]
    leaves: Mapping[str, jax.Array]


def _write_digests(
    directory: Path, about: Mapping[str, Plain], parts: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
    digests = {
        name: {part: digest(x) for part, x in of_leaf.items()} for name, of_leaf in parts.items()
    }
    # Each host writes the whole description; that of the first is read.
    text = json.dumps(sealed({**about, "digests": digests}))
    file = directory / f"host-{jax.process_index()}.json"
    write_whole(file, lambda opened: opened.write(text.encode()))


def _no_reader(record: logging.LogRecord) -> bool:
    """Whether a log record of asyncio isn't about tensorstore's readers."""
    return "tensorstore" not in record.getMessage()


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Suppresses the messages of readers that end after another array's failure has closed their
    event loop."""
    logging.getLogger("asyncio").addFilter(_no_reader)  # for good, since some end later
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    finally:
        sys.unraisablehook = hook
