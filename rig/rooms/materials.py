"""How much sound the walls swallow: by a material's name, one share for all octaves, or one per octave band."""

from __future__ import annotations

import difflib
import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from edge.errors import PlanError
from rig.rooms.space import OTHERS, Absorber, Space

BASE_HZ = 125.0


def band_centres_hz(rate_hz: int) -> npt.NDArray[np.float64]:
    """Centres of the octave bands at a rate, float64 (bands,): 125 Hz and its octaves up to half the rate."""
    return np.float64(BASE_HZ) * 2.0 ** np.arange(math.floor(math.log2(rate_hz / BASE_HZ)))


@lru_cache(maxsize=1)
def materials() -> dict[str, tuple[str, tuple[float, ...]]]:
    """Description and absorption per octave band from 125 Hz on, by name; the data base of pyroomacoustics."""
    from pyroomacoustics.parameters import materials_absorption_table  # noqa: PLC0415 - it takes a second to import

    return {
        name: (str(entry["description"]), tuple(float(value) for value in entry["coeffs"]))
        for name, entry in materials_absorption_table.items()
    }


def absorption(space: Space, centres_hz: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Absorbed share of the energy, float64 (walls, bands); (walls, 1) if every wall absorbs all bands alike.

    Args:
        space: with ``walls``.
        centres_hz: of the octave bands, 125 Hz and its octaves.

    Raises:
        PlanError: a name is no material.
    """
    given = space.walls
    by_wall = given if isinstance(given, dict) else {}
    values = []
    for name in space.wall_names:
        absorber = by_wall.get(name, by_wall.get(OTHERS)) if by_wall else given
        values.append(_coefficients(absorber, f"room: walls.{name}" if by_wall else "room: walls"))  # type: ignore[arg-type]
    if all(len(set(wall)) == 1 for wall in values):
        return np.array([[wall[0]] for wall in values])
    return np.stack([_in_bands(wall, len(centres_hz)) for wall in values])


def _coefficients(absorber: Absorber, place: str) -> tuple[float, ...]:
    if isinstance(absorber, str):
        known = materials()
        if absorber not in known:
            near = difflib.get_close_matches(absorber, known, n=3) or [
                "hard_surface",
                "carpet_thin",
                "curtains_cotton_0.5",
            ]
            raise PlanError(
                f"{place}: {absorber!r} is no material; did you mean {', '.join(near)}? Or give the absorbed share, 0"
                " to 1"
            )
        return known[absorber][1]
    return (float(absorber),) if isinstance(absorber, float) else tuple(float(value) for value in absorber)


def _in_bands(coefficients: tuple[float, ...], bands: int) -> npt.NDArray[np.float64]:
    """Coefficients for ``bands`` octaves; beyond the last the straight line goes on, as in pyroomacoustics."""
    given = np.array(coefficients[:bands])
    if len(given) == 1:
        return np.full(bands, given[0])
    beyond = given[-1] + (given[-1] - given[-2]) * np.arange(1, bands - len(given) + 1)
    values: npt.NDArray[np.float64] = np.clip(np.concatenate([given, beyond]), 0.0, 1.0)
    return values
