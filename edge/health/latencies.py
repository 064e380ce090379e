"""How long the last windows took."""

from __future__ import annotations

import numpy as np

WINDOWS = 1000


class Latencies:
    """The last 1,000 latencies in memory that is taken once; used by one thread."""

    def __init__(self) -> None:
        self._ms = np.zeros(WINDOWS, np.float32)
        self._sorted = np.zeros(WINDOWS, np.float32)
        self.windows = 0

    def note(self, latency_ms: float) -> None:
        """Remember one window's."""
        self._ms[self.windows % WINDOWS] = latency_ms
        self.windows += 1

    def percentiles_ms(self) -> tuple[float, float, float] | None:
        """The 50th, 95th and 99th percentile, each one of the latencies (nearest rank); None before the first."""
        count = min(self.windows, WINDOWS)
        if not count:
            return None
        ordered = self._sorted[:count]
        ordered[:] = self._ms[:count]
        ordered.sort()
        p50, p95, p99 = (float(ordered[-(-count * percent // 100) - 1]) for percent in (50, 95, 99))
        return p50, p95, p99
