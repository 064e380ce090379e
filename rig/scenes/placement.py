"""From what a plan says to named places: who stands where, off the walls and apart."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edge.errors import PlanError
from rig.rooms import geometry
from rig.rooms.directivity import OMNI, Placement
from rig.rooms.responses import Point
from rig.rooms.space import Space
from rig.scenes.placed import WALL_MARGIN_M, Circle, Grid, Line, Placed, Random

MAX_PLACES = 20_000
# A draw gives up after so many tries, and a hundred more per place.
TRIES = 5000
TALKER = "talker"
_Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Placements:
    """Every loudspeaker and microphone of a scene by name, in the order of the plan.

    ``loudspeakers`` has the profile or file of each source by its key, None for one that adds nothing.
    """

    talkers: Mapping[str, Placement]
    attackers: Mapping[str, Placement]
    devices: Mapping[str, Placement]
    loudspeakers: Mapping[str, str | None]

    @property
    def sources(self) -> dict[str, Placement]:
        """Talkers, then attackers, by key: the place in the plan that an error names."""
        talkers = {talker_key(name): placement for name, placement in self.talkers.items()}
        return talkers | {attacker_key(name): placement for name, placement in self.attackers.items()}

    @property
    def microphones(self) -> dict[str, Placement]:
        """Devices by key."""
        return {device_key(name): placement for name, placement in self.devices.items()}

    @property
    def reference_m(self) -> float:
        """Distance of the first talker from the first device, at which levels are set."""
        talker, device = next(iter(self.talkers.values())), next(iter(self.devices.values()))
        return math.dist(talker.position_m, device.position_m)


def talker_key(name: str) -> str:
    """What a talker is called in responses and messages."""
    return "talker_m" if name == TALKER else f"talker_m.{name}"


def attacker_key(name: str) -> str:
    """What an attacker's loudspeaker is called in responses and messages."""
    return f"attackers_m.{name}"


def device_key(name: str) -> str:
    """What a device is called in responses and messages."""
    return f"devices_m.{name}"


class _Group(NamedTuple):
    kind: str  # talker_m, attackers_m or devices_m
    name: str
    placed: Placed

    @property
    def key(self) -> str:
        return "talker_m" if self.kind == "talker_m" else f"{self.kind}.{self.name}"


def place(
    space: Space | None, talker: Placed, attackers: Mapping[str, Placed], devices: Mapping[str, Placed]
) -> Placements:
    """Expand every placement to named points.

    One point keeps the name of its entry; several are numbered, ``ring-01``, ``ring-02``.

    Args:
        space: the room, None where its walls are unknown (then only distances from each other are checked).
        talker: where the talker is.
        attackers: by name.
        devices: by name.

    Raises:
        PlanError: a place in or beyond a wall, on another one, a draw that finds no room, two of one name, too many.
    """
    groups = [_Group("talker_m", TALKER, talker)]
    groups += [_Group("attackers_m", name, placed) for name, placed in attackers.items()]
    groups += [_Group("devices_m", name, placed) for name, placed in devices.items()]
    found: dict[str, list[Point]] = {}
    # What is left out where no place is comes after what must be where it is.
    for shapes in (("at", "points", "circle", "line"), ("grid",), ("random",)):
        for group in groups:
            if any(getattr(group.placed, shape) is not None for shape in shapes):
                found[group.key] = _points(space, group, found)
                if sum(map(len, found.values())) > MAX_PLACES:
                    raise PlanError(f"{group.key}: more than {MAX_PLACES} places in all, take fewer")
    named = {kind: _named([group for group in groups if group.kind == kind], found) for kind in _KINDS}
    for kind, members in named.items():
        for name, (group, placement) in members.items():
            _require_inside(space, _label(kind, name, group), placement.position_m)
    _require_apart(named)
    return Placements(
        **{
            argument: {name: placement for name, (_, placement) in named[kind].items()}
            for kind, argument in _KINDS.items()
        },
        loudspeakers={
            key(name): group.placed.loudspeaker
            for kind, key in (("talker_m", talker_key), ("attackers_m", attacker_key))
            for name, (group, _) in named[kind].items()
        },
    )


