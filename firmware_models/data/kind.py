"""Which layout a folder has: that of Speech Commands, or a folder per class."""

from __future__ import annotations

from pathlib import Path

from edge.errors import DataError
from firmware_models.data.audio import RATE_HZ, WINDOW_SAMPLES
from firmware_models.data.classes import scan_classes
from firmware_models.data.layout import BACKGROUND, COMMANDS, LISTS, Layout, scan

# Recordings of scenes and sounds are cut into pieces of 3 s, as the paper does.
CHUNK_SAMPLES = 3 * RATE_HZ


def scan_any(root: Path) -> Layout:
    """Read the folder's names, not its audio, whatever its layout is.

    Raises:
        DataError: no such folder, or no data set.
    """
    return scan(root) if not root.is_dir() or is_words(root) else scan_classes(root)


def usual_window(layout: Layout) -> int:
    """The length in samples of a clip where nobody asks for another."""
    return WINDOW_SAMPLES if layout.kind == "words" else CHUNK_SAMPLES


def is_words(root: Path) -> bool:
    """Speech Commands has background noise, or ``_nohash_`` in its names, or lists and folders named like commands.

    Raises:
        DataError: the folder cannot be read.
    """
    if (root / BACKGROUND).is_dir():
        return True
    try:
        folders = [folder for folder in root.iterdir() if folder.is_dir()]
        if any((root / name).is_file() for name in LISTS.values()) and {f.name for f in folders} & {*COMMANDS}:
            return True
        return not folders or any("_nohash_" in path.name for folder in folders for path in folder.iterdir())
    except OSError as error:
        raise DataError(f"{root}: cannot be read ({error.strerror})") from None
