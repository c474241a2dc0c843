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
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

from purerl.records.errors import RunError

# What numpy raises where an npz file is not what it was.
DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
# Where plain values have their digest, and the member of an archive with what it is of.
SEAL, ABOUT = "checksum", "about"
# Bytes of a file of text (a config, a summary, the description of a run), at most.
MOST_TEXT = 2**26
KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """A regular file, opened to be read in bytes; links to one are followed.

    Of a pipe, which would be waited for without end, or a device it reads nothing.

    Raises:
        OSError: it can't be read, or is no regular file; `reason` has it in words.
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
        path: which.
        most: bytes that it may have.

    Raises:
        OSError: as from `open_file`, or there is more of it.
        ValueError: it isn't UTF-8.
    """
    with open_file(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", os.fspath(path))
    return data.decode()


def write_whole(path: Path, write: Any) -> None:
    """Writes a file that is there whole or not at all, even after a power cut."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.unlink(missing_ok=True)  # of a process that was killed, or a link to anything
        with partial.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: Any, what: str) -> None:
    """Writes bytes as `write_whole` does. Raises RunError: what couldn't be written, and why."""
    try:
        write_whole(path, lambda file: file.write(data))
    except OSError as error:
        raise RunError(f"{what} can't be written to {path}: {reason(error)}") from None


def put_aside(path: Path) -> Path:
    """Renames what isn't used any more and isn't to be lost; returns its new name."""
    for number in itertools.count(1):
        to = path.with_name(f"{path.name}.aside" + (f"-{number}" if number > 1 else ""))
        if not to.exists():
            path.rename(to)
            return to
    raise AssertionError


def by_path(tree: Any) -> dict[str, Any]:
    """A pytree's leaves by their path in it, such as `agent.params.kernel`.

    Each leaf has a name of its own, for every tree: characters that would make two paths alike, or
    that files don't take, are written as `%2E`.
    """
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    names = [".".join(map(_step_name, path)) for path, _ in paths]
    # Keys of a user's classes may print alike.
    repeated = {name for name, count in Counter(names).items() if count > 1}
    return {
        f"{name}%{i}" if name in repeated else name: leaf
        for i, (name, (_, leaf)) in enumerate(zip(names, paths, strict=True))
    }


def _step_name(key: Any) -> str:
    text = jax.tree_util.keystr((key,), simple=True)
    return re.sub(r"[^\w -]", lambda found: _percent(found[0]), text) or "%"


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def digest(x: np.ndarray) -> str:
    """32 hexadecimal digits that follow from an array's dtype, shape and every one of its bits."""
    sum_of = hashlib.blake2b(f"{x.dtype}{list(x.shape)}".encode(), digest_size=16)
    sum_of.update(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)
    return sum_of.hexdigest()


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values together with a digest of them, for `unsealed`."""
    return {**values, SEAL: seal_of(values)}


def unsealed(text: str | bytes) -> dict[str, Any]:
    """The values of a JSON text that was written of `sealed` ones.

    Raises:
        ValueError: it is no JSON, or not what was written.
    """
    values = plain_json(text)
    if not isinstance(values, dict) or SEAL not in values:
        raise ValueError("it has no checksum")
    return checked(values)


def plain_json(text: str | bytes) -> Any:
    """The values of a JSON text. Raises ValueError where it is none."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(str(error)) from None


def checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values without their checksum; those of a file that has none are as good as they are.

    Raises:
        ValueError: they don't match it.
    """
    rest = {name: x for name, x in values.items() if name != SEAL}
    if SEAL in values and values[SEAL] != seal_of(rest):
        raise ValueError("its contents don't match their checksum")
    return rest


def seal_of(values: Mapping[str, Any]) -> str:
    """32 hexadecimal digits that follow from plain values."""
    text = json.dumps(json.loads(json.dumps(values)), sort_keys=True)  # as they come back
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def write_arrays(file: BinaryIO, about: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Writes a NumPy archive (`.npz`) that says what it is, and by which damage shows.

    Args:
        file: opened.
        about: plain values.
        arrays: by name, of numpy's own dtypes (`plain_bytes`).
    """
    digests = {name: digest(np.asarray(x)) for name, x in arrays.items()}
    text = json.dumps(sealed({**about, "arrays": digests}))
    members = {ABOUT: np.frombuffer(text.encode(), np.uint8), **arrays}
    with zipfile.ZipFile(file, "w") as archive:
        for name, x in members.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(x), allow_pickle=False)


def read_arrays(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `write_arrays` has written: `about`, and the arrays by name.

    No more memory is taken than twice what the file has.

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
    except Exception as error:  # zipfile and numpy raise of every kind
        raise ValueError(reason(error)) from None
    for name, x in arrays.items():
        if digest(x) != digests[name]:
            raise ValueError(f"{name} doesn't match its checksum")
    return about, arrays


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    if archive.getinfo(f"{name}.npy").compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    # Read to its end, where its check sum is compared, before numpy believes a header.
    stream = io.BytesIO(archive.read(f"{name}.npy"))
    return np.lib.format.read_array(stream, allow_pickle=False)


def plain_bytes(x: np.ndarray) -> np.ndarray:
    """An array of one of numpy's own types: archives keep no bfloat16 and its like."""
    return x if x.dtype.isbuiltin == 1 else x.view(f"u{x.dtype.itemsize}")


def counted(number: int, noun: str) -> str:
    """`1 seed`, `8 seeds`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def reason(error: BaseException) -> str:
    """An error in one line; the system's own word where it has one."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
