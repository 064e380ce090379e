"""From a room, loudspeakers and microphones to impulse responses; the door to this package."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from edge.errors import PlanError
from firmware_models.progress import Progress, silent
from rig.rooms import geometry, kept, materials, reverberation
from rig.rooms.directivity import Placement
from rig.rooms.measures import critical_distance_m
from rig.rooms.responses import Responses
from rig.rooms.space import Space

RATES_HZ = (8_000, 96_000)
# Rooms are less diffuse than Eyring's formula wants them and sound longer.
BEYOND_EYRING = 1.4
SHORTEST_S = 0.05
LONGEST_S = 5.0


def simulate(
    space: Space,
    sources: Mapping[str, Placement],
    devices: Mapping[str, Placement],
    rate_hz: int,
    *,
    keep: bool = True,
    progress: Progress = silent,
) -> Responses:
    """The response from every source to every device, the same for the same arguments.

    Args:
        space: the room.
        sources: loudspeakers by the name that a message gives them, e.g. ``talker_m`` or ``attackers_m.door``.
        devices: microphones by name, e.g. ``devices_m.desk``.
        rate_hz: of the responses, 8,000 to 96,000.
        keep: look for the responses in the user's cache folder (``EARSHOT_CACHE``), and put them there if they took
            more than 50 ms to compute.
        progress: told while walls are solved for and per pair.

    Returns:
        the responses; their facts are ``simulator``, ``method``, ``order`` (None: all that arrive in time), ``images``
        per pair, ``speed_mps``, ``offset_samples``, ``length_s``, ``volume_m3``, ``absorption`` per wall (a list if it
        differs by octave band), ``distance_m`` (devices, sources), ``eyring_rt60_s``, and with a wanted reverberation
        time ``rt60_wanted_s``, ``rt60_s`` (mean T30 over the room), ``rt60_range_s`` and ``critical_distance_m``.

    Raises:
        PlanError: an impossible scene, an unattainable reverberation time, or too many images.
    """
    geometry.require_possible(space, sources, devices)
    if not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
        raise PlanError(f"room: rate_hz = {rate_hz}, allowed {RATES_HZ[0]} to {RATES_HZ[1]}")
    if not keep:
        return _compute(space, sources, devices, rate_hz, progress)
    key = kept.key(space, sources, devices, rate_hz)
    return kept.find(key) or kept.timed(key, lambda: _compute(space, sources, devices, rate_hz, progress))


def _compute(
    space: Space,
    sources: Mapping[str, Placement],
    devices: Mapping[str, Placement],
    rate_hz: int,
    progress: Progress,
) -> Responses:
    progress(0, 1, "preparing the simulator (takes some seconds the first time)")
    from rig.rooms.images.grid import OFFSET_SAMPLES  # noqa: PLC0415 - numba takes a second to import
    from rig.rooms.images.respond import respond  # noqa: PLC0415 - as above

    facts: dict[str, Any] = {}
    speed_mps = space.air.speed_mps
    if space.rt60_s is None:
        absorption = materials.absorption(space, materials.band_centres_hz(rate_hz))
        rt60_s = None
    else:
        walls = reverberation.solve(space, rate_hz, progress)
        absorption = np.full((len(space.wall_names), 1), walls.absorption)
        rt60_s = walls.rt60_s
        facts |= {
            "rt60_wanted_s": space.rt60_s,
            "rt60_s": round(walls.rt60_s, 4),
            "rt60_range_s": [round(walls.lowest_s, 4), round(walls.highest_s, 4)],
            "critical_distance_m": round(critical_distance_m(geometry.volume_m3(space), walls.rt60_s), 4),
        }
    distance_m = np.array([[math.dist(d.position_m, s.position_m) for s in sources.values()] for d in devices.values()])
    air = space.air.absorption_per_m(materials.band_centres_hz(rate_hz)) if space.air.absorption else np.zeros(1)
    eyring_s = [
        reverberation.eyring_s(
            space, absorption[:, min(band, absorption.shape[1] - 1)], float(air[min(band, len(air) - 1)])
        )
        for band in range(max(absorption.shape[1], len(air)))
    ]
    decay_s = BEYOND_EYRING * max(eyring_s) if rt60_s is None else rt60_s
    length_s = space.length_s or min(max(decay_s, SHORTEST_S), LONGEST_S) + float(distance_m.max()) / speed_mps
    responded = respond(
        space,
        absorption,
        tuple(sources.values()),
        tuple(devices.values()),
        rate_hz=rate_hz,
        length_s=length_s,
        progress=progress,
    )
    shown = [[round(float(value), 5) for value in row] for row in absorption]
    facts |= {
        "simulator": "earshot images" if space.size_m and space.method == "images" else _pyroomacoustics(),
        "method": space.method,
        "order": space.order,
        "images": responded.images,
        "speed_mps": round(speed_mps, 3),
        "offset_samples": OFFSET_SAMPLES,
        "length_s": round(length_s, 4),
        "volume_m3": round(geometry.volume_m3(space), 3),
        "absorption": {
            name: row[0] if len(row) == 1 else row for name, row in zip(space.wall_names, shown, strict=True)
        },
        "eyring_rt60_s": [round(value, 4) if math.isfinite(value) else None for value in eyring_s],
        "distance_m": [[round(float(value), 4) for value in row] for row in distance_m],
    }
    responded.array.flags.writeable = False
    return Responses(
        array=responded.array,
        onset_sample=distance_m / speed_mps * rate_hz + OFFSET_SAMPLES,
        rate_hz=rate_hz,
        devices=tuple(devices),
        sources=tuple(sources),
        facts=facts,
    )


def _pyroomacoustics() -> str:
    import pyroomacoustics  # noqa: PLC0415 - it takes a second to import

    return f"pyroomacoustics {pyroomacoustics.__version__}"
