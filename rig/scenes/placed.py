"""How a plan says where things stand: a point, points, a grid, a circle, a line or random draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from rig.rooms.directivity import OMNI, Directivity

Coordinate = Annotated[float, Field(ge=-1000, le=1000, allow_inf_nan=False)]
Position = tuple[Coordinate, Coordinate, Coordinate]
_Metres = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
_Off = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1, le=10_000)]
_Degrees = Annotated[float, Field(ge=-360, le=720, allow_inf_nan=False)]
# Nearer to a wall than this nothing stands.
WALL_MARGIN_M = 0.1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Grid(_Frozen):
    """Every ``step_m`` over the floor, at one height or several; places that cannot be are left out.

    Attributes:
        step_m: between neighbours along x and y.
        heights_m: z of each layer.
        off_walls_m: the least distance from every wall.
        apart_m: the least distance from whatever else stands in the room.
    """

    step_m: Annotated[float, Field(ge=0.01, le=1000, allow_inf_nan=False)]
    heights_m: Annotated[tuple[Coordinate, ...], Field(min_length=1, max_length=100)]
    off_walls_m: _Off = 0.3
    apart_m: _Off = 0.3

    @model_validator(mode="before")
    @classmethod
    def _one_height(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "height_m" in value and "heights_m" not in value:
            return {
                **{key: entry for key, entry in value.items() if key != "height_m"},
                "heights_m": [value["height_m"]],
            }
        return value


class Circle(_Frozen):
    """``count`` places around a centre at one height, counter-clockwise as seen from above.

    Attributes:
        centre_m: x, y, z.
        radius_m: of the circle.
        count: how many; of a part of the circle both ends count.
        from_deg: where it begins; 0 is along x (east), 90 along y (north).
        to_deg: where it ends.
    """

    centre_m: Position
    radius_m: _Metres
    count: _Count
    from_deg: _Degrees = 0.0
    to_deg: _Degrees = 360.0


class Line(_Frozen):
    """``count`` places from one end to the other, both ends among them."""

    from_m: Position
    to_m: Position
    count: Annotated[int, Field(ge=2, le=10_000)]


class Random(_Frozen):
    """``count`` places drawn evenly over the room; the same for the same seed, name and room.

    Attributes:
        count: how many.
        heights_m: lowest and highest z.
        off_walls_m: the least distance from every wall.
        apart_m: the least distance from each other and from whatever else stands in the room.
        seed: of the draw.
    """

    count: Annotated[int, Field(ge=1, le=2000)]
    heights_m: tuple[Coordinate, Coordinate] = (0.8, 1.8)
    off_walls_m: _Off = 0.5
    apart_m: _Off = 0.3
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0

    @model_validator(mode="after")
    def _low_to_high(self) -> Self:
        if self.heights_m[0] > self.heights_m[1]:
            raise ValueError(f"heights_m: {self.heights_m[0]:g} to {self.heights_m[1]:g}, begin with the lower one")
        return self


SHAPES = ("at", "points", "grid", "circle", "line", "random")


class Placed(_Frozen):
    """One place or several, and what stands there. ``[x, y, z]`` alone is short for ``{at: [x, y, z]}``.

    Exactly one of ``at``, ``points``, ``grid``, ``circle``, ``line`` and ``random`` says where.

    Attributes:
        directivity: pattern of the loudspeaker or microphone, and where it points.
        faces_m: the point towards which the pattern points, instead of its angles.
        loudspeaker: profile or file, instead of the room's; a device has none.
    """

    at: Position | None = None
    points: Annotated[tuple[Position, ...], Field(min_length=1, max_length=10_000)] | None = None
    grid: Grid | None = None
    circle: Circle | None = None
    line: Line | None = None
    random: Random | None = None
    directivity: Directivity = OMNI
    faces_m: Position | None = None
    loudspeaker: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, Mapping | Placed):
            return value
        if isinstance(value, list | tuple) and len(value) == 3:
            return {"at": value}
        raise ValueError(f"give [x, y, z] in metres, or one of {', '.join(SHAPES)}")

    @model_validator(mode="after")
    def _one_shape(self) -> Self:
        given = [shape for shape in SHAPES if getattr(self, shape) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(SHAPES)}, not {', '.join(given) or 'none'}")
        if self.faces_m is not None and (self.directivity.azimuth_deg or self.directivity.elevation_deg):
            raise ValueError("faces_m and the angles of directivity both say where it points, leave one out")
        return self

    @model_serializer(mode="wrap")
    def _shortest(self, dump: SerializerFunctionWrapHandler) -> Any:
        left_out = {"directivity"} if self.directivity == OMNI else set()
        document = {key: value for key, value in dump(self).items() if value is not None and key not in left_out}
        return document["at"] if list(document) == ["at"] else document
