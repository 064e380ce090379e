"""A plan that tests a stranger: its conditions, what is right for it, and who is accepted as it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from edge.errors import PlanError, ThresholdError
from edge.messages import Info
from rig import journal as journals
from rig.journal import Attempt, ClipRecord, Journal, Trial
from rig.plan import BACKGROUND, Condition, list_conditions, parse
from rig.report.summary import summarise
from rig.session import foreign

DOCUMENT = {
    "schema": 1,
    "name": "transfer",
    "bundles": ["zoo:lms-fp32", "zoo:lms-int8"],
    "recogniser": {"name": "wyoming-okay_stop", "hears": {"stop": "okay_stop"}},
    "attacks": [
        {"name": "benign"},
        {"name": "random-sign", "eps": [0.01]},
        {"name": "pgd", "eps": [0.01]},
        {"name": "fgsm", "eps": [0.01], "on": "lms-int8"},
    ],
}


def plan(**changes):
    return parse({**DOCUMENT, **changes}, "plan.yaml", Path())


def test_attacks_come_from_every_bundle_and_the_stranger_is_tested():
    cells = list_conditions(plan(), ["lms-fp32", "lms-int8"], "digital")
    assert {cell.bundle for cell in cells} == {"wyoming-okay_stop"}
    assert [(cell.attack, cell.on) for cell in cells] == [
        ("benign", None),
        ("random-sign", None),
        ("pgd-20", "lms-fp32"),
        ("pgd-20", "lms-int8"),
        ("fgsm", "lms-int8"),
    ]


def test_without_a_stranger_nothing_changes():
    ordinary = plan(recogniser=None)
    cells = list_conditions(ordinary, ["lms-fp32", "lms-int8"], "digital")
    assert [(cell.bundle, cell.on) for cell in cells if cell.attack == "pgd-20"] == [
        ("lms-fp32", "lms-fp32"),
        ("lms-int8", "lms-int8"),
    ]
    assert ordinary.heard("stop") == "stop"


def test_what_must_be_heard():
    assert [plan().heard(label) for label in ("stop", "yes")] == ["okay_stop", BACKGROUND]


@pytest.mark.parametrize(
    ("recogniser", "complaint"),
    [
        ({"name": "x", "hears": {}}, "hears"),
        ({"name": "X y", "hears": {"stop": "a"}}, "name"),
        ({"name": "x", "hears": {"stop": BACKGROUND}}, "leave out"),
        ({"name": "x", "hears": {"stop": "a"}, "sha": 1}, "unknown key"),
        ({"name": "x"}, "hears"),
    ],
)
def test_recognisers_that_make_no_sense(recogniser, complaint):
    with pytest.raises(PlanError, match=complaint):
        plan(recogniser=recogniser)


def test_a_stranger_cannot_have_the_name_of_a_bundle():
    with pytest.raises(PlanError, match="is one of the bundles"):
        list_conditions(
            plan(recogniser={"name": "lms-fp32", "hears": {"stop": "a"}}), ["lms-fp32", "lms-int8"], "digital"
        )


def info(**changes) -> Info:
    facts = {
        "device": "d",
        "boot_id": "b",
        "version": "0",
        "bundle_name": "wyoming-okay_stop",
        "bundle_version": 0,
        "bundle_sha256": "0" * 64,
        "labels": (BACKGROUND, "okay_stop"),
        "rate_hz": 16000,
        "window_samples": 16000,
        "microphone": "m",
        **changes,
    }
    return Info.model_validate(facts)


MATERIAL = SimpleNamespace(rate_hz=16000, window_samples=16000)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"bundle_name": "wyoming-computer"}, "the plan tests 'wyoming-okay_stop'"),
        ({"window_samples": 8000}, "hears 8000 samples"),
        ({"labels": (BACKGROUND, "computer")}, "also wants 'okay_stop'"),
        ({"labels": ("okay_stop",)}, f"also wants '{BACKGROUND}'"),
        ({"bundle_sha256": "1" * 64}, "another recogniser than the session began with"),
    ],
)
def test_who_is_not_the_stranger_of_the_plan(changes, complaint):
    known = foreign.model_of(info())
    foreign.check(info(), plan().recogniser, MATERIAL, known)
    with pytest.raises(ThresholdError, match=complaint):
        foreign.check(info(**changes), plan().recogniser, MATERIAL, known)


@pytest.fixture
def session(tmp_path):
    recogniser = plan().recogniser.model_dump(mode="json")
    meta = {"session_id": "s", "plan": "p", "air": "digital", "bundles": {}, "recogniser": recogniser}
    cells = [
        Condition(bundle="wyoming-okay_stop", attack="benign"),
        Condition(bundle="wyoming-okay_stop", attack="pgd-20", on="lms-fp32", eps=0.01, steps=20, target="stop"),
    ]
    clips = [ClipRecord("a", "stop", "0" * 64), ClipRecord("b", "yes", "1" * 64)]
    trials = [Trial("0", 0, 0, 0), Trial("1", 0, 1, 0), Trial("2", 1, 1, 0)]
    journals.create(tmp_path, meta=meta, conditions=cells, clips=clips, trials=trials)
    return tmp_path


def test_an_error_is_what_the_stranger_must_not_hear(session):
    with Journal(session) as journal:
        heard = {"0": BACKGROUND, "1": BACKGROUND, "2": "okay_stop"}
        journal.record(Attempt(trial, 0, "valid", label=label) for trial, label in heard.items())
    benign, attacked = summarise([session]).rows
    # "stop" was missed, "yes" was rightly not heard; then "yes" was heard as the word that "stop" stands for.
    assert (benign.bundle, benign.crafted_on, benign.bits, benign.errors, benign.valid) == (
        "wyoming-okay_stop",
        None,
        None,
        1,
        2,
    )
    assert (attacked.crafted_on, attacked.errors, attacked.targeted_success) == ("lms-fp32", 1, 1.0)


def test_a_session_holds_on_to_its_stranger(session):
    def hold(told):
        with Journal(session) as journal:
            foreign.hold(session, journal, [SimpleNamespace(model=foreign.model_of(told), info=told)])

    hold(info())
    hold(info(boot_id="c"))
    with pytest.raises(PlanError, match="began with another wyoming-okay_stop"):
        hold(info(bundle_sha256="1" * 64))
