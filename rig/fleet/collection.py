"""Predictions that the rig follows, kept on its disk: one row each, however often it was delivered."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

from edge.errors import UnavailableError, UsageError
from edge.messages import Prediction
from rig.fleet.seen import Seen

# No index: appending costs a sixth of keeping a thousand devices sorted, and one process alone writes.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS predictions (
    device TEXT NOT NULL,
    boot_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    session_id TEXT,
    t_utc_ns INTEGER NOT NULL,
    label TEXT NOT NULL,
    trigger_label TEXT,
    payload TEXT NOT NULL
) STRICT;
"""
_INSERT = "INSERT INTO predictions VALUES (?, ?, ?, ?, ?, ?, ?, ?)"


class Collection:
    """A SQLite file (WAL, synchronous FULL): what :meth:`store` returned from survives SIGKILL and power cuts.

    One process at a time has it open; threads take turns.

    Raises:
        UsageError: the file cannot be written, or is none of ours.
        UnavailableError: another process has it open.
    """

    def __init__(self, path: Path) -> None:
        self._seen: dict[tuple[str, str], Seen] = {}
        try:
            self._database = sqlite3.connect(path, isolation_level=None, timeout=1.0, check_same_thread=False)
            self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.executescript(_SCHEMA)
            for device, boot_id, seq in self._database.execute("SELECT device, boot_id, seq FROM predictions"):
                self._note(device, boot_id, seq)
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise UnavailableError(
                    f"{path}: another process writes to it: end that one, or choose another"
                ) from None
            raise UsageError(f"{path}: {error}: choose a new file, or one of an earlier run") from None
        except sqlite3.Error as error:
            raise UsageError(f"{path}: {error}: choose a new file, or one of an earlier run") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def __len__(self) -> int:
        return sum(len(seen) for seen in self._seen.values())

    def _note(self, device: str, boot_id: str, seq: int) -> bool:
        key = (device, boot_id)
        seen = self._seen.get(key)
        if seen is None:
            seen = self._seen[key] = Seen()
        return seen.add(seq)

    def store(self, predictions: Iterable[Prediction]) -> list[Prediction]:
        """Keep predictions in one durable transaction; returns those that are new.

        Raises:
            sqlite3.Error: the disk does not take them; the collection must be opened again.
        """
        new = [each for each in predictions if self._note(each.device, each.boot_id, each.seq)]
        if not new:
            return new
        self._database.execute("BEGIN IMMEDIATE")
        try:
            self._database.executemany(_INSERT, map(_columns, new))
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise
        return new

    def runs(self) -> Iterator[tuple[str, str, Sequence[tuple[int, int]]]]:
        """Device, boot and the runs of numbers without a gap, (first, one past the last), that are kept of it."""
        for (device, boot_id), seen in sorted(self._seen.items()):
            yield device, boot_id, seen.runs


def _columns(prediction: Prediction) -> tuple[str, str, int, str | None, int, str, str | None, str]:
    return (
        prediction.device,
        prediction.boot_id,
        prediction.seq,
        prediction.session_id,
        prediction.t_utc_ns,
        prediction.label,
        prediction.trigger,
        prediction.to_json().decode(),
    )
