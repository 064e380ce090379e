"""From a scene to what a unit impulse in each loudspeaker is at each microphone's wire: room, transducers, gain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.signal import oaconvolve

from edge.errors import PlanError
from firmware_models.progress import Progress, silent
from rig.render import Stage
from rig.rooms.measured import load, load_folder
from rig.rooms.measures import critical_distance_m, measure
from rig.rooms.responses import Responses
from rig.scenes import background, noise, profiles
from rig.scenes.capture import Background, Clipping, GainControl, NoiseFloor, Quantisation, TalkerRms
from rig.scenes.placement import device_key
from rig.scenes.scene import Scene

# A direct sound is what arrives so soon before and after its onset.
DIRECT_S = 0.0025


@dataclass(frozen=True)
class Heard:
    """The responses of a scene.

    Attributes:
        room: of the room alone, as simulated or measured.
        wire: from the loudspeaker's input (full scale = 1) to the microphone's wire (full scale = 1): loudspeaker,
            room, microphone and gain. Onsets include the latency of measured transducers.
        facts: of the room, and of the transducers.
    """

    room: Responses
    wire: Responses
    facts: dict[str, Any]


def respond(scene: Scene, rate_hz: int, *, progress: Progress = silent) -> Heard:
    """Simulate or read the responses of a scene and put transducers and gain into them.

    Raises:
        PlanError: a room that cannot be built, measured responses that do not fit the plan, a file that is no response.
    """
    placements = scene.placements
    if scene.measured is not None:
        room = _measured(scene, rate_hz)
        level = 10 ** (scene.gain_db / 20) / _reference(room)
    else:
        from rig.rooms.simulate import simulate  # noqa: PLC0415 - numba and pyroomacoustics take seconds

        room = simulate(scene.space, placements.sources, placements.microphones, rate_hz, progress=progress)
        level = scene.level
    microphone = None if scene.microphone is None else profiles.load("microphone", scene.microphone, rate_hz)
    loudspeakers = {
        source: None if (name := scene.loudspeaker_of(source)) is None else profiles.load("loudspeaker", name, rate_hz)
        for source in room.sources
    }
    facts = dict(room.facts)
    if microphone is not None:
        facts["microphone"] = microphone.source
    if any(loudspeakers.values()):
        facts["loudspeakers"] = {source: each.source for source, each in loudspeakers.items() if each is not None}
    return Heard(room=room, wire=_through(room, loudspeakers, microphone, level), facts=facts)


def capture_chain(
    scene: Scene, rate_hz: int, *, seed: int = 0, talker_rms: TalkerRms | None = None
) -> tuple[Stage, ...]:
    """What the device does after the sum, in the order of the signal; see :mod:`rig.scenes.capture`.

    Args:
        scene: background, noise floor, clipping, AGC, bits.
        rate_hz: of the blocks.
        seed: of everything random.
        talker_rms: needed by a scene with background noise: RMS of the talker alone in the window (full scale = 1), by
            the numbers of the conditions.

    Raises:
        PlanError: background noise that cannot be used.
        ValueError: background noise without ``talker_rms``.
    """
    stages: list[Stage] = []
    if scene.background is not None:
        if talker_rms is None:
            raise ValueError("a scene with background noise needs talker_rms")
        taps = None if scene.microphone is None else profiles.load("microphone", scene.microphone, rate_hz).taps
        recordings = background.load(scene.background.data, rate_hz, seed=seed, microphone=taps)
        key = noise.stream_key(seed, "background")
        stages.append(Background(recordings, snr_db=scene.background.snr_db, key=key, talker_rms=talker_rms))
    stages.append(NoiseFloor(rms=10 ** (scene.noise_dbfs / 20), key=noise.stream_key(seed, "noise floor")))
    stages.append(Clipping(limit=10 ** (scene.clip_dbfs / 20)))
    if scene.agc is not None:
        stages.append(GainControl(scene.agc, rate_hz))
    stages.append(Quantisation(bits=scene.bits))
    return tuple(stages)


def describe(scene: Scene, heard: Heard) -> dict[str, Any]:
    """What a report tells of a scene's acoustics, per device from the first talker; plain values for JSON."""
    room = heard.room
    talker = next(iter(scene.placements.sources))
    per_device = {
        name: measure(room.of(device_key(name), talker), room.rate_hz, room.onset(device_key(name), talker))
        for name in scene.placements.devices
    }
    facts: dict[str, Any] = {"rt60_wanted_s": scene.rt60_s} if scene.rt60_s is not None else {}
    for key, attribute in (
        ("rt60_measured_s", "t30_s"),
        ("t20_s", "t20_s"),
        ("c50_db", "c50_db"),
        ("d50", "d50"),
        ("drr_db", "drr_db"),
    ):
        facts[key] = {name: _plain(getattr(measures, attribute)) for name, measures in per_device.items()}
    if "rt60_s" in heard.facts:
        facts["rt60_room_s"] = heard.facts["rt60_s"]
    known = [value for value in facts["rt60_measured_s"].values() if value is not None]
    volume = heard.facts.get("volume_m3")
    if known and volume:
        facts["critical_distance_m"] = round(critical_distance_m(volume, float(np.mean(known))), 3)
    if "absorption" in heard.facts:
        walls = heard.facts["absorption"]
        shares = list(walls.values()) if isinstance(walls, dict) else [walls]
        facts["absorption"] = shares[0] if all(share == shares[0] for share in shares) else walls
    for key in ("simulator", "measured", "loudspeakers", "microphone"):
        if key in heard.facts:
            facts[key] = heard.facts[key]
    return facts


