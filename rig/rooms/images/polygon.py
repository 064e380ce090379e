"""What pyroomacoustics computes: the visible images of a polygon with height, and rays in any room."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import pyroomacoustics
from pyroomacoustics.simulation.rt import compute_rt_rir

from edge.errors import PlanError
from rig.rooms.directivity import Directivity, Placement
from rig.rooms.geometry import volume_m3
from rig.rooms.images.grid import Grid, band_centres_hz
from rig.rooms.images.kernel import TAPS
from rig.rooms.space import Space

# Mirroring in a polygon visits walls x (walls - 1)^(order - 1) images; the first number takes about a second.
MAX_AUTOMATIC = 200_000
MAX_VISITED = 5_000_000
RAYS_ORDER = 3
RECEIVER_M = 0.5
BIN_S = 0.004
HITS_PER_BIN = 20
MAX_RAYS = 100_000
# pyroomacoustics has one generator of random numbers per process.
_ONE_AT_A_TIME = threading.Lock()
_SEED = 1


def image_order(space: Space) -> int:
    """The order that is computed: the wanted one, or the greatest that takes about a second.

    Raises:
        PlanError: the wanted one takes too many images.
    """
    if space.order is None:
        if space.method == "rays":
            return RAYS_ORDER
        return _within(space, MAX_AUTOMATIC)
    if space.size_m is None and _visited(space, space.order) > MAX_VISITED:
        most = _within(space, MAX_VISITED)
        raise PlanError(
            f"room: order = {space.order} with {len(space.wall_names)} walls is out of reach, at most {most}: lower"
            " order, and choose method: rays for what comes later"
        )
    return space.order


def _within(space: Space, images: int) -> int:
    """The greatest order that visits at most so many images."""
    order = 0
    while _visited(space, order + 1) <= images:
        order += 1
    return order


def _visited(space: Space, order: int) -> int:
    walls = len(space.wall_names)
    visited = 1
    for k in range(order):
        visited += walls * (walls - 1) ** k
    return visited


class TracedRoom:
    """A room of pyroomacoustics with sources and microphones in it."""

    def __init__(
        self,
        space: Space,
        absorption: npt.NDArray[np.float64],
        pairs: tuple[tuple[Placement, ...], tuple[Placement, ...]],
        rate_hz: int,
    ) -> None:
        self._space = space
        self._rate_hz = rate_hz
        self._sources, self._devices = pairs
        room = _build(space, absorption, rate_hz)
        room.set_sound_speed(space.air.speed_mps)
        for source in self._sources:
            room.add_source(list(source.position_m), directivity=_pattern(source.directivity))
        for device in self._devices:
            room.add_microphone(list(device.position_m), directivity=_pattern(device.directivity))
        self._room = room

    def mirror(self) -> None:
        """Find the visible images; call it once, before :meth:`add_images`."""
        with _ONE_AT_A_TIME:
            pyroomacoustics.random.seed(numpy=_SEED, libroom=_SEED)
            self._room.image_source_model()

    def add_images(self, grid: Grid, device: int, source: int) -> int:
        """Add the images of a source that a device sees to ``grid``; returns how many."""
        mirrored = self._room.sources[source]
        visible = np.flatnonzero(self._room.visibility[source][device])
        if len(visible) == 0 or mirrored.images is None:
            return 0
        microphone, speaker = self._devices[device], self._sources[source]
        images = mirrored.images[:, visible].astype(np.float64) - np.array(microphone.position_m)[:, None]
        distance = np.linalg.norm(images, axis=0)
        leaving = mirrored.directions[device][:, visible].astype(np.float64)
        leaving /= np.linalg.norm(leaving, axis=0)
        gain = _gain(speaker.directivity, leaving) * _gain(microphone.directivity, images / distance) / distance
        time = distance * (self._rate_hz / self._space.air.speed_mps)
        grid.add(time, mirrored.damping[:, visible].astype(np.float64) * gain)
        return len(visible)

    def trace(self, length_s: float) -> None:
        """Trace rays; call it once, before :meth:`late`."""
        space = self._space
        volume = volume_m3(space)
        per_hit = volume / (np.pi * RECEIVER_M**2 * space.air.speed_mps * BIN_S)
        rays = space.rays or min(max(int(HITS_PER_BIN * per_hit), 1000), MAX_RAYS)
        self._room.set_ray_tracing(n_rays=rays, receiver_radius=RECEIVER_M, time_thres=length_s, hist_bin_size=BIN_S)
        with _ONE_AT_A_TIME:
            pyroomacoustics.random.seed(numpy=_SEED, libroom=_SEED)
            self._room.ray_tracing()

    def late(self, device: int, source: int, air_per_m: npt.NDArray[np.float64] | None) -> npt.NDArray[np.float64]:
        """What the rays bring, float64 (samples,), offset as the images are."""
        room = self._room
        distance_m = np.linalg.norm(np.subtract(self._sources[source].position_m, self._devices[device].position_m))
        with _ONE_AT_A_TIME:
            # The same noise for every pair would make their late sound alike.
            pyroomacoustics.random.seed(numpy=[_SEED, device, source], libroom=_SEED)
            return np.asarray(
                compute_rt_rir(
                    float(distance_m) / self._space.air.speed_mps,
                    room.rt_histograms[device][source],
                    room.rt_directional_responses[device],
                    room.rt_args["hist_bin_size"],
                    room.rt_args["hist_bin_size_samples"],
                    volume_m3(self._space),
                    TAPS,
                    self._space.air.speed_mps,
                    self._rate_hz,
                    room.octave_bands,
                    air_abs_coeffs=air_per_m,
                ),
                dtype=np.float64,
            )


def _build(space: Space, absorption: npt.NDArray[np.float64], rate_hz: int) -> Any:
    scattering = space.scattering if space.method == "rays" else 0.0
    walls = [_material(row, scattering, rate_hz) for row in absorption]
    # Without the rays' switch pyroomacoustics would not take the scattered sound from the images.
    settings = {"fs": rate_hz, "max_order": image_order(space), "ray_tracing": space.method == "rays"}
    if space.size_m is not None:
        named = dict(zip(space.wall_names, walls, strict=True))
        return pyroomacoustics.ShoeBox(list(space.size_m), materials=named, **settings)
    corners = np.array(space.corners_m, dtype=np.float64)
    sides, floor, ceiling = walls[:-2], walls[-2], walls[-1]
    x, y = corners.T
    if np.dot(x, np.roll(y, -1)) < np.dot(y, np.roll(x, -1)):
        # pyroomacoustics wants them against the clock; wall k of the turned list is wall n - 2 - k of the plan.
        corners = corners[::-1]
        sides = [sides[(len(sides) - 2 - k) % len(sides)] for k in range(len(sides))]
    room = pyroomacoustics.Room.from_corners(corners.T, materials=sides, **settings)
    room.extrude(space.height_m, materials={"floor": floor, "ceiling": ceiling})
    return room


def _material(absorption: npt.NDArray[np.float64], scattering: float, rate_hz: int) -> Any:
    if len(absorption) == 1:
        return pyroomacoustics.Material(float(absorption[0]), scattering)
    centres = band_centres_hz(rate_hz).tolist()
    return pyroomacoustics.Material(
        {"coeffs": absorption.tolist(), "center_freqs": centres, "description": ""},
        {"coeffs": [scattering] * len(centres), "center_freqs": centres, "description": ""},
    )


def _pattern(directivity: Directivity) -> Any:
    if directivity.omni_share == 1:
        return None
    return pyroomacoustics.directivities.CardioidFamily(np.array(directivity.direction), p=directivity.omni_share)


def _gain(directivity: Directivity, towards: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    p = directivity.omni_share
    gain: npt.NDArray[np.float64] = p + (1 - p) * (np.array(directivity.direction) @ towards)
    return gain
