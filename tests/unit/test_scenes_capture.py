"""What a device does to the sound: noise that is counted, an SNR that is met, gain control, clipping, rounding."""

import numpy as np
import pytest
import soundfile

from edge.errors import PlanError
from rig.scenes import Scene, noise
from rig.scenes.background import load
from rig.scenes.capture import Background, Clipping, GainControl, NoiseFloor, Quantisation, clipped_share
from rig.scenes.respond import capture_chain
from rig.scenes.settings import Agc

RATE_HZ = 16000
SCENE = {
    "size_m": [4, 3, 2.5],
    "rt60_s": 0.3,
    "talker_m": [1, 1, 1],
    "attackers_m": {"a": [2, 2, 1]},
    "devices_m": {"d": [3, 1, 1]},
}


def db(value):
    return 20 * np.log10(value)


def rms(block):
    return np.sqrt(np.mean(np.square(block, dtype=np.float64), axis=-1))


def tone(level, samples=RATE_HZ, frequency_hz=440.0):
    return (level * np.sin(2 * np.pi * frequency_hz * np.arange(samples) / RATE_HZ)).astype(np.float32)


def test_results_do_not_depend_on_chunks():
    scene = Scene(**SCENE, background={"data": "pink", "snr_db": 15}, agc={"target_dbfs": -18})
    levels = np.linspace(0.01, 0.3, 50)
    chain = capture_chain(scene, RATE_HZ, seed=5, talker_rms=lambda indices: levels[indices])
    clean = levels[:, None].astype(np.float32) * tone(1.4)

    def captured(chunk, order):
        out = np.zeros_like(clean)
        for at in range(0, len(order), chunk):
            rows = order[at : at + chunk]
            block = clean[rows]
            for stage in chain:
                stage.apply(block, rows)
            out[rows] = block
        return out

    forward = np.arange(50)
    whole = captured(50, forward)
    assert np.array_equal(whole, captured(7, forward))
    assert np.array_equal(whole, captured(1, forward[::-1].copy()))
    other = capture_chain(scene, RATE_HZ, seed=6, talker_rms=lambda indices: levels[indices])
    block = clean[:1].copy()
    for stage in other:
        stage.apply(block, forward[:1])
    assert not np.array_equal(whole[:1], block), "another seed sounds differently"


def test_the_noise_floor_is_white_normal_and_independent():
    block = np.zeros((64, RATE_HZ), dtype=np.float32)
    NoiseFloor(rms=0.01, key=noise.stream_key(1, "noise floor")).apply(block, np.arange(64))
    assert db(rms(block.ravel())) == pytest.approx(-40, abs=0.02)
    values = block.astype(np.float64) / 0.01
    assert abs(values.mean()) < 5 / np.sqrt(values.size)
    assert np.mean(values**4) == pytest.approx(3, abs=0.02), "kurtosis of a normal distribution"
    assert np.mean(np.abs(values) > 2) == pytest.approx(0.0455, abs=0.001)
    between = np.corrcoef(values) - np.eye(64)
    assert np.abs(between).max() < 6 / np.sqrt(RATE_HZ), "conditions are independent of each other"
    flat = values.ravel()
    for lag in (1, 2, 3, 4, 8, 64):
        assert abs(np.mean(flat[:-lag] * flat[lag:])) < 5 / np.sqrt(flat.size)
    power = np.abs(np.fft.rfft(values, axis=1)) ** 2
    assert np.allclose(
        [part.mean() / power.mean() for part in np.array_split(power[:, 1:].mean(axis=0), 8)], 1, atol=0.02
    )


def test_odd_lengths_and_large_indices():
    for samples in (1, 5, 16001):
        block = np.zeros((2, samples), dtype=np.float32)
        NoiseFloor(rms=1, key=3).apply(block, np.array([2**62, 7], dtype=np.int64))
        longer = np.zeros((1, samples + 3), dtype=np.float32)
        NoiseFloor(rms=1, key=3).apply(longer, np.array([7], dtype=np.int64))
        assert np.array_equal(block[1], longer[0, :samples]), "a sample depends on where it is, not on the length"
        assert np.isfinite(block).all()
        assert block[0].any()


@pytest.mark.parametrize("data", ["white", "pink"])
def test_background_is_at_the_snr_of_each_condition(data):
    levels = np.array([0.001, 0.02, 0.3])
    stage = Background(load(data, RATE_HZ, seed=0), snr_db=12, key=9, talker_rms=lambda indices: levels[indices])
    block = np.zeros((3, RATE_HZ), dtype=np.float32)
    stage.apply(block, np.arange(3))
    assert db(levels / rms(block)) == pytest.approx(12, abs=0.05)


def test_pink_noise_falls_by_3_db_per_octave():
    (sound,) = load("pink", RATE_HZ, seed=0).sounds
    power = np.abs(np.fft.rfft(sound)) ** 2
    frequencies = np.fft.rfftfreq(len(sound), 1 / RATE_HZ)
    octaves = [power[(frequencies >= f) & (frequencies < 2 * f)].mean() for f in (100, 200, 400, 800, 1600, 3200)]
    assert np.diff(10 * np.log10(octaves)) == pytest.approx(-3.01, abs=0.4)


