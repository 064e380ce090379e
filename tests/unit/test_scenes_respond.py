"""From a scene to responses at the microphone's wire: transducers, levels, directivity, measured rooms."""

import math

import numpy as np
import pytest
import soundfile

from edge.errors import PlanError
from rig.airs.room import RoomAir
from rig.plan import Condition
from rig.rooms.measured import save_folder
from rig.rooms.simulate import simulate
from rig.scenes import Scene, profiles
from rig.scenes.respond import describe, direct_sound, respond

RATE_HZ = WINDOW = 16000
SCENE = {
    "size_m": [4, 3, 2.5],
    "rt60_s": ...,
    "walls": 1.0,
    "high_pass_hz": 0,
    "talker_m": [1, 1, 1],
    "attackers_m": {"a": [2, 2.5, 1]},
    "devices_m": {"d": [3, 1, 1]},
    "gain_db": 0,
}
LIVE = {"walls": 0.3}


def scene(**changes):
    return Scene(**{key: value for key, value in {**SCENE, **changes}.items() if value is not ...})


def magnitude_db(taps, frequency_hz):
    spectrum = np.fft.rfft(taps, 1 << 16)
    return 20 * np.log10(np.abs(spectrum[round(frequency_hz / RATE_HZ * (1 << 16))]))


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in profiles.PROFILES.items() for name in names]
)
def test_profiles_are_minimum_phase_with_0_db_at_1_khz(kind, name):
    response = profiles.load(kind, name, RATE_HZ)
    assert magnitude_db(response.taps, 1000) == pytest.approx(0, abs=1.5)
    assert profiles.level(response.taps, RATE_HZ) == pytest.approx(1)
    assert response.taps[0] > 0, "polarity"
    assert response.latency_samples == np.argmax(np.abs(response.taps)) <= (8 if name == "telephone-band" else 2)
    # No zero outside of the unit circle: the energy comes as early as it can (checked against its own mirror image).
    early = np.cumsum(response.taps**2)
    assert np.all(early >= np.cumsum(response.taps[::-1] ** 2) - 1e-12)
    assert len(response.source) > 20, "it says where its shape is from"
    for frequency_hz, level_db in profiles.PROFILES[kind][name].points:
        if 200 <= frequency_hz <= 7000 and level_db > -20:
            relative = level_db - _at(profiles.PROFILES[kind][name].points, 1000)
            assert magnitude_db(response.taps, frequency_hz) == pytest.approx(relative, abs=1.0)


def _at(points, frequency_hz):
    ordered = sorted(points)
    return float(np.interp(np.log2(frequency_hz), np.log2([f for f, _ in ordered]), [db for _, db in ordered]))


def test_the_telephone_band_ends_where_it_should():
    taps = profiles.load("microphone", "telephone-band", RATE_HZ).taps
    assert magnitude_db(taps, 100) < -25
    assert magnitude_db(taps, 5000) < -60
    assert magnitude_db(taps, 2000) == pytest.approx(0, abs=0.5)


def test_direct_sound_at_the_first_device_has_the_level_of_the_clip():
    heard = respond(scene(gain_db=-6), RATE_HZ)
    assert 20 * math.log10(direct_sound(heard.wire, "devices_m.d", "talker_m")) == pytest.approx(-6, abs=0.1)
    distance_m = math.dist((2, 2.5, 1), (3, 1, 1))
    expected_db = -6 + 20 * math.log10(2 / distance_m)
    assert 20 * math.log10(direct_sound(heard.wire, "devices_m.d", "attackers_m.a")) == pytest.approx(
        expected_db, abs=0.1
    )


@pytest.mark.parametrize(("azimuth_deg", "expected"), [(0, 1.0), (90, 0.5), (120, 0.25)])
def test_directivity_turns_the_level_down(azimuth_deg, expected):
    towards = {"at": [1, 1, 1], "directivity": {"pattern": "cardioid", "azimuth_deg": azimuth_deg}}
    heard = respond(scene(talker_m=towards), RATE_HZ)
    assert direct_sound(heard.wire, "devices_m.d", "talker_m") == pytest.approx(expected, rel=0.01)
    microphone = {"d": {"at": [3, 1, 1], "directivity": {"pattern": "cardioid", "azimuth_deg": 180 - azimuth_deg}}}
    heard = respond(scene(devices_m=microphone), RATE_HZ)
    assert direct_sound(heard.wire, "devices_m.d", "talker_m") == pytest.approx(expected, rel=0.01)


