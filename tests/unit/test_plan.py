import re
from pathlib import Path

import pytest
import yaml

import rig
from edge.errors import PlanError
from rig import plan

DEMO = Path(rig.__file__).parent / "plans" / "demo.yaml"


def minimal(**changes):
    return {"name": "p", "bundles": ["a.earshot"], "attacks": [{"name": "benign"}], **changes}


def test_shipped_plans_are_valid():
    for path in DEMO.parent.glob("*.yaml"):
        plan.load(path)


def test_the_plans_in_the_documents_are_valid():
    text = (Path(__file__).resolve().parents[2] / "docs" / "plans.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    documented = [plan.parse(yaml.load(block, Loader=plan._Loader), "docs", Path("/docs")) for block in blocks]
    assert "yes" in documented[0].clips.labels
    assert documented[1].recogniser is not None


def test_the_words_yes_no_on_off_are_labels_and_keys(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(
        "name: p\nbundles: [a.earshot]\nclips: {labels: [yes, no, on, off]}\n"
        "attacks: [{name: pgd, eps: [0.001], on: lms-fp32, target: off}]\n"
    )
    loaded = plan.load(path)
    assert loaded.clips.labels == ("yes", "no", "on", "off")
    assert (loaded.attacks[0].on, loaded.attacks[0].target) == ("lms-fp32", "off")


def test_demo_covers_what_a_newcomer_should_see():
    demo = plan.load(DEMO)
    cells = [cell for air in ("digital", "room") for cell in plan.list_conditions(demo, ["fp32", "int8"], air)]
    assert {cell.attack for cell in cells} == {"benign", "random-sign", "fgsm", "pgd-20"}
    assert {cell.delay_ms for cell in cells} == {0, 100}
    assert len({cell.eps for cell in cells if cell.attack == "pgd-20"}) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bundels": []}, "bundels: unknown key"),
        ({"attacks": [{"name": "pgd"}]}, "needs eps"),
        ({"attacks": [{"name": "cw", "eps": [0.1]}]}, "attacks.0.name"),
        ({"attacks": [{"name": "pgd", "eps": [2]}]}, "less than or equal to 1"),
        ({"attacks": [{"name": "pgd", "eps": [0.1, 0.1]}]}, "stands twice"),
        ({"attacks": [{"name": "random-sign", "eps": [0.1], "on": "a"}]}, "follows no gradient"),
        ({"delays_ms": [0, 0]}, "stands twice"),
        ({"delays_ms": [5000]}, "delays_ms.0"),
        ({"repeats": 0}, "repeats"),
        ({"name": "No Spaces"}, "name"),
    ],
)
def test_faults_are_named_in_one_line(change, words):
    with pytest.raises(PlanError) as caught:
        plan.parse(minimal(**change), "x.yaml", Path("/"))
    assert words in str(caught.value)
    assert "x.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def room(**changes):
    return {
        "size_m": [4, 3, 2.5],
        "rt60_s": 0.3,
        "talker_m": [1, 1, 1],
        "attackers_m": {"a": [2, 2, 1]},
        "devices_m": {"d": [3, 1, 1]},
        **changes,
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"talker_m": [4, 1, 1]}, "talker_m: x = 4.0 m, allowed 0.1 to 3.9"),
        ({"devices_m": {"d": [1, 1, 1]}}, "stands where a loudspeaker stands"),
        ({"rt60_s": 11}, "rt60_s"),
        ({"attackers_m": {}}, "attackers_m"),
    ],
)
def test_rooms_that_cannot_be(change, words):
    with pytest.raises(PlanError, match=words):
        plan.parse(minimal(room=room(**change)), "x.yaml", Path("/"))


def test_positions_multiply_cells_only_in_the_room():
    document = minimal(
        attacks=[{"name": "benign"}, {"name": "fgsm", "eps": [0.1]}],
        delays_ms=[0, 10],
        room=room(attackers_m={"a": [2, 2, 1], "b": [1, 2, 1]}, devices_m={"d": [3, 1, 1], "e": [3, 2, 1]}),
    )
    parsed = plan.parse(document, "x.yaml", Path("/"))
    assert len(plan.list_conditions(parsed, ["m"], "digital")) == 1 + 2
    assert len(plan.list_conditions(parsed, ["m"], "room")) == 2 * (1 + 2 * 2)


def test_the_room_air_needs_a_room():
    with pytest.raises(PlanError, match="needs 'room'"):
        plan.list_conditions(plan.parse(minimal(), "x.yaml", Path("/")), ["m"], "room")


def test_crafting_on_a_stranger_is_refused():
    parsed = plan.parse(minimal(attacks=[{"name": "fgsm", "eps": [0.1], "on": "other"}]), "x.yaml", Path("/"))
    with pytest.raises(PlanError, match="'other' is not one of m"):
        plan.list_conditions(parsed, ["m"], "digital")


def test_paths_are_relative_to_the_plan(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump(minimal(bundles=["sub/a.earshot", "zoo:lms-fp32"])))
    loaded = plan.load(path)
    assert loaded.bundles == (str(tmp_path / "sub/a.earshot"), "zoo:lms-fp32")


def test_a_stored_plan_reads_back_the_same():
    demo = plan.load(DEMO)
    document = demo.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert plan.parse(yaml.safe_load(yaml.safe_dump(document)), "stored", Path("/elsewhere")) == demo


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: [", b"- list", b"", b"a: !!python/object:os.system {}"])
def test_files_that_are_no_plan(tmp_path, content):
    path = tmp_path / "p.yaml"
    path.write_bytes(content)
    with pytest.raises(PlanError) as caught:
        plan.load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_plan_is_one_line():
    with pytest.raises(PlanError, match="No such file"):
        plan.load(Path("/nowhere/plan.yaml"))