def _plain(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None


def _through(
    room: Responses,
    loudspeakers: dict[str, profiles.Response | None],
    microphone: profiles.Response | None,
    level: float,
) -> Responses:
    most = max((len(each.taps) - 1 for each in loudspeakers.values() if each is not None), default=0)
    most += len(microphone.taps) - 1 if microphone is not None else 0
    devices, sources, samples = room.array.shape
    array = np.zeros((devices, sources, samples + most), dtype=np.float32)
    onset = room.onset_sample.copy()
    for j, source in enumerate(room.sources):
        taps: npt.NDArray[np.float64] = np.ones(1)
        for each in (loudspeakers[source], microphone):
            if each is not None:
                taps = oaconvolve(taps, each.taps)
                onset[:, j] += each.latency_samples
        for i in range(devices):
            if len(taps) > 1:
                through = oaconvolve(room.array[i, j].astype(np.float64), taps * level)
            else:
                through = room.array[i, j] * level
            array[i, j, : len(through)] = through
    array.flags.writeable = False
    return replace(room, array=array, onset_sample=onset)


def _measured(scene: Scene, rate_hz: int) -> Responses:
    """Measured responses in the order and under the keys of the scene."""
    if isinstance(scene.measured, str):
        read = load_folder(Path(scene.measured), rate_hz)
    else:
        read = load(scene.measured or {}, rate_hz, Path())
    devices = {key: _called(key, read.devices, "device") for key in scene.placements.microphones}
    sources = {key: _called(key, read.sources, "source") for key in scene.placements.sources}
    rows = np.ix_(
        [read.devices.index(name) for name in devices.values()], [read.sources.index(name) for name in sources.values()]
    )
    array = read.array[rows]
    array.flags.writeable = False
    return Responses(
        array=array,
        onset_sample=read.onset_sample[rows],
        rate_hz=rate_hz,
        devices=tuple(devices),
        sources=tuple(sources),
        facts=read.facts,
    )


def _called(key: str, names: Sequence[str], kind: str) -> str:
    """Under which name measured responses hold what the plan calls ``key``."""
    own = key.partition(".")[2] or key.removesuffix("_m")
    for name in (key, own):
        if name in names:
            return name
    raise PlanError(f"room: {key}: not measured; the {kind}s that were are {', '.join(names)}: take one of these names")


def _reference(room: Responses) -> float:
    """What the first talker's direct sound has at the first device."""
    direct = direct_sound(room, room.devices[0], room.sources[0])
    if direct <= 0:
        raise PlanError(f"room: measured: {room.sources[0]} is not heard at {room.devices[0]} when its sound arrives")
    return direct


def direct_sound(responses: Responses, device: str, source: str) -> float:
    """The root of the energy of the direct sound of a pair: 1 where it is heard as loud as it is played."""
    onset, width = round(responses.onset(device, source)), round(DIRECT_S * responses.rate_hz)
    direct = responses.of(device, source)[max(onset - width, 0) : max(onset + width, 0)]
    return math.sqrt(float(np.sum(direct.astype(np.float64) ** 2)))
