"""What a room is made of: its walls, its air and how its acoustics are computed. Settings that a plan holds."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rig.rooms.air import Air

_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
# A material by name, one absorption for all octaves, or one per octave from 125 Hz on (the last one continues).
Absorber = str | _Share | Annotated[tuple[_Share, ...], Field(min_length=1, max_length=12)]
_Size = Annotated[float, Field(ge=0.5, le=200, allow_inf_nan=False)]
_Corner = tuple[
    Annotated[float, Field(ge=-500, le=500, allow_inf_nan=False)],
    Annotated[float, Field(ge=-500, le=500, allow_inf_nan=False)],
]

SHOEBOX_WALLS = ("west", "east", "south", "north", "floor", "ceiling")
OTHERS = "others"


class Space(BaseModel):
    """A room: a shoebox (``size_m``) or a polygon with height (``corners_m`` and ``height_m``).

    Attributes:
        size_m: width (x), depth (y), height (z) of a shoebox.
        corners_m: x and y of the corners of a polygon's floor, in order.
        height_m: of a polygon.
        rt60_s: wanted reverberation time; every wall gets the absorption that the solver finds.
        walls: absorbed share of the energy, for all walls or by wall: ``west`` (x = 0), ``east``, ``south`` (y = 0),
            ``north``, ``floor``, ``ceiling``; in a polygon ``1``, ``2`` ... (from corner 1 to 2, ...), ``floor``,
            ``ceiling``; ``others`` stands for those not named.
        air: temperature, humidity and absorption by the air.
        method: ``images`` mirrors the sources in the walls; ``rays`` does so up to ``order`` and traces rays for the
            rest, for large rooms and late echoes of polygons.
        order: most reflections of an image; without it all that arrive within the length (shoebox), as many as can be
            computed in about a second (polygon), or 3 (rays).
        scattering: share of the energy that a wall scatters; counts for rays only.
        rays: how many rays; without it pyroomacoustics' choice for the volume.
        length_s: of the responses; without it as long as the sound takes to fall by 60 dB.
        high_pass_hz: removes what mirrored sources add below hearing (they all push the same way), 0 switches it off.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size_m: tuple[_Size, _Size, _Size] | None = None
    corners_m: Annotated[tuple[_Corner, ...], Field(min_length=3, max_length=100)] | None = None
    height_m: _Size | None = None
    rt60_s: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None = None
    walls: Absorber | dict[str, Absorber] | None = None
    air: Air = Air()
    method: Literal["images", "rays"] = "images"
    order: Annotated[int, Field(ge=0, le=1000)] | None = None
    scattering: _Share = 0.1
    rays: Annotated[int, Field(ge=100, le=10_000_000)] | None = None
    length_s: Annotated[float, Field(gt=0, le=20, allow_inf_nan=False)] | None = None
    high_pass_hz: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 10.0

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if (self.size_m is None) == (self.corners_m is None):
            raise ValueError("give either size_m (a shoebox) or corners_m with height_m (a polygon)")
        if (self.corners_m is None) != (self.height_m is None):
            raise ValueError("corners_m and height_m belong together, a shoebox has its height in size_m")
        if (self.rt60_s is None) == (self.walls is None):
            raise ValueError("give either rt60_s (walls are solved for) or walls (absorption or materials)")
        if isinstance(self.walls, dict):
            self._walls_exist(self.walls)
        return self

    def _walls_exist(self, walls: dict[str, Absorber]) -> None:
        for name in walls:
            if name not in (*self.wall_names, OTHERS):
                raise ValueError(f"walls: {name!r} is none of {', '.join(self.wall_names)}, {OTHERS}")
        missing = [name for name in self.wall_names if name not in walls]
        if missing and OTHERS not in walls:
            raise ValueError(f"walls: nothing is said of {', '.join(missing)}; name them or give {OTHERS!r}")

    @property
    def wall_names(self) -> tuple[str, ...]:
        """Names of the walls, in the order of all arrays per wall."""
        if self.corners_m is None:
            return SHOEBOX_WALLS
        return (*(str(i + 1) for i in range(len(self.corners_m))), "floor", "ceiling")
