"""One audio file in, one window of PCM out (a second, unless another length is asked for)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from edge.errors import DataError

RATE_HZ = 16_000
WINDOW_SAMPLES = 16_000
SUFFIXES = (".wav", ".flac")
# Nobody says a command for a minute; a longer file is a mistake, and reading it may fill the memory.
LONGEST_CLIP_S = 60.0


def read_clip(path: Path, window_samples: int = WINDOW_SAMPLES) -> npt.NDArray[np.float32]:
    """One clip as PCM, float32 (window_samples,) in [-1, 1), padded or cut by :func:`fit`.

    Raises:
        DataError: no such file, not audio, not 16 kHz, not mono, longer than a minute, or empty.
    """
    return (decode(path, window_samples).astype(np.float32)) / np.float32(32768)


def decode(path: Path, window_samples: int = WINDOW_SAMPLES) -> npt.NDArray[np.int16]:
    """The same as :func:`read_clip`, int16 (window_samples,).

    Raises:
        DataError: as for :func:`read_clip`.
    """
    return fit(decode_raw(path), window_samples)


def decode_raw(path: Path) -> npt.NDArray[np.int16]:
    """A clip in its own length, int16 (samples,).

    Raises:
        DataError: as for :func:`read_clip`.
    """
    return _read(path, longest_s=LONGEST_CLIP_S)


def decode_long(path: Path) -> npt.NDArray[np.int16]:
    """A recording of any length up to an hour (background noise), int16 (samples,).

    Raises:
        DataError: as for :func:`read_clip`.
    """
    return _read(path, longest_s=3600.0)


def fit(pcm: npt.NDArray[np.int16], window_samples: int = WINDOW_SAMPLES) -> npt.NDArray[np.int16]:
    """Pad with zeros at both ends, or keep the middle: int16 (samples,) becomes (window_samples,)."""
    missing = window_samples - pcm.size
    if missing > 0:
        return np.pad(pcm, (missing // 2, missing - missing // 2))
    start = -missing // 2
    return pcm[start : start + window_samples]


def to_int16(sound: npt.NDArray[np.float32]) -> npt.NDArray[np.int16]:
    """Full scale 1 becomes 32768; what is louder is clipped."""
    pcm: npt.NDArray[np.int16] = np.rint(sound * np.float32(32768)).clip(-32768, 32767).astype(np.int16)
    return pcm


def _read(path: Path, *, longest_s: float) -> npt.NDArray[np.int16]:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        with soundfile.SoundFile(str(path)) as file:
            if file.samplerate != RATE_HZ:
                raise DataError(f"{path}: sampled at {file.samplerate} Hz, {RATE_HZ} Hz is needed: resample it first")
            if file.channels != 1:
                raise DataError(f"{path}: {file.channels} channels, 1 is needed: mix it down first")
            if file.frames > longest_s * RATE_HZ:
                raise DataError(f"{path}: {file.frames / RATE_HZ:.0f} s long, at most {longest_s:.0f} s are read")
            # libsndfile does not scale floating point to integers: full scale would become 1.
            floating = file.subtype in {"FLOAT", "DOUBLE"}
            pcm = _to_int16(file.read(dtype="float32"), path) if floating else file.read(dtype="int16")
    except (soundfile.SoundFileError, RuntimeError, OSError) as error:
        raise DataError(f"{path}: not readable as WAV or FLAC ({error})") from None
    if pcm.size == 0:
        raise DataError(f"{path}: holds no sample")
    return pcm


def _to_int16(sound: npt.NDArray[np.float32], path: Path) -> npt.NDArray[np.int16]:
    if not np.isfinite(sound).all():
        raise DataError(f"{path}: holds samples that are no numbers")
    return to_int16(sound)
