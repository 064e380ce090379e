"""A recording of any rate, length and number of channels, and the windows it is cut into."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from edge.errors import DataError
from firmware_models.data.audio import RATE_HZ, fit, to_int16

LONGEST_RECORDING_S = 3600.0
# What is left behind the last whole window is padded if it is at least this part of a window, else left out.
SHORTEST_REST = 0.5
_RATES_HZ = (4_000, 384_000)
_BLOCK = 1 << 18


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """``pcm`` int16 (samples,) at 16 kHz, and what the file had: its rate and number of channels."""

    pcm: npt.NDArray[np.int16]
    rate_hz: int
    channels: int


def decode_recording(path: Path) -> Recording:
    """Read a file, mix its channels down to their mean and resample it to 16 kHz.

    Raises:
        DataError: no such file, not audio, longer than an hour, empty, or a rate outside 4 to 384 kHz.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        with soundfile.SoundFile(str(path)) as file:
            rate_hz, channels = file.samplerate, file.channels
            low, high = _RATES_HZ
            if not low <= rate_hz <= high:
                raise DataError(f"{path}: sampled at {rate_hz} Hz, {low} to {high} Hz can be resampled")
            if file.frames > LONGEST_RECORDING_S * rate_hz:
                length_s = file.frames / rate_hz
                raise DataError(f"{path}: {length_s:.0f} s long, at most {LONGEST_RECORDING_S:.0f} s are read: cut it")
            pcm = _read(file)
    except (soundfile.SoundFileError, RuntimeError, OSError) as error:
        raise DataError(f"{path}: not readable as WAV or FLAC ({error})") from None
    except _NoNumbersError:
        raise DataError(f"{path}: holds samples that are no numbers") from None
    if pcm.size == 0:
        raise DataError(f"{path}: holds no sample")
    return Recording(pcm, rate_hz, channels)


def cut(pcm: npt.NDArray[np.int16], window_samples: int) -> list[npt.NDArray[np.int16]]:
    """Consecutive windows, int16 (window_samples,) each.

    What is shorter than a window is padded at both ends. So is the rest behind the last whole window if it is at least
    half a window long; else it is left out.
    """
    whole = pcm.size // window_samples
    rest = pcm.size - whole * window_samples
    pieces = [pcm[row * window_samples : (row + 1) * window_samples] for row in range(whole)]
    if whole == 0 or rest >= SHORTEST_REST * window_samples:
        pieces.append(fit(pcm[whole * window_samples :], window_samples))
    return pieces


class _NoNumbersError(Exception):
    pass


def _read(file: soundfile.SoundFile) -> npt.NDArray[np.int16]:
    """In blocks, so that an hour of many channels at a high rate needs no gigabytes."""
    resampler = None
    if file.samplerate != RATE_HZ:
        resampler = soxr.ResampleStream(file.samplerate, RATE_HZ, 1, dtype="float32", quality="HQ")
    parts = []
    left = True
    while left:
        block = file.read(_BLOCK, dtype="float32", always_2d=True)
        left = len(block) == _BLOCK
        mono = block.mean(1, dtype=np.float32)
        if not np.isfinite(mono).all():
            raise _NoNumbersError
        parts.append(to_int16(mono if resampler is None else resampler.resample_chunk(mono, last=not left)))
    return np.concatenate(parts)
