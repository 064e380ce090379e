"""What concerns the whole process: memory, logging, and when it must end."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

log = logging.getLogger(__name__)

# From malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def save_memory() -> None:
    """Settings that must be made before numpy and onnxruntime are imported."""
    # numpy's BLAS would start a thread per core and is not used.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # glibc keeps a heap per thread, and what was needed only to start; other C libraries have no such setting.
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, 64 << 10)
        mallopt(_M_TRIM_THRESHOLD, 128 << 10)


def end_on_bugs_in_threads(stop: threading.Event) -> list[str]:
    """Set ``stop`` when a thread dies of a bug: a device that only seems to live misleads a session.

    Returns:
        the names of the threads that died, filled while the process runs.
    """
    broken: list[str] = []

    def report(failure: threading.ExceptHookArgs) -> None:
        name = failure.thread.name if failure.thread else "?"
        log.critical("bug in thread %s", name, exc_info=failure.exc_value)
        broken.append(name)
        stop.set()

    threading.excepthook = report
    return broken


def watch_stdin(end: Callable[[], None]) -> None:
    """Call ``end`` when standard input closes: whoever started this process is gone."""

    def watch() -> None:
        try:
            while os.read(0, 4096):
                pass
        except OSError:
            pass
        end()

    threading.Thread(target=watch, name="stdin", daemon=True).start()


def run_again() -> NoReturn:
    """Begin this process anew with the arguments it was started with; it keeps its id, so systemd sees no end."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - no shell


def start_logging(level: str) -> None:
    """Log to standard error, ``level`` and above."""
    # journald writes the time itself.
    time_of_day = "" if os.environ.get("JOURNAL_STREAM") else "%(asctime)s "
    logging.basicConfig(
        level=level.upper(),
        format=f"{time_of_day}earshot-device: %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
