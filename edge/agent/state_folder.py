"""Where a device keeps what must survive it, and that nobody else uses the same place."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from edge.errors import UnavailableError

_POLL_S = 0.05


def default_state_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """The ``$STATE_DIRECTORY`` of systemd, else ``$XDG_STATE_HOME/earshot``, else ``~/.local/state/earshot``."""
    if given := environment.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])
    if given := environment.get("XDG_STATE_HOME"):
        return Path(given) / "earshot"
    return Path.home() / ".local/state/earshot"


@contextmanager
def claimed(state_dir: Path, device: str, *, patience_s: float = 0.0) -> Iterator[Path]:
    """The folder of one device below ``state_dir``, made if need be and locked until the block ends.

    For ``patience_s`` it is waited for another process to end: one whose rig was killed takes a moment.

    Raises:
        UnavailableError: it cannot be made, or another process runs this device.
    """
    folder = state_dir / device
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (folder / "lock").open("w", encoding="ascii")
    except OSError as error:
        raise UnavailableError(f"state folder {folder}: {error.strerror}: choose another --state-dir") from None
    with lock:
        deadline_s = time.monotonic() + patience_s
        while not _locked(lock):
            if time.monotonic() >= deadline_s:
                raise UnavailableError(
                    f"another earshot-device uses {folder}: stop it, or choose another --name or --state-dir"
                )
            time.sleep(_POLL_S)
        yield folder


def _locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
