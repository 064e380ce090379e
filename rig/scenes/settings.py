"""What a plan says of a device's capture: background noise and automatic gain control."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_Ms = Annotated[float, Field(gt=0, le=60_000, allow_inf_nan=False)]


class BackgroundChoice(BaseModel):
    """Noise in the room, at an SNR.

    Attributes:
        data: ``white``, ``pink``, or a file or folder of recordings (WAV, FLAC; of a folder all that is below it).
        snr_db: the talker's RMS in the device's window over that of the noise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    snr_db: Annotated[float, Field(ge=-40, le=100, allow_inf_nan=False)]


class Agc(BaseModel):
    """Automatic gain control of the device.

    Attributes:
        target_dbfs: RMS that it strives for.
        max_gain_db: the most that it amplifies.
        max_cut_db: the most that it attenuates.
        attack_ms: time constant while the gain falls.
        release_ms: time constant while it rises.
        gate_dbfs: quieter frames leave the gain as it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target_dbfs: Annotated[float, Field(ge=-60, le=-3, allow_inf_nan=False)] = -20.0
    max_gain_db: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)] = 24.0
    max_cut_db: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)] = 12.0
    attack_ms: _Ms = 15.0
    release_ms: _Ms = 300.0
    gate_dbfs: Annotated[float, Field(ge=-120, le=-20, allow_inf_nan=False)] = -60.0
