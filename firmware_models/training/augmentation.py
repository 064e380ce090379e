"""What a training clip goes through: speed, shift, room, noise, gain; and stripes masked in its features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import soxr

from firmware_models.data.audio import RATE_HZ
from firmware_models.data.silence import Noise
from firmware_models.training.recipe import Augmentation

Floats = npt.NDArray[np.float32]
# A clip quieter than this is taken to be this loud when noise is added by its ratio to the clip: -60 dBFS.
_QUIETEST_RMS = 1e-3


class Augmenter:
    """Changes clips as the recipe says; what it does follows from the generator it is handed alone."""

    def __init__(self, settings: Augmentation, noises: Sequence[Noise]) -> None:
        self.settings = settings
        self._noises = tuple(noises)

    def __call__(self, pcm: npt.NDArray[np.int16], rng: np.random.Generator) -> Floats:
        """One clip, int16 (samples,), becomes float32 (samples,) in [-1, 1]."""
        s = self.settings
        x = pcm.astype(np.float32) / np.float32(32768)
        factor = float(rng.uniform(*s.speed)) if rng.random() < s.speed_probability else 1.0
        x = place(change_speed(x, factor), samples=pcm.size, shift=self._shift(rng))
        if rng.random() < s.room_probability:
            x = reverberate(
                x, rt60_s=float(rng.uniform(*s.room_rt60_s)), drr_db=float(rng.uniform(*s.room_drr_db)), rng=rng
            )
        if self._noises and rng.random() < s.noise_probability:
            x = add_noise(x, self.noise(x.size, rng), snr_db=float(rng.uniform(*s.noise_snr_db)))
        gain = np.float32(10.0 ** (rng.uniform(*s.gain_db) / 20.0))
        loud: Floats = np.clip(x * gain, -1.0, 1.0)
        return loud

    @property
    def has_noise(self) -> bool:
        """Whether there are recordings of background noise."""
        return bool(self._noises)

    def noise(self, samples: int, rng: np.random.Generator) -> Floats:
        """A piece of background noise as it was recorded, float32 (samples,); zeros where there is no noise."""
        if not self._noises:
            return np.zeros(samples, np.float32)
        source = self._noises[int(rng.integers(len(self._noises)))].pcm
        if source.size < samples:
            source = np.resize(source, samples)
        start = int(rng.integers(source.size - samples + 1))
        return source[start : start + samples].astype(np.float32) / np.float32(32768)

    def silence(self, samples: int, rng: np.random.Generator) -> Floats:
        """A clip in which nobody speaks: background noise at any level from its own down to nothing."""
        loudness = rng.uniform() ** 2 * 10.0 ** (max(0.0, float(rng.uniform(*self.settings.gain_db))) / 20.0)
        quiet: Floats = np.clip(self.noise(samples, rng) * np.float32(loudness), -1.0, 1.0)
        return quiet

    def masks(
        self, batch: int, frames: int, bands: int, rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Factors 0 or 1 for the frames (batch, frames, 1) and the bands (batch, 1, bands) of features."""
        s = self.settings
        in_time = _stripes(batch, frames, count=s.time_masks, widest=s.time_mask_frames, rng=rng)
        in_bands = _stripes(batch, bands, count=s.band_masks, widest=s.band_mask_bands, rng=rng)
        return in_time[:, :, None], in_bands[:, None, :]

    def _shift(self, rng: np.random.Generator) -> int:
        return round(float(rng.uniform(-1.0, 1.0)) * self.settings.shift_ms / 1000.0 * RATE_HZ)


def change_speed(x: Floats, factor: float) -> Floats:
    """Faster (and higher) by ``factor``: the sound has 1 / factor times as many samples."""
    if abs(factor - 1.0) < 1e-3:
        return x
    resampled: Floats = soxr.resample(x, RATE_HZ * factor, RATE_HZ, quality="MQ")
    return resampled


def place(x: Floats, *, samples: int, shift: int) -> Floats:
    """Lay the middle of ``x`` on the middle of ``samples`` zeros, ``shift`` samples later."""
    out = np.zeros(samples, np.float32)
    start = (samples - x.size) // 2 + shift
    first, last = max(start, 0), min(start + x.size, samples)
    if first < last:
        out[first:last] = x[first - start : last - start]
    return out


def add_noise(x: Floats, noise: Floats, *, snr_db: float) -> Floats:
    """Add ``noise`` scaled so that it is ``snr_db`` quieter than ``x`` (both as RMS over the clip)."""
    level = max(float(np.sqrt(np.mean(x**2))), _QUIETEST_RMS)
    noise_level = float(np.sqrt(np.mean(noise**2)))
    if noise_level < 1e-7:
        return x
    return x + noise * np.float32(level / noise_level * 10.0 ** (-snr_db / 20.0))


def reverberate(x: Floats, *, rt60_s: float, drr_db: float, rng: np.random.Generator) -> Floats:
    """Add the tail of a simple room: noise that decays by 60 dB in ``rt60_s``, ``drr_db`` below the direct sound."""
    taps = max(2, round(rt60_s * RATE_HZ))
    tail = rng.standard_normal(taps, np.float32) * np.exp(
        np.arange(taps, dtype=np.float32) * np.float32(-6.9078 / taps)
    )
    # The first reflection of a room comes a few milliseconds after the direct sound.
    tail[: min(taps - 1, int(rng.integers(16, 160)))] = 0.0
    tail *= np.float32(10.0 ** (-drr_db / 20.0)) / np.sqrt(np.sum(tail**2))
    size = 1 << int(np.ceil(np.log2(x.size + taps)))
    wet = np.fft.irfft(np.fft.rfft(x, size) * np.fft.rfft(tail, size), size)[: x.size]
    return (x + wet).astype(np.float32)


def _stripes(batch: int, length: int, *, count: int, widest: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    keep = np.ones((batch, length), np.float32)
    position = np.arange(length)
    for _ in range(count):
        width = rng.integers(0, min(widest, length) + 1, (batch, 1))
        start = (rng.random((batch, 1)) * (length - width + 1)).astype(np.int64)
        keep[(position >= start) & (position < start + width)] = 0.0
    return keep
