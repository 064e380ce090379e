"""Predictions on disk until the rig has acknowledged them: MQTT alone loses messages when a broker dies."""

from __future__ import annotations

import math
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.errors import UnavailableError
from edge.messages import Prediction

LIMIT_ROWS = 10_000
REPEAT_S = 2.0
REPEAT_ROWS = 256
_SCHEMA = """
CREATE TABLE IF NOT EXISTS outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    boot_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    session_id TEXT,
    trial_id TEXT,
    attempt INTEGER,
    payload BLOB NOT NULL,
    UNIQUE (boot_id, seq)
) STRICT;
CREATE INDEX IF NOT EXISTS outbox_trial ON outbox (session_id, trial_id, attempt);
"""
_INSERT = """
INSERT INTO outbox (boot_id, seq, session_id, trial_id, attempt, payload) VALUES (?, ?, ?, ?, ?, ?)
"""


@dataclass(frozen=True)
class Stored:
    """One kept prediction, as it is to be published."""

    row_id: int
    payload: bytes


class Outbox:
    """A bounded queue of predictions in SQLite (WAL, synchronous FULL); used by one thread.

    A file that is no database is put aside, not deleted. ``dropped`` counts rows that gave way to newer
    ones because the queue was full.

    Raises:
        UnavailableError: the folder cannot be written.
    """

    def __init__(self, path: Path, *, limit_rows: int = LIMIT_ROWS) -> None:
        self.dropped = 0
        self.set_aside: Path | None = None
        self._limit_rows = limit_rows
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._database = _open(path)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                self.set_aside = _put_aside(path)
                self._database = _open(path)
        except (OSError, sqlite3.Error) as error:
            raise UnavailableError(f"outbox {path}: {error}: choose another --state-dir") from None
        # When each row was last published, the longest ago first; rows of earlier boots are due at once.
        rows = self._database.execute("SELECT id FROM outbox ORDER BY id").fetchall()
        self._published_s: OrderedDict[int, float] = OrderedDict((row_id, -math.inf) for (row_id,) in rows)
        self._last_batch: list[int] = []
        self._last_batch_s = -math.inf

    def __len__(self) -> int:
        return len(self._published_s)

    def store(self, predictions: Sequence[Prediction]) -> list[Stored]:
        """Keep predictions, all in one durable transaction; they count as published now.

        Raises:
            sqlite3.Error: the disk does not take them.
        """
        stored = []
        with self._database:
            self._database.execute("BEGIN IMMEDIATE")
            for prediction in predictions:
                payload = prediction.to_json()
                cursor = self._database.execute(
                    _INSERT,
                    (
                        prediction.boot_id,
                        prediction.seq,
                        prediction.session_id,
                        prediction.trial_id,
                        prediction.attempt,
                        payload,
                    ),
                )
                stored.append(Stored(int(cursor.lastrowid or 0), payload))
            surplus = len(self._published_s) + len(stored) - self._limit_rows
            if surplus > 0:
                self._database.execute(
                    "DELETE FROM outbox WHERE id IN (SELECT id FROM outbox ORDER BY id LIMIT ?)", (surplus,)
                )
        now_s = time.monotonic()
        for row in stored:
            self._published_s[row.row_id] = now_s
        if surplus > 0:
            self.dropped += surplus
            for row_id in sorted(self._published_s)[:surplus]:
                del self._published_s[row_id]
        return stored

    def acknowledge(self, acknowledged: Sequence[tuple[str, int]]) -> int:
        """Forget predictions by (boot_id, seq) in one transaction; returns how many there were.

        Raises:
            sqlite3.Error: the disk does not let them go; they will be published again.
        """
        gone: list[int] = []
        with self._database:
            self._database.execute("BEGIN IMMEDIATE")
            for boot_id, seq in acknowledged:
                rows = self._database.execute(
                    "DELETE FROM outbox WHERE boot_id = ? AND seq = ? RETURNING id", (boot_id, seq)
                )
                gone.extend(row_id for (row_id,) in rows.fetchall())
        for row_id in gone:
            self._published_s.pop(row_id, None)
        return len(gone)

    def find(self, session_id: str, trial_id: str, attempt: int) -> Stored | None:
        """The newest kept prediction of an attempt, or None."""
        row = self._database.execute(
            "SELECT id, payload FROM outbox WHERE session_id = ? AND trial_id = ? AND attempt = ?"
            " ORDER BY id DESC LIMIT 1",
            (session_id, trial_id, attempt),
        ).fetchone()
        return None if row is None else Stored(int(row[0]), bytes(row[1]))

    def due(self, *, everything: bool = False) -> list[Stored]:
        """Up to 256 rows to publish again: not published for 2 s, or ``everything`` after a new connection.

        The next batch comes when the last one is acknowledged or 2 s old, so a long queue neither floods the
        broker nor waits for a rig that is quick. Which row comes next rotates: none starves behind others that nobody
        acknowledges. The rows returned count as published now.
        """
        now_s = time.monotonic()
        if everything:
            self._published_s = OrderedDict.fromkeys(sorted(self._published_s), -math.inf)
            self._last_batch = []
        if now_s - self._last_batch_s < REPEAT_S and any(row_id in self._published_s for row_id in self._last_batch):
            return []
        chosen: list[int] = []
        for row_id, published_s in self._published_s.items():
            if len(chosen) >= REPEAT_ROWS or now_s - published_s < REPEAT_S:
                break
            chosen.append(row_id)
        if not chosen:
            return []
        for row_id in chosen:
            self.touch(row_id)
        self._last_batch, self._last_batch_s = chosen, now_s
        marks = ",".join("?" * len(chosen))
        rows = self._database.execute(
            f"SELECT id, payload FROM outbox WHERE id IN ({marks}) ORDER BY id",  # noqa: S608 - only question marks
            chosen,
        ).fetchall()
        return [Stored(int(row_id), bytes(payload)) for row_id, payload in rows]

    def touch(self, row_id: int) -> None:
        """Note that a row was published now."""
        self._published_s[row_id] = time.monotonic()
        self._published_s.move_to_end(row_id)

    def close(self) -> None:
        """Close the database; what is kept stays on disk."""
        self._database.close()


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, timeout=5.0, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA cache_size = -512")
        database.executescript(_SCHEMA)
        database.execute("SELECT count(payload) FROM outbox").fetchone()
    except sqlite3.Error:
        database.close()
        raise
    return database


def _put_aside(path: Path) -> Path:
    aside = path.with_name(f"{path.name}.broken-{time.time_ns()}")
    path.rename(aside)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return aside
