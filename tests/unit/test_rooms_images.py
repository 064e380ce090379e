"""Responses of rooms against pyroomacoustics, which mirrors the same sources, and against what geometry says."""

import math

import numpy as np
import pyroomacoustics
import pytest

from edge.errors import PlanError
from rig.rooms import Air, Directivity, Placement, Space
from rig.rooms.images.grid import band_centres_hz, join_bands
from rig.rooms.images.respond import respond
from rig.rooms.simulate import simulate

RATE_HZ = 16_000
SIZE_M = (5.0, 4.0, 3.0)
SOURCE, DEVICE = Placement.at(1.5, 2, 1.5), Placement.at(3.7, 1.1, 0.9)
# What is asked for; measured is 0.06 %, of which all but 0.001 % is the table of sines that pyroomacoustics adds up in
# float32.
MAX_DIFFERENCE = 0.0025
CENTRES_HZ = [125, 250, 500, 1000, 2000, 4000, 8000]


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def pattern(directivity: Directivity):
    if directivity.omni_share == 1:
        return None
    return pyroomacoustics.directivities.CardioidFamily(np.array(directivity.direction), p=directivity.omni_share)


def theirs(materials, order: int, source=SOURCE, device=DEVICE, rate_hz: int = RATE_HZ, **settings) -> np.ndarray:
    room = pyroomacoustics.ShoeBox(list(SIZE_M), fs=rate_hz, materials=materials, max_order=order, **settings)
    room.add_source(list(source.position_m), directivity=pattern(source.directivity))
    room.add_microphone(list(device.position_m), directivity=pattern(device.directivity))
    room.compute_rir()
    return np.asarray(room.rir[0][0])


def ours(space: Space, samples: int, source=SOURCE, device=DEVICE, rate_hz: int = RATE_HZ) -> np.ndarray:
    space = space.model_copy(update={"length_s": samples / rate_hz})
    response = simulate(space, {"talker": source}, {"desk": device}, rate_hz, keep=False)
    assert response.array.shape == (1, 1, samples)
    return response.of("desk", "talker")


@pytest.mark.parametrize("order", [0, 1, 3, 10, 40])
def test_equal_walls_agree_with_pyroomacoustics(order: int) -> None:
    expected = theirs(pyroomacoustics.Material(0.2), order)
    found = ours(Space(size_m=SIZE_M, walls=0.2, order=order), len(expected))
    assert difference(found, expected) < MAX_DIFFERENCE


@pytest.mark.parametrize("rate_hz", [16_000, 44_100, 48_000])
def test_walls_that_differ_by_octave_agree_with_pyroomacoustics(rate_hz: int) -> None:
    octaves = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    walls = {"west": 0.1, "east": "carpet_thin", "south": octaves, "north": "glass_window", "floor": 0.5}
    material = pyroomacoustics.Material
    expected = theirs(
        {name: material(value) if isinstance(value, str | float) else by_octave(value) for name, value in walls.items()}
        | {"ceiling": material(0.05)},
        12,
        rate_hz=rate_hz,
    )
    found = ours(Space(size_m=SIZE_M, walls={**walls, "others": 0.05}, order=12), len(expected), rate_hz=rate_hz)
    assert difference(found, expected) < MAX_DIFFERENCE


def by_octave(values: tuple[float, ...]):
    return pyroomacoustics.Material({"coeffs": list(values), "center_freqs": CENTRES_HZ, "description": ""})


@pytest.mark.parametrize(("temperature_c", "humidity_percent"), [(20, 50), (8, 30), (30, 80)])
@pytest.mark.parametrize("absorption", [False, True])
def test_air_agrees_with_pyroomacoustics(temperature_c: float, humidity_percent: float, absorption: bool) -> None:
    air = Air(temperature_c=temperature_c, humidity_percent=humidity_percent, absorption=absorption)
    settings = {"temperature": temperature_c, "humidity": humidity_percent, "air_absorption": absorption}
    expected = theirs(pyroomacoustics.Material(0.2), 12, **settings)
    found = ours(Space(size_m=SIZE_M, walls=0.2, order=12, air=air), len(expected))
    assert difference(found, expected) < MAX_DIFFERENCE


