from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edge.errors import DataError
from firmware_models.data import LABELS, load, load_noises
from firmware_models.data.check import check
from firmware_models.data.kind import is_words, scan_any
from firmware_models.data.recording import cut, decode_recording
from firmware_models.data.splitting import Sound, by_recording
from rig.cli.main import main

SHARED = Path(__file__).resolve().parents[2].parent / "shared/data/urbansound8k"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EARSHOT_CACHE", str(tmp_path / "cache"))


def tone(path: Path, seconds: float = 0.25, *, rate_hz: int = 16_000, channels: int = 1, hz: float = 440.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sound = 0.3 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)
    soundfile.write(path, np.tile(sound[:, None], channels), rate_hz, subtype="PCM_16")
    return path


def splits_of(root: Path, key: str = "speaker") -> dict[str, set[str]]:
    """The splits in which every recording is."""
    found: dict[str, set[str]] = {}
    for entry in scan_any(root).entries:
        found.setdefault(getattr(entry, key), set()).add(entry.split)
    return found


def test_labels_are_the_folders_and_the_window_is_3_s(tmp_path: Path) -> None:
    for number in range(10):
        tone(tmp_path / "set" / "street" / f"take{number}x.wav")
        tone(tmp_path / "set" / "Café 2" / f"{chr(97 + number)}.flac")
    (tmp_path / "set" / "notes.txt").write_text("no sound")
    (tmp_path / "set" / "empty").mkdir()
    train = load(tmp_path / "set", "train")
    assert train.labels == ("Café 2", "street")
    assert train.pcm.shape == (16, 48_000)
    assert train.window_samples == 48_000
    assert train.counts() == {"Café 2": 8, "street": 8}
    assert load(tmp_path / "set", "test").counts() == {"Café 2": 1, "street": 1}
    assert load(tmp_path / "set", "validation").counts() == {"Café 2": 1, "street": 1}
    assert load_noises(tmp_path / "set", "train") == []
    # A quarter of a second in the middle of three.
    heard = np.flatnonzero(train.pcm[0])
    assert heard[0] >= 22_000 - 1
    assert heard[-1] < 26_000


def test_long_recordings_are_cut_and_stay_in_one_split(tmp_path: Path) -> None:
    ramp = np.arange(16_000 * 7, dtype=np.int16)
    for label in ("bus", "tram"):
        for number in range(10):
            (tmp_path / label).mkdir(exist_ok=True)
            soundfile.write(tmp_path / label / f"r{number}x.wav", ramp, 16_000, subtype="PCM_16")
    clips = load(tmp_path, "train", window_samples=48_000)
    assert len(clips) == 2 * 8 * 2  # 7 s: two whole windows, and one second that is left out
    assert len(load(tmp_path, "train", window_samples=80_000)) == 2 * 8 * 1
    row = next(row for row, path in enumerate(clips.path) if path.endswith("@48000"))
    assert np.array_equal(clips.pcm[row], ramp[48_000:96_000])
    assert clips.path[row - 1] == clips.path[row].replace("@48000", "@0")
    assert clips.speaker[row - 1] == clips.speaker[row]
    names = {split: set(load(tmp_path, split).speaker) for split in ("train", "validation", "test")}
    assert not names["train"] & names["test"]
    assert not names["train"] & names["validation"]
    assert not names["validation"] & names["test"]


