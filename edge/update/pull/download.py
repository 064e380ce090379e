"""Pull a file over HTTP or HTTPS: resumed after a break or a restart, never longer than announced, always whole.

What has come is kept in ``SHA256.part`` beside the slots, so that a power cut or a bad network costs time only. The
server is not trusted: the command said how long the file is and what its hash must be.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from edge import files
from edge.errors import UnavailableError, UsageError
from edge.update.job import Patience
from edge.update.pull.request import Answer, BrokenError, UselessPartError, Wanted, request

log = logging.getLogger(__name__)


def download(
    wanted: Wanted,
    folder: Path,
    *,
    patience: Patience,
    progress: Callable[[int], None],
    environment: Mapping[str, str] = os.environ,
) -> Path:
    """Fetch a file into ``folder``, which is made, and return its path; its size and hash are right.

    What else is in the folder is removed. ``progress`` is called with the number of bytes that have come.

    Raises:
        UsageError: the address, the server's answer or the hash is wrong, or there is no room; to try again is in vain.
        UnavailableError: the server was not reached, or was not fast enough, in any of the attempts.
    """
    files.make_folder(folder)
    part = folder / f"{wanted.sha256}.part"
    for each in folder.iterdir():
        if each != part and not each.is_dir():
            each.unlink()
    began_s = time.monotonic()
    failures = 0
    while True:
        had = _usable(part, wanted.size_bytes)
        _check_room(folder, wanted.size_bytes - had, patience.reserve_bytes)
        try:
            if had < wanted.size_bytes:
                with request(
                    wanted, had, timeout_s=patience.timeout_s, redirects=patience.redirects, environment=environment
                ) as answer:
                    _receive(answer, wanted, part, patience, progress)
            _check_hash(wanted, part, resumed=had > 0)
        except BrokenError as problem:
            if isinstance(problem, UselessPartError):
                part.unlink(missing_ok=True)
            failures = 1 if _usable(part, wanted.size_bytes) > had else failures + 1
            if failures >= patience.attempts or time.monotonic() - began_s > patience.total_s:
                raise UnavailableError(
                    f"{wanted.server}: {problem} ({failures} attempts in vain): see that this device can reach it and"
                    " send the update again; what has come is kept"
                ) from None
            log.warning("%s: %s, trying again", wanted.server, problem)
            _wait(failures, patience)
        else:
            return part


def _receive(answer: Answer, wanted: Wanted, part: Path, patience: Patience, progress: Callable[[int], None]) -> None:
    came, began_s = answer.begin, time.monotonic()
    with part.open("r+b" if answer.begin else "wb", buffering=0) as file:
        file.seek(answer.begin)
        synchronised = came
        try:
            while came < wanted.size_bytes:
                data = answer.read(min(patience.chunk_bytes, wanted.size_bytes - came))
                if not data:
                    raise BrokenError(f"the connection ended {wanted.size_bytes - came} bytes early")
                _write_all(file, data)
                came += len(data)
                progress(came)
                if came - synchronised >= patience.synchronise_bytes:
                    os.fsync(file.fileno())
                    synchronised = came
                passed_s = time.monotonic() - began_s
                if passed_s > patience.timeout_s and came - answer.begin < patience.slowest_bytes_per_s * passed_s:
                    raise BrokenError(f"{(came - answer.begin) / passed_s:.0f} bytes/s are too slow")
        finally:
            # After a power cut the length must not promise what the disk does not hold.
            os.fsync(file.fileno())
    if answer.response.length is None and answer.read(1):
        part.unlink()
        raise UsageError(
            f"{wanted.server} sends more than the {wanted.size_bytes} bytes that were announced: send the update again"
        )


def _write_all(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _check_hash(wanted: Wanted, part: Path, *, resumed: bool) -> None:
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found == wanted.sha256:
        return
    if resumed:
        raise UselessPartError("what had come before and what came now are no whole")
    part.unlink()
    raise UsageError(
        f"{wanted.server} has a file with SHA-256 {found[:12]}, {wanted.sha256[:12]} was announced: send the update"
        " again"
    )


def _check_room(folder: Path, needed: int, reserve: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free - reserve:
        raise UsageError(
            f"{folder}: {needed} bytes do not fit, {free} are free and {reserve} of them are kept: make room there"
        )


def _usable(part: Path, size_bytes: int) -> int:
    """How many bytes have come; a file that is too long is removed."""
    try:
        had = part.stat().st_size
    except FileNotFoundError:
        return 0
    if had > size_bytes:
        part.unlink()
        return 0
    return had


def _wait(failures: int, patience: Patience) -> None:
    longest_s = min(patience.backoff_s * 2 ** (failures - 1), patience.longest_backoff_s)
    # Jitter, or a fleet that lost its server comes back all at once.
    time.sleep(random.uniform(0.5, 1.0) * longest_s)
