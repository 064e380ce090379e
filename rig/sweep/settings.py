"""What a plan says of a sweep alone: the axes that a session does not vary."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

_Db = Annotated[float, Field(ge=-60, le=40, allow_inf_nan=False)]
_Seconds = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]


class SweepChoice(BaseModel):
    """Further axes of a sweep; each multiplies the conditions.

    Attributes:
        levels_db: of what the attacker plays, against the plan's perturbation.
        talker_levels_db: of what the talker plays, against the clip.
        rt60_s: reverberation times in place of the room's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    levels_db: Annotated[tuple[_Db, ...], Field(min_length=1, max_length=1000)] = (0.0,)
    talker_levels_db: Annotated[tuple[_Db, ...], Field(min_length=1, max_length=1000)] = (0.0,)
    rt60_s: Annotated[tuple[_Seconds, ...], Field(max_length=100)] = ()

    @field_validator("levels_db", "talker_levels_db", "rt60_s")
    @classmethod
    def _differ(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(values)) != len(values):
            raise ValueError("an entry stands twice")
        return values