def test_recorded_background_goes_through_the_microphone(tmp_path):
    generator = np.random.default_rng(0)
    soundfile.write(tmp_path / "a.wav", generator.standard_normal(48000) * 0.1, 48000)
    (tmp_path / "below").mkdir()
    soundfile.write(tmp_path / "below" / "b.flac", generator.standard_normal(5000) * 0.01, 16000)
    (tmp_path / "readme.txt").write_text("no sound")
    plain = load(str(tmp_path), RATE_HZ, seed=0)
    assert [len(sound) for sound in plain.sounds] == [16000, 5000]
    delayed = load(str(tmp_path), RATE_HZ, seed=0, microphone=np.array([0.0, 0.5]))
    assert np.allclose(delayed.sounds[1][1:], 0.5 * plain.sounds[1][:-1], atol=1e-6)
    stretch, _ = plain.stretch(1, 4000, 3000)
    assert np.array_equal(stretch[1000:], plain.sounds[1][:2000]), "what is short begins anew"


def test_background_that_cannot_be_used(tmp_path):
    soundfile.write(tmp_path / "silent.wav", np.zeros(1000), 16000)
    with pytest.raises(PlanError, match=r"silent.wav is silent"):
        load(str(tmp_path), RATE_HZ, seed=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PlanError, match=r"holds no .wav or .flac"):
        load(str(tmp_path / "empty"), RATE_HZ, seed=0)
    with pytest.raises(ValueError, match="talker_rms"):
        capture_chain(Scene(**SCENE, background={"data": "white", "snr_db": 3}), RATE_HZ)


def controlled(sound, **settings):
    block = np.atleast_2d(sound).copy()
    GainControl(Agc(**settings), RATE_HZ).apply(block, np.arange(len(block)))
    return block


@pytest.mark.parametrize(("level", "gain_db"), [(0.05, 9.03), (0.001, 24.0), (0.5, -10.97), (1e-5, 0.0)])
def test_gain_control_settles_at_its_target(level, gain_db):
    sound = tone(level, 3 * RATE_HZ)
    settled = controlled(sound, target_dbfs=-20, gate_dbfs=-70)[0, -RATE_HZ:]
    assert db(rms(settled) / rms(sound)) == pytest.approx(gain_db, abs=0.1)


def test_gain_control_falls_fast_and_rises_slowly():
    quiet, loud = tone(0.02, RATE_HZ), tone(0.5, RATE_HZ)
    block = controlled(np.concatenate([loud, quiet, quiet, loud]), target_dbfs=-20, attack_ms=10, release_ms=500)[0]
    gain = np.abs(block).reshape(-1, 160).max(axis=1) / np.abs(np.concatenate([loud, quiet, quiet, loud])).reshape(
        -1, 160
    ).max(axis=1)
    gain_db = db(gain)
    low, high = gain_db[99], gain_db[299]
    # One time constant covers 63 % of the way.
    assert (gain_db[100 + 50] - low) / (high - low) == pytest.approx(0.63, abs=0.05)
    assert (high - gain_db[300 + 3]) / (high - low) > 0.8


def test_gain_control_never_lifts_a_peak_over_full_scale():
    sound = tone(0.02, RATE_HZ)
    sound[9000] = 0.9
    assert np.abs(controlled(sound, target_dbfs=-10, max_gain_db=40)).max() <= 1.0


def test_clipping_and_quantisation():
    block = np.array([[-2.0, -1.0, -0.6, 0.0, 0.3, 0.6, 1.0, 2.0]], dtype=np.float32)
    half = block.copy()
    stage = Clipping(limit=0.5)
    assert stage.share(half)[0] == 6 / 8
    stage.apply(half, np.zeros(1, dtype=np.int64))
    assert np.abs(half).max() == 0.5
    Quantisation(bits=16).apply(block, np.zeros(1, dtype=np.int64))
    steps = block[0] * 32768
    assert np.array_equal(steps, np.rint(steps))
    assert (steps.min(), steps.max()) == (-32768, 32767)
    coarse = tone(0.9)[None].copy()
    Quantisation(bits=8).apply(coarse, np.zeros(1, dtype=np.int64))
    assert len(np.unique(coarse)) <= 256
    assert np.abs(coarse - tone(0.9)).max() <= 1 / 256 + 1e-6


def test_the_chain_is_in_the_order_of_the_signal():
    scene = Scene(**SCENE, agc=True, clip_dbfs=-6, noise_dbfs=-120)
    chain = capture_chain(scene, RATE_HZ)
    assert [type(stage).__name__ for stage in chain] == ["NoiseFloor", "Clipping", "GainControl", "Quantisation"]
    block = np.stack([tone(0.1), tone(0.9)])
    share = clipped_share(chain, block, np.arange(2))
    assert share[0] == 0
    assert share[1] == pytest.approx(2 / np.pi * np.arccos(10 ** (-6 / 20) / 0.9), abs=0.01)
    assert np.array_equal(block * 32768, np.rint(block * 32768))
