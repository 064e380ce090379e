"""Where a microphone listens and a loudspeaker plays: the cardioid family."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Pattern = Literal["omni", "subcardioid", "cardioid", "hypercardioid", "figure-eight"]
# Gain towards a direction at angle a: p + (1 - p) cos a, with the p of pyroomacoustics' CardioidFamily.
_P: dict[str, float] = {"omni": 1.0, "subcardioid": 0.75, "cardioid": 0.5, "hypercardioid": 0.25, "figure-eight": 0.0}

_Degrees = Annotated[float, Field(ge=-360, le=360, allow_inf_nan=False)]
_Metres = Annotated[float, Field(allow_inf_nan=False, ge=-1000, le=1000)]


class Directivity(BaseModel):
    """A pattern of the cardioid family and where it points, the same at every frequency.

    Attributes:
        pattern: by name; ``p`` instead for anything between, 0 (figure of eight) to 1 (omnidirectional).
        azimuth_deg: 0 points along x (east), 90 along y (north).
        elevation_deg: 0 is horizontal, 90 points to the ceiling.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pattern: Pattern = "omni"
    p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    azimuth_deg: _Degrees = 0.0
    elevation_deg: Annotated[float, Field(ge=-90, le=90, allow_inf_nan=False)] = 0.0

    @model_validator(mode="after")
    def _one_pattern(self) -> Self:
        if self.p is not None and self.pattern != "omni":
            raise ValueError(f"pattern {self.pattern} and p = {self.p} are both given, leave one out")
        return self

    @property
    def omni_share(self) -> float:
        """The p of p + (1 - p) cos a."""
        return _P[self.pattern] if self.p is None else self.p

    @property
    def direction(self) -> tuple[float, float, float]:
        """Unit vector along which the pattern points."""
        azimuth, elevation = math.radians(self.azimuth_deg), math.radians(self.elevation_deg)
        level = math.cos(elevation)
        return level * math.cos(azimuth), level * math.sin(azimuth), math.sin(elevation)

    @property
    def directivity_factor(self) -> float:
        """Q: energy along the axis over the mean of all directions; 1 omnidirectional, 3 cardioid."""
        p = self.omni_share
        return 3.0 / (4.0 * p * p - 2.0 * p + 1.0)


OMNI = Directivity()


class Placement(BaseModel):
    """Where a loudspeaker or microphone stands, in metres, and its directivity."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    position_m: tuple[_Metres, _Metres, _Metres]
    directivity: Directivity = OMNI

    @classmethod
    def at(cls, x_m: float, y_m: float, z_m: float, directivity: Directivity = OMNI) -> Placement:
        """A placement in a word: ``Placement.at(1, 2, 1.5)``."""
        return cls(position_m=(x_m, y_m, z_m), directivity=directivity)
