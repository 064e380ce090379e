"""A bounded store of equally long rows; the least recently used give way."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Scalar = TypeVar("Scalar", bound=np.generic)


# Rows that a store uses before it knows that it needs more.
FEW = 32


class RowStore:
    """Which slot of a table holds what; the table itself belongs to the caller.

    A claimed slot keeps its content until a later claim needs the place; one claim never takes the place of another
    key of the same claim. Memory that was never touched is expensive, so that a store begins with a few slots and
    takes more, up to ``capacity``, when it is asked for something that it held before: the table needs ``in_use`` rows.
    """

    def __init__(self, capacity: int, few: int = FEW) -> None:
        self.capacity = capacity
        self.in_use = min(few, capacity)
        self._slots: OrderedDict[int, int] = OrderedDict()
        self._dropped: OrderedDict[int, None] = OrderedDict()

    def claim(self, keys: Sequence[int]) -> tuple[Integers, list[int]]:
        """Slots for different keys, and the positions of those keys whose rows must be filled first.

        Raises:
            ValueError: more keys than slots.
        """
        if len(keys) > self.capacity:
            raise ValueError(f"{len(keys)} rows at once, the store has {self.capacity}")
        missing: list[int] = []
        for position, key in enumerate(keys):
            if key in self._slots:
                self._slots.move_to_end(key)
            else:
                missing.append(position)
        again = any(keys[position] in self._dropped for position in missing)
        self.in_use = min(self.capacity, max(len(keys), self.in_use * (2 if again else 1)))
        for position in missing:
            slot = len(self._slots)
            if slot >= self.in_use:
                # All known keys of this claim stand behind the oldest others, so that this is none of them.
                oldest, slot = self._slots.popitem(last=False)
                self._drop(oldest)
            self._slots[keys[position]] = slot
        return np.fromiter((self._slots[key] for key in keys), np.int64, len(keys)), missing

    def _drop(self, key: int) -> None:
        self._dropped[key] = None
        self._dropped.move_to_end(key)
        if len(self._dropped) > self.capacity:
            self._dropped.popitem(last=False)

    def forget(self) -> None:
        """Nothing is held any more; for when filling claimed slots failed."""
        self._slots.clear()


def distinct(values: Integers) -> tuple[Integers, Integers]:
    """The different values in the order in which they come, and which of them stands where.

    Quicker than sorting where equal values stand together, as they do in a table of conditions.
    """
    begins = np.concatenate(([0], np.flatnonzero(values[1:] != values[:-1]) + 1))
    numbers: dict[int, int] = {}
    of_run = [numbers.setdefault(value, len(numbers)) for value in values[begins].tolist()]
    where = np.repeat(np.array(of_run, np.int64), np.diff(begins, append=len(values)))
    return np.fromiter(numbers, np.int64, len(numbers)), where


def grown(table: NDArray[Scalar], rows: int) -> NDArray[Scalar]:
    """The table, or a copy of it with room for so many rows."""
    if len(table) >= rows:
        return table
    larger = np.empty((rows, *table.shape[1:]), table.dtype)
    larger[: len(table)] = table
    return larger
