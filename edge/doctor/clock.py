"""The system clock: predictions carry its time, and certificates are judged by it."""

from __future__ import annotations

import ctypes
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from edge.doctor.finding import Finding, well, wrong

# From timex.h.
_STA_UNSYNC = 0x40
_NOT_BEFORE = datetime(2025, 1, 1, tzinfo=UTC)
_NOT_AFTER = datetime(2100, 1, 1, tzinfo=UTC)
_LARGE_ERROR_S = 0.5
# Set by systemd and others in what they contain.
_CONTAINER = "container"
_FIX = "sudo timedatectl set-ntp true (Debian without it: sudo apt-get install systemd-timesyncd)"


@dataclass(frozen=True)
class Discipline:
    """What the kernel says of its clock: whether somebody steers it, and how wrong it thinks it may be."""

    synchronised: bool
    error_s: float


class _Timex(ctypes.Structure):
    # struct timex of a 64-bit Linux.
    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("frequency", ctypes.c_long),
        ("max_error_us", ctypes.c_long),
        ("estimated_error_us", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    )


def discipline() -> Discipline | None:
    """Ask the kernel (adjtimex, nothing is changed); None where it does not answer."""
    timex = _Timex()
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    except (OSError, AttributeError):
        return None
    if state < 0:
        return None
    return Discipline(not timex.status & _STA_UNSYNC, timex.estimated_error_us / 1e6)


def clock(
    told: Discipline | None, *, now_s: float | None = None, not_before: datetime | None = None, environment: str = ""
) -> Finding:
    """A clock that somebody steers and that shows a time after the software was made.

    Args:
        told: what the kernel says.
        now_s: seconds since 1970; the system's where absent.
        not_before: when the bundle was packed; it cannot be earlier.
        environment: what ``container`` is set to, by systemd: a container has its host's clock.
    """
    now = datetime.fromtimestamp(time.time() if now_s is None else now_s, UTC)
    earliest = max(_NOT_BEFORE, not_before or _NOT_BEFORE)
    shown = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    if not earliest <= now < _NOT_AFTER:
        return wrong("clock", f"{shown} cannot be, it is after {earliest:%Y-%m-%d}", _FIX)
    if told is None:
        return well("clock", f"{shown}, this system does not tell whether it is synchronised")
    if not told.synchronised:
        where = f" (container of {environment}: mend it on the host)" if environment else ""
        return wrong("clock", f"{shown}, nobody synchronises it{where}", _FIX)
    if told.error_s > _LARGE_ERROR_S:
        return wrong(
            "clock", f"{shown}, synchronised but {told.error_s:.1f} s uncertain", _FIX, {"error_s": told.error_s}
        )
    return well("clock", f"{shown}, synchronised within {told.error_s * 1e3:.1f} ms", {"error_s": told.error_s})


def clock_of_this_machine(not_before: datetime | None) -> Finding:
    """The running system's."""
    return clock(discipline(), not_before=not_before, environment=os.environ.get(_CONTAINER, ""))
