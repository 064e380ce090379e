"""Frequency responses of loudspeakers and microphones, by name or from a file.

Named ones are magnitudes turned into minimum-phase filters, which is what such transducers are: nothing arrives before
its time, nothing is turned around, and what is late (half a millisecond in the telephone band) is late for a reason.
They have 0 dB at 1 kHz and say where their shape comes from; they stand for a kind
of thing, not for a product, for which a measured response is the right answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from edge.errors import PlanError

_Signal = npt.NDArray[np.float64]
Kind = Literal["loudspeaker", "microphone"]
FFT = 16384
LENGTH_S = 0.064
LOWEST_DB = -90.0
LONGEST_FILE_S = 1.0


@dataclass(frozen=True)
class Profile:
    """A named magnitude: points of (Hz, dB), straight lines over the logarithm of the frequency between them."""

    points: tuple[tuple[float, float], ...]
    source: str


@dataclass(frozen=True)
class Response:
    """An impulse response, float64 (taps,), with 0 dB at 1 kHz.

    ``latency_samples`` is where its main peak is: the direct sound comes as much later. ``source`` says where it is
    from, ``level_db`` what was taken off a file's own level at 1 kHz.
    """

    taps: _Signal
    latency_samples: int
    source: str
    level_db: float


def _high_pass(corner_hz: float, order: int) -> tuple[tuple[float, float], ...]:
    """Butterworth magnitudes below and around a corner."""
    frequencies = corner_hz * 2.0 ** np.arange(-5, 2.01, 0.25)
    return tuple((float(f), float(-10 * np.log10(1 + (corner_hz / f) ** (2 * order)))) for f in frequencies)


# ITU-T P.862 (2001), the receiving side of the intermediate reference system of P.48, less its 12 dB at 1 kHz.
_IRS = (
    *((50, -52), (100, -32), (125, -24), (160, -18), (200, -12), (250, -8), (300, -6), (350, -4), (400, -2)),
    *((500, -1), (600, 0), (3000, 0), (3250, 0), (3500, -8), (4000, -90)),
)
PROFILES: dict[Kind, dict[str, Profile]] = {
    "loudspeaker": {
        "studio": Profile(
            _high_pass(45.0, 4),
            "flat within 1 dB above 60 Hz, vented box of 4th order with -3 dB at 45 Hz: what two-way studio monitors"
            " are sold with",
        ),
        "phone": Profile(
            (*_high_pass(750.0, 2)[:-6], (800, 1.0), (950, 2.0), (1000, 0.0), (1500, -1.0), (4000, 1.0), (8000, -3.0)),
            "micro speaker in a closed box of about 1 cm3: resonance between 800 and 1,000 Hz, 12 dB per octave below,"
            " uneven by a few dB above; typical of data sheets of 11 x 15 mm speakers",
        ),
        "far-field-array": Profile(
            (*_high_pass(90.0, 2), (400, 0.0), (1000, 0.0), (6000, 0.0), (8000, -1.5)),
            "full-range driver of 40 to 60 mm in a closed box as smart speakers have it: -3 dB at 90 Hz, 12 dB per"
            " octave below",
        ),
        "telephone-band": Profile(
            _IRS, "intermediate reference system, receiving, ITU-T P.48 as tabulated for ITU-T P.862"
        ),
    },
    "microphone": {
        "studio": Profile(
            _high_pass(10.0, 1),
            "measurement condenser: flat, -1 dB at 20 Hz; within the limits of IEC 61672-1 class 1",
        ),
        "phone": Profile(
            (*_high_pass(100.0, 2), (1000, 0.0), (3000, 0.5), (6000, 2.0), (8000, 3.0), (12000, 6.0), (20000, 3.0)),
            "MEMS capsule behind a port: rises to the port's resonance above 10 kHz as in data sheets; the codec's wind"
            " filter of 2nd order at 100 Hz",
        ),
        "far-field-array": Profile(
            (*_high_pass(70.0, 1), (1000, 0.0), (4000, -0.5), (8000, -3.0)),
            "MEMS array with short ports: -3 dB at 70 Hz, and the 3 dB at 8 kHz that a delay-and-sum pair loses by an"
            " error of half a sample at 16 kHz",
        ),
        "telephone-band": Profile(_IRS, "intermediate reference system, ITU-T P.48 as tabulated for ITU-T P.862"),
    },
}


def is_profile(kind: Kind, name: str) -> bool:
    """Whether ``name`` is one of the profiles of this kind."""
    return name in PROFILES[kind]


def known(kind: Kind) -> str:
    """The names of this kind, for messages."""
    return ", ".join(PROFILES[kind])


@lru_cache(maxsize=32)
def load(kind: Kind, name: str, rate_hz: int) -> Response:
    """The response behind a name or a path.

    Args:
        kind: of what.
        name: of a profile, or the path of a WAV or FLAC file with an impulse response (the first channel counts).
        rate_hz: to which a file is resampled.

    Raises:
        PlanError: no profile and no file, or a file that holds no response.
    """
    if is_profile(kind, name):
        profile = PROFILES[kind][name]
        taps = minimum_phase(profile.points, rate_hz)
        return Response(taps, int(np.argmax(np.abs(taps))), f"{name}: {profile.source}", 0.0)
    return _read(kind, Path(name), rate_hz)


def minimum_phase(points: tuple[tuple[float, float], ...], rate_hz: int) -> _Signal:
    """The minimum-phase filter with these magnitudes, float64 (taps,), 0 dB at 1 kHz.

    By folding the cepstrum (Oppenheim and Schafer, Discrete-Time Signal Processing, section 12.2).
    """
    frequencies = np.fft.rfftfreq(FFT, 1 / rate_hz)
    ordered = sorted(points)
    octaves = np.log2([frequency for frequency, _ in ordered])
    level_db = np.interp(np.log2(np.maximum(frequencies, 1.0)), octaves, [db for _, db in ordered])
    level_db -= np.interp(1000.0, frequencies, level_db)
    cepstrum = np.fft.irfft(np.maximum(level_db, LOWEST_DB) * np.log(10) / 20)
    cepstrum[1 : FFT // 2] *= 2
    cepstrum[FFT // 2 + 1 :] = 0
    taps: _Signal = np.fft.irfft(np.exp(np.fft.rfft(cepstrum)))[: round(LENGTH_S * rate_hz)]
    fade = len(taps) // 4
    taps[-fade:] *= 0.5 + 0.5 * np.cos(np.pi * np.arange(fade) / fade)
    return taps / level(taps, rate_hz)


def level(taps: _Signal, rate_hz: int) -> float:
    """Root mean square of the magnitude over the octave about 1 kHz."""
    size = max(FFT, 1 << (len(taps) - 1).bit_length())
    frequencies = np.fft.rfftfreq(size, 1 / rate_hz)
    octave = (frequencies >= 1000 / np.sqrt(2)) & (frequencies <= 1000 * np.sqrt(2))
    return float(np.sqrt(np.mean(np.abs(np.fft.rfft(taps, size)[octave]) ** 2)))


def _read(kind: Kind, path: Path, rate_hz: int) -> Response:
    import soundfile  # noqa: PLC0415 - not for a plan that only names profiles
    import soxr  # noqa: PLC0415 - as above

    if not path.is_file():
        raise PlanError(f"room: {kind}: {str(path)!r} is neither a file nor one of {known(kind)}")
    try:
        with soundfile.SoundFile(str(path)) as file:
            rate, length = file.samplerate, file.frames
            if length > LONGEST_FILE_S * rate:
                raise PlanError(
                    f"room: {kind}: {path} is {length / rate:.1f} s long, a response has at most {LONGEST_FILE_S:g} s"
                )
            taps = file.read(dtype="float64", always_2d=True)[:, 0]
    except (soundfile.SoundFileError, RuntimeError, OSError) as error:
        raise PlanError(f"room: {kind}: {path}: not readable as WAV or FLAC ({error})") from None
    if not len(taps) or not np.isfinite(taps).all():
        raise PlanError(f"room: {kind}: {path}: {'holds samples that are no numbers' if len(taps) else 'is empty'}")
    if rate != rate_hz:
        # A response is a density over time: at another rate its samples weigh otherwise.
        taps = soxr.resample(taps, rate, rate_hz, quality="VHQ") * (rate / rate_hz)
    own = level(taps, rate_hz)
    if own < 1e-9:
        raise PlanError(f"room: {kind}: {path}: lets nothing through at 1 kHz, so it is no response of a {kind}")
    return Response(taps / own, int(np.argmax(np.abs(taps))), str(path), round(-20 * float(np.log10(own)), 2))
