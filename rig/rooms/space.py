"""What a room is made of: its walls, its air and how its acoustics are computed. Settings that a plan holds."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from rig.rooms.air import Air

_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
MOST_BANDS = 12


def _absorber(value: Any) -> Any:
    """Refuse in plain words what is no absorption; pydantic would only say what types there could be."""
    shares = [value] if isinstance(value, int | float) else value
    if isinstance(shares, str):
        return shares
    if not isinstance(shares, list | tuple) or not 1 <= len(shares) <= MOST_BANDS:
        raise ValueError(f"give a material, the absorbed share 0 to 1, or a list of 1 to {MOST_BANDS} shares by octave")
    for share in shares:
        number = isinstance(share, int | float) and not isinstance(share, bool)
        if not number or not math.isfinite(share) or not 0 <= share <= 1:
            raise ValueError(f"absorbed share {str(share)[:40]!r}, allowed 0 (reflects all) to 1 (swallows all)")
    return float(value) if isinstance(value, int | float) else tuple(float(share) for share in shares)


# A material by name, one absorption for all octaves, or one per octave from 125 Hz on (it goes on as the last two did).
Absorber = Annotated[str | float | tuple[float, ...], BeforeValidator(_absorber)]


def _walls(value: Any) -> Any:
    """By wall or for all of them; a union of both would report faults twice and in pydantic's words."""
    if isinstance(value, dict):
        for name, absorber in value.items():
            try:
                _absorber(absorber)
            except ValueError as error:
                raise ValueError(f"{str(name)[:40]!r}: {error}") from None
        return value
    return None if value is None else _absorber(value)


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
    walls: Annotated[Absorber | dict[str, Absorber] | None, BeforeValidator(_walls)] = None
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