@pytest.mark.parametrize(
    ("samples", "starts", "padded"),
    [(10, [], 1), (100, [0], 0), (149, [0], 0), (150, [0], 1), (199, [0], 1), (350, [0, 100, 200], 1)],
)
def test_what_is_cut_where(samples: int, starts: list[int], padded: int) -> None:
    pcm = np.arange(1, samples + 1, dtype=np.int16)
    pieces = cut(pcm, 100)
    assert all(piece.shape == (100,) for piece in pieces)
    assert [int(piece[0]) - 1 for piece in pieces[: len(starts)]] == starts
    assert len(pieces) == len(starts) + padded
    if padded:
        rest = samples - 100 * len(starts)
        assert np.count_nonzero(pieces[-1]) == rest
        assert pieces[-1][(100 - rest) // 2] == 100 * len(starts) + 1


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_050, 44_100, 96_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_rate_and_number_of_channels_is_read(tmp_path: Path, rate_hz: int, channels: int) -> None:
    found = decode_recording(tone(tmp_path / "a.wav", 2.0, rate_hz=rate_hz, channels=channels, hz=500.0))
    assert (found.rate_hz, found.channels) == (rate_hz, channels)
    assert abs(found.pcm.size - 32_000) <= 1
    middle = found.pcm[8_000:24_000].astype(np.float64) / 32768
    expected = 0.3 * np.sin(2 * np.pi * 500 * np.arange(8_000, 24_000) / 16_000)
    np.testing.assert_allclose(middle, expected, atol=2e-4)


def test_channels_are_mixed_to_their_mean_across_blocks(tmp_path: Path) -> None:
    left = np.random.default_rng(0).integers(-9000, 9000, 600_000).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", np.stack([left, np.zeros_like(left)], 1), 16_000, subtype="PCM_16")
    assert np.array_equal(decode_recording(tmp_path / "a.wav").pcm, np.rint(left / 2).astype(np.int16))


def test_parts_of_a_recording_are_known_by_their_names(tmp_path: Path) -> None:
    for label in ("bus", "tram"):
        for recording in range(12):
            for part in range(3):
                tone(tmp_path / label / f"{label}-{chr(97 + recording)}_chunk{part}.wav")
    found = splits_of(tmp_path)
    assert len(found) == 24
    assert all(len(splits) == 1 for splits in found.values())
    assert Counter(split for splits in found.values() for split in splits) == {"train": 16, "test": 4, "validation": 4}


def test_numbers_of_a_single_name_count_recordings(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        for number in range(20):
            tone(tmp_path / label / f"{label}_{number:03d}.wav")
    assert Counter(entry.split for entry in scan_any(tmp_path).entries) == {"train": 32, "test": 4, "validation": 4}


def test_slices_of_urbansound_belong_to_their_freesound_recording(tmp_path: Path) -> None:
    for recording in range(10):
        for part in range(2):
            tone(tmp_path / "siren" / f"fold1_{100 + recording}-8-0-{part}.flac")
            tone(tmp_path / "drilling" / f"fold1_{200 + recording}-4-{part}-0.flac")
    tone(tmp_path / "drilling" / "fold1_100-4-0-0.flac")  # heard in two classes
    found = splits_of(tmp_path)
    assert set(found) == {str(number) for number in (*range(100, 110), *range(200, 210))}
    assert all(len(splits) == 1 for splits in found.values())


def test_folds_are_kept_where_every_class_is_in_them(tmp_path: Path) -> None:
    for label in ("bus", "tram"):
        for fold in (1, 2, 10):
            for take in "abcdefghij":
                tone(tmp_path / label / f"fold{fold}_{take}.wav")
    layout = scan_any(tmp_path)
    assert layout.split_by == "fold 10 is the test, fold 2 the validation"
    assert {(e.path.split("/")[1].split("_")[0], e.split) for e in layout.entries} == {
        ("fold1", "train"),
        ("fold2", "validation"),
        ("fold10", "test"),
    }
    for path in tmp_path.rglob("fold2_*"):
        path.unlink()
    layout = scan_any(tmp_path)
    assert layout.split_by == "fold 10 is the test, the validation is by recording"
    assert Counter(entry.split for entry in layout.entries) == {"train": 18, "validation": 2, "test": 20}
    for path in tmp_path.glob("tram/fold10_*"):
        path.unlink()
    layout = scan_any(tmp_path)
    assert layout.split_by.endswith("not by fold: fold 10 holds no tram")
    assert {entry.label for entry in layout.entries if entry.split == "test"} == {"bus", "tram"}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """UrbanSound8K as it is published."""
    root = tmp_path / "UrbanSound8K"
    rows = []
    for fold in (1, 2, 3):
        for number, label in enumerate(("air_conditioner", "car_horn")):
            for take in range(4):
                name = f"{fold}{take}{number}-{number}-0-0.wav"
                tone(root / "audio" / f"fold{fold}" / name, 4.0 if take else 1.0, rate_hz=44_100, channels=2)
                rows.append({"slice_file_name": name, "fsID": 1, "fold": fold, "classID": number, "class": label})
    tone(root / "audio" / "fold1" / "stray.wav")
    (root / "metadata").mkdir()
    with (root / "metadata" / "UrbanSound8K.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return root


def test_urbansound_is_read_as_it_is_published(published: Path) -> None:
    clips = load(published, "test")
    assert clips.labels == ("air_conditioner", "car_horn")
    assert clips.counts() == {"air_conditioner": 4, "car_horn": 4}
    assert all(path.startswith("audio/fold3/") for path in clips.path)
    assert [item.path for item in clips.skipped] == ["audio/fold1/stray.wav"]
    (published / "metadata" / "UrbanSound8K.csv").write_text("slice_file_name,fold\n")
    with pytest.raises(DataError, match="the column 'class' is missing"):
        load(published, "test")


def test_lists_win(tmp_path: Path) -> None:
    for label in ("bus", "tram"):
        for take in "abcdef":
            for part in (1, 2):
                tone(tmp_path / label / f"{take}_{part}.wav")
    (tmp_path / "testing_list.txt").write_text("bus/a_1.wav\ntram/b_2.wav\n")
    (tmp_path / "validation_list.txt").write_text("bus/c_1.wav\ntram/c_1.wav\n")
    layout = scan_any(tmp_path)
    assert layout.kind == "classes"
    assert layout.split_by == "lists"
    assert {entry.path for entry in layout.entries if entry.split == "test"} == {
        *("bus/a_1.wav", "bus/a_2.wav", "tram/b_1.wav", "tram/b_2.wav")
    }
    assert layout.moved == 4


def test_words_are_told_from_classes(tmp_path: Path) -> None:
    tone(tmp_path / "words" / "yes" / "a_nohash_0.wav")
    tone(tmp_path / "listed" / "yes" / "a.wav")
    (tmp_path / "listed" / "testing_list.txt").write_text("")
    tone(tmp_path / "switch" / "on" / "a.wav")
    tone(tmp_path / "switch" / "off" / "a.wav")
    (tmp_path / "noise" / "_background_noise_").mkdir(parents=True)
    tone(tmp_path / "noise" / "bed" / "a.wav")
    found = {name: is_words(tmp_path / name) for name in ("words", "listed", "switch", "noise")}
    assert found == {"words": True, "listed": True, "switch": False, "noise": True}


def test_words_may_be_heard_in_another_window(tmp_path: Path) -> None:
    for name in ("yes/a_nohash_0.wav", "no/a_nohash_0.wav"):
        tone(tmp_path / name, 1.0)
    tone(tmp_path / "_background_noise_" / "n.wav", 40.0)
    (tmp_path / "validation_list.txt").write_text("")
    assert load(tmp_path, "train").pcm.shape == (3, 16_000)
    wide = load(tmp_path, "train", window_samples=48_000)
    assert wide.labels == LABELS
    assert wide.pcm.shape == (3, 48_000)
    assert all(noise.pcm.size >= 48_000 for noise in load_noises(tmp_path, "train", window_samples=48_000))
    assert load_noises(tmp_path, "test", window_samples=80_000) == []  # a tenth of 40 s is shorter than 5 s


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([40], (40, 0, 0)),
        ([20, 20], (20, 0, 20)),
        ([1, 39], (39, 0, 1)),
        ([1, 14, 25], (25, 1, 14)),  # a test of one clip would say nothing
        ([13, 13, 14], (14, 13, 13)),
        ([100, 1, 1, 1, 1, 1], (100, 1, 4)),
        ([1] * 5, (3, 1, 1)),
        ([1] * 200, (160, 20, 20)),
        ([3] * 50, (120, 15, 15)),
    ],
)
def test_a_tenth_of_every_class_as_far_as_recordings_allow(sizes: list[int], expected: tuple[int, ...]) -> None:
    sounds = [Sound("c", f"r{row}", None) for row, size in enumerate(sizes) for _ in range(size)]
    split_of = by_recording(sounds)
    found = Counter(split_of[sound.recording] for sound in sounds)
    assert (found["train"], found["validation"], found["test"]) == expected
    assert by_recording(sounds[::-1]) == split_of


def test_check_says_what_is_done_to_the_recordings(published: Path) -> None:
    found = check(published)
    assert found.kind == "classes"
    assert found.clips["train"] == {"air_conditioner": 4, "car_horn": 4}
    assert found.recordings == {"air_conditioner": 12, "car_horn": 12}
    assert found.other_rates == {44_100: 24}
    assert found.mixed_down == 24
    assert len(found.short) == 6
    assert found.cut == 0
    assert found.left_out_s == pytest.approx(18.0, abs=0.1)
    assert not found.absent
    # Windows of a second: four in four seconds.
    finer = check(published, window_samples=16_000)
    assert finer.clips["test"] == {"air_conditioner": 13, "car_horn": 13}
    assert finer.cut == 18


@pytest.fixture
def earshot(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process: exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["earshot", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        output = capsys.readouterr()
        return int(ended.value.code or 0), output.out, output.err

    return run


def test_the_commands_check_train_and_score(tmp_path: Path, earshot: Callable[..., tuple[int, str, str]]) -> None:
    data, run = tmp_path / "set", tmp_path / "run"
    for label, hz in (("low", 200.0), ("high", 3000.0)):
        for take in "abcdefghij":
            tone(data / label / f"{take}.wav", 1.0, hz=hz, rate_hz=22_050)
    for take in "abc":
        tone(data / "one" / f"same-{take}.wav")
    code, output, _ = earshot("data", "check", str(data), "--window", "0.5")
    assert code == 0
    assert "resampled to 16000 Hz: 20 from 22050 Hz" in output
    assert "clips of 0.5 s; 20 files give several" in output
    assert "high                  16           2           2          10" in output
    assert "split by recording hash within every class" in output
    recipe = tmp_path / "r.yaml"
    recipe.write_text("architecture: lms\nsteps: 40\nbatch: 8\nvalidate_every: 20\nwarmup_steps: 5\nbf16: false\n")
    common = ("--data", str(data), "--threads", "1")
    arguments = ("train", "lms", "--recipe", str(recipe), *common, "--out", str(run), "--window", "0.5", "--json")
    code, output, errors = earshot(*arguments, "--dry-run")
    assert code == 0, errors
    assert json.loads(output)["recipe"]["window_s"] == 0.5
    code, output, errors = earshot(*arguments)
    assert code == 0, errors
    code, output, errors = earshot("evaluate", str(run), *common, "--json")
    assert code == 0, errors
    found = json.loads(output)
    assert found["labels"] == ["high", "low", "one"]
    assert found["n"] == 5  # two halves of a second of each tone, and one clip of the third class
    assert found["top1"] >= 0.8
    code, _, errors = earshot(*arguments)
    assert code == 2
    assert "holds a run already" in errors
    assert "reading" not in errors


def test_a_wrong_folder_is_one_line(tmp_path: Path) -> None:
    tone(tmp_path / "one" / "bus" / "a.wav")
    tone(tmp_path / "loose.wav")
    (tmp_path / "broken" / "a").mkdir(parents=True)
    (tmp_path / "broken" / "b").mkdir()
    for name in ("a/x.wav", "b/x.wav"):
        (tmp_path / "broken" / name).write_text("no sound")
    (tmp_path / "none" / "a").mkdir(parents=True)
    for root, message in (
        (tmp_path / "one", "only one class, 'bus'"),
        (tmp_path / "none", "expected <class>/<any name>"),
        (tmp_path / "loose.wav", "no such folder"),
        (tmp_path / "absent", "no such folder"),
        (tmp_path / "broken", "2 files were skipped, the first: a/x.wav: not readable"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            load(root, "train")
        assert "\n" not in str(caught.value)


def test_what_cannot_be_used_is_skipped_and_counted(tmp_path: Path) -> None:
    for label in ("bus", "tram"):
        for take in "abcdefghij":
            tone(tmp_path / label / f"{take}.wav")
    tone(tmp_path / "bus" / "a.flac")
    soundfile.write(tmp_path / "bus" / "slow.wav", np.zeros(100), 2_000)
    soundfile.write(tmp_path / "bus" / "empty.wav", np.zeros(0), 16_000)
    soundfile.write(tmp_path / "bus" / "nan.wav", np.full(100, np.nan), 16_000, subtype="FLOAT")
    reasons = {item.path: item.reason for item in load(tmp_path, "all").skipped}
    assert set(reasons) == {"bus/a.wav", "bus/slow.wav", "bus/empty.wav", "bus/nan.wav"}
    assert "2000 Hz" in reasons["bus/slow.wav"]
    assert "no sample" in reasons["bus/empty.wav"]
    assert "no numbers" in reasons["bus/nan.wav"]
    assert len(load(tmp_path, "all")) == 20


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="no real recordings here")
def test_real_sounds_have_every_class_in_every_split() -> None:
    layout = scan_any(SHARED)
    assert len(layout.labels) == 10
    counts = Counter((entry.split, entry.label) for entry in layout.entries)
    assert all(counts[split, label] for split in ("train", "validation", "test") for label in layout.labels)
    assert all(len(splits) == 1 for splits in splits_of(SHARED).values())
