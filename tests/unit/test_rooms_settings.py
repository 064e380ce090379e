"""What a room may be: settings, materials, scenes that cannot exist, responses that are kept."""

import math
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from edge.errors import PlanError
from edge.validation import describe
from rig.rooms import Air, Directivity, Placement, Space, kept
from rig.rooms.geometry import extent_m, volume_m3, wall_areas_m2, wall_distance_m
from rig.rooms.images.grid import band_centres_hz
from rig.rooms.materials import absorption, materials
from rig.rooms.simulate import simulate

RATE_HZ = 16_000
ROOM = {"size_m": (5, 4, 3), "walls": 0.3}
ELL = ((0, 0), (5, 0), (5, 2), (2.5, 2), (2.5, 5), (0, 5))
POLYGON = {"corners_m": ELL, "height_m": 2.6, "walls": 0.3}


def run(space: Space, talker=(1, 1, 1.5), desk=(2, 1.5, 1), *, keep: bool = False):
    sources, devices = {"talker_m": Placement.at(*talker)}, {"devices_m.desk": Placement.at(*desk)}
    return simulate(space, sources, devices, RATE_HZ, keep=keep)


@pytest.mark.parametrize(
    ("space", "talker", "desk", "said"),
    [
        (ROOM, (6, 1, 1), (2, 2, 1), r"talker_m: \(6, 1, 1\) m is outside of the room \(5 x 4 x 3 m\)"),
        (ROOM, (1, 1, 1), (2, -0.5, 1), r"devices_m.desk: \(2, -0.5, 1\) m is outside"),
        (ROOM, (0, 1, 1), (2, 2, 1), r"talker_m: \(0, 1, 1\) m is in a wall"),
        (ROOM, (1, 1, 1), (2, 2, 2.995), r"devices_m.desk: .* is in a wall"),
        (ROOM, (2, 2, 1), (2, 2, 1.005), r"devices_m.desk: \(2, 2, 1.005\) m is where talker_m stands"),
        (POLYGON, (4, 4, 1), (1, 1, 1), r"talker_m: \(4, 4, 1\) m is outside of the room \(6 corners, 2.6 m high\)"),
        (POLYGON, (2.5, 4, 1), (1, 1, 1), r"talker_m: .* is in a wall"),
        (POLYGON, (1, 1, 2.7), (1, 1, 1), r"talker_m: .* is outside"),
        (ROOM | {"walls": "carpt"}, (1, 1, 1), (2, 2, 1), "walls: 'carpt' is no material; did you mean carpet_"),
        (
            ROOM | {"walls": {"floor": "marmor", "others": 0.2}},
            (1, 1, 1),
            (2, 2, 1),
            "walls.floor: 'marmor' is no material",
        ),
        (POLYGON | {"corners_m": ((0, 0), (5, 5), (5, 0), (0, 5))}, (1, 1, 1), (2, 2, 1), "wall 1 and wall 3 meet"),
        (POLYGON | {"corners_m": ((0, 0), (5, 0), (5, 0), (0, 5))}, (1, 1, 1), (2, 2, 1), r"corners_m.1: \(5, 0\) m"),
        (POLYGON | {"corners_m": ((0, 0), (5, 0), (7, 0))}, (1, 1, 1), (2, 2, 1), "no area"),
    ],
)
def test_impossible_scenes_are_one_line_with_the_place(space: dict, talker, desk, said: str) -> None:
    with pytest.raises(PlanError, match=said) as caught:
        run(Space(**space), talker, desk)
    assert str(caught.value).startswith("room: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (ROOM | {"walls": -0.1}, "walls: absorbed share '-0.1', allowed 0"),
        (ROOM | {"walls": math.nan}, "walls: absorbed share 'nan', allowed 0"),
        (ROOM | {"walls": (0.1, 1.2)}, "walls: absorbed share '1.2', allowed 0"),
        (ROOM | {"walls": {"floor": -1, "others": 0.1}}, "walls: 'floor': absorbed share '-1'"),
        (ROOM | {"walls": {"floor": 0.1}}, "nothing is said of west, east, south, north, ceiling"),
        (ROOM | {"walls": {"flor": 0.1, "others": 0.1}}, "'flor' is none of west"),
        (ROOM | {"walls": []}, "give a material"),
        (ROOM | {"walls": True}, "walls: absorbed share 'True'"),
        (ROOM | {"rt60_s": 0.4}, "either rt60_s"),
        (ROOM | {"rt60_s": math.inf, "walls": None}, "rt60_s: .*finite"),
        (ROOM | {"rt60_s": -1, "walls": None}, "rt60_s: .*greater than 0"),
        (ROOM | {"size_m": (5, math.nan, 3)}, "size_m.1: .*finite"),
        (ROOM | {"size_m": (5, 4, -3)}, "size_m.2: "),
        (ROOM | {"height_m": 3}, "belong together"),
        ({"walls": 0.1}, "either size_m"),
        (ROOM | {"air": {"humidity_percent": 120}}, "air.humidity_percent: "),
        (ROOM | {"air": {"temperature_c": math.nan}}, "air.temperature_c: "),
        (ROOM | {"order": -1}, "order: "),
        (ROOM | {"mehtod": "rays"}, "mehtod: unknown key"),
    ],
)
def test_wrong_settings_are_told_with_their_key(settings: dict, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Space.model_validate(settings)
    message = describe(caught.value)
    assert "\n" not in message
    assert re.search(said, message), message


@pytest.mark.parametrize("position", [(math.nan, 1, 1), (1, math.inf, 1), (1, 1, 1e9)])
def test_positions_are_numbers(position: tuple[float, float, float]) -> None:
    with pytest.raises(ValidationError):
        Placement.at(*position)


def test_patterns_are_one_of_a_family() -> None:
    with pytest.raises(ValidationError, match="cardioid"):
        Directivity.model_validate({"pattern": "cardoid"})
    with pytest.raises(ValidationError, match="leave one out"):
        Directivity(pattern="cardioid", p=0.3)
    assert Directivity(p=0.3).omni_share == 0.3
    assert Directivity(pattern="cardioid").directivity_factor == pytest.approx(3.0)
    assert Directivity(pattern="omni").directivity_factor == pytest.approx(1.0)
    assert Directivity(azimuth_deg=90).direction == pytest.approx((0, 1, 0))
    assert Directivity(elevation_deg=90).direction == pytest.approx((0, 0, 1))


def test_materials_are_those_of_pyroomacoustics() -> None:
    from pyroomacoustics import Material

    centres = band_centres_hz(RATE_HZ)
    for name in ("hard_surface", "carpet_thin", "curtains_cotton_0.5"):
        expected = Material(name).absorption_coeffs
        found = absorption(Space(size_m=(5, 4, 3), walls=name), centres)
        assert found.shape == (6, 7)
        assert np.allclose(found[0, : len(expected)], expected[:7])
    assert len(materials()) > 60
    flat = absorption(Space(size_m=(5, 4, 3), walls={"floor": 0.5, "others": (0.2, 0.2)}), centres)
    assert flat.tolist() == [[0.2]] * 4 + [[0.5], [0.2]]


def test_the_speed_of_sound_follows_from_the_air() -> None:
    assert Air().speed_mps == 343.0
    assert Air(temperature_c=20, humidity_percent=50).speed_mps == pytest.approx(331.4 + 12 + 0.62)
    centres = band_centres_hz(RATE_HZ)
    dry, humid = (Air(temperature_c=20, humidity_percent=h).absorption_per_m(centres) for h in (35, 80))
    assert np.all(np.diff(dry) > 0)
    assert dry[-1] > humid[-1]


def test_a_polygon_has_the_volume_and_walls_that_it_has() -> None:
    space = Space(**POLYGON)
    assert volume_m3(space) == pytest.approx((5 * 2 + 2.5 * 3) * 2.6)
    assert wall_areas_m2(space) == pytest.approx(np.array([5, 2, 2.5, 3, 2.5, 5, 17.5 / 2.6, 17.5 / 2.6]) * 2.6)
    assert space.wall_names == ("1", "2", "3", "4", "5", "6", "floor", "ceiling")
    assert extent_m(space) == ((0, 5), (0, 5), (0, 2.6))
    assert wall_distance_m(space, (1, 3, 1.3)) == pytest.approx(1.0)
    assert wall_distance_m(space, (2.4, 3, 1.3)) == pytest.approx(0.1)
    assert wall_distance_m(space, (3, 3, 1.3)) == pytest.approx(-0.5)
    assert wall_distance_m(space, (3, 1.9, 1.3)) == pytest.approx(0.1)
    box = Space(corners_m=((0, 0), (5, 0), (5, 4), (0, 4)), height_m=3, walls=0.3)
    assert volume_m3(box) == volume_m3(Space(**ROOM))
    one = run(box.model_copy(update={"order": 2, "length_s": 0.03}))
    other = run(Space(**ROOM, order=2, length_s=0.03))
    # pyroomacoustics keeps the images of a polygon in float32.
    assert np.linalg.norm(one.array - other.array) < 0.002 * np.linalg.norm(other.array)


def test_settings_need_neither_compiler_nor_simulator() -> None:
    code = "import sys, rig.rooms, rig.rooms.simulate, rig.rooms.measured, rig.rooms.measures; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"numba", "pyroomacoustics", "h5py", "torch", "matplotlib"} & set(loaded)


def test_more_places_than_fit_into_memory_are_refused() -> None:
    sources = {f"s{i}": Placement.at(1, 1, 1) for i in range(1000)}
    devices = {f"d{i}": Placement.at(2, 2, 1) for i in range(1000)}
    with pytest.raises(PlanError, match=r"1000 devices x 1000 sources x 1.00 s at 16000 Hz take 64.0 GB"):
        simulate(Space(**ROOM, length_s=1.0), sources, devices, RATE_HZ, keep=False)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EARSHOT_CACHE", str(tmp_path))
    monkeypatch.setattr(kept, "WORTH_KEEPING_S", 0.0)
    return tmp_path / "rooms"


def test_responses_are_kept_and_found(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = Space(size_m=(5, 4, 3), rt60_s=0.3)
    first = run(space, keep=True)
    files = list(cache.glob("*.npz"))
    assert len(files) == 1
    monkeypatch.setattr("rig.rooms.simulate._compute", lambda *_: pytest.fail("computed again"))
    again = run(space, keep=True)
    assert np.array_equal(first.array, again.array)
    assert np.array_equal(first.onset_sample, again.onset_sample)
    assert (first.facts, first.devices, first.sources, first.rate_hz) == (
        again.facts,
        again.devices,
        again.sources,
        again.rate_hz,
    )
    with pytest.raises(ValueError, match="read-only"):
        again.array[0, 0, 0] = 1


def test_another_scene_has_another_key() -> None:
    def key(**changes):
        sources = {changes.get("name", "s"): changes.get("source", Placement.at(1, 1, 1))}
        space = Space(**(ROOM | changes.get("room", {})))
        return kept.key(space, sources, {"d": Placement.at(2, 2, 1)}, changes.get("rate_hz", RATE_HZ))

    cardioid = Placement(position_m=(1, 1, 1), directivity=Directivity(pattern="cardioid"))
    changed = [
        key(),
        key(name="t"),
        key(source=Placement.at(1, 1, 1.001)),
        key(source=cardioid),
        key(rate_hz=48_000),
        key(room={"walls": 0.31}),
        key(room={"air": {"temperature_c": 20}}),
        key(room={"order": 3}),
        key(room={"method": "rays"}),
    ]
    assert len(set(changed)) == len(changed)
    assert key() == key()


@pytest.mark.parametrize("damage", [b"", b"nonsense", b"PK\x03\x04" + b"\0" * 100])
def test_damaged_files_are_computed_anew(cache: Path, damage: bytes) -> None:
    space = Space(**ROOM)
    first = run(space, keep=True)
    path = next(cache.glob("*.npz"))
    path.write_bytes(damage or path.read_bytes()[:500])
    assert np.array_equal(run(space, keep=True).array, first.array)
    assert kept.find(path.stem) is not None


def test_a_cache_that_cannot_be_written_keeps_nothing(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    assert run(Space(**ROOM), keep=True).array.any()


def test_the_cache_does_not_grow_for_ever(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = run(Space(**ROOM), keep=True)
    monkeypatch.setattr(kept, "MAX_BYTES", 6 * one.array.nbytes)
    for walls in (0.31, 0.32, 0.33, 0.34, 0.35, 0.36, 0.37, 0.38):
        run(Space(**(ROOM | {"walls": walls})), keep=True)
        time.sleep(0.01)
    sizes = [path.stat().st_size for path in cache.glob("*.npz")]
    assert 3 <= len(sizes) < 9
    assert sum(sizes) <= 6 * one.array.nbytes
