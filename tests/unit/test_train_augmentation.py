from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.errors import DataError
from firmware_models.data import COMMANDS, LABELS, Clips
from firmware_models.data.silence import Noise
from firmware_models.training.augmentation import Augmenter, add_noise, change_speed, place, reverberate
from firmware_models.training.recipe import Augmentation, Sampling
from firmware_models.training.sampling import Sampler

TONE = (0.3 * np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000)).astype(np.float32)
NOISE = (Noise("tap", 0, np.random.default_rng(0).integers(-50, 50, 40_000).astype(np.int16)),)
NOTHING = Augmentation(speed_probability=0, shift_ms=0, gain_db=(0, 0), noise_probability=0, time_masks=0, band_masks=0)


def int16(x: np.ndarray) -> np.ndarray:
    return np.rint(x * 32768).astype(np.int16)


def test_faster_is_shorter_and_higher() -> None:
    fast = change_speed(TONE, 1.1)
    assert fast.size == pytest.approx(16_000 / 1.1, abs=2)
    spectrum = np.abs(np.fft.rfft(fast * np.hanning(fast.size)))
    assert np.argmax(spectrum) / fast.size * 16_000 == pytest.approx(1100, abs=3)
    assert change_speed(TONE, 1.0) is TONE


@pytest.mark.parametrize(("size", "shift"), [(16_000, 0), (16_000, 700), (16_000, -700), (12_000, 300), (20_000, -300)])
def test_place_moves_the_middle(size: int, shift: int) -> None:
    x = np.zeros(size, np.float32)
    x[size // 2] = 1.0
    out = place(x, samples=16_000, shift=shift)
    assert out.shape == (16_000,)
    assert np.argmax(out) == 8000 + shift
    assert out.sum() == 1.0


def test_place_survives_a_shift_out_of_the_window() -> None:
    assert not place(TONE, samples=16_000, shift=40_000).any()
    assert not place(TONE, samples=16_000, shift=-40_000).any()


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 35.0])
def test_noise_has_the_ratio_asked_for(snr_db: float) -> None:
    noise = np.random.default_rng(1).standard_normal(16_000).astype(np.float32) * 1e-3
    added = add_noise(TONE, noise, snr_db=snr_db) - TONE
    assert 20 * np.log10(np.std(TONE) / np.std(added)) == pytest.approx(snr_db, abs=0.1)
    assert add_noise(TONE, np.zeros(16_000, np.float32), snr_db=0) is TONE


def test_a_room_adds_a_tail_of_the_level_asked_for() -> None:
    click = np.zeros(16_000, np.float32)
    click[1000] = 0.5
    wet = reverberate(click, rt60_s=0.3, drr_db=6.0, rng=np.random.default_rng(0))
    tail = wet - click
    assert 10 * np.log10(0.25 / np.sum(tail**2)) == pytest.approx(6.0, abs=0.2)
    assert not np.abs(tail[:1010]).max() > 1e-5
    early, late = np.sum(tail[1160:2360] ** 2), np.sum(tail[3560:4760] ** 2)
    # 0.15 s later and a decay of 60 dB in 0.3 s: 30 dB less.
    assert 10 * np.log10(early / late) == pytest.approx(30, abs=3)


def test_augmentation_follows_from_the_generator_and_stays_in_range() -> None:
    augmenter = Augmenter(Augmentation(gain_db=(0, 30), room_probability=0.5), NOISE)
    first = [augmenter(int16(TONE), np.random.default_rng(seed)) for seed in range(20)]
    again = [augmenter(int16(TONE), np.random.default_rng(seed)) for seed in range(20)]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == np.float32
        assert np.abs(one).max() <= 1.0
    assert not np.array_equal(first[0], first[1])
    np.testing.assert_allclose(Augmenter(NOTHING, NOISE)(int16(TONE), np.random.default_rng(0)), TONE, atol=2e-5)


def test_masks_cover_at_most_what_they_may() -> None:
    augmenter = Augmenter(Augmentation(time_masks=2, time_mask_frames=10, band_masks=1, band_mask_bands=4), NOISE)
    in_time, in_bands = augmenter.masks(200, 98, 40, np.random.default_rng(0))
    assert in_time.shape == (200, 98, 1)
    assert in_bands.shape == (200, 1, 40)
    assert 10 < (in_time == 0).sum(1).max() <= 20
    assert (in_bands == 0).sum(2).max() == 4
    assert set(np.unique(in_time)) == {0.0, 1.0}


