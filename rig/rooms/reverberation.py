"""The absorption that gives a wanted reverberation time, solved for because Sabine's formula misses by up to half."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from edge.errors import PlanError
from firmware_models.progress import Progress, silent
from rig.rooms import geometry
from rig.rooms.directivity import Placement
from rig.rooms.measures import decay_time_s
from rig.rooms.space import Space

MIN_ABSORPTION = 0.002
MAX_ABSORPTION = 0.99
# Reverberation time is an average over a room (ISO 3382-2): from so many pairs of a source and a microphone to so many,
# as long as they take no more images (0.2 s) than this. From place to place it differs by 5 %.
PAIRS = (6, 24)
IMAGES = 30_000_000
RAYS_PAIRS = 3
TOLERANCE = 0.006
# The solver gives up beyond this; the responses at other places are to be within 5 %.
ACCEPTED = 0.03
ROUNDS = 14
# So much of the wanted time is heard: enough for a decay by 35 dB with an error below 0.1 %, more if it ends too loud.
HEARD = (0.9, 1.5)
LOUD = 1e-4


@dataclass(frozen=True)
class Walls:
    """What was solved: absorption of every wall, and the reverberation time measured at several places with it."""

    absorption: float
    rt60_s: float
    lowest_s: float
    highest_s: float


def sabine_constant(speed_mps: float) -> float:
    """24 ln 10 / c, 0.161 s/m at 343 m/s."""
    return 24 * math.log(10) / speed_mps


def eyring_s(space: Space, absorption: npt.NDArray[np.float64], air_per_m: float = 0.0) -> float:
    """Reverberation time by Eyring's formula for one band, absorption (walls,); infinite if nothing absorbs."""
    areas = geometry.wall_areas_m2(space)
    total_m2 = float(areas.sum())
    mean = min(float(np.dot(areas, absorption)) / total_m2, 1 - 1e-9)
    volume = geometry.volume_m3(space)
    swallowed_m2 = -total_m2 * math.log(1 - mean) + 4 * air_per_m * volume
    return sabine_constant(space.air.speed_mps) * volume / swallowed_m2 if swallowed_m2 > 0 else math.inf


def solve(space: Space, rate_hz: int, progress: Progress = silent) -> Walls:
    """Find the absorption with which the room has ``space.rt60_s``.

    The reverberation time is the mean T30 of the room's own responses at several places, as measured later.

    Raises:
        PlanError: no walls do, with what is attainable.
    """
    bare = space.model_copy(update={"walls": None, "length_s": None})
    return _solve(bare, rate_hz, _Quietly(progress))


