"""Folders of runs and sweeps: which ones may be written to, and how a process locks one.

A folder may be used if it is new or empty, or if it contains the marker, a file that only a run (or
a sweep) writes. Every other folder is the user's and is never changed. Inside a folder nothing is
written through a symbolic link, whose target could be anywhere.
"""

import contextlib
import errno
import os
import re
import stat
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from purerl.records.errors import ConfigError, RunError
from purerl.records.files import reason

LOCK = "lock"
# A run's subfolders, which may be left empty by a kill before the marker is written.
EMPTY = ("checkpoints", "metrics")
# The error codes of file systems without locks.
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


def is_taken(path: Path, marker: str, kind: str) -> bool:
    """Whether a folder belongs to a run (or sweep) already; False if it is new or empty. Nothing
    is changed.

    Args:
        path: the folder.
        marker: the file by which such folders are recognised.
        kind: "run", "sweep" or "search".

    Raises:
        ConfigError: it has other files in it, or is no folder.
        RunError: it can't be read, or the marker of a run is missing.
    """
    try:
        names = sorted(os.listdir(path))
    except FileNotFoundError:
        if path.is_symlink():
            raise ConfigError(f"run_dir: {path} is a link to nowhere") from None
        return False
    except NotADirectoryError:
        if not path.exists():  # a parent is a file: creating the folder raises the error
            return False
        raise ConfigError(f"run_dir: {path} is a file, expected a folder") from None
    except OSError as error:
        raise RunError(f"run_dir: can't read {path}: {reason(error)}") from None
    if marker in names:
        return True
    foreign = [name for name in names if not _is_rest(path / name, marker)]
    lost = [name for name in EMPTY if name in foreign]
    if lost and {LOCK, *EMPTY} <= set(names) - set(foreign) | set(lost):
        raise RunError(
            f"{path} has {lost[0]} but no {marker}: what they are of is not known; nothing was "
            "changed: put it back, or choose another folder"
        )
    if foreign:
        raise ConfigError(
            f"run_dir: {path} is no {kind}'s folder: it has {foreign[0]!r}, and no {marker}; "
            "expected an empty or new one (nothing was changed)"
        )
    return False


def _is_rest(path: Path, marker: str) -> bool:
    """Whether a path may be left by a run that was killed at its start: an empty lock or folder, or
    a partial marker."""
    found = path.lstat()
    if path.name == LOCK:
        return stat.S_ISREG(found.st_mode) and found.st_size == 0
    if path.name in EMPTY:
        return stat.S_ISDIR(found.st_mode) and not os.listdir(path)
    return re.fullmatch(rf"\.{re.escape(marker)}\.\d+\.partial", path.name) is not None


def list_checkpoints(run_dir: Path) -> list[int]:
    """The update numbers of a run's complete checkpoints, in order; other files are ignored.

    Raises:
        OSError: the folder can't be listed.
    """
    try:
        names = [path.name for path in (run_dir / EMPTY[0]).iterdir() if path.is_dir()]
    except FileNotFoundError:
        return []
    return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]{0,17}", name))


def refuse_links(path: Path, files: Iterable[str], folders: Iterable[str]) -> None:
    """Checks that the files and folders to be written don't exist, or are regular ones.

    Args:
        path: the folder that contains them.
        files: names of files.
        folders: names of folders.

    Raises:
        RunError: one is a symbolic link, or of another type. Nothing was changed.
    """
    for names, is_right, noun in ((files, stat.S_ISREG, "file"), (folders, stat.S_ISDIR, "folder")):
        for name in names:
            try:
                mode = (path / name).lstat().st_mode
            except OSError:  # missing; or writing it raises the error
                continue
            if stat.S_ISLNK(mode):
                target = _target(path / name)
                raise RunError(
                    f"{path / name} is a link to {target}, expected a {noun}: nothing is written "
                    "through a link, and nothing was changed"
                )
            if not is_right(mode):
                raise RunError(f"{path / name} is no {noun}; nothing was changed")


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return "somewhere else"


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Holds a lock, which the system releases however the process ends.

    The file is created if it doesn't exist, and never written to.

    Args:
        file: the lock's, in the folder that is locked.

    Raises:
        RunError: another process, or another thread of this one, holds it; or it is a link.
        OSError: the file can't be created.
    """
    from filelock import lock_descriptor  # imported late: only runs that save need it

    refuse_links(file.parent, [file.name], [])
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(file, flags, 0o666)
    try:
        try:
            held = lock_descriptor(descriptor, blocking=False)
            if not held:  # `is_locked` may just be looking, for microseconds
                time.sleep(0.05)
                held = lock_descriptor(descriptor, blocking=False)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            warnings.warn(
                f"run_dir: the file system of {file.parent} knows no locks: nothing keeps two "
                "processes from training there at once",
                stacklevel=2,
            )
            held = True
        if not held:
            raise RunError(
                f"run_dir: another process is training in {file.parent} (or another thread of this "
                "one)"
            )
        yield
    finally:
        os.close(descriptor)  # which releases the lock


def is_locked(file: Path) -> bool:
    """Whether a process holds a lock. Nothing is created or written; False where that can't be
    known."""
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # which others may do at once
    except BlockingIOError:
        return True
    except OSError:
        return False
    else:
        return False
    finally:
        os.close(descriptor)
