"""How loud a stretch of sound is."""

from __future__ import annotations

import math

import numpy as np

from edge.sound.ring import Pcm16

# Digital silence has no level; JSON has no minus infinity.
FLOOR_DBFS = -120.0


def level_dbfs(pcm: Pcm16) -> tuple[float, float]:
    """Root mean square and peak of samples (n,) in dB relative to full scale, not below -120."""
    if not len(pcm):
        return FLOOR_DBFS, FLOOR_DBFS
    sound = pcm.astype(np.float32) / np.float32(32768)
    rms, peak = math.sqrt(float(np.mean(np.square(sound, dtype=np.float64)))), float(np.max(np.abs(sound)))
    return _dbfs(rms), _dbfs(peak)


def _dbfs(value: float) -> float:
    return FLOOR_DBFS if value <= 0 else max(FLOOR_DBFS, 20 * math.log10(value))
