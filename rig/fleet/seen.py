"""Which numbers of a series have been seen, as runs: a month of predictions without a gap is two integers."""

from __future__ import annotations

from bisect import bisect_right


class Seen:
    """A set of integers of at least 0 that mostly grows at its end."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        # Run i holds starts[i] <= n < ends[i]; runs are sorted and do not touch.
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __len__(self) -> int:
        return sum(self._ends) - sum(self._starts)

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._starts, number) - 1
        return at >= 0 and number < self._ends[at]

    @property
    def runs(self) -> list[tuple[int, int]]:
        """(first, one past the last) of every run."""
        return list(zip(self._starts, self._ends, strict=True))

    def add(self, number: int) -> bool:
        """Note a number; false when it was seen before."""
        starts, ends = self._starts, self._ends
        if ends and number == ends[-1]:
            ends[-1] = number + 1
            return True
        at = bisect_right(starts, number)
        if at and number < ends[at - 1]:
            return False
        joins_left = at > 0 and ends[at - 1] == number
        joins_right = at < len(starts) and starts[at] == number + 1
        if joins_left and joins_right:
            ends[at - 1] = ends[at]
            del starts[at], ends[at]
        elif joins_left:
            ends[at - 1] = number + 1
        elif joins_right:
            starts[at] = number
        else:
            starts.insert(at, number)
            ends.insert(at, number + 1)
        return True
