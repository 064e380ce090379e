"""The noise that a room has: recordings of it, or white or pink noise, as a device's microphone hears it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge.errors import DataError, PlanError
from rig.scenes import noise
from rig.scenes.noise import Floats

MADE = ("white", "pink")
MADE_S = 60.0
MAX_FILES = 1000
MAX_TOTAL_S = 3600.0
SUFFIXES = (".wav", ".flac")


class Recordings:
    """Recordings float32 (samples,) each, full scale = 1, any number of them."""

    def __init__(self, sounds: list[Floats]) -> None:
        self.sounds = sounds
        self._rms = [float(np.sqrt(np.mean(sound**2, dtype=np.float64))) for sound in sounds]

    def stretch(self, which: int, where: int, samples: int) -> tuple[Floats, float]:
        """A stretch of ``samples`` and the RMS of the whole recording; it begins anew at the end of the recording.

        Args:
            which: any number, choosing the recording.
            where: any number, choosing the beginning.
            samples: length.
        """
        number = which % len(self.sounds)
        sound = self.sounds[number]
        start = where % len(sound)
        if start + samples <= len(sound):
            return sound[start : start + samples], self._rms[number]
        return np.take(sound, np.arange(start, start + samples), mode="wrap"), self._rms[number]


def load(data: str, rate_hz: int, *, seed: int, microphone: npt.NDArray[np.float64] | None = None) -> Recordings:
    """The recordings behind ``background.data`` through a microphone.

    Raises:
        PlanError: nothing is there, nothing of it can be used, or it is silent.
    """
    sounds = [_made(data, rate_hz, seed)] if data in MADE else _read(Path(data), rate_hz)
    if microphone is not None:
        from scipy.signal import oaconvolve  # noqa: PLC0415 - not for a plan that is only read

        sounds = [oaconvolve(sound, microphone)[: len(sound)].astype(np.float32) for sound in sounds]
    return Recordings(sounds)


def require_there(data: str) -> None:
    """Raise :class:`PlanError` if there is no such noise, without reading it."""
    if data not in MADE:
        _files(Path(data))


def _made(name: str, rate_hz: int, seed: int) -> Floats:
    white = noise.gaussian(round(MADE_S * rate_hz), noise.stream_key(seed, f"background {name}")) * np.float32(0.1)
    if name == "white":
        return white
    spectrum = np.fft.rfft(white)
    frequencies = np.fft.rfftfreq(len(white), 1 / rate_hz)
    # Power falls by 3 dB per octave, but not below what a microphone hears.
    spectrum *= np.sqrt(1000.0 / np.maximum(frequencies, 20.0))
    spectrum[0] = 0
    return np.fft.irfft(spectrum, len(white)).astype(np.float32)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise PlanError(f"room: background.data: {str(path)!r} is neither a file nor a folder, nor {' or '.join(MADE)}")
    files = sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES and each.is_file())
    if not files:
        raise PlanError(f"room: background.data: {path} holds no {' or '.join(SUFFIXES)} file")
    if len(files) > MAX_FILES:
        raise PlanError(f"room: background.data: {path} holds {len(files)} recordings, at most {MAX_FILES} are read")
    return files


def _read(path: Path, rate_hz: int) -> list[Floats]:
    from firmware_models.data.audio import RATE_HZ  # noqa: PLC0415 - data sets are not for a plan that is only read
    from firmware_models.data.recording import decode_recording  # noqa: PLC0415 - as above

    sounds: list[Floats] = []
    total_s = 0.0
    for file in _files(path):
        try:
            pcm = decode_recording(file).pcm
        except DataError as error:
            raise PlanError(f"room: background.data: {error}") from None
        if not pcm.any():
            raise PlanError(f"room: background.data: {file} is silent, and silence has no SNR: leave it out")
        total_s += len(pcm) / RATE_HZ
        if total_s > MAX_TOTAL_S:
            raise PlanError(f"room: background.data: {path} holds more than an hour, leave some of it out")
        sound: Floats = pcm.astype(np.float32) / np.float32(32768)
        if rate_hz != RATE_HZ:
            import soxr  # noqa: PLC0415 - models at another rate are rare

            sound = np.asarray(soxr.resample(sound, RATE_HZ, rate_hz, quality="VHQ"), dtype=np.float32)
        sounds.append(sound)
    return sounds
