"""Image sources of a shoebox, enumerated directly: along each axis they are known, and their product is the room."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge.errors import PlanError
from rig.rooms.directivity import Placement
from rig.rooms.images import kernel
from rig.rooms.images.grid import Grid

# About two seconds of one processor; a plan that needs more is better served by rays.
MAX_IMAGES = 500_000_000
ALL_ORDERS = 1_000_000
SHELL_BYTES = 800_000


@dataclass(frozen=True)
class Axis:
    """The images along one axis within the distance that counts, ascending by distance; see :func:`kernel.deposit`."""

    squared_m2: npt.NDArray[np.float64]
    reflection: npt.NDArray[np.float32]
    orders: npt.NDArray[np.int64]
    projections_m: npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Limits:
    size_m: tuple[float, float, float]
    far_m: float
    order: int | None


def add_images(
    grid: Grid,
    size_m: tuple[float, float, float],
    reflection: npt.NDArray[np.float64],
    source: Placement,
    device: Placement,
    *,
    order: int | None,
    speed_mps: float,
) -> int:
    """Add every image of ``source`` that ``device`` hears within the length of ``grid``.

    Args:
        grid: where to; one band, or as many as ``reflection`` has.
        size_m: of the shoebox.
        reflection: pressure reflection factor (walls, bands), walls in the order of ``SHOEBOX_WALLS``.
        source: in the shoebox.
        device: in the shoebox.
        order: most reflections, None for all.
        speed_mps: speed of sound.

    Returns:
        how many images were visited.
    """
    far_m = grid.samples / grid.rate_hz * speed_mps
    axes = [_along(i, reflection, (source, device), _Limits(size_m, far_m, order)) for i in range(3)]
    arrays = [array for axis in axes for array in (axis.squared_m2, axis.reflection, axis.orders, axis.projections_m)]
    patterns = np.array([source.directivity.omni_share, device.directivity.omni_share])
    most = ALL_ORDERS if order is None else order
    cells, ends, scale = grid.after_silence, _ends(axes[2].orders), grid.rate_hz / speed_mps
    # Shell by shell, so that the cells that are written stay in the processor's cache.
    shells = math.ceil(cells.nbytes / SHELL_BYTES)
    limits_m = np.linspace(0, far_m, shells + 1)
    images = 0
    for near, far in itertools.pairwise(limits_m):
        images += kernel.deposit(*arrays, ends, most, near**2, far**2, scale, patterns, cells)
    return images


def count_images(size_m: tuple[float, float, float], far_m: float, order: int | None) -> float:
    """About how many images are nearer than ``far_m`` and have at most ``order`` reflections."""
    volume_m3 = math.prod(size_m)
    within = 4 / 3 * math.pi * (far_m + sum(size_m) / 3) ** 3 / volume_m3
    if order is None:
        return within
    return min(within, (2 * order + 1) * (2 * order * order + 2 * order + 3) / 3)


def require_feasible(size_m: tuple[float, float, float], length_s: float, order: int | None, speed_mps: float) -> None:
    """Raise :class:`PlanError` if one response takes more than ``MAX_IMAGES`` images."""
    images = count_images(size_m, length_s * speed_mps, order)
    if images > MAX_IMAGES:
        longest_s = (MAX_IMAGES * math.prod(size_m) * 3 / 4 / math.pi) ** (1 / 3) / speed_mps
        raise PlanError(
            f"room: length_s = {length_s:.2f} in {_by(size_m)} m takes {images:.1e} mirrored sources per response, at"
            f" most {MAX_IMAGES:.0e} are computed: set length_s to at most {longest_s:.2f}, set order, or method: rays"
        )


def _by(size_m: tuple[float, float, float]) -> str:
    return " x ".join(f"{value:g}" for value in size_m)


def _along(i: int, reflection: npt.NDArray[np.float64], pair: tuple[Placement, Placement], room: _Limits) -> Axis:
    source, device = pair
    size_m, at_m, mic_m = room.size_m[i], source.position_m[i], device.position_m[i]
    rooms = np.arange(-(n := int(room.far_m / (2 * size_m)) + 2), n + 1)
    # The image in room n: seen unmirrored (p = 0) or mirrored (p = 1), with |n - p| reflections at the wall at 0 and
    # |n| at the other one.
    n_room, mirrored = np.tile(rooms, 2), np.repeat([0, 1], len(rooms))
    from_mic_m = (1 - 2 * mirrored) * at_m + 2 * n_room * size_m - mic_m
    orders = np.abs(2 * n_room - mirrored)
    low, high = reflection[2 * i][:, None], reflection[2 * i + 1][:, None]
    factors = low ** np.abs(n_room - mirrored) * high ** np.abs(n_room)
    factors[factors < kernel.SILENT] = 0
    heard = (np.abs(from_mic_m) < room.far_m) & (factors.max(axis=0) > 0)
    if room.order is not None:
        heard &= orders <= room.order
    chosen = np.flatnonzero(heard)
    chosen = chosen[np.argsort(np.abs(from_mic_m[chosen]), kind="stable")]
    from_mic_m = from_mic_m[chosen]
    leaving_m = np.where(mirrored[chosen] == 1, from_mic_m, -from_mic_m)
    return Axis(
        squared_m2=from_mic_m**2,
        reflection=np.ascontiguousarray(factors[:, chosen], dtype=np.float32),
        orders=orders[chosen].astype(np.int64),
        projections_m=np.stack(
            [leaving_m * source.directivity.direction[i], from_mic_m * device.directivity.direction[i]]
        ),
    )


def _ends(orders: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Per number of reflections left: behind which place no image has as few."""
    ends = np.zeros(int(orders.max(initial=0)) + 1, dtype=np.int64)
    np.maximum.at(ends, orders, np.arange(1, len(orders) + 1))
    return np.maximum.accumulate(ends)
