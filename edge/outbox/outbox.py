"""Predictions on disk until the rig has acknowledged them: MQTT alone loses messages when a broker dies."""

from __future__ import annotations

import logging
import math
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.errors import UnavailableError
from edge.messages import Prediction
from edge.outbox.file import OutboxFile, Row, is_damage
from edge.outbox.overflow import Overflow

log = logging.getLogger(__name__)

LIMIT_ROWS = 10_000
LIMIT_BYTES = 64_000_000
REPEAT_S = 2.0
# A rig that is away must not find the network full of repeated predictions of a thousand devices.
LONGEST_REPEAT_S = 30.0
REPEAT_ROWS = 256
REPEAT_BYTES = 1 << 20
RETRY_DISK_S = 1.0


@dataclass(frozen=True)
class Stored:
    """One kept prediction, as it is to be published."""

    row_id: int
    payload: bytes


class Outbox:
    """A queue of predictions in SQLite (WAL, synchronous FULL), bounded in rows and bytes; used by one thread.

    When it is full the oldest benign predictions give way first (nobody asked for them and they are no trigger), then
    the oldest of the others; how many of each were ever dropped is kept on disk. A damaged file is put aside, and what
    is whole in it taken over. While the disk takes nothing, the newest 500 predictions wait in memory and ``problem``
    says why.

    Raises:
        UnavailableError: the folder cannot be written.
    """

    def __init__(self, path: Path, *, limit_rows: int = LIMIT_ROWS, limit_bytes: int = LIMIT_BYTES) -> None:
        self.problem = ""
        self._limit_rows = limit_rows
        self._limit_bytes = limit_bytes
        self._overflow = Overflow()
        # Rows that the rig has and the disk does not let go of.
        self._undeleted: set[int] = set()
        self._retry_s = -math.inf
        try:
            self._file = OutboxFile(path)
            row_ids = self._file.row_ids()
        except (OSError, sqlite3.Error) as error:
            raise UnavailableError(f"outbox {path}: {error}: choose another --state-dir") from None
        # When each row was last published, the longest ago first; rows of earlier boots are due at once.
        self._published_s: OrderedDict[int, float] = OrderedDict.fromkeys(row_ids, -math.inf)
        self._last_batch: list[int] = []
        self._last_batch_s = -math.inf
        self._repeat_s = REPEAT_S

    def __len__(self) -> int:
        return len(self._published_s)

    @property
    def set_aside(self) -> Path | None:
        """Where a damaged file was put, or None."""
        return self._file.set_aside

    @property
    def dropped_benign(self) -> int:
        """Benign predictions that were ever dropped, over all boots."""
        return self._file.dropped[0] + self._overflow.dropped[0]

    @property
    def dropped_others(self) -> int:
        """Predictions of sessions and triggers that were ever dropped, over all boots."""
        return self._file.dropped[1] + self._overflow.dropped[1]

    @property
    def dropped(self) -> int:
        """All that were ever dropped."""
        return self.dropped_benign + self.dropped_others

    def store(self, predictions: Sequence[Prediction]) -> list[Stored]:
        """Keep predictions, durably or, while the disk fails, in memory; they count as published now.

        Raises:
            sqlite3.IntegrityError: one has the number of another; none is kept.
        """
        rows = [Row.of(prediction) for prediction in predictions]
        try:
            row_ids = self._insert(rows)
        except sqlite3.IntegrityError:
            raise
        except (OSError, sqlite3.Error) as error:
            self._note_failure(error)
            row_ids = [self._keep_in_memory(row) for row in rows]
        for row_id in row_ids:
            if row_id in self._published_s:
                self.touch(row_id)
        return [Stored(row_id, row.payload) for row_id, row in zip(row_ids, rows, strict=True)]

    def _insert(self, rows: Sequence[Row]) -> list[int]:
        row_ids, gone = self._file.insert(rows, limit_rows=self._limit_rows, limit_bytes=self._limit_bytes)
        self._published_s.update(dict.fromkeys(row_ids, -math.inf))
        for row_id in gone:
            self._published_s.pop(row_id, None)
        self.problem = ""
        return row_ids

    def _keep_in_memory(self, row: Row) -> int:
        row_id, gone = self._overflow.keep(row)
        self._published_s[row_id] = -math.inf
        for each in gone:
            del self._published_s[each]
        return row_id

    def _note_failure(self, error: Exception) -> None:
        self.problem = str(error)
        self._retry_s = time.monotonic() + RETRY_DISK_S
        if not (isinstance(error, sqlite3.Error) and is_damage(error)):
            return
        try:
            self._file.recover()
            row_ids = self._file.row_ids()
        except (OSError, sqlite3.Error) as again:
            self.problem = str(again)
            return
        log.error("the outbox was damaged: put aside as %s, %d rows saved", self.set_aside, self._file.salvaged)
        self._published_s = OrderedDict.fromkeys([*row_ids, *self._overflow.rows], -math.inf)
        self._undeleted.clear()
        self._last_batch = []

    def _catch_up(self) -> None:
        """Give the disk what it did not take before."""
        waiting = self._overflow.rows or self._undeleted or any(self._overflow.dropped)
        if not waiting or time.monotonic() < self._retry_s:
            return
        try:
            for row_id, row in list(self._overflow.rows.items()):
                # A commit that failed may be on the disk all the same.
                if not self._file.ids([(row.boot_id, row.seq)]):
                    self._insert([row])
                self._overflow.remove(row_id)
                self._published_s.pop(row_id, None)
            self._file.delete(self._undeleted)
            self._undeleted.clear()
            self._file.count_dropped(*self._overflow.dropped)
            self._overflow.dropped = [0, 0]
        except (OSError, sqlite3.Error) as error:
            self._note_failure(error)

    def acknowledge(self, acknowledged: Sequence[tuple[str, int]]) -> int:
        """Forget predictions by (boot_id, seq) in one transaction; returns how many there were."""
        keys = set(acknowledged)
        self._repeat_s = REPEAT_S
        gone = self._overflow.ids(keys)
        for row_id in gone:
            self._overflow.remove(row_id)
            del self._published_s[row_id]
        try:
            on_disk = [row_id for row_id in self._file.ids(keys) if row_id in self._published_s]
            # Before the disk is asked: what is salvaged of a damaged file has other ids.
            for row_id in on_disk:
                del self._published_s[row_id]
            gone += on_disk
            self._undeleted.update(on_disk)
            self._file.delete(self._undeleted)
            self._undeleted.clear()
        except (OSError, sqlite3.Error) as error:
            self._note_failure(error)
        return len(gone)

    def find(self, session_id: str, trial_id: str, attempt: int) -> Stored | None:
        """The newest kept prediction of an attempt, or None.

        Raises:
            sqlite3.Error: the disk does not tell.
        """
        found = self._overflow.find(session_id, trial_id, attempt) or self._file.find(session_id, trial_id, attempt)
        return None if found is None else Stored(*found)

    def due(self, *, everything: bool = False) -> list[Stored]:
        """Up to 256 rows or 1 MiB to publish again: not published for 2 s, or ``everything`` after a new connection.

        The next batch comes when the last one is acknowledged or 2 s old, so a long queue neither floods the
        broker nor waits for a rig that is quick; as long as nothing at all is acknowledged the 2 s double with every
        batch, up to 30 s. Which row comes next rotates: none starves behind others that nobody acknowledges. The rows
        returned count as published now.
        """
        self._catch_up()
        now_s = time.monotonic()
        if everything:
            self._published_s = OrderedDict.fromkeys(sorted(self._published_s), -math.inf)
            self._last_batch, self._repeat_s = [], REPEAT_S
        if any(row_id in self._published_s for row_id in self._last_batch):
            if now_s - self._last_batch_s < self._repeat_s:
                return []
            self._repeat_s = min(2 * self._repeat_s, LONGEST_REPEAT_S)
        chosen: list[int] = []
        for row_id, published_s in self._published_s.items():
            if len(chosen) >= REPEAT_ROWS or now_s - published_s < REPEAT_S:
                break
            chosen.append(row_id)
        batch = self._payloads(chosen)
        self._last_batch = [stored.row_id for stored in batch]
        if batch:
            self._last_batch_s = now_s
        return batch

    def _payloads(self, row_ids: Sequence[int]) -> list[Stored]:
        batch: list[Stored] = []
        damaged: list[int] = []
        size_bytes = 0
        try:
            for row_id in row_ids:
                kept = self._overflow.rows.get(row_id)
                payload = self._file.payload(row_id) if kept is None else kept.payload
                if payload is None:
                    damaged.append(row_id)
                    continue
                size_bytes += len(payload)
                if batch and size_bytes > REPEAT_BYTES:
                    break
                batch.append(Stored(row_id, payload))
                self.touch(row_id)
            self._drop(damaged)
        except (OSError, sqlite3.Error) as error:
            self._note_failure(error)
        return batch

    def _drop(self, damaged: Sequence[int]) -> None:
        """Rows that the disk changed: nobody could read them, and they would be published for ever."""
        if not damaged:
            return
        log.error("the disk changed %d rows of the outbox: dropped", len(damaged))
        for row_id in damaged:
            self._published_s.pop(row_id, None)
        self._file.delete(damaged)
        self._file.count_dropped(0, len(damaged))

    def touch(self, row_id: int) -> None:
        """Note that a row was published now."""
        self._published_s[row_id] = time.monotonic()
        self._published_s.move_to_end(row_id)

    def close(self) -> None:
        """Close the database; what is kept stays on disk."""
        self._catch_up()
        self._file.close()
