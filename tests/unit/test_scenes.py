"""Scenes in a plan: where things stand, what cannot be, and that a scene reads back as it was written."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from edge.errors import PlanError
from rig import plan
from rig.rooms import geometry
from rig.scenes import Scene, expand, profiles
from rig.scenes.placed import Placed
from rig.scenes.placement import place

SHOEBOX = {
    "size_m": [4, 3, 2.5],
    "rt60_s": 0.3,
    "talker_m": [1, 1, 1],
    "attackers_m": {"a": [2, 2, 1]},
    "devices_m": {"d": [3, 1, 1]},
}
CORNERS = [[0, 0], [6, 0], [6, 3], [3, 3], [3, 5], [0, 5]]


def room(**changes):
    return {key: value for key, value in {**SHOEBOX, **changes}.items() if value is not ...}


def parse(folder=Path("/"), **changes):
    return parse_whole(room(**changes), folder)


def parse_whole(document, folder):
    whole = {"name": "p", "bundles": ["a.earshot"], "attacks": [{"name": "benign"}], "room": document}
    return plan.parse(whole, "x.yaml", folder).room


def attackers(**shape):
    return expand(parse(attackers_m={"a": shape})).attackers


def positions(placements):
    return np.array([placement.position_m for placement in placements.values()])


def test_a_circle_stands_around_its_centre():
    found = attackers(circle={"centre_m": [2, 1.5, 1.2], "radius_m": 0.8, "count": 8})
    assert list(found) == [f"a-{i}" for i in range(1, 9)]
    at = positions(found)
    assert np.allclose(np.hypot(at[:, 0] - 2, at[:, 1] - 1.5), 0.8)
    assert np.allclose(at[0], [2.8, 1.5, 1.2])
    assert np.allclose(at[2], [2, 2.3, 1.2]), "counter-clockwise from the east"


def test_of_a_part_of_a_circle_both_ends_count():
    circle = {"centre_m": [2, 1.5, 1], "radius_m": 1, "count": 3, "from_deg": 0, "to_deg": 90}
    at = positions(attackers(circle=circle))
    assert np.allclose(at[0, :2], [3, 1.5])
    assert np.allclose(at[-1, :2], [2, 2.5])


def test_a_line_has_both_ends():
    at = positions(attackers(line={"from_m": [0.5, 0.5, 1], "to_m": [0.5, 2.5, 2], "count": 5}))
    assert np.allclose(np.diff(at, axis=0), [[0, 0.5, 0.25]] * 4)


def test_points_keep_their_order_and_one_keeps_the_name():
    points = [[0.5, 2, 1], [0.5, 1, 1]]
    assert positions(attackers(points=points)).tolist() == points
    assert list(attackers(points=points[:1])) == ["a"]


@pytest.mark.parametrize("walls", [{}, {"size_m": ..., "corners_m": CORNERS, "height_m": 2.5}])
def test_a_grid_fills_the_room_off_walls_and_things(walls):
    grid = {"step_m": 0.25, "heights_m": [0.8, 1.6], "off_walls_m": 0.4, "apart_m": 0.5}
    scene = parse(attackers_m={"a": {"grid": grid}}, **walls)
    at = positions(expand(scene).attackers)
    off_m = [geometry.wall_distance_m(scene.space, tuple(point)) for point in at.tolist()]
    assert min(off_m) >= 0.4 - 1e-9
    others = np.array([[1, 1, 1], [3, 1, 1]])
    assert np.linalg.norm(at[:, None] - others, axis=2).min() >= 0.5
    # What is left out is only what is near: the rest of the floor is covered.
    inside = geometry.volume_m3(scene.space) / 2.5
    assert len(at) > 2 * 0.4 * inside / 0.25**2


def test_random_draws_keep_off_walls_and_each_other_and_repeat():
    shape = {"count": 20, "off_walls_m": 0.4, "apart_m": 0.35, "heights_m": [1.0, 1.5]}
    at = positions(attackers(random=shape))
    assert np.array_equal(at, positions(attackers(random=shape)))
    assert not np.array_equal(at, positions(attackers(random={**shape, "seed": 1})))
    everything = np.concatenate([at, [[1, 1, 1], [3, 1, 1]]])
    apart = np.linalg.norm(everything[:, None] - everything, axis=2) + 9 * np.eye(len(everything))
    assert apart.min() >= 0.35
    assert at[:, :2].min() >= 0.4
    assert (at[:, 0].max(), at[:, 1].max()) <= (3.6, 2.6)
    assert at[:, 2].min() >= 1.0
    assert at[:, 2].max() <= 1.5


def test_draws_of_other_names_differ():
    draw = {"random": {"count": 3}}
    found = expand(parse(attackers_m={"a": draw, "b": draw})).attackers
    assert len({placement.position_m for placement in found.values()}) == 6


def test_what_faces_a_point_points_there():
    found = attackers(
        circle={"centre_m": [2, 1.5, 1], "radius_m": 0.8, "count": 4},
        directivity={"pattern": "cardioid"},
        faces_m=[2, 1.5, 1],
    )
    for placement in found.values():
        towards = np.array([2, 1.5, 1]) - placement.position_m
        assert np.allclose(placement.directivity.direction, towards / np.linalg.norm(towards))


def test_talkers_and_devices_take_shapes_too():
    line = {"line": {"from_m": [0.5, 0.5, 1.5], "to_m": [0.5, 2.5, 1.5], "count": 3}}
    scene = parse(talker_m=line, devices_m={"d": {"points": [[3, 1, 1], [3, 2, 1]]}})
    assert list(expand(scene).sources) == [
        "talker_m.talker-1",
        "talker_m.talker-2",
        "talker_m.talker-3",
        "attackers_m.a",
    ]
    assert list(expand(scene).microphones) == ["devices_m.d-1", "devices_m.d-2"]
    assert list(expand(parse()).sources) == ["talker_m", "attackers_m.a"]


def test_many_talkers_are_for_sweeps():
    document = {"name": "p", "bundles": ["a.earshot"], "attacks": [{"name": "benign"}]}
    document["room"] = room(talker_m={"points": [[1, 1, 1], [1, 2, 1]]})
    loaded = plan.parse(document, "x.yaml", Path("/"))
    with pytest.raises(PlanError, match=r"room\.talker_m: 2 places; a session has one talker"):
        plan.list_conditions(loaded, ["m"], "room")
    assert plan.list_conditions(loaded, ["m"], "digital")


def test_expanded_places_are_conditions():
    document = {"name": "p", "bundles": ["a.earshot"], "attacks": [{"name": "fgsm", "eps": [0.1]}]}
    document["room"] = room(attackers_m={"ring": {"circle": {"centre_m": [2, 1.5, 1], "radius_m": 0.5, "count": 12}}})
    cells = plan.list_conditions(plan.parse(document, "x.yaml", Path("/")), ["m"], "room")
    assert [cell.attacker_position for cell in cells] == [f"ring-{i:02d}" for i in range(1, 13)]


NAN = float("nan")
BAD_CORNERS = {"size_m": ..., "corners_m": [[0, 0], [4, 3], [4, 0], [0, 3]], "height_m": 2.5}
IN_L = {"size_m": ..., "corners_m": CORNERS, "height_m": 2.5}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"devices_m": {"d": [3, 0.05, 1]}}, "room: devices_m.d: y = 0.05 m, allowed 0.1 to 2.9 m"),
        ({"devices_m": {"d": [3, 1, 9]}}, "room: devices_m.d: z = 9.0 m"),
        ({"attackers_m": {"a": [3, 1, 1]}}, r"room: devices_m.d: stands where a loudspeaker stands \(attackers_m.a\)"),
        ({"talker_m": [NAN, 1, 1]}, "room.talker_m.at.0: Input should be a finite number"),
        ({"talker_m": [1, 1]}, "room.talker_m: give .x, y, z. in metres"),
        ({"rt60_s": NAN}, "room.rt60_s: Input should be a finite number"),
        ({"rt60_s": -1}, "room.rt60_s: Input should be greater than 0"),
        ({"rt60_s": ...}, "room: give either rt60_s"),
        ({"walls": 0.2}, "room: give either rt60_s"),
        ({"rt60_s": ..., "walls": -0.1}, "room.walls: absorption -0.1, allowed 0"),
        ({"rt60_s": ..., "walls": {"floor": 1.5, "others": 0.1}}, "room.walls: floor: absorption 1.5, allowed 0"),
        ({"rt60_s": ..., "walls": {"floor": [0.1, NAN], "others": 0.1}}, "room.walls: floor: absorption nan"),
        ({"rt60_s": ..., "walls": {"floor": True, "others": 0.1}}, "floor: True is neither a material nor a share"),
        ({"rt60_s": ..., "walls": {"floor": []}}, "floor: 0 octave bands"),
        ({"rt60_s": ..., "walls": {"flor": 0.1, "others": 0.1}}, "walls: 'flor' is none of west"),
        ({"rt60_s": ..., "walls": {"floor": "carpett_thin", "others": 0.1}}, "walls.floor: .*did you mean carpet_thin"),
        (BAD_CORNERS, "room: corners_m: wall 1 and wall 3 meet"),
        ({**IN_L, "devices_m": {"d": [4, 4, 1]}}, r"room: devices_m.d: \(4, 4, 1\) m is outside of the room"),
        ({**IN_L, "devices_m": {"d": [2.95, 4, 1]}}, "devices_m.d: .* m is 0.05 m off a wall, must be inside"),
        (
            {"attackers_m": {"a": {"circle": {"centre_m": [2, 2, 1], "radius_m": 2, "count": 4}}}},
            "attackers_m.a-1: x = 4",
        ),
        ({"attackers_m": {"a": {"random": {"count": 300}}}}, r"attackers_m.a: found \d+ of 300 places"),
        ({"attackers_m": {"a": {"random": {"count": 2, "off_walls_m": 2}}}}, "attackers_m.a: found 0 of 2 places"),
        (
            {"attackers_m": {"a": {"grid": {"step_m": 1, "height_m": 1, "off_walls_m": 2}}}},
            "attackers_m.a: the grid has no",
        ),
        (
            {"attackers_m": {"a": {"grid": {"step_m": 0.01, "height_m": 1}}}},
            "attackers_m.a: grid.step_m = 0.01 gives more",
        ),
        ({"attackers_m": {"a": {"at": [2, 2, 1], "points": [[2, 2, 1]]}}}, "attackers_m.a: give exactly one of"),
        ({"attackers_m": {"a": {"faces_m": [2, 2, 1]}}}, "attackers_m.a: give exactly one of .* not none"),
        ({"attackers_m": {"a": {"cicle": {}}}}, "attackers_m.a.cicle: unknown key"),
        ({"attackers_m": {"a": {"line": {"from_m": [1, 1, 1], "to_m": [2, 2, 1], "count": 1}}}}, "a.line.count"),
        (
            {"attackers_m": {"a-1": [2, 1, 1], "a": {"points": [[1, 2, 1], [2, 2, 1]]}}},
            "attackers_m.a: there is another 'a-1'",
        ),
        (
            {"devices_m": {"d": {"at": [3, 1, 1], "loudspeaker": "phone"}}},
            "devices_m.d.loudspeaker: a device only listens",
        ),
        ({"microphone": "phonee"}, "room: microphone: 'phonee' is neither one of studio, phone"),
        ({"loudspeaker": "nowhere.wav"}, "room: loudspeaker: 'nowhere.wav' is neither"),
        (
            {"background": {"data": "no-such-noise", "snr_db": 3}},
            "room: background.data: '/no-such-noise' is neither a file nor a folder",
        ),
        ({"background": {"data": "pink"}}, "room.background.snr_db: Field required"),
        ({"agc": {"attack_ms": 0}}, "room.agc.attack_ms"),
        ({"bits": 24}, "room.bits"),
        ({"gain_db": NAN}, "room.gain_db"),
        ({"measured": "nowhere"}, "room: the room is measured, so neither rt60_s nor walls"),
        ({"measured": "nowhere", "rt60_s": ...}, "room: measured: '/nowhere' is no folder"),
        ({"measured": {"d": {"talker": "x.wav"}}, "rt60_s": ...}, "room: measured.d.talker: '/x.wav' is no file"),
        (
            {"measured": {"d": {"talker": {"file": "x", "channel": 0}}}, "rt60_s": ...},
            "measured.files.d.talker.channel",
        ),
        ({"wols": 3}, "room.wols: unknown key"),
    ],
)
def test_what_cannot_be_is_one_line_with_the_place_in_the_plan(changes, words):
    with pytest.raises(PlanError, match=words) as caught:
        parse(**changes)
    assert str(caught.value).startswith("plan x.yaml: room")
    assert "\n" not in str(caught.value)


def test_walls_are_numbered_in_a_polygon():
    scene = parse(size_m=..., rt60_s=..., corners_m=CORNERS, height_m=2.5, walls={1: 0.3, "others": 0.1})
    assert scene.space.walls == {"1": 0.3, "others": 0.1}


def test_a_scene_reads_back_the_same():
    scene = parse(
        attackers_m={
            "a": [2, 2, 1],
            "b": {"at": [2, 1, 1], "directivity": {"pattern": "cardioid", "azimuth_deg": 90}, "loudspeaker": "phone"},
            "c": {"grid": {"step_m": 0.8, "height_m": 1.3}},
        },
        background={"data": "pink", "snr_db": 10},
        agc=True,
        microphone="far-field-array",
    )
    for document in (scene.model_dump(mode="json"), scene.model_dump(mode="json", exclude_none=True)):
        again = Scene.model_validate(yaml.safe_load(yaml.safe_dump(document)))
        assert again == scene
        assert expand(again) == expand(scene)
    assert scene.model_dump(mode="json")["attackers_m"]["a"] == [2.0, 2.0, 1.0]


def test_files_are_found_beside_the_plan(tmp_path):
    sound = np.zeros(200)
    sound[3] = 1
    for name in ("speaker.wav", "mic.flac", "own.wav"):
        soundfile.write(tmp_path / name, sound, 16000)
    (tmp_path / "noise").mkdir()
    soundfile.write(tmp_path / "noise" / "fan.wav", np.ones(16000) * 0.1, 16000)
    scene = parse(
        tmp_path,
        loudspeaker="speaker.wav",
        microphone="mic.flac",
        background={"data": "noise", "snr_db": 10},
        attackers_m={"a": {"at": [2, 2, 1], "loudspeaker": "own.wav"}},
    )
    assert scene.loudspeaker_of("talker_m") == str(tmp_path / "speaker.wav")
    assert scene.loudspeaker_of("attackers_m.a") == str(tmp_path / "own.wav")
    assert scene.microphone == str(tmp_path / "mic.flac")
    assert scene.background.data == str(tmp_path / "noise")


def test_without_walls_only_distances_are_checked():
    devices = {"d": Placed.model_validate([30, 1, 1])}
    talker = Placed.model_validate([1, 1, 1])
    found = place(None, talker, {"a": Placed.model_validate([-5, 1, 1])}, devices)
    assert found.reference_m == 29
    with pytest.raises(PlanError, match=r"attackers_m\.a: needs the walls"):
        place(None, talker, {"a": Placed.model_validate({"random": {"count": 2}})}, devices)


def test_the_level_is_set_at_the_first_device():
    scene = parse(gain_db=6, devices_m={"far": [3, 2, 1], "near": [1.5, 1, 1]})
    assert scene.level == pytest.approx(math.sqrt(5) * 10**0.3)


def test_the_scenes_in_the_documents_can_be(tmp_path):
    (tmp_path / "kitchen").mkdir()
    for name in ("kitchen/talker.wav", "kitchen.sofa"):
        (tmp_path / name).touch()
    text = (Path(__file__).resolve().parents[2] / "docs" / "rooms.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    scenes = [parse_whole(yaml.load(block, Loader=plan._Loader)["room"], tmp_path) for block in blocks]
    assert len(scenes) == 3
    assert len(expand(scenes[0]).attackers) > 60
    assert scenes[2].measured["table"]["shelf"].measurement == 2
    for kind in profiles.PROFILES.values():
        assert all(f"`{name}`" in text for name in kind)
