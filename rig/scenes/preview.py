"""What to expect of a scene before anything runs: levels, reverberation, SNR per budget, what would clip."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.signal import oaconvolve

from firmware_models.progress import Progress, silent
from rig.rooms import geometry
from rig.rooms.directivity import Placement
from rig.rooms.measures import critical_distance_m, measure
from rig.scenes.capture import Clipping
from rig.scenes.placement import attacker_key, device_key, talker_key
from rig.scenes.respond import Heard, direct_sound
from rig.scenes.scene import Scene

Floats = npt.NDArray[np.float32]
# Active speech as it is recorded where nothing else is said (ITU-T P.56 tells how it is measured).
SPEECH_DBFS = -26.0
# The loudest clips decide what clips; more of them would tell the same.
LOUDEST = 16
MAX_CLIPPED_SHARE = 0.001


def outline(scene: Scene) -> dict[str, Any]:
    """What follows from the plan alone: distances, direct levels, and what formulas say of the reverberation.

    Returns:
        ``room`` and ``pairs``; of each pair device, source, ``distance_m``, ``direct_db`` (the direct sound re what the
        loudspeaker plays), and where the walls are known ``drr_db`` by the critical distance of a diffuse field.
    """
    room = _room(scene)
    distance_m = room.get("critical_distance_m")
    pairs = []
    for device, microphone in scene.placements.devices.items():
        for kind, source, loudspeaker in _loudspeakers(scene):
            row = {"device": device, "source": source, "kind": kind, **_pair(scene, microphone, loudspeaker)}
            if distance_m:
                gain_db = _pattern_db(loudspeaker, microphone) + _pattern_db(microphone, loudspeaker)
                row["drr_db"] = _rounded(20 * math.log10(distance_m / row["distance_m"]) + gain_db)
            pairs.append(row)
    return {"room": room, "pairs": pairs}


def preview(scene: Scene, heard: Heard) -> dict[str, Any]:
    """The outline with what the responses measure: ``drr_db``, ``t30_s``, ``t20_s``, ``c50_db``, ``d50``, ``level_db``.

    ``level_db`` is the whole sound of a white signal, direct and reverberant, re what the loudspeaker plays.
    """
    found = outline(scene)
    keys = {"talker": talker_key, "attacker": attacker_key}
    for row in found["pairs"]:
        source, device = keys[row["kind"]](row["source"]), device_key(row["device"])
        measures = measure(heard.room.of(device, source), heard.room.rate_hz, heard.room.onset(device, source))
        energy = float(np.sum(heard.wire.of(device, source).astype(np.float64) ** 2))
        if scene.measured is not None:
            row["direct_db"] = _rounded(_db(direct_sound(heard.wire, device, source)))
        row |= {
            "level_db": _rounded(10 * math.log10(energy) if energy > 0 else -math.inf),
            "drr_db": _rounded(measures.drr_db),
            "t30_s": _rounded(measures.t30_s, 4),
            "t20_s": _rounded(measures.t20_s, 4),
            "c50_db": _rounded(measures.c50_db),
            "d50": _rounded(measures.d50, 4),
        }
    room = found["room"]
    room |= {
        key: heard.facts[key] for key in ("simulator", "rt60_s", "rt60_range_s", "absorption") if key in heard.facts
    }
    if _lacks_late_echoes(scene, found):
        room["warning"] = (
            "the responses end long before the walls have swallowed the sound (Eyring): order leaves out late echoes,"
            " set method: rays or a higher order"
        )
    times = [row["t30_s"] for row in found["pairs"] if row["t30_s"]]
    rt60_s = heard.facts.get("rt60_s") or (float(np.mean(times)) if times else None)
    if rt60_s and room.get("volume_m3"):
        room["critical_distance_m"] = _rounded(critical_distance_m(room["volume_m3"], rt60_s), 3)
    return found


def budgets(
    scene: Scene, heard: Heard, clips: Floats, eps: Sequence[float], *, seed: int = 0, progress: Progress = silent
) -> list[dict[str, Any]]:
    """What is left of each attack budget at each device, and which conditions would clip.

    The perturbation is one that uses its whole budget (every sample is +eps or -eps, as random-sign and FGSM have it).

    Args:
        scene: the scene.
        heard: its responses.
        clips: float32 (clips, window), full scale = 1.
        eps: budgets; 0 is no attack.
        seed: of the perturbation.
        progress: told per pair.

    Returns:
        per device, attacker (None without an attack) and eps: ``talker_dbfs`` (median), ``snr_db`` (median over clips;
        None without an attack), ``snr_range_db`` (lowest and highest), ``clipped`` (how many of ``tried`` clips have
        more than 0.1 % of their samples beyond the converter's range).
    """
    window = clips.shape[1]
    signs = np.random.default_rng(seed).choice(np.array([-1.0, 1.0]), (1, window))
    converter = Clipping(limit=10 ** (scene.clip_dbfs / 20))
    talker = next(iter(scene.placements.talkers))
    rows: list[dict[str, Any]] = []
    done, total = 0, len(scene.placements.devices) * (1 + len(scene.placements.attackers))
    for device in scene.placements.devices:
        onset = round(heard.wire.onset(device_key(device), talker_key(talker)))
        wet = _heard_at(heard, device, talker_key(talker), clips.astype(np.float64), onset)
        rms: npt.NDArray[np.float64] = np.sqrt(np.mean(wet**2, axis=1))
        order: npt.NDArray[np.intp] = np.argsort(np.abs(wet).max(axis=1), kind="stable")
        loudest = np.asarray(wet[np.flip(order)[:LOUDEST]])
        base: dict[str, Any] = {
            "device": device,
            "tried": len(loudest),
            "talker_dbfs": _rounded(_db(float(np.median(rms)))),
        }
        rows.append({**base, "attacker": None, "eps": 0.0, "snr_db": None, "clipped": _clipped(converter, loudest)})
        done += 1
        for attacker in scene.placements.attackers:
            progress(done, total, f"{attacker} at {device}")
            noise = _heard_at(heard, device, attacker_key(attacker), signs, onset)[0]
            noise_rms = float(np.sqrt(np.mean(noise**2)))
            for budget in eps:
                ratios = [_db(float(value)) - _db(noise_rms * budget) for value in rms]
                rows.append(
                    {
                        **base,
                        "attacker": attacker,
                        "eps": budget,
                        "snr_db": _rounded(float(np.median(ratios))),
                        "snr_range_db": [_rounded(min(ratios)), _rounded(max(ratios))],
                        "clipped": _clipped(converter, loudest + budget * noise),
                    }
                )
            done += 1
    progress(total, total)
    return rows


def expected_snr(found: Mapping[str, Any], eps: Sequence[float]) -> list[dict[str, Any]]:
    """SNR per budget from the direct sounds alone, for speech at -26 dBFS: what an outline can tell."""
    rows = []
    for device in dict.fromkeys(row["device"] for row in found["pairs"]):
        pairs = [row for row in found["pairs"] if row["device"] == device]
        talker = next(row for row in pairs if row["kind"] == "talker")
        for row in pairs:
            if row["kind"] == "attacker" and row["direct_db"] is not None and talker["direct_db"] is not None:
                difference_db = SPEECH_DBFS + talker["direct_db"] - row["direct_db"]
                rows += [
                    {"device": device, "attacker": row["source"], "eps": e, "snr_db": _rounded(difference_db - _db(e))}
                    for e in eps
                ]
    return rows


def _room(scene: Scene) -> dict[str, Any]:
    shape = scene.shape
    room: dict[str, Any] = {} if scene.rt60_s is None else {"rt60_wanted_s": scene.rt60_s}
    if shape is None:
        return room
    volume = geometry.volume_m3(shape)
    extent = geometry.extent_m(shape)
    room |= {
        "volume_m3": _rounded(volume),
        "extent_m": [[low, high] for low, high in extent],
        "speed_mps": _rounded(shape.air.speed_mps if scene.measured is None else 343.0),
    }
    rt60_s = _rt60_by_formula(scene)
    if rt60_s:
        room["rt60_estimated_s"] = _rounded(rt60_s, 4)
        room["critical_distance_m"] = _rounded(critical_distance_m(volume, rt60_s), 3)
    return room


def _rt60_by_formula(scene: Scene) -> float | None:
    """Wanted, or by Eyring's formula in the octave about 1 kHz."""
    if scene.measured is not None or scene.rt60_s is not None:
        return scene.rt60_s
    from rig.rooms.images.grid import band_centres_hz  # noqa: PLC0415 - numba takes a second to import
    from rig.rooms.materials import absorption  # noqa: PLC0415 - as above
    from rig.rooms.reverberation import eyring_s  # noqa: PLC0415 - as above

    centres = band_centres_hz(16_000)
    shares = absorption(scene.space, centres)
    band = min(int(np.argmin(np.abs(centres - 1000))), shares.shape[1] - 1)
    found = eyring_s(scene.space, shares[:, band])
    return found if math.isfinite(found) else None


def _lacks_late_echoes(scene: Scene, found: Mapping[str, Any]) -> bool:
    expected_s = found["room"].get("rt60_estimated_s")
    times = [row["t30_s"] for row in found["pairs"] if row["t30_s"]]
    if scene.measured is not None or scene.method == "rays" or not times or not expected_s:
        return False
    return bool(np.median(times) < 0.6 * expected_s)


def _loudspeakers(scene: Scene) -> list[tuple[str, str, Placement]]:
    talkers = [("talker", name, placement) for name, placement in scene.placements.talkers.items()]
    return talkers + [("attacker", name, placement) for name, placement in scene.placements.attackers.items()]


def _pair(scene: Scene, microphone: Placement, loudspeaker: Placement) -> dict[str, Any]:
    distance_m = math.dist(microphone.position_m, loudspeaker.position_m)
    direct_db = _db(scene.level / distance_m)
    direct_db += _pattern_db(loudspeaker, microphone) + _pattern_db(microphone, loudspeaker)
    return {"distance_m": _rounded(distance_m, 3), "direct_db": _rounded(direct_db)}


def _pattern_db(here: Placement, there: Placement) -> float:
    """Gain of the pattern of ``here`` in the direction of ``there``."""
    p = here.directivity.omni_share
    towards = np.array(there.position_m) - np.array(here.position_m)
    cosine = float(np.dot(towards, here.directivity.direction) / np.linalg.norm(towards))
    return _db(abs(p + (1 - p) * cosine))


def _heard_at(
    heard: Heard, device: str, source: str, sounds: npt.NDArray[np.float64], onset: int
) -> npt.NDArray[np.float64]:
    """Sounds (n, window) as they are at a device's wire within its window, float64 (n, window)."""
    response = heard.wire.of(device_key(device), source).astype(np.float64)
    whole = oaconvolve(sounds, response[None], axes=1)
    window = sounds.shape[1]
    part = whole[:, onset : onset + window]
    padded: npt.NDArray[np.float64] = np.pad(part, ((0, 0), (0, window - part.shape[1])))
    return padded


def _clipped(converter: Clipping, block: npt.NDArray[np.float64]) -> int:
    return int((converter.share(block.astype(np.float32)) > MAX_CLIPPED_SHARE).sum())


def _db(value: float) -> float:
    return 20 * math.log10(value) if value > 0 else -math.inf


def _rounded(value: float, digits: int = 2) -> float | None:
    return round(value, digits) if math.isfinite(value) else None
