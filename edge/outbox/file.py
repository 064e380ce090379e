"""The file of the outbox: SQLite with a checksum for each row, put aside and salvaged when it is damaged."""

from __future__ import annotations

import contextlib
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.messages import Prediction

_SCHEMA = """
CREATE TABLE IF NOT EXISTS outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    boot_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    session_id TEXT,
    trial_id TEXT,
    attempt INTEGER,
    payload BLOB NOT NULL,
    benign INTEGER NOT NULL DEFAULT 0,
    checksum INTEGER,
    UNIQUE (boot_id, seq)
) STRICT;
CREATE TABLE IF NOT EXISTS dropped (kind TEXT PRIMARY KEY, number INTEGER NOT NULL) STRICT;
INSERT OR IGNORE INTO dropped VALUES ('benign', 0), ('others', 0);
"""
_INDICES = """
CREATE INDEX IF NOT EXISTS outbox_trial ON outbox (session_id, trial_id, attempt);
CREATE INDEX IF NOT EXISTS outbox_order ON outbox (benign DESC, id);
"""
_COLUMNS = "boot_id, seq, session_id, trial_id, attempt, payload, benign, checksum"
_INSERT = f"INSERT INTO outbox ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - only names of columns
_DELETE = "DELETE FROM outbox WHERE id = ?"
# A log that once grew large need not stay large.
_LARGEST_LOG_BYTES = 4 << 20

Columns = tuple[str, int, str | None, str | None, int | None, bytes, int, int | None]


@dataclass(frozen=True)
class Row:
    """One prediction as it is kept. It is benign where nobody asked for it and it is no trigger."""

    boot_id: str
    seq: int
    session_id: str | None
    trial_id: str | None
    attempt: int | None
    payload: bytes
    benign: bool

    @classmethod
    def of(cls, prediction: Prediction) -> Row:
        """The row of a prediction."""
        return cls(
            boot_id=prediction.boot_id,
            seq=prediction.seq,
            session_id=prediction.session_id,
            trial_id=prediction.trial_id,
            attempt=prediction.attempt,
            payload=prediction.to_json(),
            benign=prediction.session_id is None and prediction.trigger is None,
        )

    def columns(self) -> Columns:
        """As SQLite takes it."""
        checksum = zlib.crc32(self.payload)
        ids = (self.boot_id, self.seq, self.session_id, self.trial_id, self.attempt)
        return (*ids, self.payload, int(self.benign), checksum)


