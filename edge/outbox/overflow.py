"""Predictions that wait in memory because the disk takes none."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection

from edge.outbox.file import Row

# Memory is scarcer than disk.
LIMIT_ROWS = 500
LIMIT_BYTES = 2_000_000


class Overflow:
    """A bounded queue; its row ids are below zero. The oldest benign gives way first, then the oldest."""

    def __init__(self) -> None:
        self.rows: OrderedDict[int, Row] = OrderedDict()
        self.dropped = [0, 0]
        self._size_bytes = 0
        self._next_id = -1

    def keep(self, row: Row) -> tuple[int, list[int]]:
        """Take a row; returns its id and the ids that gave way to it, which may be among them."""
        row_id, self._next_id = self._next_id, self._next_id - 1
        self.rows[row_id] = row
        self._size_bytes += len(row.payload)
        gone = []
        while len(self.rows) > LIMIT_ROWS or self._size_bytes > LIMIT_BYTES:
            benign = (each for each, kept in self.rows.items() if kept.benign)
            oldest = next(benign, next(iter(self.rows)))
            self.dropped[0 if self.rows[oldest].benign else 1] += 1
            self.remove(oldest)
            gone.append(oldest)
        return row_id, gone

    def remove(self, row_id: int) -> None:
        """Let a row go."""
        self._size_bytes -= len(self.rows.pop(row_id).payload)

    def ids(self, keys: Collection[tuple[str, int]]) -> list[int]:
        """Row ids by (boot_id, seq), those that there are."""
        return [row_id for row_id, row in self.rows.items() if (row.boot_id, row.seq) in keys]

    def find(self, session_id: str, trial_id: str, attempt: int) -> tuple[int, bytes] | None:
        """Row id and payload of the newest prediction of an attempt."""
        for row_id, row in reversed(self.rows.items()):
            if (row.session_id, row.trial_id, row.attempt) == (session_id, trial_id, attempt):
                return row_id, row.payload
        return None
