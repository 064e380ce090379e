"""Replacing files so that a power cut leaves the old or the new one, never half of either."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def replace(finished: Path, path: Path) -> None:
    """Put ``finished`` in the place of ``path`` durably: synchronise, rename, synchronise the folder."""
    synchronise(finished)
    finished.replace(path)
    synchronise(path.parent)


def write(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` durably and atomically; its folder is made if absent."""
    make_folder(path.parent)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(content)
        replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file durably, if it is there."""
    try:
        path.unlink()
    except FileNotFoundError:
        return
    synchronise(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder and what is missing above it, durably."""
    if path.is_dir():
        return
    make_folder(path.parent)
    try:
        path.mkdir(exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from None
    synchronise(path.parent)


def synchronise(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
