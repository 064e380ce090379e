"""The air of a room: how fast sound is and how much of it the air swallows, by temperature and humidity."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

# The speed of sound where no temperature is given, as in pyroomacoustics.
DEFAULT_SPEED_MPS = 343.0


class Air(BaseModel):
    """Temperature, humidity, and whether absorption by the air counts.

    Attributes:
        temperature_c: -20 to 50; without it sound is 343 m/s fast.
        humidity_percent: relative, 0 to 100.
        absorption: swallow sound on its way, more of it in higher octaves (4 dB per 100 m at 4 kHz and 20 degrees).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature_c: Annotated[float, Field(ge=-20, le=50, allow_inf_nan=False)] | None = None
    humidity_percent: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 50.0
    absorption: bool = False

    @property
    def speed_mps(self) -> float:
        """Speed of sound in m/s, by the formula of pyroomacoustics: 331.4 + 0.6 T + 0.0124 H."""
        if self.temperature_c is None:
            return DEFAULT_SPEED_MPS
        return 331.4 + 0.6 * self.temperature_c + 0.0124 * self.humidity_percent

    def absorption_per_m(self, centres_hz: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Energy absorption in 1/m per octave band, float64 (bands,): pressure falls by exp(-half of it x distance).

        Source: the table of pyroomacoustics (Vorlaender, Auralization, 2008), which knows 10 and 20 degrees C and three
        ranges of humidity; the nearest of them counts.
        """
        from pyroomacoustics.parameters import Physics  # noqa: PLC0415 - it takes a second to import

        temperature_c = 20.0 if self.temperature_c is None else self.temperature_c
        table = Physics(temperature=temperature_c, humidity=self.humidity_percent).get_air_absorption()
        coefficients = np.asarray(table["coeffs"], dtype=np.float64)
        known = np.log2(np.asarray(table["center_freqs"], dtype=np.float64))
        wanted = np.log2(centres_hz)
        # pyroomacoustics continues the last straight line beyond its table and cuts at 0 and 1.
        slope = (coefficients[-1] - coefficients[-2]) / (known[-1] - known[-2])
        beyond = coefficients[-1] + slope * np.maximum(wanted - known[-1], 0)
        values = np.where(wanted > known[-1], beyond, np.interp(wanted, known, coefficients))
        return np.clip(values, 0.0, 1.0)