_KINDS = {"talker_m": "talkers", "attackers_m": "attackers", "devices_m": "devices"}
_Members = dict[str, tuple[_Group, Placement]]


def _label(kind: str, name: str, group: _Group) -> str:
    return group.key if name == group.name else f"{kind}.{name}"


def _named(groups: list[_Group], found: Mapping[str, list[Point]]) -> _Members:
    members: _Members = {}
    for group in groups:
        points = found[group.key]
        digits = len(str(len(points)))
        for number, point in enumerate(points, start=1):
            name = group.name if len(points) == 1 else f"{group.name}-{number:0{digits}d}"
            if name in members:
                raise PlanError(f"{group.key}: there is another {name!r}, give one of them another name")
            if len(name) > 63:
                raise PlanError(f"{group.key}: {name!r} is longer than 63 characters, shorten the name")
            members[name] = (group, _directed(group.placed, point))
    return members


def _directed(placed: Placed, point: Point) -> Placement:
    if placed.faces_m is None or placed.directivity == OMNI or placed.faces_m == point:
        return Placement(position_m=point, directivity=placed.directivity)
    x, y, z = (there - here for there, here in zip(placed.faces_m, point, strict=True))
    towards = {
        "azimuth_deg": math.degrees(math.atan2(y, x)),
        "elevation_deg": math.degrees(math.atan2(z, math.hypot(x, y))),
    }
    return Placement(position_m=point, directivity=placed.directivity.model_copy(update=towards))


def _points(space: Space | None, group: _Group, found: Mapping[str, list[Point]]) -> list[Point]:
    placed = group.placed
    if placed.at is not None:
        return [placed.at]
    if placed.points is not None:
        return list(placed.points)
    if placed.circle is not None:
        return _on_circle(placed.circle)
    if placed.line is not None:
        return _on_line(placed.line)
    if space is None:
        raise PlanError(f"{group.key}: needs the walls (size_m or corners_m) to stay off them; give points instead")
    taken = [point for points in found.values() for point in points]
    if placed.grid is not None:
        return _on_grid(space, group.key, placed.grid, taken)
    if placed.random is not None:
        return _drawn(space, group.key, placed.random, taken)
    raise AssertionError(placed)  # pragma: no cover - the model allows nothing else


def _on_circle(circle: Circle) -> list[Point]:
    x, y, z = circle.centre_m
    arc = circle.to_deg - circle.from_deg
    steps = circle.count if abs(arc) >= 360 else max(circle.count - 1, 1)
    angles = [math.radians(circle.from_deg + arc * i / steps) for i in range(circle.count)]
    return [(x + circle.radius_m * math.cos(a), y + circle.radius_m * math.sin(a), z) for a in angles]


def _on_line(line: Line) -> list[Point]:
    start, end = np.array(line.from_m), np.array(line.to_m)
    return [_point(start + (end - start) * i / (line.count - 1)) for i in range(line.count)]


def _on_grid(space: Space, key: str, grid: Grid, taken: list[Point]) -> list[Point]:
    (x_low, x_high), (y_low, y_high), _ = geometry.extent_m(space)
    across = [_ticks(low, high, grid.step_m, grid.off_walls_m) for low, high in ((x_low, x_high), (y_low, y_high))]
    if len(across[0]) * len(across[1]) * len(grid.heights_m) > MAX_PLACES:
        raise PlanError(f"{key}: grid.step_m = {grid.step_m:g} gives more than {MAX_PLACES} places, take a larger one")
    candidates = [(x, y, z) for z in grid.heights_m for y in across[1] for x in across[0]]
    occupied = _array(taken)
    points = [point for point in candidates if _is_free(space, point, grid.off_walls_m, grid.apart_m, occupied)]
    if not points:
        raise PlanError(
            f"{key}: the grid has no place {grid.off_walls_m:g} m off the walls, take a smaller off_walls_m"
        )
    return points


