"""The last seconds of a stream, addressed by absolute sample index."""

from __future__ import annotations

import threading
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge.errors import DataError

Pcm16: TypeAlias = NDArray[np.int16]


class Ring:
    """A preallocated buffer of int16 samples: one thread writes, others read copies.

    Sample ``i`` of the stream is held while ``begin <= i < end``.
    """

    def __init__(self, capacity_samples: int) -> None:
        self.capacity_samples = capacity_samples
        self._samples: Pcm16 = np.zeros(capacity_samples, np.int16)
        self._end = 0
        self._lock = threading.Lock()

    @property
    def end(self) -> int:
        """Samples written since the stream began: the index of the next one."""
        return self._end

    @property
    def begin(self) -> int:
        """Index of the oldest sample that is still held."""
        return max(0, self._end - self.capacity_samples)

    def write(self, pcm: Pcm16) -> None:
        """Append samples (n,); the oldest ones are forgotten."""
        with self._lock:
            kept = pcm[-self.capacity_samples :]
            at = (self._end + len(pcm) - len(kept)) % self.capacity_samples
            first = min(len(kept), self.capacity_samples - at)
            self._samples[at : at + first] = kept[:first]
            self._samples[: len(kept) - first] = kept[first:]
            self._end += len(pcm)

    def read(self, index: int, count: int) -> Pcm16:
        """Copy ``count`` samples from ``index`` on.

        Raises:
            DataError: some of them are overwritten, or not recorded yet.
        """
        with self._lock:
            if index < self.begin:
                raise DataError(f"sample {index} is overwritten: the oldest one held is {self.begin}")
            if index + count > self._end:
                raise DataError(f"samples {index} to {index + count} are not recorded yet: {self._end} are")
            at = index % self.capacity_samples
            first = min(count, self.capacity_samples - at)
            return np.concatenate((self._samples[at : at + first], self._samples[: count - first]))
