import math

import numpy as np
import pytest

from edge.errors import PlanError
from rig.airs import open_air
from rig.airs.protocol import ratio_db, shift
from rig.airs.room import RoomAir
from rig.plan import Condition, Plan
from rig.scenes import Scene

RATE_HZ = WINDOW = 16000
ROOM = Scene(
    size_m=(4.5, 3.6, 2.6),
    rt60_s=0.3,
    talker_m=(2.2, 1.8, 1.5),
    attackers_m={"shelf": (3.4, 2.9, 1.6)},
    devices_m={"table": (2.9, 1.5, 0.9)},
)


def cell(**changes):
    return Condition(bundle="m", attack="fgsm", eps=0.01, **changes)


def in_room(**changes):
    return cell(attacker_position="shelf", device_position="table", **changes)


@pytest.fixture(scope="module")
def speech():
    generator = np.random.default_rng(0)
    envelope = np.sin(np.linspace(0, math.pi, WINDOW)) ** 2
    return (generator.standard_normal(WINDOW) * 2000 * envelope).astype(np.int16)


@pytest.fixture(scope="module")
def noise():
    return (np.random.default_rng(1).integers(0, 2, WINDOW) * 2 - 1).astype(np.int16) * 300


@pytest.fixture(scope="module")
def digital():
    return open_air(
        "digital", Plan(name="p", bundles=("a",), attacks=({"name": "benign"},)), rate_hz=RATE_HZ, window_samples=WINDOW
    )


@pytest.fixture(scope="module")
def room():
    return RoomAir(ROOM, rate_hz=RATE_HZ, window_samples=WINDOW, seed=3)


def test_digital_is_the_exact_sum(digital, speech, noise):
    rendering = digital.render("0", speech, noise, cell())
    assert np.array_equal(rendering.pcm, speech + noise)
    assert rendering.linf == 300 / 32768
    assert rendering.reason is None


@pytest.mark.parametrize("delay_ms", [0.0, 100.0, -250.0, 1000.0])
def test_digital_delay_is_exact_to_the_sample(digital, speech, noise, delay_ms):
    rendering = digital.render("0", speech, noise, cell(delay_ms=delay_ms))
    added = rendering.pcm.astype(int) - speech
    samples = round(delay_ms * 16)
    expected = np.zeros(WINDOW, dtype=int)
    if samples >= 0:
        expected[samples:] = noise[: WINDOW - samples]
    else:
        expected[:samples] = noise[-samples:]
    assert np.array_equal(added, expected)


def test_digital_saturates_and_stays_in_budget(digital, noise):
    rendering = digital.render("0", np.full(WINDOW, 32700, dtype=np.int16), noise, cell())
    assert rendering.pcm.max() == 32767
    assert rendering.reason is None


def test_a_perturbation_over_budget_is_never_valid(digital, speech, noise):
    rendering = digital.render("0", speech, noise, Condition(bundle="m", attack="fgsm", eps=0.005))
    assert "budget exceeded" in rendering.reason


def test_room_reaches_the_wanted_reverberation(room):
    facts = room.facts()
    assert facts["rt60_room_s"] == pytest.approx(ROOM.rt60_s, rel=0.03)
    # One place is a little livelier or drier than the room.
    assert facts["rt60_measured_s"]["table"] == pytest.approx(ROOM.rt60_s, rel=0.1)


def test_room_window_begins_with_the_direct_sound(room, speech):
    click = np.zeros(WINDOW, dtype=np.int16)
    click[0] = 20000
    rendering = room.render("0", click, None, in_room())
    heard = rendering.pcm.astype(float)
    distance_m = math.dist(ROOM.talker_m.at, ROOM.devices_m["table"].at)
    arrival = distance_m / 343.0 * RATE_HZ + 40
    assert np.argmax(np.abs(heard)) == pytest.approx(arrival, abs=1)
    assert rendering.window_start == round(arrival)


def test_room_level_is_that_of_the_clip_at_the_gain(room, speech):
    dry = Scene(**{**ROOM.model_dump(), "rt60_s": 0.12, "noise_dbfs": -120})
    rendering = RoomAir(dry, rate_hz=RATE_HZ, window_samples=WINDOW, seed=0).render("0", speech, None, in_room())
    heard = rendering.pcm[rendering.window_start :].astype(float)
    expected_db = 20 * np.log10(speech.astype(float).std()) + ROOM.gain_db
    assert 20 * np.log10(heard.std()) == pytest.approx(expected_db, abs=2.5)


def test_room_is_linear_in_its_loudspeakers(room, speech, noise):
    both = room.render("7", speech, noise, in_room()).pcm.astype(float)
    talker = room.render("7", speech, None, in_room()).pcm.astype(float)
    attacker = room.render("7", np.zeros_like(speech), noise, in_room()).pcm.astype(float)
    nothing = room.render("7", np.zeros_like(speech), None, in_room()).pcm.astype(float)
    assert np.abs(both - (talker + attacker - nothing)).max() <= 2


def test_room_delay_moves_only_the_attacker(room, noise):
    silence = np.zeros(WINDOW, dtype=np.int16)
    quiet = RoomAir(Scene(**{**ROOM.model_dump(), "noise_dbfs": -120}), rate_hz=RATE_HZ, window_samples=WINDOW, seed=0)
    now = quiet.render("0", silence, noise, in_room()).pcm
    later = quiet.render("0", silence, noise, in_room(delay_ms=50)).pcm
    earlier = quiet.render("0", silence, noise, in_room(delay_ms=-50)).pcm
    assert np.abs(later[800:].astype(int) - now[:-800]).max() <= 1
    assert not later[:800].any()
    assert np.abs(earlier[:8000].astype(float)).mean() > 0


def test_a_trial_sounds_the_same_each_time_and_trials_differ(room, speech):
    first, again, other = (room.render(name, speech, None, in_room()).pcm for name in ("1", "1", "2"))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_clipped_microphone_is_never_valid(speech, noise):
    loud = RoomAir(Scene(**{**ROOM.model_dump(), "gain_db": 20}), rate_hz=RATE_HZ, window_samples=WINDOW, seed=0)
    assert "clipped" in loud.render("0", speech * 4, noise, in_room()).reason


def test_unknown_airs_are_named():
    plan = Plan(name="p", bundles=("a",), attacks=({"name": "benign"},))
    with pytest.raises(PlanError, match="choose one of digital, room"):
        open_air("lab", plan, rate_hz=RATE_HZ, window_samples=WINDOW)
    with pytest.raises(PlanError, match="needs 'room'"):
        open_air("room", plan, rate_hz=RATE_HZ, window_samples=WINDOW)


def test_shift_and_ratio():
    assert shift(np.arange(4), 2, 5).tolist() == [0, 0, 0, 1, 2]
    assert shift(np.arange(4), -2, 5).tolist() == [2, 3, 0, 0, 0]
    assert shift(np.arange(4), 9, 5).tolist() == [0] * 5
    assert ratio_db(np.full(4, 10.0), np.full(4, 1.0)) == pytest.approx(20)
    assert ratio_db(np.ones(4), np.zeros(4)) == math.inf
    assert ratio_db(np.zeros(4), np.ones(4)) == -math.inf
