"""``earshot room show``: what it tells, that it draws, and what it refuses."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from edge.errors import PlanError, UsageError
from rig.cli.rooms.room import app

ROOM = {
    "size_m": [4.5, 3.6, 2.6],
    "rt60_s": 0.3,
    "talker_m": [2.2, 1.8, 1.5],
    "attackers_m": {"shelf": [3.4, 2.9, 1.6], "near": {"at": [2.6, 1.5, 1], "directivity": {"pattern": "cardioid"}}},
    "devices_m": {"table": [2.9, 1.5, 0.9]},
}
DOCUMENT = {
    "name": "kitchen",
    "bundles": ["zoo:lms-fp32"],
    "clips": {"data": "zoo", "split": "all", "count": 12},
    "attacks": [{"name": "benign"}, {"name": "random-sign", "eps": [0.005, 0.5]}, {"name": "fgsm", "eps": [0.005]}],
}


@pytest.fixture
def show(tmp_path):
    def call(*words, room=ROOM, **changes):
        path = tmp_path / "plan.yaml"
        path.write_text(yaml.safe_dump({**DOCUMENT, **({"room": room} if room else {}), **changes}, sort_keys=False))
        return CliRunner().invoke(app, ["show", str(path), *map(str, words)], catch_exceptions=False)

    return call


@pytest.fixture(scope="module")
def module_told(tmp_path_factory):
    path = tmp_path_factory.mktemp("room") / "plan.yaml"
    path.write_text(yaml.safe_dump({**DOCUMENT, "room": ROOM}, sort_keys=False))
    return json.loads(CliRunner().invoke(app, ["show", str(path), "--json"], catch_exceptions=False).stdout)


def test_json_tells_levels_and_reverberation(module_told):
    room = module_told["room"]
    assert room["rt60_s"] == pytest.approx(0.3, rel=0.05)
    assert 0.4 < room["critical_distance_m"] < 1.0
    talker, shelf, near = module_told["pairs"]
    assert (talker["source"], shelf["source"], near["source"]) == ("talker", "shelf", "near")
    assert talker["distance_m"] == pytest.approx(0.97, abs=0.01)
    assert talker["direct_db"] == pytest.approx(-6)
    assert shelf["direct_db"] == pytest.approx(-6 + 20 * np.log10(talker["distance_m"] / shelf["distance_m"]), abs=0.01)
    assert shelf["drr_db"] < talker["drr_db"]
    for row in (talker, shelf):
        assert row["level_db"] > row["direct_db"]
        assert row["t30_s"] == pytest.approx(0.3, rel=0.15)
        assert row["c50_db"] > 5
        assert 0.8 < row["d50"] < 1


def test_json_tells_what_is_left_of_each_budget(module_told):
    rows = {(row["attacker"], row["eps"]): row for row in module_told["budgets"]}
    assert set(rows) == {(None, 0.0), *((name, eps) for name in ("shelf", "near") for eps in (0.005, 0.5))}
    assert rows["shelf", 0.005]["snr_db"] - rows["shelf", 0.5]["snr_db"] == pytest.approx(40, abs=0.02)
    assert rows["shelf", 0.005]["snr_db"] > rows["near", 0.005]["snr_db"]
    low, high = rows["shelf", 0.005]["snr_range_db"]
    assert low <= rows["shelf", 0.005]["snr_db"] <= high
    clipping = {(row["attacker"], row["eps"]) for row in module_told["clipping"]}
    assert ("near", 0.5) in clipping
    assert not {eps for _, eps in clipping} - {0.5}
    assert rows["near", 0.5]["attacks"] == ["random-sign"]
    assert rows["near", 0.005]["attacks"] == ["random-sign", "fgsm"]


def test_expected_snr_is_what_the_room_air_delivers(module_told):
    """The preview and a session measure the same thing."""
    from rig.airs.room import RoomAir
    from rig.clips import choose
    from rig.plan import ClipChoice, Condition
    from rig.scenes import Scene

    labels = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "_silence_", "_unknown_")
    clips = choose(ClipChoice(**DOCUMENT["clips"]), labels, seed=0)
    air = RoomAir(Scene(**ROOM), rate_hz=16000, window_samples=16000, seed=0)
    cell = Condition(bundle="m", attack="random-sign", eps=0.005, attacker_position="shelf", device_position="table")
    signs = (np.random.default_rng(0).integers(0, 2, 16000) * 2 - 1) * round(0.005 * 32768)
    measured = [air.render("0", clip.pcm, signs.astype(np.int16), cell).snr_db for clip in clips]
    row = next(row for row in module_told["budgets"] if (row["attacker"], row["eps"]) == ("shelf", 0.005))
    assert row["snr_db"] == pytest.approx(np.median(measured), abs=0.1)


def test_text_and_picture(show, tmp_path):
    picture = tmp_path / "view.png"
    done = show("--plot", picture)
    assert done.exit_code == 0
    assert "RT60 wanted 0.3 s" in done.stdout
    assert "table   talker" in done.stdout
    assert "would clip: random-sign at table from near, eps 0.5" in done.stdout
    assert str(picture) in done.stdout
    with Image.open(picture) as image:
        assert min(image.size) > 600
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73), (0, 0, 0)):
        assert (np.abs(pixels.astype(int) - colour).max(axis=1) < 8).sum() > 50, "talker, attacker, device, walls"


def test_a_dry_run_needs_neither_bundle_nor_clips(show):
    done = show("--dry", "--json", bundles=["nowhere.earshot"], clips={"data": "nowhere"})
    told = json.loads(done.stdout)
    assert told["simulated"] is False
    talker, shelf, _ = told["pairs"]
    assert talker["direct_db"] == -6
    assert shelf["drr_db"] == pytest.approx(
        20 * np.log10(told["room"]["critical_distance_m"] / shelf["distance_m"]), abs=0.1
    )
    assert {row["attacker"] for row in told["budgets"]} == {"shelf", "near"}
    assert "nothing was simulated" in show("--dry").stdout


def test_long_tables_are_cut(show):
    grid = {"floor": {"grid": {"step_m": 0.5, "height_m": 1.2}}}
    done = show("--dry", room={**ROOM, "attackers_m": grid})
    assert "more, --json has them all" in done.stdout
    assert len(done.stdout.splitlines()) < 70


def test_polygons_materials_and_measured_rooms_are_drawn(show, tmp_path):
    corners = [[0, 0], [4.5, 0], [4.5, 2], [3.6, 3.6], [0, 3.6]]
    polygon = {key: value for key, value in ROOM.items() if key not in {"size_m", "rt60_s"}}
    polygon |= {"corners_m": corners, "height_m": 2.6, "walls": {"floor": "carpet_thin", "others": 0.2}}
    polygon["attackers_m"] = {"shelf": [3.4, 2.4, 1.6]}
    told = json.loads(show("--dry", "--json", "--plot", tmp_path / "a.svg", room=polygon).stdout)
    assert told["room"]["volume_m3"] == pytest.approx(2.6 * (4.5 * 3.6 - 0.5 * 0.9 * 1.6), abs=0.01)
    assert 0.1 < told["room"]["rt60_estimated_s"] < 1
    again = (tmp_path / "a.svg").read_bytes()
    show("--dry", "--plot", tmp_path / "b.svg", room=polygon)
    assert len((tmp_path / "b.svg").read_bytes()) == len(again)


def test_what_is_refused(show, tmp_path):
    with pytest.raises(PlanError, match="has no 'room'"):
        show(room=None)
    with pytest.raises(UsageError, match=r"ends in .bmp, allowed: .png, .svg, .pdf"):
        show("--plot", tmp_path / "x.bmp")
    with pytest.raises(PlanError, match=r"plan .*plan.yaml: room: devices_m.table: x = 4.5 m"):
        show(room={**ROOM, "devices_m": {"table": [4.5, 1, 1]}})
    with pytest.raises(PlanError, match=r"rt60_s = 0\.01 is too short"):
        show(room={**ROOM, "size_m": [10, 10, 10], "rt60_s": 0.01})
