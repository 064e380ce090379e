"""Replacing files so that a power cut leaves the old or the new one, never half of either."""

from __future__ import annotations

import os
from pathlib import Path


def replace(finished: Path, path: Path) -> None:
    """Put ``finished`` in the place of ``path`` durably: synchronise, rename, synchronise the folder."""
    _synchronise(finished)
    finished.replace(path)
    _synchronise(path.parent)


def write(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` durably and atomically; its folder is made if absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(content)
        replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