class OutboxFile:
    """The table of kept rows; used by one thread. Every method is one durable transaction or one question.

    ``rows`` and ``size_bytes`` are what it holds, ``dropped`` how many benign and how many other predictions were ever
    dropped; ``set_aside`` is where a damaged file was put, ``salvaged`` how many of its rows were still whole.

    Raises:
        OSError, sqlite3.Error: the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.set_aside: Path | None = None
        self.salvaged = 0
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = _open(path)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            self._replace()
        self._count()

    def close(self) -> None:
        """Close the database; what is kept stays on disk."""
        self._database.close()

    def recover(self) -> None:
        """Begin a new file with what can be read of this one, which is put aside; what cannot be read is dropped.

        Raises:
            OSError, sqlite3.Error: there is no place for a new file.
        """
        rows_before, (benign, others) = self.rows, self.dropped
        self._database.close()
        self._replace()
        self.count_dropped(benign, others + max(0, rows_before - self.salvaged))
        self._count()

    def _replace(self) -> None:
        self.set_aside = aside = _put_aside(self._path)
        self._database = _open(self._path)
        rows = _readable_rows(aside)
        self.salvaged = len(rows)
        with self._transaction():
            self._database.executemany(f"{_INSERT} ON CONFLICT DO NOTHING", [row.columns() for row in rows])

    def _count(self) -> None:
        rows, size_bytes = self._database.execute("SELECT count(*), total(length(payload)) FROM outbox").fetchone()
        self.rows, self.size_bytes = int(rows), int(size_bytes)
        numbers = dict(self._database.execute("SELECT kind, number FROM dropped").fetchall())
        self.dropped = (int(numbers["benign"]), int(numbers["others"]))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            # SQLite itself ends the transaction where the disk is full.
            if self._database.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
            raise

    def row_ids(self) -> list[int]:
        """Every row, the oldest first."""
        return [row_id for (row_id,) in self._database.execute("SELECT id FROM outbox ORDER BY id")]

    def insert(self, rows: Sequence[Row], *, limit_rows: int, limit_bytes: int) -> tuple[list[int], list[int]]:
        """Keep ``rows``; what is then too much gives way, benign rows first, the oldest first.

        Returns:
            the new row ids; the row ids that gave way, which may be among them.

        Raises:
            sqlite3.Error: nothing has changed.
        """
        with self._transaction():
            row_ids = [int(self._database.execute(_INSERT, row.columns()).lastrowid or 0) for row in rows]
            added_bytes = sum(len(row.payload) for row in rows)
            surplus_bytes = self.size_bytes + added_bytes - limit_bytes
            oldest = self._oldest(self.rows + len(rows) - limit_rows, surplus_bytes)
            gone = [row_id for row_id, _, _ in oldest]
            self._database.executemany(_DELETE, [(row_id,) for row_id in gone])
            benign = sum(benign for _, benign, _ in oldest)
            self._add_dropped(benign, len(oldest) - benign)
        self.dropped = (self.dropped[0] + benign, self.dropped[1] + len(oldest) - benign)
        self.size_bytes += added_bytes - sum(size_bytes for _, _, size_bytes in oldest)
        self.rows += len(rows) - len(gone)
        return row_ids, gone

    def _oldest(self, surplus_rows: int, surplus_bytes: int) -> list[tuple[int, int, int]]:
        oldest: list[tuple[int, int, int]] = []
        if surplus_rows <= 0 and surplus_bytes <= 0:
            return oldest
        rows = self._database.execute("SELECT id, benign, length(payload) FROM outbox ORDER BY benign DESC, id")
        with contextlib.closing(rows):
            for row_id, benign, size_bytes in rows:
                if surplus_rows <= 0 and surplus_bytes <= 0:
                    break
                oldest.append((row_id, benign, size_bytes))
                surplus_rows, surplus_bytes = surplus_rows - 1, surplus_bytes - size_bytes
        return oldest

    def _add_dropped(self, benign: int, others: int) -> None:
        if benign or others:
            numbers = [(benign, "benign"), (others, "others")]
            self._database.executemany("UPDATE dropped SET number = number + ? WHERE kind = ?", numbers)

    def count_dropped(self, benign: int, others: int) -> None:
        """Note predictions that were dropped without ever being here."""
        with self._transaction():
            self._add_dropped(benign, others)
        self.dropped = (self.dropped[0] + benign, self.dropped[1] + others)

    def ids(self, keys: Iterable[tuple[str, int]]) -> list[int]:
        """Row ids by (boot_id, seq), those that there are."""
        statement = "SELECT id FROM outbox WHERE boot_id = ? AND seq = ?"
        found = (self._database.execute(statement, key).fetchone() for key in keys)
        return [int(row[0]) for row in found if row is not None]

    def delete(self, row_ids: Iterable[int]) -> None:
        """Let rows go."""
        with self._transaction():
            gone = [
                size_bytes
                for row_id in row_ids
                for (size_bytes,) in self._database.execute(
                    f"{_DELETE} RETURNING length(payload)", (row_id,)
                ).fetchall()
            ]
        self.rows -= len(gone)
        self.size_bytes -= sum(gone)

    def find(self, session_id: str, trial_id: str, attempt: int) -> tuple[int, bytes] | None:
        """Row id and payload of the newest kept prediction of an attempt."""
        statement = (
            "SELECT id, payload FROM outbox WHERE session_id = ? AND trial_id = ? AND attempt = ?"
            " ORDER BY id DESC LIMIT 1"
        )
        row = self._database.execute(statement, (session_id, trial_id, attempt)).fetchone()
        return None if row is None else (int(row[0]), bytes(row[1]))

    def payload(self, row_id: int) -> bytes | None:
        """What is to be published, or None where the disk changed it or it is gone."""
        row = self._database.execute("SELECT payload, checksum FROM outbox WHERE id = ?", (row_id,)).fetchone()
        if row is None:
            return None
        payload = bytes(row[0])
        return payload if row[1] in {None, zlib.crc32(payload)} else None


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file itself is broken, and not the disk full or the statement wrong."""
    passing = (sqlite3.OperationalError, sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError)
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(error, passing)


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, timeout=5.0, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA cache_size = -512")
        database.execute(f"PRAGMA journal_size_limit = {_LARGEST_LOG_BYTES}")
        database.executescript(_SCHEMA)
        _add_columns(database)
        database.executescript(_INDICES)
        database.execute("SELECT count(payload) FROM outbox").fetchone()
        database.execute("SELECT number FROM dropped").fetchall()
    except sqlite3.Error:
        database.close()
        raise
    return database


def _add_columns(database: sqlite3.Connection) -> None:
    """Files of version 0.1 know neither kinds nor checksums."""
    present = {row[1] for row in database.execute("PRAGMA table_info(outbox)")}
    for name, kind in (("benign", "INTEGER NOT NULL DEFAULT 0"), ("checksum", "INTEGER")):
        if name not in present:
            database.execute(f"ALTER TABLE outbox ADD COLUMN {name} {kind}")


def _put_aside(path: Path) -> Path:
    aside = path.with_name(f"{path.name}.broken-{time.time_ns()}")
    path.rename(aside)
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    return aside


def _readable_rows(path: Path) -> list[Row]:
    """Whole rows of a damaged file: from the front up to the damage, then from the back."""
    rows: dict[int, Row] = {}
    try:
        database = sqlite3.connect(path, isolation_level=None)
    except sqlite3.Error:
        return []
    with contextlib.closing(database):
        for order in ("ASC", "DESC"):
            with contextlib.suppress(sqlite3.Error, ValueError, TypeError):
                for row_id, *values in database.execute(f"SELECT id, {_COLUMNS} FROM outbox ORDER BY id {order}"):  # noqa: S608 - as above
                    *most, checksum = values
                    row = Row(*most)
                    if row_id in rows:
                        break
                    if checksum == zlib.crc32(row.payload):
                        rows[row_id] = row
    return [rows[row_id] for row_id in sorted(rows)]
