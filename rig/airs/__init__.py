"""Airs: the media a trial travels through. Each renders what the device's microphone hears.

``digital`` adds the waveforms; ``room`` lets both loudspeakers sound in a simulated room.
"""

from __future__ import annotations

from edge.errors import PlanError
from rig.airs.digital import DigitalAir
from rig.airs.protocol import Air, Rendering
from rig.plan import Plan

AIRS = ("digital", "room")

__all__ = ["AIRS", "Air", "DigitalAir", "Rendering", "open_air"]


def open_air(name: str, plan: Plan, *, rate_hz: int, window_samples: int) -> Air:
    """The air of this name for this plan.

    Raises:
        PlanError: there is no such air, or the plan lacks what it needs.
    """
    if name == "digital":
        return DigitalAir(rate_hz=rate_hz, window_samples=window_samples)
    if name == "room":
        if plan.room is None:
            raise PlanError(f"plan {plan.name}: the room air needs 'room' with size_m, rt60_s and positions")
        from rig.airs.room import RoomAir  # noqa: PLC0415 - pyroomacoustics takes a second

        return RoomAir(plan.room, rate_hz=rate_hz, window_samples=window_samples, seed=plan.seed)
    raise PlanError(f"air {name!r}: choose one of {', '.join(AIRS)}")
