"""Folders compared."""

import os


def contents(folder):
    """All that is in a folder, by relative path: bytes, links as links, and None for folders."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in sorted(folder.rglob("*"))
    }
