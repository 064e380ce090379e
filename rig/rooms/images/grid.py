"""From amplitudes and arrival times to a response: the grid of the kernel, absorption by the air, octave bands."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import scipy.fft

from rig.rooms.images import kernel
from rig.rooms.materials import BASE_HZ, band_centres_hz

__all__ = ["OFFSET_SAMPLES", "Grid", "band_centres_hz", "join_bands"]

Signal = npt.NDArray[np.float32]
# A response begins this much before time 0, so that the left half of the direct path's sinc has room.
OFFSET_SAMPLES = kernel.HALF
_SILENCE = (kernel.TAPS - 1) * kernel.ROW
# The short sinc has its peak at tap 8 (of 0 to 17), the long one at tap 40 (of 0 to 80).
_SHORT_LATER = (kernel.TAPS - 1 - kernel.HALF - (kernel.SHORT // 2)) * kernel.ROW


class Grid:
    """Amplitudes by arrival time in twentieths of a sample, float32 (bands, (80 + samples + 1) x 21).

    The last row is there for what by rounding arrives at the very end.
    """

    def __init__(self, samples: int, rate_hz: int, bands: int = 1) -> None:
        self.samples = samples
        self.rate_hz = rate_hz
        self._cells = np.zeros((bands, _SILENCE + (samples + 1) * kernel.ROW), dtype=np.float32)

    @property
    def after_silence(self) -> Signal:
        """The cells from arrival time 0 on, float32 (bands, (samples + 1) x 21), to be added to."""
        return self._cells[:, _SILENCE:]

    def add(self, time_samples: npt.NDArray[np.float64], amplitude: npt.NDArray[np.float64]) -> None:
        """Add images given by arrival time (n,) and amplitude (bands, n)."""
        kernel.deposit_list(
            np.ascontiguousarray(time_samples, dtype=np.float64),
            np.ascontiguousarray(amplitude, dtype=np.float64),
            self.after_silence,
        )

    def response(self, air_per_m: npt.NDArray[np.float64] | None, speed_mps: float) -> Signal:
        """The response float32 (samples,), offset by ``OFFSET_SAMPLES``.

        Args:
            air_per_m: energy absorption of the air per octave band, None for none.
            speed_mps: speed of sound.
        """
        bands = self._cells.shape[0] if air_per_m is None else len(air_per_m)
        centres_hz = band_centres_hz(self.rate_hz)
        parts = np.empty((bands, self.samples), dtype=np.float32)
        for band in range(bands):
            cells = self._cells[min(band, self._cells.shape[0] - 1)]
            if air_per_m is not None:
                cells = self._swallow(cells, float(air_per_m[band]), speed_mps)
            if bands > 1 and centres_hz[band] < self.rate_hz / 6:
                # Its filter lets nothing through that the short sinc gets wrong.
                kernel.sum_steps(cells[_SHORT_LATER:], _short_taps(), parts[band])
            else:
                kernel.sum_steps(cells, _taps(), parts[band])
        return parts[0] if bands == 1 else join_bands(parts, self.rate_hz)

    def _swallow(self, cells: Signal, per_m: float, speed_mps: float) -> Signal:
        """Whatever arrives at a time has come the same way, so the air's absorption is a gain over time."""
        per_sample = -0.5 * per_m * speed_mps / self.rate_hz
        samples = np.exp(per_sample * np.arange(self.samples)).astype(np.float32)
        steps = np.exp(per_sample * np.arange(kernel.ROW) / kernel.STEPS).astype(np.float32)
        swallowed = cells.copy()
        rows = swallowed[_SILENCE : -kernel.ROW].reshape(self.samples, kernel.ROW)
        rows *= samples[:, None]
        rows *= steps
        return swallowed


def join_bands(parts: Signal, rate_hz: int) -> Signal:
    """Let each octave band of ``parts`` float32 (bands, samples) through its filter and add them, float32 (samples,).

    The filters are those of pyroomacoustics (Antoni, 2010): their sum lets everything through as it is.
    """
    samples = parts.shape[1]
    size = 2 ** math.ceil(math.log2(2 * samples))
    spectra = scipy.fft.rfft(parts, n=size, axis=1)
    spectra *= _squared_windows(size, rate_hz)
    joined: Signal = scipy.fft.irfft(spectra.sum(axis=0), n=size)[:samples].astype(np.float32)
    return joined


@lru_cache(maxsize=8)
def _squared_windows(size: int, rate_hz: int) -> npt.NDArray[np.float32]:
    from pyroomacoustics.acoustics import (  # noqa: PLC0415 - it takes a second to import
        antoni_magnitude_octave_filter_response,
        octave_bands,
    )

    bands, centres = octave_bands(fc=BASE_HZ, n=len(band_centres_hz(rate_hz)))
    windows, *_ = antoni_magnitude_octave_filter_response(size, centres, bands, rate_hz, overlap_ratio=0.5, slope=0)
    return np.asarray(windows[:, : size // 2 + 1] ** 2, dtype=np.float32)


@lru_cache(maxsize=1)
def _taps() -> Signal:
    return kernel.taps()


@lru_cache(maxsize=1)
def _short_taps() -> Signal:
    return kernel.short_taps()
