"""Let a few things a second through, and count the others."""

from __future__ import annotations

import time


class Limiter:
    """A token bucket: bad input from the network must not fill a log. Not safe for two threads at once."""

    def __init__(self, per_second: float, burst: int) -> None:
        self._per_second = per_second
        self._burst = burst
        self._tokens = float(burst)
        self._last_s = time.monotonic()
        self.suppressed = 0

    def allow(self) -> bool:
        """Whether one more is within the limit; what is not is counted in ``suppressed``."""
        now_s = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now_s - self._last_s) * self._per_second)
        self._last_s = now_s
        if self._tokens < 1:
            self.suppressed += 1
            return False
        self._tokens -= 1
        return True
