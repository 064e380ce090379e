"""The session's durable record: what was planned, what was tried, what came back.

SQLite with write-ahead log and full synchronisation: what :meth:`Journal.record` returned from survives
SIGKILL and power cuts. A trial counts at most once however often it was tried or its prediction delivered:
one conclusion per trial is a unique index, not a habit.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Self

from edge.errors import PlanError, UnavailableError
from edge.files import replace
from edge.messages import Prediction
from rig.plan import Condition

FILE = "journal.sqlite"
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE conditions (condition INTEGER PRIMARY KEY, document TEXT NOT NULL) STRICT;
CREATE TABLE clips (clip INTEGER PRIMARY KEY, path TEXT NOT NULL, label TEXT NOT NULL, sha256 TEXT NOT NULL) STRICT;
CREATE TABLE trials (
    trial_id TEXT PRIMARY KEY,
    condition INTEGER NOT NULL REFERENCES conditions,
    clip INTEGER NOT NULL REFERENCES clips,
    repeat INTEGER NOT NULL
) STRICT;
CREATE TABLE attempts (
    trial_id TEXT NOT NULL REFERENCES trials,
    attempt INTEGER NOT NULL,
    outcome TEXT NOT NULL CHECK (outcome IN ('valid', 'invalid', 'abandoned')),
    reason TEXT,
    label TEXT,
    snr_db REAL,
    linf REAL,
    prediction TEXT,
    PRIMARY KEY (trial_id, attempt)
) STRICT;
CREATE UNIQUE INDEX one_conclusion ON attempts (trial_id) WHERE outcome <> 'invalid';
"""


Outcome = Literal["valid", "invalid", "abandoned"]


@dataclass(frozen=True)
class Trial:
    """One clip in one condition. ``condition`` and ``clip`` are indices into the journal's lists."""

    trial_id: str
    condition: int
    clip: int
    repeat: int


@dataclass(frozen=True)
class ClipRecord:
    """A clip as the journal names it; ``sha256`` is of its PCM, so a changed file is noticed on resume."""

    path: str
    label: str
    sha256: str


@dataclass(frozen=True)
class Attempt:
    """One try at a trial.

    ``valid`` and ``abandoned`` conclude the trial, ``invalid`` lets it be tried again; ``reason`` says why an
    attempt is not valid.
    """

    trial_id: str
    attempt: int
    outcome: Outcome
    reason: str | None = None
    label: str | None = None
    snr_db: float | None = None
    linf: float | None = None
    prediction: Prediction | None = None


def create(
    folder: Path,
    *,
    meta: dict[str, Any],
    conditions: Iterable[Condition],
    clips: Iterable[ClipRecord],
    trials: Iterable[Trial],
) -> None:
    """Write the journal of a session to come; it appears whole or not at all, and no trial has run.

    Raises:
        PlanError: the folder already has a journal.
    """
    path = folder / FILE
    if path.exists():
        raise PlanError(f"session {folder}: already has a journal, go on with 'earshot session resume {folder}'")
    unfinished = folder / (FILE + ".new")
    unfinished.unlink(missing_ok=True)
    database = sqlite3.connect(unfinished)
    with _telling(folder), database:
        database.executescript(_SCHEMA)
        database.executemany("INSERT INTO meta VALUES (?, ?)", [(k, json.dumps(v)) for k, v in meta.items()])
        cells = [(index, cell.model_dump_json()) for index, cell in enumerate(conditions)]
        database.executemany("INSERT INTO conditions VALUES (?, ?)", cells)
        sounds = [(index, clip.path, clip.label, clip.sha256) for index, clip in enumerate(clips)]
        database.executemany("INSERT INTO clips VALUES (?, ?, ?, ?)", sounds)
        rows = [(trial.trial_id, trial.condition, trial.clip, trial.repeat) for trial in trials]
        database.executemany("INSERT INTO trials VALUES (?, ?, ?, ?)", rows)
    database.close()
    replace(unfinished, path)


