"""Measured rooms: sound files, SOFA files and folders, good and hostile ones."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edge.errors import DataError, PlanError
from rig.rooms import Placement, Space
from rig.rooms.measured import Recording, load, load_folder, save_folder
from rig.rooms.measures import measure
from rig.rooms.simulate import simulate

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def simulated():
    space = Space(size_m=(5, 4, 3), walls=0.4)
    sources = {"talker": Placement.at(1, 1, 1.5), "door": Placement.at(4, 3, 1.2)}
    return simulate(space, sources, {"desk": Placement.at(2.5, 2, 1)}, RATE_HZ, keep=False)


def one(path: Path, rate_hz: int = RATE_HZ, **settings):
    responses = load({"desk": {"talker": Recording(file=path.name, **settings)}}, rate_hz, path.parent)
    return responses.of("desk", "talker"), responses.onset("desk", "talker")


@pytest.mark.parametrize(("suffix", "subtype"), [("wav", "FLOAT"), ("wav", "PCM_24"), ("flac", "PCM_24")])
def test_a_file_takes_the_place_of_a_simulation(tmp_path: Path, simulated, suffix: str, subtype: str) -> None:
    sound = simulated.of("desk", "talker") / 2
    path = tmp_path / f"room.{suffix}"
    soundfile.write(path, np.stack([np.zeros_like(sound), sound], axis=1), RATE_HZ, subtype=subtype)
    found, onset = one(path, channel=2, gain_db=20 * math.log10(2))
    assert np.allclose(found, 2 * sound, atol=1e-6)
    assert onset == pytest.approx(simulated.onset("desk", "talker"), abs=1)
    assert one(path, channel=2, onset_ms=5.0)[1] == 80.0


def test_another_rate_keeps_the_gain_and_the_time(tmp_path: Path, simulated) -> None:
    path = tmp_path / "room.wav"
    soundfile.write(path, simulated.of("desk", "talker"), RATE_HZ, subtype="FLOAT")
    found, onset = one(path, 48_000)
    assert onset / 48_000 == pytest.approx(simulated.onset("desk", "talker") / RATE_HZ, abs=1 / RATE_HZ)
    for hz in (200, 1000, 3000):
        own = abs(np.exp(-2j * np.pi * hz / RATE_HZ * np.arange(simulated.array.shape[2])) @ simulated.array[0, 0])
        other = abs(np.exp(-2j * np.pi * hz / 48_000 * np.arange(len(found))) @ found)
        assert other == pytest.approx(own, rel=0.01)


def test_a_folder_holds_all_pairs(tmp_path: Path, simulated) -> None:
    save_folder(tmp_path / "kitchen", simulated)
    found = load_folder(tmp_path / "kitchen", RATE_HZ)
    assert np.array_equal(found.array, simulated.array)
    assert np.allclose(found.onset_sample, simulated.onset_sample)
    assert (found.devices, found.sources) == (simulated.devices, simulated.sources)
    assert found.facts["measured"] == simulated.facts


def sofa(path: Path, responses: np.ndarray, *, delay=None, conventions: str = "SOFA", rate_hz: float = RATE_HZ) -> Path:
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["Conventions"] = np.bytes_(conventions)
        file.attrs["SOFAConventions"] = np.bytes_("SingleRoomSRIR")
        file["Data.IR"] = responses
        file["Data.SamplingRate"] = np.array([float(rate_hz)])
        file["Data.Delay"] = np.zeros((1, responses.shape[1])) if delay is None else delay
    return path


def test_sofa_files_hold_measurements_receivers_and_emitters(tmp_path: Path) -> None:
    responses = np.random.default_rng(0).standard_normal((3, 2, 100)) * np.exp(-np.arange(100) / 10)
    path = sofa(tmp_path / "room.sofa", responses)
    found, _ = one(path, measurement=3, channel=2)
    assert np.allclose(found, responses[2, 1])
    path = sofa(tmp_path / "late.sofa", responses, delay=np.array([[0.0, 7.0]]))
    found, _ = one(path, measurement=1, channel=2)
    assert np.allclose(found, np.r_[np.zeros(7), responses[0, 1]])
    many = np.random.default_rng(1).standard_normal((2, 2, 4, 50))
    found, _ = one(sofa(tmp_path / "many.sofa", many), measurement=2, channel=1, emitter=4)
    assert np.allclose(found, many[1, 0, 3])


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"measurement": 4}, "measurement = 4, the file has 3"), ({"channel": 3}, "receiver = 3, the file has 2")],
)
def test_what_a_sofa_file_lacks_is_told(tmp_path: Path, settings: dict, said: str) -> None:
    path = sofa(tmp_path / "room.sofa", np.ones((3, 2, 100)))
    with pytest.raises(DataError, match=said):
        one(path, **settings)


def test_hostile_sofa_files_are_one_line(tmp_path: Path) -> None:
    import h5py

    good = sofa(tmp_path / "good.sofa", np.ones((1, 1, 100)))
    linked = tmp_path / "linked.sofa"
    with h5py.File(linked, "w") as file:
        file.attrs["Conventions"] = "SOFA"
        file["Data.IR"] = h5py.ExternalLink(str(good), "Data.IR")
        file["Data.SamplingRate"] = np.array([16000.0])
    stored = tmp_path / "stored.sofa"
    with h5py.File(stored, "w") as file:
        file.attrs["Conventions"] = "SOFA"
        file.create_dataset("Data.IR", (1, 1, 8), "f8", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])
        file["Data.SamplingRate"] = np.array([16000.0])
    virtual = tmp_path / "virtual.sofa"
    with h5py.File(virtual, "w") as file:
        file.attrs["Conventions"] = "SOFA"
        layout = h5py.VirtualLayout((1, 1, 100), "f8")
        layout[:] = h5py.VirtualSource(str(good), "Data.IR", shape=(1, 1, 100))
        file.create_virtual_dataset("Data.IR", layout)
        file["Data.SamplingRate"] = np.array([16000.0])
    huge = tmp_path / "huge.sofa"
    with h5py.File(huge, "w") as file:
        file.attrs["Conventions"] = "SOFA"
        file.create_dataset("Data.IR", (10**6, 10, 10**9), "f8", chunks=(1, 1, 1000), compression="gzip")
        file["Data.SamplingRate"] = np.array([16000.0])
    text = tmp_path / "text.sofa"
    text.write_text("no HDF5")
    cut = tmp_path / "cut.sofa"
    cut.write_bytes(good.read_bytes()[:700])
    other = sofa(tmp_path / "other.sofa", np.ones((1, 1, 100)), conventions="COFA")
    flat = sofa(tmp_path / "flat.sofa", np.ones((2, 100)))
    fast = sofa(tmp_path / "fast.sofa", np.ones((1, 1, 100)), rate_hz=math.nan)
    late = sofa(tmp_path / "late.sofa", np.ones((1, 1, 100)), delay=np.array([[1e12]]))
    silent = sofa(tmp_path / "silent.sofa", np.zeros((1, 1, 100)))
    for path in (linked, stored, virtual, huge, text, cut, other, flat, fast, late, silent, tmp_path / "absent.sofa"):
        with pytest.raises(DataError, match=path.name) as caught:
            one(path)
        assert "\n" not in str(caught.value)


def test_wrong_sound_files_are_one_line(tmp_path: Path) -> None:
    text = tmp_path / "text.wav"
    text.write_text("no sound")
    silent = tmp_path / "silent.wav"
    soundfile.write(silent, np.zeros(100), RATE_HZ)
    broken = tmp_path / "broken.wav"
    soundfile.write(broken, np.array([0.1, np.nan, 0.2]), RATE_HZ, subtype="FLOAT")
    long = tmp_path / "long.wav"
    soundfile.write(long, np.ones(21 * 8000), 8000)
    empty = tmp_path / "empty.wav"
    soundfile.write(empty, np.zeros(0), RATE_HZ)
    for path in (text, silent, broken, long, empty, tmp_path / "absent.wav", tmp_path):
        with pytest.raises(DataError, match=path.name) as caught:
            one(path)
        assert "\n" not in str(caught.value)
    mono = tmp_path / "mono.wav"
    soundfile.write(mono, np.ones(100) / 2, RATE_HZ)
    with pytest.raises(DataError, match="channel = 2, the file has 1"):
        one(mono, channel=2)
    with pytest.raises(DataError, match="onset_ms = 50 is after its end"):
        one(mono, onset_ms=50)


def test_missing_pairs_are_told(tmp_path: Path) -> None:
    here = Recording(file="a.wav")
    soundfile.write(tmp_path / "a.wav", np.ones(100) / 2, RATE_HZ)
    with pytest.raises(PlanError, match=r"measured\.sofa: every device needs the same sources, check door"):
        load({"desk": {"talker": here, "door": here}, "sofa": {"talker": here}}, RATE_HZ, tmp_path)
    with pytest.raises(PlanError, match="at least one response"):
        load({}, RATE_HZ, tmp_path)


@pytest.mark.parametrize(
    "index",
    [
        "nonsense",
        "[]",
        "[" * 100_000,
        json.dumps({"format": 1, "responses": [{"device": "d", "source": "s", "file": "../a.wav", "onset_ms": 1}]}),
        json.dumps({"format": 1, "responses": [{"device": "d", "source": "s", "file": "a.wav", "onset_ms": -1}]}),
        json.dumps({"format": 1, "responses": [{"device": "d"}]}),
        json.dumps({"format": 1, "responses": []}),
        json.dumps({"format": 9, "responses": []}),
    ],
)
def test_a_wrong_folder_is_one_line(tmp_path: Path, index: str) -> None:
    (tmp_path / "responses.json").write_text(index)
    with pytest.raises((DataError, PlanError)) as caught:
        load_folder(tmp_path, RATE_HZ)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="no folder of room responses"):
        load_folder(tmp_path / "absent", RATE_HZ)


@pytest.mark.shared_data
def test_real_recordings_are_read_and_measured() -> None:
    folder = Path(__file__).resolve().parents[3] / "shared/data/room_responses"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    rooms = [path for path in sorted(folder.rglob("*.flac")) if "telephone" not in path.name]
    assert rooms
    for path in rooms:
        response, onset = one(path)
        found = measure(response, RATE_HZ, onset)
        assert 0.05 < found.t20_s < 10, path
        assert 0 < found.d50 <= 1
