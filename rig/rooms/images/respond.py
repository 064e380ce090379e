"""One set of responses for walls whose absorption is known: by images, by pyroomacoustics' images, or with rays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.signal import butter, sosfiltfilt

from edge.errors import PlanError
from firmware_models.progress import Progress, silent
from rig.rooms.directivity import Placement
from rig.rooms.images import shoebox
from rig.rooms.images.grid import Grid, band_centres_hz
from rig.rooms.space import Space

MAX_BYTES = 4_000_000_000


@dataclass(frozen=True)
class Responded:
    """Float32 (devices, sources, samples), offset by ``OFFSET_SAMPLES``, and the images of a pair."""

    array: npt.NDArray[np.float32]
    images: int


def respond(
    space: Space,
    absorption: npt.NDArray[np.float64],
    sources: tuple[Placement, ...],
    devices: tuple[Placement, ...],
    *,
    rate_hz: int,
    length_s: float,
    progress: Progress = silent,
) -> Responded:
    """The response of every pair.

    Args:
        space: a room that was checked (:func:`rig.rooms.geometry.require_possible`); its ``walls``, ``rt60_s`` and
            ``length_s`` do not count here.
        absorption: of the energy, float64 (walls, bands), bands 1 or as many as the rate has.
        sources: inside the room.
        devices: inside the room, on no source.
        rate_hz: of the responses.
        length_s: of the responses.
        progress: told per pair.

    Raises:
        PlanError: the images or the pairs are too many.
    """
    samples = max(round(length_s * rate_hz), 1)
    total = len(devices) * len(sources)
    if total * samples * 4 > MAX_BYTES:
        raise PlanError(
            f"room: {len(devices)} devices x {len(sources)} sources x {length_s:.2f} s at {rate_hz} Hz take"
            f" {total * samples * 4 / 1e9:.1f} GB, at most {MAX_BYTES / 1e9:.0f} GB at once: fewer places, or a shorter"
            " length_s"
        )
    air = space.air.absorption_per_m(band_centres_hz(rate_hz)) if space.air.absorption else None
    array = np.empty((len(devices), len(sources), samples), dtype=np.float32)
    traced = None
    if space.size_m is None or space.method == "rays":
        from rig.rooms.images import polygon  # noqa: PLC0415 - pyroomacoustics takes a second to import

        traced = polygon.TracedRoom(space, absorption, (sources, devices), rate_hz)
        if space.size_m is None:
            traced.mirror()
        if space.method == "rays":
            progress(0, total, "tracing rays")
            traced.trace(length_s)
    else:
        shoebox.require_feasible(space.size_m, length_s, space.order, space.air.speed_mps)
    images = 0
    for pair in range(total):
        i, j = divmod(pair, len(sources))
        progress(pair, total, "room responses")
        grid = Grid(samples, rate_hz, absorption.shape[1])
        if space.size_m is not None:
            images += _mirror_shoebox(space, absorption, grid, sources[j], devices[i])
        elif traced is not None:
            images += traced.add_images(grid, i, j)
        response = grid.response(air, space.air.speed_mps)
        if traced is not None and space.method == "rays":
            late = traced.late(i, j, air)[:samples]
            response[: len(late)] += late.astype(np.float32)
        array[i, j] = _high_pass(response, rate_hz, space.high_pass_hz)
    progress(total, total, "room responses")
    return Responded(array, images // total)


def _mirror_shoebox(
    space: Space, absorption: npt.NDArray[np.float64], grid: Grid, source: Placement, device: Placement
) -> int:
    reflected, order = 1 - absorption, space.order
    if space.method == "rays":
        from rig.rooms.images.polygon import image_order  # noqa: PLC0415 - as above

        # What a wall scatters travels in the rays.
        reflected, order = reflected * (1 - space.scattering), image_order(space)
    size_m = space.size_m or (0.0, 0.0, 0.0)
    return shoebox.add_images(
        grid, size_m, np.sqrt(reflected), source, device, order=order, speed_mps=space.air.speed_mps
    )


def _high_pass(response: npt.NDArray[np.float32], rate_hz: int, cutoff_hz: float) -> npt.NDArray[np.float32]:
    """The filter of pyroomacoustics: Butterworth of order 2, forwards and backwards, so that nothing is delayed."""
    if cutoff_hz <= 0 or len(response) <= 16:
        return response
    sections = butter(2, cutoff_hz, "highpass", fs=rate_hz, output="sos")
    filtered: npt.NDArray[np.float32] = sosfiltfilt(sections, response).astype(np.float32)
    return filtered
