"""Whether a scene can exist: corners that form a room, loudspeakers and microphones inside it and apart."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from edge.errors import PlanError
from rig.rooms.directivity import Placement
from rig.rooms.space import Space

# Nearer to a wall than this a thing stands in it.
WALL_M = 0.01
# Nearer to a microphone than this a loudspeaker stands on it.
APART_M = 0.01
_Corners = npt.NDArray[np.float64]


def volume_m3(space: Space) -> float:
    """Volume of the room."""
    if space.size_m is not None:
        return math.prod(space.size_m)
    return abs(_signed_area_m2(_corners(space))) * _height_m(space)


def wall_areas_m2(space: Space) -> npt.NDArray[np.float64]:
    """Area of every wall in the order of ``space.wall_names``, float64 (walls,)."""
    if space.size_m is not None:
        x, y, z = space.size_m
        return np.array([y * z, y * z, x * z, x * z, x * y, x * y])
    corners = _corners(space)
    sides = np.linalg.norm(np.roll(corners, -1, axis=0) - corners, axis=1) * _height_m(space)
    floor = abs(_signed_area_m2(corners))
    return np.array([*sides, floor, floor])


def wall_distance_m(space: Space, position_m: tuple[float, float, float]) -> float:
    """Distance of a point from the nearest wall, floor or ceiling; negative or 0 outside."""
    x, y, z = position_m
    if space.size_m is not None:
        return min(min(value, size - value) for value, size in zip(position_m, space.size_m, strict=True))
    corners = _corners(space)
    level_m = min(z, _height_m(space) - z)
    sides = min(_distance_to_side_m(np.array([x, y]), corners[i - 1], corners[i]) for i in range(len(corners)))
    return min(level_m, sides if _is_inside(x, y, corners) else -sides)


def extent_m(space: Space) -> tuple[tuple[float, float], tuple[float, float], tuple[float, float]]:
    """Lowest and highest x, y and z of the room."""
    if space.size_m is not None:
        x, y, z = space.size_m
        return (0.0, x), (0.0, y), (0.0, z)
    corners = _corners(space)
    low, high = corners.min(axis=0), corners.max(axis=0)
    return (float(low[0]), float(high[0])), (float(low[1]), float(high[1])), (0.0, _height_m(space))


def require_possible(space: Space, sources: Mapping[str, Placement], devices: Mapping[str, Placement]) -> None:
    """Raise :class:`PlanError` naming the place in the plan if the scene cannot be built.

    Args:
        space: the room.
        sources: by the name that a message gives them, e.g. ``talker_m`` or ``attackers_m.door``.
        devices: the same, e.g. ``devices_m.desk``.
    """
    require_polygon(space)
    if not sources or not devices:
        raise PlanError("room: needs at least one source and one device")
    for name, placement in itertools.chain(sources.items(), devices.items()):
        position = placement.position_m
        distance_m = wall_distance_m(space, position)
        if distance_m < WALL_M:
            where = "is outside of the room" if distance_m < 0 else "is in a wall"
            raise PlanError(f"room: {name}: {show(position)} m {where} ({_describe(space)}): move it inside")
    for (source, speaker), (device, microphone) in itertools.product(sources.items(), devices.items()):
        if math.dist(speaker.position_m, microphone.position_m) < APART_M:
            raise PlanError(
                f"room: {device}: {show(microphone.position_m)} m is where {source} stands, move one of them by at"
                f" least {APART_M} m"
            )


def require_polygon(space: Space) -> None:
    """Raise :class:`PlanError` if the corners of a polygon form no room."""
    if space.corners_m is None:
        return
    corners = _corners(space)
    n = len(corners)
    for i in range(n):
        if math.dist(corners[i], corners[(i + 1) % n]) < WALL_M:
            raise PlanError(f"room: corners_m.{i}: {show(corners[i])} m is the next corner too, leave one out")
    for i, j in itertools.combinations(range(n), 2):
        if (i + 1) % n == j or (j + 1) % n == i:
            continue
        if _cross(corners[i], corners[(i + 1) % n], corners[j], corners[(j + 1) % n]):
            raise PlanError(
                f"room: corners_m: wall {i + 1} and wall {j + 1} meet; list the corners in the order in which one walks"
                " along the walls"
            )
    if abs(_signed_area_m2(corners)) < WALL_M:
        raise PlanError("room: corners_m: the floor has no area, the corners lie on one line")


def show(position: npt.ArrayLike) -> str:
    """A position as a message names it: ``(1, 2.5, 0.8)``."""
    return "(" + ", ".join(f"{value:g}" for value in np.asarray(position).tolist()) + ")"


def _describe(space: Space) -> str:
    if space.size_m is not None:
        return " x ".join(f"{value:g}" for value in space.size_m) + " m"
    return f"{len(_corners(space))} corners, {_height_m(space):g} m high"


def _corners(space: Space) -> _Corners:
    return np.asarray(space.corners_m, dtype=np.float64)


def _height_m(space: Space) -> float:
    return float(space.height_m or 0.0)


def _signed_area_m2(corners: _Corners) -> float:
    x, y = corners.T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _is_inside(x: float, y: float, corners: _Corners) -> bool:
    inside = False
    for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if (y1 > y) != (y2 > y) and x < x1 + (y - y1) / (y2 - y1) * (x2 - x1):
            inside = not inside
    return inside


def _distance_to_side_m(point: _Corners, one: _Corners, other: _Corners) -> float:
    side = other - one
    along = min(max(float(np.dot(point - one, side) / np.dot(side, side)), 0.0), 1.0)
    return math.dist(point, one + along * side)


def _cross(a: _Corners, b: _Corners, c: _Corners, d: _Corners) -> bool:
    """Whether the segments a-b and c-d touch."""

    def side(p: _Corners, q: _Corners, r: _Corners) -> float:
        return float((q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0]))

    def between(p: _Corners, q: _Corners, r: _Corners) -> bool:
        return bool(np.all(np.minimum(p, q) <= r) and np.all(r <= np.maximum(p, q)))

    s1, s2, s3, s4 = side(a, b, c), side(a, b, d), side(c, d, a), side(c, d, b)
    if s1 * s2 < 0 and s3 * s4 < 0:
        return True
    return (
        (s1 == 0 and between(a, b, c))
        or (s2 == 0 and between(a, b, d))
        or (s3 == 0 and between(c, d, a))
        or (s4 == 0 and between(c, d, b))
    )