def _ticks(low: float, high: float, step_m: float, off_m: float) -> list[float]:
    """Evenly about the middle, so that both ends are as far off the walls."""
    room_m = high - low - 2 * off_m
    if room_m < 0:
        return []
    steps = math.floor(room_m / step_m + 1e-9)
    if steps > MAX_PLACES:
        return [low] * (MAX_PLACES + 1)
    first = (low + high - steps * step_m) / 2
    return [round(first + i * step_m, 6) for i in range(steps + 1)]


def _drawn(space: Space, key: str, random: Random, taken: list[Point]) -> list[Point]:
    generator = np.random.default_rng([random.seed, zlib.crc32(key.encode())])
    (x_low, x_high), (y_low, y_high), _ = geometry.extent_m(space)
    low = np.array([x_low, y_low, random.heights_m[0]])
    high = np.array([x_high, y_high, random.heights_m[1]])
    points: list[Point] = []
    occupied = np.concatenate([_array(taken), np.full((random.count, 3), np.inf)])
    for _ in range(TRIES + 100 * random.count):
        point = _point(np.round(low + generator.random(3) * (high - low), 4))
        if _is_free(space, point, random.off_walls_m, random.apart_m, occupied):
            occupied[len(taken) + len(points)] = point
            points.append(point)
            if len(points) == random.count:
                return points
    raise PlanError(
        f"{key}: found {len(points)} of {random.count} places {random.off_walls_m:g} m off the walls and"
        f" {random.apart_m:g} m apart, take fewer, or a smaller off_walls_m or apart_m"
    )


def _is_free(space: Space, point: Point, off_walls_m: float, apart_m: float, occupied: _Points) -> bool:
    if geometry.wall_distance_m(space, point) < max(off_walls_m, WALL_MARGIN_M) - 1e-9:
        return False
    nearest_m = float(np.linalg.norm(occupied - point, axis=1).min(initial=np.inf))
    return nearest_m >= max(apart_m, geometry.APART_M)


def _require_inside(space: Space | None, label: str, point: Point) -> None:
    if space is None:
        return
    if space.size_m is not None:
        for value, size, axis in zip(point, space.size_m, "xyz", strict=True):
            if not WALL_MARGIN_M <= value <= size - WALL_MARGIN_M:
                raise PlanError(
                    f"{label}: {axis} = {round(value, 6)} m, allowed {WALL_MARGIN_M} to {size - WALL_MARGIN_M:g} m"
                    f" (inside the room, {WALL_MARGIN_M} m off the walls)"
                )
        return
    off_m = geometry.wall_distance_m(space, point)
    if off_m < WALL_MARGIN_M - 1e-9:
        where = (
            "is outside of the room" if off_m < 0 else "is in a wall" if off_m == 0 else f"is {off_m:.3g} m off a wall"
        )
        raise PlanError(
            f"{label}: {geometry.show(point)} m {where}, must be inside and {WALL_MARGIN_M} m off walls, floor"
            " and ceiling"
        )


def _require_apart(named: Mapping[str, _Members]) -> None:
    sources = [
        (_label(kind, name, group), placement.position_m)
        for kind in ("talker_m", "attackers_m")
        for name, (group, placement) in named[kind].items()
    ]
    loudspeakers = _array([position for _, position in sources])
    for name, (group, placement) in named["devices_m"].items():
        distances = np.linalg.norm(loudspeakers - placement.position_m, axis=1)
        nearest = int(np.argmin(distances))
        if distances[nearest] < geometry.APART_M:
            raise PlanError(
                f"{_label('devices_m', name, group)}: stands where a loudspeaker stands ({sources[nearest][0]}), move"
                " one of them"
            )


def _array(points: Sequence[Point]) -> _Points:
    return np.array(points, dtype=np.float64).reshape(-1, 3)


def _point(values: _Points) -> Point:
    x, y, z = (float(value) for value in values)
    return x, y, z