def some_clips(labels: list[str], value: float) -> Clips:
    index = np.array([LABELS.index(label) for label in labels], np.int64)
    pcm = np.full((len(labels), 16_000), round(value * 32768), np.int16)
    names = tuple(f"{label}/{row}" for row, label in enumerate(labels))
    return Clips(Path("memory"), "train", pcm, index, LABELS, names, names)


def test_labels_are_drawn_by_weight_and_not_by_number_of_clips() -> None:
    clips = some_clips([*COMMANDS, *["_unknown_"] * 90, "_silence_"], 0.25)
    sampler = Sampler(clips, None, Sampling(unknown_weight=3, silence_weight=1), Augmenter(NOTHING, NOISE))
    drawn = np.concatenate([sampler.batch(100, seed=1, step=step)[1] for step in range(20)])
    shares = np.bincount(drawn, minlength=12) / 2000
    np.testing.assert_allclose(shares, np.array([1.0] * 10 + [3.0, 1.0]) / 14, atol=0.025)


def test_a_batch_follows_from_seed_and_step() -> None:
    sampler = Sampler(some_clips([*COMMANDS, "_unknown_"], 0.25), None, Sampling(), Augmenter(Augmentation(), NOISE))
    pcm, label = sampler.batch(4, seed=1, step=7)
    again, label_again = sampler.batch(4, seed=1, step=7)
    np.testing.assert_array_equal(pcm, again)
    np.testing.assert_array_equal(label, label_again)
    assert not np.array_equal(pcm, sampler.batch(4, seed=1, step=8)[0])
    assert not np.array_equal(pcm, sampler.batch(4, seed=2, step=7)[0])


def test_synthetic_speech_has_the_share_asked_for() -> None:
    real, synthetic = some_clips([*COMMANDS, "_unknown_"], 0.25), some_clips(["yes"], 0.5)
    sampler = Sampler(real, synthetic, Sampling(synthetic_share=0.3), Augmenter(NOTHING, ()))
    batches = [sampler.batch(50, seed=0, step=step) for step in range(20)]
    pcm = np.concatenate([pcm[label == 0] for pcm, label in batches])
    assert np.mean(pcm[:, 0] > 0.4) == pytest.approx(0.3, abs=0.15)
    others = np.concatenate([pcm[(label > 0) & (label < 11)] for pcm, label in batches])
    assert others.max() < 0.3


def test_a_command_without_clips_is_refused() -> None:
    with pytest.raises(DataError, match="'go'"):
        Sampler(some_clips([*COMMANDS[:9], "_unknown_"], 0.25), None, Sampling(), Augmenter(NOTHING, NOISE))


def other_clips(labels: tuple[str, ...], label_index: list[int], samples: int = 48_000) -> Clips:
    pcm = np.full((len(label_index), samples), 9000, np.int16)
    names = tuple(map(str, label_index))
    return Clips(Path("memory"), "train", pcm, np.array(label_index, np.int64), labels, names, names)


def test_other_labels_are_drawn_evenly_however_many_clips_they_have() -> None:
    clips = other_clips(("dog", "drill", "siren"), [0] * 30 + [1] * 3 + [2])
    sampler = Sampler(clips, None, Sampling(), Augmenter(NOTHING, NOISE))
    pcm, label = sampler.batch(600, seed=1, step=0)
    np.testing.assert_allclose(np.bincount(label) / 600, np.full(3, 1 / 3), atol=0.06)
    assert pcm.shape == (600, 48_000)
    assert pcm.min() > 0.2


def test_labels_without_clips_are_named() -> None:
    clips = other_clips(("dog", "drill", "siren"), [0, 0])
    with pytest.raises(DataError, match="no clip of 'drill', 'siren' in the split 'train'"):
        Sampler(clips, None, Sampling(), Augmenter(NOTHING, NOISE))
    with pytest.raises(DataError, match="no clip of any label"):
        Sampler(other_clips(("_unknown_",), []), None, Sampling(), Augmenter(NOTHING, NOISE))


def test_silence_is_made_of_noise_and_where_there_is_none_of_clips() -> None:
    clips = other_clips(("dog", "_silence_"), [0, 1], samples=16_000)
    for noises, loud in ((NOISE, False), ((), True)):
        pcm, label = Sampler(clips, None, Sampling(), Augmenter(NOTHING, noises)).batch(20, seed=0, step=0)
        assert (np.abs(pcm[label == 1]).max() > 0.2) == loud
        assert np.abs(pcm[label == 0]).min() > 0.2


def test_noise_shorter_than_the_clip_is_repeated() -> None:
    found = Augmenter(NOTHING, NOISE).noise(100_000, np.random.default_rng(0))
    np.testing.assert_array_equal(found[:20_000], found[40_000:60_000])
