"""How loud a stretch of sound is, and what speaks of a wrong gain or a broken microphone."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from edge.sound.ring import Pcm16

# Digital silence has no level; JSON has no minus infinity.
FLOOR_DBFS = -120.0


class Loudness(NamedTuple):
    """Levels in dB relative to full scale, and how many samples lie at either end of the range."""

    rms_dbfs: float
    peak_dbfs: float
    clipped_samples: int


def loudness(pcm: Pcm16) -> Loudness:
    """Root mean square, peak (neither below -120) and clipped samples of sound (n,)."""
    rms_dbfs, peak_dbfs = level_dbfs(pcm)
    return Loudness(rms_dbfs, peak_dbfs, int(np.count_nonzero((pcm == 32767) | (pcm == -32768))))


def level_dbfs(pcm: Pcm16) -> tuple[float, float]:
    """Root mean square and peak of samples (n,) in dB relative to full scale, not below -120."""
    if not len(pcm):
        return FLOOR_DBFS, FLOOR_DBFS
    sound = pcm.astype(np.float32) / np.float32(32768)
    rms, peak = math.sqrt(float(np.mean(np.square(sound, dtype=np.float64)))), float(np.max(np.abs(sound)))
    return _dbfs(rms), _dbfs(peak)


def _dbfs(value: float) -> float:
    return FLOOR_DBFS if value <= 0 else max(FLOOR_DBFS, 20 * math.log10(value))


class Silence:
    """For how many samples nothing but one value has come: a muted microphone gives zeros, a broken one may stick.

    One thread feeds, others may read ``samples``.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._value: int | None = None

    def feed(self, pcm: Pcm16) -> None:
        """Take the next samples (n,)."""
        if not len(pcm):
            return
        last = int(pcm[-1])
        if len(pcm) > 1 and pcm[-2] != last:
            # Nearly always; looking at every sample would be for nothing.
            self.samples = 1
        elif (others := np.flatnonzero(pcm != last)).size:
            self.samples = len(pcm) - 1 - int(others[-1])
        else:
            self.samples = len(pcm) + (self.samples if last == self._value else 0)
        self._value = last