@pytest.mark.parametrize("speaker", ["omni", "subcardioid", "cardioid"])
@pytest.mark.parametrize("microphone", ["omni", "hypercardioid", "figure-eight"])
def test_directivity_agrees_with_pyroomacoustics(speaker: str, microphone: str) -> None:
    source = SOURCE.model_copy(update={"directivity": Directivity(pattern=speaker, azimuth_deg=-30, elevation_deg=10)})
    device = DEVICE.model_copy(
        update={"directivity": Directivity(pattern=microphone, azimuth_deg=100, elevation_deg=-40)}
    )
    expected = theirs(pyroomacoustics.Material(0.2), 10, source, device)
    found = ours(Space(size_m=SIZE_M, walls=0.2, order=10), len(expected), source, device)
    assert difference(found, expected) < MAX_DIFFERENCE


ELL = ((0.0, 0.0), (5.0, 0.0), (5.0, 2.0), (2.5, 2.0), (2.5, 5.0), (0.0, 5.0))


@pytest.mark.parametrize("turned", [False, True])
def test_a_polygon_agrees_with_pyroomacoustics(turned: bool) -> None:
    materials = [pyroomacoustics.Material(0.2) for _ in ELL]
    materials[1] = pyroomacoustics.Material(0.6)
    room = pyroomacoustics.Room.from_corners(np.array(ELL).T, fs=RATE_HZ, max_order=3, materials=materials)
    ends = {"floor": pyroomacoustics.Material(0.4), "ceiling": pyroomacoustics.Material(0.2)}
    room.extrude(2.6, materials=ends)
    source, device = Placement.at(1, 1, 1.5), Placement.at(1.2, 4, 1)
    room.add_source(list(source.position_m))
    room.add_microphone(list(device.position_m))
    room.compute_rir()
    expected = room.rir[0][0]
    corners = ELL[::-1] if turned else ELL
    # Walking the other way round, the wall between corners 2 and 3 is the one from corner 4 to corner 5.
    walls = {"4" if turned else "2": 0.6, "floor": 0.4, "others": 0.2}
    found = ours(Space(corners_m=corners, height_m=2.6, walls=walls, order=3), len(expected), source, device)
    assert difference(found, expected) < MAX_DIFFERENCE


def test_rays_agree_with_pyroomacoustics() -> None:
    pyroomacoustics.random.seed(numpy=[1, 0, 0], libroom=1)
    expected = theirs(pyroomacoustics.Material(0.3, 0.1), 3, ray_tracing=True)
    pyroomacoustics.random.seed(numpy=5, libroom=5)
    found = ours(Space(size_m=SIZE_M, walls=0.3, method="rays", scattering=0.1), 2 * RATE_HZ)
    heard = min(len(found), len(expected)) - 100
    assert difference(found[:heard], expected[:heard]) < 0.01


def test_the_same_scene_gives_the_same_bits() -> None:
    for space in (
        Space(size_m=SIZE_M, rt60_s=0.3),
        Space(size_m=SIZE_M, walls=0.3, method="rays"),
        Space(corners_m=ELL, height_m=2.6, walls=0.3, method="rays", length_s=0.3),
    ):
        sources, devices = {"a": Placement.at(1, 1, 1.5), "b": Placement.at(1.5, 1, 1.5)}, {"d": Placement.at(2, 1, 1)}
        one = simulate(space, sources, devices, RATE_HZ, keep=False)
        other = simulate(space, sources, devices, RATE_HZ, keep=False)
        assert np.array_equal(one.array, other.array)
        assert one.facts == other.facts


