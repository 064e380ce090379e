"""The machine itself: word length, Python, disk, heat."""

from __future__ import annotations

import platform
import struct
import sys
from pathlib import Path

from edge.doctor.finding import Finding, well, wrong
from edge.health.resources import disk_free_mb
from edge.health.temperature import cpu_temperature_c
from edge.health.throttling import Throttling

# Two slots, a download and a full outbox of the models that a small device runs.
NEEDED_DISK_MB = 100.0
# A Raspberry Pi lowers its frequency at 80 degrees, a Jetson at 97.
HOT_C = 80.0


def system(bits: int = struct.calcsize("P") * 8, machine: str = platform.machine()) -> Finding:
    """A 64-bit Linux: the libraries have no wheels for anything else."""
    seen = f"{platform.system()} {machine}, {bits} bit"
    if sys.platform == "linux" and bits == 64:
        return well("system", seen)
    return wrong(
        "system",
        f"{seen}: onnxruntime has no wheels for it",
        "install a 64-bit Linux: Raspberry Pi OS Lite (64-bit) with rpi-imager, for instance",
    )


def python(version: tuple[int, int] = sys.version_info[:2]) -> Finding:
    """A Python that there are wheels for."""
    seen = f"{version[0]}.{version[1]} ({sys.executable})"
    if (3, 11) <= version < (3, 14):
        return well("Python", seen)
    return wrong("Python", f"{seen}: use 3.11, 3.12 or 3.13", "sudo apt-get install python3.11-venv")


def disk(folder: Path, needed_mb: float = NEEDED_DISK_MB) -> Finding:
    """Room for two bundles, a download and the outbox."""
    existing = next((each for each in (folder, *folder.parents) if each.is_dir()), Path("/"))
    free_mb = disk_free_mb(existing)
    if free_mb is None:
        return wrong("disk", f"{folder}: cannot be asked", f"sudo mkdir -p {folder} && sudo chown $USER {folder}")
    detail = f"{folder}: {free_mb:.0f} MB free"
    if free_mb >= needed_mb:
        return well("disk", detail, {"free_mb": free_mb})
    return wrong(
        "disk",
        f"{detail}, {needed_mb:.0f} MB are needed",
        "sudo apt-get clean; sudo journalctl --vacuum-size=50M",
        {"free_mb": free_mb},
    )


def temperature(root: Path = Path("/")) -> Finding:
    """Cool enough that the processor need not slow down."""
    celsius = cpu_temperature_c(root)
    if celsius is None:
        return well("temperature", "this system tells none")
    if celsius < HOT_C:
        return well("temperature", f"{celsius:.0f} °C", {"celsius": celsius})
    fix = "give it air: a heat sink, a fan, a case with holes, a place out of the sun"
    return wrong("temperature", f"{celsius:.0f} °C, it slows down from {HOT_C:.0f} °C on", fix, {"celsius": celsius})


def throttling(told: Throttling | None) -> Finding:
    """Nothing holds the processor back, and its power supply never failed."""
    if told is None:
        return well("throttling", "this system tells none")
    if "under-voltage" in told.since_boot or "over-current" in told.since_boot:
        names = ", ".join(name for name in told.since_boot if name in {"under-voltage", "over-current"})
        when = "now" if set(told.now) & {"under-voltage", "over-current"} else "since boot"
        fix = "use the supply made for this board and a short cable, take USB loads away, and reboot"
        return wrong("throttling", f"{names} {when}", fix)
    if told.now:
        fix = "give it air, or choose a smaller model or a longer --hop"
        return wrong("throttling", f"{', '.join(told.now)} now", fix)
    earlier = f"none now; since boot: {', '.join(told.since_boot)}" if told.since_boot else "none"
    return well("throttling", earlier)
