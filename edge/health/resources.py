"""How much memory, processor time and disk there is and is taken; all megabytes are of 1,000,000 bytes."""

from __future__ import annotations

import os
from pathlib import Path

from edge.health.system_files import read_text

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def memory_rss_mb(root: Path = Path("/")) -> float | None:
    """What of this process lies in memory."""
    fields = (read_text(root / "proc/self/statm") or "").split()
    if len(fields) < 2 or not fields[1].isdecimal():
        return None
    return int(fields[1]) * _PAGE_BYTES / 1e6


def memory_available_mb(root: Path = Path("/")) -> float | None:
    """What programs can still get without the system having to swap."""
    for line in (read_text(root / "proc/meminfo") or "").splitlines():
        fields = line.split()
        if len(fields) >= 2 and fields[0] == "MemAvailable:" and fields[1].isdecimal():
            return int(fields[1]) * 1024 / 1e6
    return None


def load_1min(root: Path = Path("/")) -> float | None:
    """How many threads ran or wanted to, averaged over the last minute."""
    fields = (read_text(root / "proc/loadavg") or "").split()
    try:
        return float(fields[0])
    except (IndexError, ValueError):
        return None


def disk_free_mb(folder: Path) -> float | None:
    """What this process may still write to the file system of ``folder``."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize / 1e6
