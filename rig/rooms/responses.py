"""Impulse responses from every loudspeaker to every microphone, simulated or measured: what rendering works on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

# x, y, z in metres. In a shoebox the origin is the corner of west (x = 0), south (y = 0) and floor (z = 0).
Point = tuple[float, float, float]


@dataclass(frozen=True)
class Responses:
    """What each device hears of a unit impulse that each source plays.

    Attributes:
        array: float32 (devices, sources, samples); simulated, the direct path of an omnidirectional pair has the
            amplitude 1 / distance in metres, as in pyroomacoustics. Read-only.
        onset_sample: float64 (devices, sources); when the direct path arrives, in samples from the start of the array.
            Simulated: distance / speed of sound x rate_hz + ``facts["offset_samples"]``.
        rate_hz: sampling rate of the array.
        devices: names along the first axis.
        sources: names along the second axis.
        facts: what a report tells of their origin: plain values that JSON can hold, the same for the same input.
    """

    array: npt.NDArray[np.float32]
    onset_sample: npt.NDArray[np.float64]
    rate_hz: int
    devices: tuple[str, ...]
    sources: tuple[str, ...]
    facts: dict[str, Any] = field(default_factory=dict)

    def of(self, device: str, source: str) -> npt.NDArray[np.float32]:
        """The response float32 (samples,) of one pair by name; KeyError if there is none."""
        return self.array[self._place(device, source)]  # type: ignore[no-any-return]

    def onset(self, device: str, source: str) -> float:
        """When the direct path of one pair arrives, in samples; KeyError if there is none."""
        return float(self.onset_sample[self._place(device, source)])

    def _place(self, device: str, source: str) -> tuple[int, int]:
        if device not in self.devices or source not in self.sources:
            raise KeyError((device, source))
        return self.devices.index(device), self.sources.index(source)