def test_transducers_are_convolved_each_with_its_own():
    own = {"a": {"at": [2, 2.5, 1], "loudspeaker": "phone"}}
    plain = respond(scene(), RATE_HZ)
    dressed = respond(scene(loudspeaker="studio", microphone="telephone-band", attackers_m=own), RATE_HZ)
    for source, name in (("talker_m", "studio"), ("attackers_m.a", "phone")):
        taps = np.convolve(
            profiles.load("loudspeaker", name, RATE_HZ).taps,
            profiles.load("microphone", "telephone-band", RATE_HZ).taps,
        )
        expected = np.convolve(plain.wire.of("devices_m.d", source), taps)
        got = dressed.wire.of("devices_m.d", source)
        assert np.abs(got[: len(expected)] - expected).max() < 1e-5 * np.abs(expected).max()
    # Steep filters are late by nature: as late as their main peak.
    assert dressed.wire.onset_sample - plain.wire.onset_sample == pytest.approx(8)
    assert "ITU-T" in dressed.facts["microphone"]


def test_a_measured_transducer_keeps_polarity_and_latency(tmp_path):
    taps = np.zeros(100)
    taps[37] = -0.25
    soundfile.write(tmp_path / "mic.wav", taps, RATE_HZ, subtype="FLOAT")
    path = str(tmp_path / "mic.wav")
    response = profiles.load("microphone", path, RATE_HZ)
    assert response.latency_samples == 37
    assert response.level_db == pytest.approx(12.04, abs=0.01)
    plain, turned = respond(scene(), RATE_HZ), respond(scene(microphone=path), RATE_HZ)
    first, second = (each.wire.of("devices_m.d", "talker_m") for each in (plain, turned))
    assert np.allclose(second[37 : 37 + len(first)], -first, atol=1e-6)
    assert np.allclose(turned.wire.onset_sample, plain.wire.onset_sample + 37)
    at_48k = np.zeros(300)
    at_48k[111] = 1.0
    soundfile.write(tmp_path / "mic48.wav", at_48k, 48000, subtype="FLOAT")
    assert profiles.load("microphone", str(tmp_path / "mic48.wav"), RATE_HZ).latency_samples == 37


@pytest.mark.parametrize(
    ("sound", "words"),
    [(np.zeros(100), "lets nothing through"), (np.zeros(0), "is empty"), (np.full(10, np.nan), "no numbers"),
     (np.ones(40000), "at most 1 s")],
)  # fmt: skip
def test_files_that_are_no_response(tmp_path, sound, words):
    path = tmp_path / "x.wav"
    soundfile.write(path, sound, RATE_HZ, subtype="FLOAT")
    with pytest.raises(PlanError, match=words):
        profiles.load("loudspeaker", str(path), RATE_HZ)
    (tmp_path / "y.wav").write_text("no sound")
    with pytest.raises(PlanError, match="not readable"):
        profiles.load("loudspeaker", str(tmp_path / "y.wav"), RATE_HZ)


def test_measured_responses_take_the_same_place(tmp_path):
    simulated = scene(**LIVE)
    placements = simulated.placements
    save_folder(tmp_path, simulate(simulated.space, placements.sources, placements.microphones, RATE_HZ))
    measured = scene(walls=..., high_pass_hz=..., measured=str(tmp_path))
    one, other = respond(simulated, RATE_HZ), respond(measured, RATE_HZ)
    assert np.allclose(other.wire.onset_sample, one.wire.onset_sample, atol=1e-6)
    assert direct_sound(other.wire, "devices_m.d", "talker_m") == pytest.approx(1)
    scale = other.wire.array / np.where(one.wire.array == 0, 1, one.wire.array)
    loud = np.abs(one.wire.array) > 1e-3
    assert np.ptp(scale[loud]) < 1e-3, "the same but for the reference level"
    assert describe(measured, other)["c50_db"] == pytest.approx(describe(simulated, one)["c50_db"], abs=1e-3)
    with pytest.raises(
        PlanError, match=r"room: attackers_m.b: not measured; the sources that were are talker_m, attackers_m.a"
    ):
        respond(scene(walls=..., measured=str(tmp_path), attackers_m={"b": [2, 2, 1]}), RATE_HZ)


