"""The scene of a session: some of the places of a sweep's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from edge.errors import PlanError
from rig.scenes.placed import SHAPES, Placed
from rig.scenes.placement import device_key, talker_key
from rig.scenes.scene import Scene


def with_places(scene: Scene, kept: Mapping[str, list[str]], rt60_s: float | None, rate_hz: int) -> Scene:
    """The scene with some of its places, each under the name it had, and the levels it had.

    Args:
        scene: of a sweep.
        kept: names under ``talker_m`` (one), ``attackers_m`` and ``devices_m``.
        rt60_s: in place of the scene's; None leaves it.
        rate_hz: at which measured responses are read.

    Raises:
        PlanError: the responses are measured from several talkers, of which a session has one.
    """
    places = scene.placements
    if scene.measured is not None and len(places.talkers) > 1:
        raise PlanError("room: measured with several talkers: a session has one, take out the others and sweep again")
    (talker,) = kept["talker_m"]
    changes: dict[str, Any] = {
        "talker_m": _at_point(scene.talker_m, places.talkers[talker].position_m),
        "attackers_m": {
            name: _at_point(_group(scene.attackers_m, name), places.attackers[name].position_m)
            for name in kept["attackers_m"]
        },
        "devices_m": {
            name: _at_point(_group(scene.devices_m, name), places.devices[name].position_m)
            for name in kept["devices_m"]
        },
        # Levels are set for the first talker at the first device, which may have become another pair.
        "gain_db": round(scene.gain_db + _reference_db(scene, talker, kept["devices_m"][0], rate_hz), 4),
    }
    if rt60_s is not None:
        changes["rt60_s"] = rt60_s
    copied = scene.model_copy(update=changes)
    copied.__dict__.pop("placements", None)
    return copied


def _reference_db(scene: Scene, talker: str, device: str, rate_hz: int) -> float:
    places = scene.placements
    if scene.measured is None:
        now = math.dist(places.talkers[talker].position_m, places.devices[device].position_m)
        return 20 * math.log10(places.reference_m / now)
    from rig.scenes.respond import direct_sound, respond  # noqa: PLC0415 - reads every response

    room = respond(scene, rate_hz).room
    first = direct_sound(room, room.devices[0], room.sources[0])
    return 20 * math.log10(direct_sound(room, device_key(device), talker_key(talker)) / first)


def _group(groups: Mapping[str, Placed], name: str) -> Placed:
    """The entry of the plan that a place is of."""
    if name in groups:
        return groups[name]
    return next(placed for key, placed in groups.items() if re.fullmatch(re.escape(key) + r"-\d+", name))


def _at_point(placed: Placed, position_m: tuple[float, float, float]) -> Placed:
    return placed.model_copy(update={**dict.fromkeys(SHAPES), "at": position_m})
