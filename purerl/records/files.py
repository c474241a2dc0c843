"""Files that are written whole or not at all, and checked when they are read."""

import errno
import hashlib
import io
import itertools
import json
import os
import re
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import jax
import numpy as np
from jax.typing import ArrayLike

from purerl.records.errors import RunError
from purerl.records.types import Plain, PyTree

# The exceptions that numpy raises for a damaged npz file.
DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
# The name of the digest among plain values, and the archive member that describes the others.
SEAL, ABOUT = "checksum", "about"
# The largest text file that is read (a config, a summary, the description of a run), in bytes.
MOST_TEXT = 2**26
KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """A regular file, opened to read bytes; symbolic links are followed.

    Pipes and devices are refused: reading a pipe could block forever.

    Raises:
        OSError: it can't be read, or is no regular file; `reason` gives the message.
    """
    try:
        mode = os.stat(path).st_mode
    except ValueError:
        raise OSError(errno.EINVAL, "it has a null byte", os.fspath(path)) from None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, expected a file", os.fspath(path))
    return open(path, "rb")


def read_text(path: str | os.PathLike[str], most: int = MOST_TEXT) -> str:
    """The text of a regular file, UTF-8.

    Args:
        path: of the file.
        most: the largest size, in bytes.

    Raises:
        OSError: as from `open_file`, or the file is larger.
        ValueError: it isn't UTF-8.
    """
    with open_file(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", os.fspath(path))
    return data.decode()


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file atomically: whole or not at all, even after a power failure."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.unlink(missing_ok=True)  # left by a killed process, or a link
        with partial.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes | bytearray | memoryview, what: str) -> None:
    """Writes bytes as `write_whole` does. Raises RunError, which names `what` and the reason."""
    try:
        write_whole(path, lambda file: file.write(data))
    except OSError as error:
        raise RunError(f"{what} can't be written to {path}: {reason(error)}") from None


def put_aside(path: Path) -> Path:
    """Renames a file or folder that is replaced but must not be lost; returns the new path."""
    for number in itertools.count(1):
        to = path.with_name(f"{path.name}.aside" + (f"-{number}" if number > 1 else ""))
        if not to.exists():
            path.rename(to)
            return to
    raise AssertionError


def by_path(tree: PyTree) -> dict[str, PyTree]:
    """The leaves of a pytree by their path, such as `agent.params.kernel`.

    The names are unique in every tree: characters that would make two paths equal, or that file
    names don't allow, are percent-encoded (`%2E`).
    """
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    names = [".".join(map(_step_name, path)) for path, _ in paths]
    # Keys of a user's classes may have the same text.
    repeated = {name for name, count in Counter(names).items() if count > 1}
    return {
        f"{name}%{i}" if name in repeated else name: leaf
        for i, (name, (_, leaf)) in enumerate(zip(names, paths, strict=True))
    }


def _step_name(key: object) -> str:
    text = jax.tree_util.keystr((key,), simple=True)
    return re.sub(r"[^\w -]", lambda found: _percent(found[0]), text) or "%"


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def digest(x: np.ndarray) -> str:
    """A digest of an array's dtype, shape and bits: 32 hexadecimal digits."""
    sum_of = hashlib.blake2b(f"{x.dtype}{list(x.shape)}".encode(), digest_size=16)
    sum_of.update(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)
    return sum_of.hexdigest()


def sealed(values: Mapping[str, Plain]) -> dict[str, Plain]:
    """Plain values with a digest of them added, for `unsealed`."""
    return {**values, SEAL: seal_of(values)}


def unsealed(text: str | bytes) -> dict[str, Plain]:
    """The values from a JSON text of `sealed` values.

    Raises:
        ValueError: it isn't JSON, or the digest is missing or doesn't match.
    """
    values = plain_json(text)
    if not isinstance(values, dict) or SEAL not in values:
        raise ValueError("it has no checksum")
    return checked(values)


def plain_json(text: str | bytes) -> Plain:
    """The values from a JSON text. Raises ValueError if it isn't JSON."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(str(error)) from None


def checked(values: Mapping[str, Plain]) -> dict[str, Plain]:
    """Plain values without their checksum, which is compared; a file without one is accepted.

    Raises:
        ValueError: they don't match it.
    """
    rest = {name: x for name, x in values.items() if name != SEAL}
    if SEAL in values and values[SEAL] != seal_of(rest):
        raise ValueError("its contents don't match their checksum")
    return rest


def seal_of(values: Mapping[str, Plain]) -> str:
    """A digest of plain values: 32 hexadecimal digits."""
    text = json.dumps(json.loads(json.dumps(values)), sort_keys=True)  # as a reader gets them
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def write_arrays(
    file: BinaryIO, about: Mapping[str, Plain], arrays: Mapping[str, ArrayLike]
) -> None:
    """Writes a NumPy archive (`.npz`) with a description and checksums.

    Args:
        file: opened for writing.
        about: the description, plain values.
        arrays: by name, of numpy's built-in dtypes (`plain_bytes`).
    """
    digests = {name: digest(np.asarray(x)) for name, x in arrays.items()}
    text = json.dumps(sealed({**about, "arrays": digests}))
    members = {ABOUT: np.frombuffer(text.encode(), np.uint8), **arrays}
    with zipfile.ZipFile(file, "w") as archive:
        for name, x in members.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(x), allow_pickle=False)


def read_arrays(path: Path) -> tuple[dict[str, Plain], dict[str, np.ndarray]]:
    """The description and the arrays by name, from a file of `write_arrays`.

    Memory use is at most twice the size of the file.

    Raises:
        OSError: the file can't be read.
        ValueError: it is damaged, or another kind of file.
    """
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            about = unsealed(_read_array(archive, ABOUT).tobytes())
            digests = about.pop("arrays")
            if {f"{name}.npy" for name in (ABOUT, *digests)} != set(archive.namelist()):
                raise ValueError("it has other arrays than were written")
            arrays = {name: _read_array(archive, name) for name in digests}
    except OSError:
        raise
    except Exception as error:  # zipfile and numpy raise many kinds
        raise ValueError(reason(error)) from None
    for name, x in arrays.items():
        if digest(x) != digests[name]:
            raise ValueError(f"{name} doesn't match its checksum")
    return about, arrays


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    if archive.getinfo(f"{name}.npy").compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    # Read to the end, where zipfile compares its CRC, before numpy trusts the header.
    stream = io.BytesIO(archive.read(f"{name}.npy"))
    return np.lib.format.read_array(stream, allow_pickle=False)


def plain_bytes(x: np.ndarray) -> np.ndarray:
    """The array in a built-in numpy dtype: archives can't store bfloat16 and similar types."""
    return x if x.dtype.isbuiltin == 1 else x.view(f"u{x.dtype.itemsize}")


def counted(number: int, noun: str) -> str:
    """A number and its noun: `1 seed`, `8 seeds`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def reason(error: BaseException) -> str:
    """An error in one line: the operating system's message, or else the exception's."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