class Journal:
    """The open journal of one session folder, locked against a second writer.

    Raises:
        PlanError: the folder has no journal.
        UnavailableError: another process writes it.
    """

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        path = folder / FILE
        if not path.is_file():
            raise PlanError(f"session {folder}: has no {FILE}, start it with 'earshot session run'")
        self._folder = folder
        self._lock = None if read_only else _lock(folder)
        with _telling(folder):
            if read_only and not os.access(folder, os.W_OK):
                if path.with_name(FILE + "-wal").exists():
                    raise PlanError(f"session {folder}: was cut off and nothing may be written here, copy it elsewhere")
                # Nobody writes here, and the usual way to read needs a file beside the database.
                self._database = sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True)
            else:
                self._database = sqlite3.connect(path, timeout=10)
                self._database.execute("PRAGMA journal_mode = WAL")
                self._database.execute("PRAGMA synchronous = FULL")
            self._database.execute("PRAGMA foreign_keys = ON")
            self._database.execute("SELECT value FROM meta WHERE key = 'session_id'")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database and give the lock back."""
        self._database.close()
        if self._lock is not None:
            self._lock.close()

    def record(self, attempts: Iterable[Attempt]) -> None:
        """Store attempts in one durable transaction.

        A second conclusion of the same trial is dropped: messages may arrive twice.
        """
        rows = [
            (
                attempt.trial_id,
                attempt.attempt,
                attempt.outcome,
                attempt.reason,
                attempt.label,
                attempt.snr_db,
                attempt.linf,
                attempt.prediction.to_json().decode() if attempt.prediction else None,
            )
            for attempt in attempts
        ]
        with _telling(self._folder), self._database as database:
            database.executemany("INSERT OR IGNORE INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def concluded(self) -> set[str]:
        """The trials that need no further attempt."""
        return {row[0] for row in self._database.execute("SELECT trial_id FROM attempts WHERE outcome <> 'invalid'")}

    def tried(self) -> dict[str, int]:
        """How many attempts each tried trial has; attempts are numbered from 0 without gaps."""
        query = "SELECT trial_id, count(*) FROM attempts GROUP BY trial_id"
        return dict(self._database.execute(query))

    def trials(self) -> list[Trial]:
        """All trials in the order they are run."""
        query = "SELECT trial_id, condition, clip, repeat FROM trials ORDER BY trial_id"
        return [Trial(*row) for row in self._database.execute(query)]

    def conditions(self) -> list[Condition]:
        """The cells of the plan, by index."""
        query = "SELECT document FROM conditions ORDER BY condition"
        return [Condition.model_validate_json(row[0]) for row in self._database.execute(query)]

    def clips(self) -> list[ClipRecord]:
        """The clips, by index."""
        return [
            ClipRecord(*row) for row in self._database.execute("SELECT path, label, sha256 FROM clips ORDER BY clip")
        ]

    def meta(self) -> dict[str, Any]:
        """What was stored about the session as a whole."""
        return {key: json.loads(value) for key, value in self._database.execute("SELECT key, value FROM meta")}

    def settle(self, key: str, value: Any) -> Any:
        """Store a fact about the session once; returns what is stored, which the first caller said."""
        with _telling(self._folder), self._database as database:
            database.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (key, json.dumps(value)))
        return self.meta()[key]

    def append(self, key: str, values: Sequence[Any]) -> None:
        """Add to a list of facts that may change while the session runs."""
        with _telling(self._folder), self._database as database:
            row = database.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
            document = [*(json.loads(row[0]) if row else ()), *values]
            database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(document)))

    def attempts(self) -> Iterator[Attempt]:
        """Every attempt, valid or not, by trial and attempt number."""
        query = "SELECT trial_id, attempt, outcome, reason, label, snr_db, linf, prediction FROM attempts ORDER BY 1, 2"
        for row in self._database.execute(query):
            prediction = Prediction.model_validate_json(row[7]) if row[7] else None
            yield Attempt(row[0], row[1], row[2], row[3], row[4], row[5], row[6], prediction)


@contextmanager
def _telling(folder: Path) -> Iterator[None]:
    """Say in one line what keeps the database from being used."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            raise PlanError(f"session {folder}: {FILE} is no journal of a session") from None
        raise PlanError(f"session {folder}: {FILE}: {error}; make room or give permission there") from None
    except sqlite3.DatabaseError as error:
        raise PlanError(f"session {folder}: {FILE} is no journal of a session ({error})") from None


def _lock(folder: Path) -> IO[str]:
    handle = (folder / "journal.lock").open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise UnavailableError(f"session {folder}: another rig is writing it, wait for it or stop it") from None
    return handle
