"""Float samples at one rate to int16 samples at another, as a stream."""

from __future__ import annotations

import numpy as np
import soxr
from numpy.typing import NDArray

from edge.sound.ring import Pcm16


def to_pcm16(sound: NDArray[np.float32]) -> Pcm16:
    """Round samples in [-1, 1) to int16; what lies outside is clipped, what is no number is silent."""
    rounded: Pcm16 = np.clip(np.rint(np.nan_to_num(sound) * np.float32(32768)), -32768, 32767).astype(np.int16)
    return rounded


def amplify(pcm: Pcm16, gain: np.float32) -> Pcm16:
    """Samples (n,) times ``gain``, a factor; what exceeds the range is clipped to its ends."""
    louder: Pcm16 = np.clip(np.rint(pcm * gain), -32768, 32767).astype(np.int16)
    return louder


def factor(gain_db: float) -> np.float32:
    """The factor that a gain in dB stands for."""
    return np.float32(10 ** (gain_db / 20))


class Resampler:
    """A streaming sample rate converter (soxr, high quality) from float32 to int16.

    Sample ``n`` that comes out is sound of the moment ``n / to_rate_hz``: the filter's delay is waited for, not heard.
    """

    def __init__(self, from_rate_hz: int, to_rate_hz: int) -> None:
        self._stream = soxr.ResampleStream(from_rate_hz, to_rate_hz, 1, dtype="float32", quality="HQ")

    def feed(self, sound: NDArray[np.float32], *, last: bool = False) -> Pcm16:
        """Convert samples (n,); some come out with the next call unless this is the ``last``."""
        resampled: NDArray[np.float32] = self._stream.resample_chunk(sound, last=last)
        return to_pcm16(resampled)