class _Quietly:
    """A progress that does not count for the memory of what was solved."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Quietly)


@lru_cache(maxsize=256)
def _solve(space: Space, rate_hz: int, quietly: _Quietly) -> Walls:
    wanted = space.rt60_s
    if wanted is None:
        raise ValueError("the space wants no reverberation time")
    if space.size_m is None and space.method != "rays":
        raise PlanError("room: rt60_s in a polygon needs method: rays (late echoes are out of reach of its images)")
    _require_feasible(space, wanted)
    areas = float(geometry.wall_areas_m2(space).sum())
    volume = geometry.volume_m3(space)
    least, most = -math.log(1 - MIN_ABSORPTION), -math.log(1 - MAX_ABSORPTION)
    strength = min(max(sabine_constant(space.air.speed_mps) * volume / (areas * wanted), least), most)
    too_weak, too_strong = least, most
    best: Walls | None = None
    for round_ in range(ROUNDS):
        quietly.progress(round_, ROUNDS, f"walls for {wanted:g} s")
        found = _measure(space, -math.expm1(-strength), rate_hz)
        if best is None or abs(found.rt60_s / wanted - 1) < abs(best.rt60_s / wanted - 1):
            best = found
        if abs(found.rt60_s / wanted - 1) < TOLERANCE:
            break
        if found.rt60_s > wanted:
            too_weak = max(too_weak, strength)
        else:
            too_strong = min(too_strong, strength)
        if too_weak >= too_strong:
            break
        # Decay time is about proportional to 1 / strength (Eyring).
        strength = min(max(strength * found.rt60_s / wanted, least), most)
        if not too_weak < strength < too_strong and not (strength in {least, most} and round_ < 3):
            strength = math.sqrt(too_weak * too_strong)
    quietly.progress(ROUNDS, ROUNDS, f"walls for {wanted:g} s")
    if best is None or abs(best.rt60_s / wanted - 1) > ACCEPTED:
        raise _refusal(space, rate_hz, wanted, best)
    return best


def _require_feasible(space: Space, wanted_s: float) -> None:
    from rig.rooms.images.shoebox import MAX_IMAGES, count_images  # noqa: PLC0415 - numba takes a second to import

    if space.size_m is None or space.method == "rays":
        return
    images = count_images(space.size_m, wanted_s * space.air.speed_mps, space.order)
    if images > MAX_IMAGES:
        longest_s = wanted_s * (MAX_IMAGES / images) ** (1 / 3)
        raise PlanError(
            f"room: rt60_s = {wanted_s:g} in {geometry.show(space.size_m)} m takes {images:.1e} mirrored sources per"
            f" response: choose at most {longest_s:.1f} s, a larger room, or method: rays"
        )


def _refusal(space: Space, rate_hz: int, wanted: float, best: Walls | None) -> PlanError:
    shape = geometry.show(space.size_m) if space.size_m is not None else "this polygon"
    got = best.rt60_s if best is not None else math.nan
    if got > wanted:
        limit = _measure(space, MAX_ABSORPTION, rate_hz).rt60_s
        return PlanError(
            f"room: rt60_s = {wanted:g} is too short for {shape} m: walls that absorb {MAX_ABSORPTION:.0%} give"
            f" {limit:.2f} s, choose that or longer, or a smaller room"
        )
    return PlanError(
        f"room: rt60_s = {wanted:g} is too long for {shape} m: the nearest that can be built has {got:.2f} s, choose"
        " that or shorter, or a larger room"
    )


def _measure(space: Space, absorption: float, rate_hz: int) -> Walls:
    from rig.rooms.images.respond import respond  # noqa: PLC0415 - as above

    wanted = float(space.rt60_s or 0)
    pairs = places(space, _count_pairs(space, wanted))
    walls = np.full((len(space.wall_names), 1), absorption)
    times = []
    for source, device in pairs:
        delay_s = math.dist(source.position_m, device.position_m) / space.air.speed_mps
        for heard in HEARD:
            length_s = heard * wanted + delay_s
            found = respond(space, walls, (source,), (device,), rate_hz=rate_hz, length_s=length_s)
            time_s, ends_loud = _time_s(found.array[0, 0, int(delay_s * rate_hz) :], rate_hz)
            if not ends_loud:
                break
        times.append(time_s)
    return Walls(absorption, float(np.mean(times)), min(times), max(times))


def _count_pairs(space: Space, wanted_s: float) -> int:
    from rig.rooms.images.shoebox import count_images  # noqa: PLC0415 - as above

    if space.size_m is None or space.method == "rays":
        return RAYS_PAIRS
    images = count_images(space.size_m, HEARD[0] * wanted_s * space.air.speed_mps, space.order)
    return min(max(int(IMAGES / images), PAIRS[0]), PAIRS[1])


def _time_s(response: npt.NDArray[np.float32], rate_hz: int) -> tuple[float, bool]:
    """T30, and whether the response ends too loud to tell: then it is a guess from the slope between two stretches."""
    energy = np.square(response.astype(np.float64))
    tenth = len(energy) // 10
    late, end = float(energy[3 * tenth : 4 * tenth].sum()), float(energy[-tenth:].sum())
    if end > LOUD * energy.sum():
        slope_db = 10 * math.log10(max(late / end, 1.01)) / (6 * tenth / rate_hz)
        return 60 / slope_db, True
    time_s = decay_time_s(response, rate_hz)
    return (time_s if math.isfinite(time_s) else 0.0), False


def places(space: Space, count: int) -> list[tuple[Placement, Placement]]:
    """``count`` pairs spread over the room, the same every time: off the walls and apart from each other."""
    extent = np.array(geometry.extent_m(space))
    shortest_m = float((extent[:, 1] - extent[:, 0]).min())
    off_m, apart_m = 0.15 * shortest_m, 0.3 * shortest_m
    generator = np.random.default_rng(20)
    pairs: list[tuple[Placement, Placement]] = []
    for _ in range(100_000):
        one, other = (extent[:, 0] + generator.random((2, 3)) * (extent[:, 1] - extent[:, 0])).tolist()
        if math.dist(one, other) < apart_m:
            continue
        if min(geometry.wall_distance_m(space, tuple(one)), geometry.wall_distance_m(space, tuple(other))) < off_m:
            continue
        pairs.append((Placement.at(*one), Placement.at(*other)))
        if len(pairs) == count:
            return pairs
    raise PlanError("room: too narrow to measure a reverberation time in it, give walls instead of rt60_s")
