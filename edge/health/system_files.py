"""Reading the small files of /sys and /proc, any of which may be absent, unreadable or nonsense."""

from __future__ import annotations

from pathlib import Path


def read_text(path: Path) -> str | None:
    """The stripped text of a file of the kernel, or None where it cannot be read."""
    try:
        # A sensor that is switched off answers with an error when it is read, not when it is opened.
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def read_number(path: Path, base: int = 10) -> int | None:
    """The number that a file of the kernel holds, or None."""
    text = read_text(path)
    try:
        return None if text is None else int(text, base)
    except ValueError:
        return None


def matching(folder: Path, pattern: str) -> list[Path]:
    """What lies in ``folder`` under names like ``pattern``, sorted; empty where there is no such folder."""
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []
