"""Responses that took long are kept in the user's cache folder under a hash of everything that they follow from."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import numpy as np

from firmware_models.data.cache import cache_folder
from rig.rooms.directivity import Placement
from rig.rooms.responses import Responses
from rig.rooms.space import Space

# To be raised when the same scene would give other responses.
_FORMAT = 1
WORTH_KEEPING_S = 0.05
MAX_BYTES = 2 * 1024**3


def key(space: Space, sources: Mapping[str, Placement], devices: Mapping[str, Placement], rate_hz: int) -> str:
    """A hash of a scene: equal for equal responses only."""
    content = [
        _FORMAT,
        # Its materials, its filters and its rays.
        metadata.version("pyroomacoustics"),
        rate_hz,
        space.model_dump(mode="json"),
        [(name, placement.model_dump(mode="json")) for name, placement in sources.items()],
        [(name, placement.model_dump(mode="json")) for name, placement in devices.items()],
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def find(scene: str) -> Responses | None:
    """The responses that were kept under a key, None if there are none or they cannot be read."""
    path = _folder() / f"{scene}.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            array, onset = stored["array"], stored["onset_sample"]
            head = json.loads(str(stored["head"]))
        os.utime(path)
        if array.dtype != np.float32 or array.ndim != 3 or onset.shape != array.shape[:2]:
            return None
        array.flags.writeable = False
        return Responses(
            array=array,
            onset_sample=onset.astype(np.float64),
            rate_hz=int(head["rate_hz"]),
            devices=tuple(head["devices"]),
            sources=tuple(head["sources"]),
            facts=dict(head["facts"]),
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None


def timed(scene: str, compute: Callable[[], Responses]) -> Responses:
    """Compute responses and keep them if that took long. A folder that cannot be written keeps nothing."""
    began = time.monotonic()
    responses = compute()
    if time.monotonic() - began > WORTH_KEEPING_S and responses.array.nbytes < MAX_BYTES // 4:
        with suppress(OSError):
            _write(scene, responses)
    return responses


def _write(scene: str, responses: Responses) -> None:
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    head = {
        "rate_hz": responses.rate_hz,
        "devices": responses.devices,
        "sources": responses.sources,
        "facts": responses.facts,
    }
    number, name = tempfile.mkstemp(prefix=".unfinished-", dir=folder)
    unfinished = Path(name)
    try:
        with os.fdopen(number, "wb") as file:
            np.savez(file, array=responses.array, onset_sample=responses.onset_sample, head=np.array(json.dumps(head)))
        unfinished.replace(folder / f"{scene}.npz")
    finally:
        unfinished.unlink(missing_ok=True)
    _make_room(folder)


def _make_room(folder: Path) -> None:
    """Drop what was not used for longest beyond ``MAX_BYTES``, and what a killed process left."""
    files = []
    for path in folder.iterdir():
        with suppress(OSError):
            stat = path.stat()
            if path.name.startswith(".unfinished-") and time.time() - stat.st_mtime > 3600:
                path.unlink()
            elif path.suffix == ".npz":
                files.append((stat.st_mtime, stat.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= MAX_BYTES:
            break
        path.unlink(missing_ok=True)
        total -= size


def _folder() -> Path:
    return cache_folder() / "rooms"