def test_single_files_take_the_same_place(tmp_path):
    for name, at in (("talker.wav", 100), ("a.wav", 160)):
        sound = np.zeros(800)
        sound[at] = 0.5
        soundfile.write(tmp_path / name, sound, RATE_HZ, subtype="FLOAT")
    files = {"d": {"talker": str(tmp_path / "talker.wav"), "a": {"file": str(tmp_path / "a.wav"), "gain_db": -6}}}
    heard = respond(scene(walls=..., size_m=..., measured=files), RATE_HZ)
    assert heard.wire.onset_sample.tolist() == [[100, 160]]
    assert heard.wire.of("devices_m.d", "talker_m")[100] == pytest.approx(1)
    assert heard.wire.of("devices_m.d", "attackers_m.a")[160] == pytest.approx(10**-0.3, rel=1e-3)


def speech():
    envelope = np.sin(np.linspace(0, math.pi, WINDOW)) ** 2
    return (np.random.default_rng(0).standard_normal(WINDOW) * 3000 * envelope).astype(np.int16)


def air(**changes):
    return RoomAir(scene(**{**LIVE, **changes}), rate_hz=RATE_HZ, window_samples=WINDOW, seed=1)


CELL = Condition(bundle="m", attack="fgsm", eps=0.01, attacker_position="a", device_position="d")


def test_the_room_air_has_background_at_the_snr():
    nothing = np.zeros(WINDOW, dtype=np.int16)
    with_noise = air(background={"data": "pink", "snr_db": 10}, noise_dbfs=-120).render("3", speech() // 4, None, CELL)
    without = air(noise_dbfs=-120).render("3", speech() // 4, None, CELL)
    start = with_noise.window_start
    talker = without.pcm[start:].astype(float)
    background = with_noise.pcm[start:] - talker
    assert 20 * np.log10(talker.std() / background.std()) == pytest.approx(10, abs=0.3)
    assert (
        not air(background={"data": "pink", "snr_db": 10}, noise_dbfs=-120).render("3", nothing, None, CELL).pcm.any()
    )


def test_the_room_air_controls_its_gain_and_rounds():
    quiet = (speech() // 30).astype(np.int16)
    plain, lifted = air().render("1", quiet, None, CELL), air(agc={"max_gain_db": 20}).render("1", quiet, None, CELL)
    assert 3 < lifted.pcm.astype(float).std() / plain.pcm.astype(float).std() <= 10
    coarse = air(bits=8).render("1", speech(), None, CELL)
    assert np.all(coarse.pcm % 256 == 0)


def test_the_room_air_clips_where_the_converter_does():
    rendering = air(clip_dbfs=-20).render("1", speech(), None, CELL)
    assert np.abs(rendering.pcm.astype(int)).max() <= 3277
    assert "clipped" in rendering.reason


def test_polygons_sound_too():
    corners = {"size_m": ..., "corners_m": [[0, 0], [4, 0], [4, 2], [3, 3], [0, 3]], "height_m": 2.5, "order": 6}
    assert direct_sound(respond(scene(**corners), RATE_HZ).wire, "devices_m.d", "talker_m") == pytest.approx(
        1, abs=0.02
    )
    heard = respond(scene(**LIVE, **corners), RATE_HZ)
    facts = describe(scene(**LIVE, **corners), heard)
    assert facts["rt60_measured_s"]["d"] > 0.05
    assert facts["drr_db"]["d"] < 10
