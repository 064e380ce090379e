"""Tell the C library to keep freed memory: a training step frees and needs the same hundreds of megabytes."""

from __future__ import annotations

import ctypes
import sys

# Parameters of mallopt(3) in glibc's <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Stop the process from giving freed memory back; page faults otherwise cost up to half of a training step.

    It holds for the whole process and cannot be undone, so only a command that trains calls it.

    Returns:
        False where the C library has no such setting (not glibc); nothing is changed then.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    mallopt.restype = ctypes.c_int
    return all((mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1), mallopt(_TOP_PAD, 200_000_000)))
