"""What a room response tells: reverberation time, clarity, definition, direct-to-reverberant ratio.

Definitions of ISO 3382-1: decay from the backward integral of the squared response (Schroeder, 1965).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rig.rooms.responses import Responses

_Signal = npt.NDArray[np.float32] | npt.NDArray[np.float64]
HEADROOM_DB = 5.0
# Direct sound is what arrives up to this much before and after its peak: half the sinc of the simulation at 16 kHz.
DIRECT_S = 0.0025
EARLY_S = 0.05


@dataclass(frozen=True)
class Measures:
    """Of one response; NaN where it does not decay far enough to tell.

    Attributes:
        t30_s: time of a decay by 60 dB, from a line through -5 to -35 dB: what "RT60" means in earshot.
        t20_s: the same from -5 to -25 dB.
        edt_s: the same from 0 to -10 dB: the decay that one hears first.
        c50_db: energy of the first 50 ms after the direct sound over the rest.
        d50: share of the energy in the first 50 ms, 0 to 1.
        drr_db: energy of the direct sound over everything after it.
    """

    t30_s: float
    t20_s: float
    edt_s: float
    c50_db: float
    d50: float
    drr_db: float


def measure(response: _Signal, rate_hz: int, onset_sample: float | None = None) -> Measures:
    """Measure one response.

    Args:
        response: (samples,), any unit.
        rate_hz: its sampling rate.
        onset_sample: when the direct sound arrives; without it, its greatest sample.
    """
    energy = np.square(response.astype(np.float64))
    onset = int(np.argmax(energy)) if onset_sample is None else round(onset_sample)
    curve_db = _decay_db(energy)
    # What the sinc of the direct sound has before its peak is direct sound as well.
    direct_end = onset + round(DIRECT_S * rate_hz)
    early_end = onset + round(EARLY_S * rate_hz)
    total, direct, early = (float(part.sum()) for part in (energy, energy[:direct_end], energy[:early_end]))
    return Measures(
        t30_s=_fit_s(curve_db, rate_hz, HEADROOM_DB, 30.0),
        t20_s=_fit_s(curve_db, rate_hz, HEADROOM_DB, 20.0),
        edt_s=_fit_s(curve_db[max(onset, 0) :], rate_hz, 0.0, 10.0),
        c50_db=_ratio_db(early, total - early),
        d50=early / total if total > 0 else math.nan,
        drr_db=_ratio_db(direct, total - direct),
    )


def decay_db(response: _Signal) -> npt.NDArray[np.float64]:
    """The decay curve in dB re its start, float64 (samples,): energy still to come; -inf where nothing comes."""
    return _decay_db(np.square(response.astype(np.float64)))


def decay_time_s(response: _Signal, rate_hz: int, range_db: float = 30.0) -> float:
    """Time of a decay by 60 dB, from a straight line through the curve from -5 dB to ``range_db`` below.

    The same as ``pyroomacoustics.experimental.measure_rt60(decay_db=range_db)`` where the response decays as far; NaN
    where it does not (pyroomacoustics silently takes a smaller range).
    """
    return _fit_s(decay_db(response), rate_hz, HEADROOM_DB, range_db)


def direct_amplitude(response: _Signal, rate_hz: int, onset_sample: float) -> float:
    """Amplitude of the direct sound: the root of its energy; 1 / distance in a simulated room without directivity.

    By this, levels are set that a measured room knows only relative to others (reflections within 2.5 ms count too).
    """
    first, last = (round(onset_sample + side * DIRECT_S * rate_hz) for side in (-1, 1))
    direct = response[max(first, 0) : last + 1].astype(np.float64)
    return float(np.sqrt(np.square(direct).sum()))


def critical_distance_m(volume_m3: float, rt60_s: float, directivity_factor: float = 1.0) -> float:
    """Where direct and reverberant sound are equally strong: 0.057 sqrt(Q V / RT60), for a diffuse field."""
    # Sabine's absorption area, 0.161 V / RT60, with its constant 24 ln(10) / c at 343 m/s.
    absorption_m2 = 24 * math.log(10) / 343.0 * volume_m3 / rt60_s
    return math.sqrt(directivity_factor * absorption_m2 / (16 * math.pi))


def describe(responses: Responses) -> list[dict[str, Any]]:
    """The measures of every pair: ``device``, ``source``, ``distance_m`` if known, ``t30_s`` ...; None for unknown."""
    rows = []
    distances = responses.facts.get("distance_m")
    for i, device in enumerate(responses.devices):
        for j, source in enumerate(responses.sources):
            found = measure(responses.array[i, j], responses.rate_hz, float(responses.onset_sample[i, j]))
            row: dict[str, Any] = {"device": device, "source": source}
            if distances is not None:
                row["distance_m"] = distances[i][j]
            row |= {key: round(value, 4) if math.isfinite(value) else None for key, value in asdict(found).items()}
            rows.append(row)
    return rows


def _decay_db(energy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    remaining = np.cumsum(energy[::-1])[::-1]
    if len(remaining) == 0 or remaining[0] <= 0:
        return np.full(len(energy), -np.inf)
    with np.errstate(divide="ignore"):
        curve: npt.NDArray[np.float64] = 10 * np.log10(remaining / remaining[0])
    return curve


def _fit_s(curve_db: npt.NDArray[np.float64], rate_hz: int, headroom_db: float, range_db: float) -> float:
    finite = curve_db[np.isfinite(curve_db)]
    if len(finite) == 0:
        return math.nan
    finite = finite - finite[0]
    first = int(np.argmax(finite < -headroom_db)) if headroom_db > 0 else 0
    below = finite < finite[first] - range_db
    if not below.any() or (headroom_db > 0 and first == 0):
        return math.nan
    piece = finite[first : int(np.argmax(below))]
    if len(piece) < 2:
        return math.nan
    time = np.arange(len(piece)) - (len(piece) - 1) / 2
    slope = float(np.dot(time, piece) / np.dot(time, time)) * rate_hz
    return -60.0 / slope if slope < 0 else math.nan


def _ratio_db(one: float, other: float) -> float:
    if one <= 0 and other <= 0:
        return math.nan
    if other <= 0:
        return math.inf
    return 10 * math.log10(one / other) if one > 0 else -math.inf