def test_direct_sound_arrives_when_geometry_says() -> None:
    space = Space(size_m=(9, 8, 7), walls=1.0, high_pass_hz=0, length_s=0.05)
    generator = np.random.default_rng(3)
    for _ in range(40):
        source, device = generator.uniform(0.5, 6.5, (2, 3)).tolist()
        distance_m = math.dist(source, device)
        sources, devices = {"s": Placement.at(*source)}, {"d": Placement.at(*device)}
        response = simulate(space, sources, devices, RATE_HZ, keep=False)
        expected = distance_m / 343.0 * RATE_HZ + response.facts["offset_samples"]
        assert response.onset("d", "s") == pytest.approx(expected, abs=1e-9)
        # The delay as the phase tells it, from 300 Hz to 6 kHz.
        spectrum = np.fft.rfft(response.of("d", "s"), n=4096)
        frequency = 2 * np.pi * np.arange(len(spectrum)) / 4096
        heard = slice(77, 1537)
        rest = np.angle(spectrum[heard] * np.exp(1j * frequency[heard] * expected))
        delay = -np.dot(rest, frequency[heard]) / np.dot(frequency[heard], frequency[heard])
        assert abs(delay) < 0.01
        assert np.abs(spectrum[heard]).mean() == pytest.approx(1 / distance_m, rel=0.002)


def test_a_longer_response_begins_with_the_shorter() -> None:
    space = Space(size_m=SIZE_M, walls=0.4, high_pass_hz=0)
    long, short = ours(space, 4000), ours(space, 1500)
    assert np.allclose(long[:1500], short, atol=1e-7)


def test_all_orders_that_arrive_in_time_are_there() -> None:
    every = ours(Space(size_m=SIZE_M, walls=0.4, high_pass_hz=0), 1200)
    many = ours(Space(size_m=SIZE_M, walls=0.4, high_pass_hz=0, order=60), 1200)
    few = ours(Space(size_m=SIZE_M, walls=0.4, high_pass_hz=0, order=5), 1200)
    assert np.array_equal(every, many)
    assert difference(few, every) > 0.01


def test_octave_bands_add_up_to_the_sound_itself() -> None:
    sound = np.random.default_rng(0).standard_normal(3000).astype(np.float32)
    bands = len(band_centres_hz(RATE_HZ))
    assert bands == 7
    assert difference(join_bands(np.tile(sound, (bands, 1)), RATE_HZ), sound) < 1e-5
    room = pyroomacoustics.ShoeBox(list(SIZE_M), fs=RATE_HZ)
    for band in range(bands):
        alone = np.zeros((bands, 3000), dtype=np.float32)
        alone[band] = sound
        assert difference(join_bands(alone, RATE_HZ), room.octave_bands.analysis(sound, band=band)) < 1e-4


def test_too_many_images_are_refused_before_they_are_computed() -> None:
    with pytest.raises(PlanError, match=r"length_s = 20.00 .* set length_s to at most \d"):
        ours(Space(size_m=SIZE_M, walls=0.1), 20 * RATE_HZ)
    with pytest.raises(PlanError, match=r"order = 30 with 8 walls .* at most \d"):
        ours(Space(corners_m=ELL, height_m=2.6, walls=0.3, order=30), 100, Placement.at(1, 1, 1), Placement.at(2, 1, 1))


def test_pairs_are_told_and_keep_their_place() -> None:
    space = Space(size_m=SIZE_M, walls=0.5, length_s=0.1)
    sources = (SOURCE, Placement.at(1, 1, 1), Placement.at(4, 3, 2))
    devices = (DEVICE, Placement.at(2, 2, 2))
    told: list[tuple[int, int]] = []
    absorption = np.full((6, 1), 0.5)
    all_pairs = respond(
        space,
        absorption,
        sources,
        devices,
        rate_hz=RATE_HZ,
        length_s=0.1,
        progress=lambda done, total, note="": told.append((done, total)),
    )
    assert told == [(done, 6) for done in range(7)]
    one = respond(space, absorption, sources[2:], devices[1:], rate_hz=RATE_HZ, length_s=0.1)
    assert np.array_equal(all_pairs.array[1, 2], one.array[0, 0])
