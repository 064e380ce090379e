"""Decoded clips on disk, so that a data set is decoded once and mapped into memory after that.

A cache entry is a folder ``clips-<key>`` with ``pcm.i16`` (rows of one window of little-endian samples) and
``index.json``. It is written under another name and renamed when complete: a kill leaves no half entry, and of two
processes that decode at once one throws its work away.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import platformdirs

from edge.errors import DataError
from firmware_models.data.audio import LONGEST_CLIP_S, RATE_HZ, WINDOW_SAMPLES, decode
from firmware_models.data.layout import BACKGROUND, LABELS, SILENCE, SPLITS, Entry, Layout
from firmware_models.data.recording import LONGEST_RECORDING_S, SHORTEST_REST, cut, decode_recording
from firmware_models.data.silence import SHARE, STRETCHES, read_noises, silence_clips
from firmware_models.progress import Progress

_FORMAT = 2
_PCM, _INDEX = "pcm.i16", "index.json"


def cache_folder() -> Path:
    """Where what can be made again is kept: ``EARSHOT_CACHE``, or the user's cache folder."""
    chosen = os.environ.get("EARSHOT_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("earshot"))


def open_cache(
    layout: Layout, window_samples: int = WINDOW_SAMPLES, *, progress: Progress
) -> tuple[npt.NDArray[np.int16], dict[str, Any]]:
    """Decode the clips of ``layout`` unless that has been done.

    Returns:
        pcm int16 (n, window_samples), mapped read-only, ordered train, validation, test; and the index: ``rows`` with a
        list ``[path, speaker, label]`` per clip, ``splits`` with ``[first, last + 1]`` per split, ``skipped``.

    Raises:
        DataError: the cache folder cannot be written.
    """
    folder = cache_folder() / f"clips-{_key(layout, window_samples)}"
    if not (folder / _INDEX).is_file():
        try:
            _write(folder, layout, window_samples, progress)
        except OSError as error:
            raise DataError(
                f"{folder}: decoded clips cannot be kept here ({error.strerror}); set EARSHOT_CACHE to a folder "
                f"with {len(layout.entries) * window_samples * 2 / 1e6:.0f} MB of space"
            ) from None
    index: dict[str, Any] = json.loads((folder / _INDEX).read_text())
    rows = len(index["rows"])
    if rows == 0:
        return np.zeros((0, window_samples), np.int16), index
    return np.memmap(folder / _PCM, dtype="<i2", mode="r", shape=(rows, window_samples)), index


def _key(layout: Layout, window_samples: int) -> str:
    """A hash of everything that the content of the cache follows from."""
    digest = hashlib.sha256()
    settings: list[Any] = [_FORMAT, RATE_HZ, window_samples, LONGEST_CLIP_S, LABELS, SHARE, STRETCHES]
    if layout.kind == "classes":
        labels = [(entry.label, entry.speaker) for entry in layout.entries]
        settings = [_FORMAT, RATE_HZ, window_samples, LONGEST_RECORDING_S, SHORTEST_REST, labels]
    digest.update(json.dumps([str(layout.root.resolve()), settings]).encode())
    for entry in layout.entries:
        digest.update(f"{entry.path}\0{entry.split}\0{entry.size_bytes}\0{entry.mtime_ns}\n".encode())
    for noise in layout.noises:
        stat = noise.stat()
        digest.update(f"{noise.name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:24]


def _write(folder: Path, layout: Layout, window_samples: int, progress: Progress) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
    try:
        index = _decode_into(unfinished / _PCM, layout, window_samples, progress)
        with (unfinished / _INDEX).open("w") as file:
            json.dump(index, file)
            file.flush()
            os.fsync(file.fileno())
        try:
            unfinished.rename(folder)
        except OSError:
            if not (folder / _INDEX).is_file():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _decode_into(path: Path, layout: Layout, window_samples: int, progress: Progress) -> dict[str, Any]:
    rows: list[tuple[str, str, str]] = []
    skipped: dict[str, str] = {}
    splits: dict[str, tuple[int, int]] = {}
    done, total = 0, len(layout.entries)
    with path.open("wb") as file:
        for split in SPLITS:
            first = len(rows)
            for entry in (e for e in layout.entries if e.split == split):
                done += 1
                progress(done, total, "decoding")
                for name, pcm in _decode_or_skip(layout, entry, window_samples, skipped):
                    file.write(pcm.astype("<i2").tobytes())
                    rows.append((name, entry.speaker, entry.label))
            noises, unreadable = read_noises(layout.noises, split, window_samples)
            skipped.update({item.path: item.reason for item in unreadable})
            commands = sum(label in LABELS[:10] for _, _, label in rows[first:])
            silence, names = silence_clips(noises, split=split, commands=commands, window_samples=window_samples)
            file.write(silence.astype("<i2").tobytes())
            rows.extend((name, BACKGROUND, SILENCE) for name in names)
            splits[split] = (first, len(rows))
        file.flush()
        os.fsync(file.fileno())
    return {"rows": rows, "splits": splits, "skipped": list(skipped.items())}


def _decode_or_skip(
    layout: Layout, entry: Entry, window_samples: int, skipped: dict[str, str]
) -> list[tuple[str, npt.NDArray[np.int16]]]:
    """Name and PCM of the clips in a file; a clip of several is named ``file@start_sample``."""
    path = layout.root / entry.path
    try:
        if layout.kind == "words":
            return [(entry.path, decode(path, window_samples))]
        pieces = cut(decode_recording(path).pcm, window_samples)
    except DataError as error:
        skipped[entry.path] = str(error).removeprefix(f"{path}: ")
        return []
    if len(pieces) == 1:
        return [(entry.path, pieces[0])]
    return [(f"{entry.path}@{row * window_samples}", piece) for row, piece in enumerate(pieces)]
