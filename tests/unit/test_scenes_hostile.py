"""Whatever stands under ``room``: it is a scene that reads back the same, or one line says what is wrong."""

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from edge.errors import PlanError
from rig import plan
from rig.scenes import Scene, expand

VALID = {
    "size_m": [4, 3, 2.5],
    "rt60_s": 0.3,
    "talker_m": [1, 1, 1],
    "attackers_m": {"a": [2, 2, 1]},
    "devices_m": {"d": [3, 1, 1]},
}
NUMBERS = some.one_of(some.floats(), some.integers(-5, 12), some.floats(0.2, 4), some.integers(), some.booleans())
WORDS = some.sampled_from(["pink", "phone", "studio", "cardioid", "x", "", "/etc/passwd", "..", "images", "rays"])
LEAVES = some.one_of(NUMBERS, some.none(), WORDS, some.text(max_size=6))
POINTS = some.one_of(some.lists(some.floats(0.2, 2.4), min_size=3, max_size=3), some.lists(LEAVES, max_size=4))
SETTINGS = some.dictionaries(
    some.sampled_from(
        [
            "step_m",
            "height_m",
            "heights_m",
            "off_walls_m",
            "apart_m",
            "centre_m",
            "radius_m",
            "count",
            "from_deg",
            "from_m",
            "to_m",
            "seed",
            "pattern",
            "p",
        ]
    ),
    some.one_of(LEAVES, POINTS, some.lists(NUMBERS, max_size=3)),
    max_size=5,
)
PLACED = some.one_of(
    POINTS,
    LEAVES,
    some.dictionaries(
        some.sampled_from(
            ["at", "points", "grid", "circle", "line", "random", "directivity", "faces_m", "loudspeaker"]
        ),
        some.one_of(POINTS, SETTINGS, LEAVES, some.lists(POINTS, max_size=3)),
        max_size=3,
    ),
)
NAMED = some.one_of(LEAVES, some.dictionaries(some.sampled_from(["a", "b", "a-1", "B", ""]), PLACED, max_size=3))
WALLS = some.one_of(
    LEAVES,
    some.lists(NUMBERS, max_size=14),
    some.dictionaries(
        some.one_of(some.sampled_from(["floor", "ceiling", "others"]), some.integers(0, 5)),
        some.one_of(LEAVES, some.lists(NUMBERS, max_size=14)),
        max_size=4,
    ),
)
ANYTHING = some.one_of(
    LEAVES,
    some.lists(LEAVES, max_size=3),
    some.dictionaries(some.sampled_from(["data", "snr_db", "target_dbfs", "temperature_c", "d"]), LEAVES, max_size=3),
)
CHANGES = some.fixed_dictionaries(
    {},
    optional={
        "size_m": POINTS,
        "corners_m": some.one_of(some.lists(some.lists(NUMBERS, max_size=3), max_size=6), LEAVES),
        "rt60_s": LEAVES,
        "walls": WALLS,
        "talker_m": PLACED,
        "attackers_m": NAMED,
        "devices_m": NAMED,
        **dict.fromkeys(["air", "background", "agc", "measured"], ANYTHING),
        **dict.fromkeys(["microphone", "loudspeaker", "bits", "gain_db", "clip_dbfs", "method", "order"], LEAVES),
    },
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(
    CHANGES,
    some.sets(some.sampled_from(sorted([*VALID, "walls", "air", "background", "agc", "microphone"])), max_size=2),
)
def test_a_scene_or_one_line(changes, kept):
    document = {**VALID, **{key: value for key, value in changes.items() if key in kept}}
    if "walls" in document:
        del document["rt60_s"]
    whole = {"name": "p", "bundles": ["a.earshot"], "attacks": [{"name": "benign"}], "room": document}
    try:
        scene = plan.parse(whole, "x.yaml", Path("/")).room
    except PlanError as error:
        told = str(error)
    else:
        told = None
    if told is not None:
        assert told.startswith("plan x.yaml: room")
        assert len(told.splitlines()) == 1
        return
    again = Scene.model_validate(scene.model_dump(mode="json"))
    assert again == scene
    assert expand(again) == expand(scene)
