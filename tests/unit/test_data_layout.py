from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edge.errors import DataError
from firmware_models.data import COMMANDS, LABELS, load, load_noises, read_clip
from firmware_models.data.layout import scan, split_by_hash

SHARED = Path(__file__).resolve().parents[2].parent / "shared/data/speech_commands"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EARSHOT_CACHE", str(tmp_path / "cache"))


def write(path: Path, samples: int = 16_000, *, value: float = 0.25, rate_hz: int = 16_000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(str(path), np.full(samples, value, np.float32), rate_hz, subtype="PCM_16")


def make_set(root: Path, *, suffix: str = ".flac", lists: bool = True) -> Path:
    """Three speakers per split; each says every command and one other word."""
    speakers = {"train": ("aa", "ab", "ac"), "validation": ("ba",), "test": ("ca",)}
    listed: dict[str, list[str]] = {"validation": [], "test": []}
    for split, names in speakers.items():
        for speaker in names:
            for word in (*COMMANDS, "bed"):
                write(root / word / f"{speaker}_nohash_0{suffix}")
                if split in listed:
                    listed[split].append(f"{word}/{speaker}_nohash_0.wav")
    if lists:
        (root / "validation_list.txt").write_text("\n".join(listed["validation"]) + "\n")
        (root / "testing_list.txt").write_text("\r\n".join(listed["test"]))
    rng = np.random.default_rng(0)
    (root / "_background_noise_").mkdir(exist_ok=True)
    for name in ("tap", "bike"):
        noise = rng.integers(-3000, 3000, 30 * 16_000).astype(np.int16)
        soundfile.write(str(root / "_background_noise_" / f"{name}.wav"), noise, 16_000)
    (root / "README.md").write_text("no clip")
    return root


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_splits_follow_the_lists_whatever_suffix_they_name(tmp_path: Path, suffix: str) -> None:
    root = make_set(tmp_path / "set", suffix=suffix)
    speakers = {
        split: set(load(root, split).speaker) - {"_background_noise_"} for split in ("train", "validation", "test")
    }
    assert speakers == {"train": {"aa", "ab", "ac"}, "validation": {"ba"}, "test": {"ca"}}


def test_labels_counts_and_order(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set")
    train = load(root, "train")
    assert train.labels == LABELS == (*COMMANDS, "_unknown_", "_silence_")
    # 30 clips of commands: a tenth as many of silence.
    assert train.counts() == dict.fromkeys(COMMANDS, 3) | {"_unknown_": 3, "_silence_": 3}
    assert train.speaker_count() == 3
    assert train.pcm.dtype == np.int16
    everything = load(root, "all")
    assert len(everything) == sum(len(load(root, split)) for split in ("train", "validation", "test"))
    row = everything.path.index("bed/ca_nohash_0.flac")
    assert everything.labels[everything.label_index[row]] == "_unknown_"
    np.testing.assert_allclose(everything.float_pcm(slice(row, row + 1)), 0.25, atol=1e-4)


def test_a_speaker_is_never_in_two_splits(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set")
    write(root / "yes" / "ca_nohash_1.flac")  # not in a list, but its speaker is
    write(root / "no" / "zz_nohash_0.flac")
    write(root / "yes" / "zz_nohash_0.flac")
    for name, word in (("validation_list.txt", "no"), ("testing_list.txt", "yes")):
        with (root / name).open("a") as file:
            file.write(f"\n{word}/zz_nohash_0.wav\n")
    layout = scan(root)
    splits: dict[str, set[str]] = {}
    for entry in layout.entries:
        splits.setdefault(entry.speaker, set()).add(entry.split)
    assert splits["ca"] == {"test"}
    assert splits["zz"] == {"test"}
    assert all(len(found) == 1 for found in splits.values())
    assert layout.both_lists == ("zz",)
    assert layout.moved == 2


def test_without_lists_the_split_is_a_hash_of_the_speaker(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set", lists=False)
    layout = scan(root)
    assert not layout.has_lists
    assert {(e.speaker, e.split) for e in layout.entries} == {
        (speaker, split_by_hash(speaker)) for speaker in ("aa", "ab", "ac", "ba", "ca")
    }
    shares = [split_by_hash(f"{number:08x}") for number in range(5000)]
    assert shares.count("test") / 5000 == pytest.approx(0.1, abs=0.02)
    assert shares.count("validation") / 5000 == pytest.approx(0.1, abs=0.02)


def test_silence_shares_no_noise_between_splits(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set")
    heard: dict[str, set[tuple[str, int]]] = {}
    for split in ("train", "validation", "test"):
        clips = load(root, split)
        heard[split] = set()
        for path in clips.path:
            if "@" in path:
                name, rest = path.split("@")
                start = int(rest.split("*")[0])
                heard[split].update((name, sample) for sample in range(start, start + 16_000, 100))
                heard[split].add((name, start + 15_999))
        for noise in load_noises(root, split):
            stop = noise.start_sample + noise.pcm.size
            assert all(noise.start_sample <= sample < stop for name, sample in heard[split] if name == noise.path)
    assert heard["train"]
    assert not heard["train"] & heard["test"]
    assert not heard["train"] & heard["validation"]
    ranges = {
        split: [(n.path, n.start_sample, n.start_sample + n.pcm.size) for n in load_noises(root, split)]
        for split in heard
    }
    for (_, _, stop), (_, start, _) in zip(ranges["train"], ranges["validation"], strict=True):
        assert stop <= start


def test_short_clips_are_padded_and_long_ones_cut_in_the_middle(tmp_path: Path) -> None:
    write(tmp_path / "short.wav", 8000, value=0.5)
    short = read_clip(tmp_path / "short.wav")
    assert short.shape == (16_000,)
    assert short.dtype == np.float32
    assert np.count_nonzero(short) == 8000
    assert short[3999] == 0
    assert short[4000] == pytest.approx(0.5)
    ramp = (np.arange(20_000) / 32768).astype(np.float32)
    soundfile.write(str(tmp_path / "long.wav"), ramp, 16_000, subtype="PCM_16")
    np.testing.assert_array_equal(read_clip(tmp_path / "long.wav"), ramp[2000:18_000])


def test_bad_clips_are_one_line(tmp_path: Path) -> None:
    write(tmp_path / "slow.wav", 8000, rate_hz=8000)
    soundfile.write(str(tmp_path / "stereo.wav"), np.zeros((100, 2)), 16_000)
    (tmp_path / "text.wav").write_text("RIFF but not really")
    write(tmp_path / "empty.wav", 0)
    for name, message in (
        ("slow.wav", "8000 Hz"),
        ("stereo.wav", "2 channels"),
        ("text.wav", "not readable"),
        ("empty.wav", "no sample"),
        ("absent.wav", "no such file"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            read_clip(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE", "PCM_24", "PCM_32", "PCM_U8"])
def test_every_sample_format_has_the_same_loudness(tmp_path: Path, subtype: str) -> None:
    soundfile.write(str(tmp_path / "a.wav"), np.full(16_000, 0.25), 16_000, subtype=subtype)
    assert np.allclose(read_clip(tmp_path / "a.wav"), 0.25, atol=0.005)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_one_line(tmp_path: Path, value: float) -> None:
    soundfile.write(str(tmp_path / "a.wav"), np.full(16_000, value), 16_000, subtype="FLOAT")
    with pytest.raises(DataError, match="no numbers"):
        read_clip(tmp_path / "a.wav")


def test_a_name_that_is_not_utf8_is_skipped(tmp_path: Path) -> None:
    make_set(tmp_path)
    (Path(os.fsdecode(os.fsencode(tmp_path / "yes") + b"/\xff_nohash_0.wav"))).write_bytes(b"")
    assert [item.reason for item in load(tmp_path, "test").skipped] == ["its name is not UTF-8: rename it"]


def test_a_list_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    write(tmp_path / "yes" / "aa_nohash_0.wav")
    (tmp_path / "testing_list.txt").write_text("yes/aa_nohash_0.wav\n", encoding="utf-8-sig")
    assert [entry.split for entry in scan(tmp_path).entries] == ["test"]


def test_broken_files_are_skipped_and_counted(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set")
    (root / "yes" / "aa_nohash_0.flac").write_bytes(b"fLaC" + b"\0" * 50)
    write(root / "no" / "aa_nohash_7.flac", 8000, rate_hz=8000)
    write(root / "go" / "aa_nohash_0.wav")  # beside the .flac of the same name
    (root / "_background_noise_" / "broken.wav").write_text("x")
    clips = load(root, "train")
    assert clips.counts()["yes"] == 2
    assert clips.counts()["no"] == 3
    assert clips.counts()["go"] == 3
    reasons = {item.path: item.reason for item in clips.skipped}
    assert set(reasons) == {
        *("yes/aa_nohash_0.flac", "no/aa_nohash_7.flac", "go/aa_nohash_0.wav", "_background_noise_/broken.wav")
    }
    assert "8000 Hz" in reasons["no/aa_nohash_7.flac"]
    assert not any("\n" in reason for reason in reasons.values())


@pytest.mark.parametrize("content", ["absent", "empty", "file", "loose clips"])
def test_a_wrong_folder_is_one_clear_error(tmp_path: Path, content: str) -> None:
    root = tmp_path / "set"
    if content == "empty":
        root.mkdir()
    elif content == "file":
        root.write_text("x")
    elif content == "loose clips":
        write(root / "yes.wav")
    with pytest.raises(DataError, match="earshot data fetch") as caught:
        load(root, "train")
    assert "\n" not in str(caught.value)


def test_an_empty_split_and_an_unknown_one_are_errors(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set")
    (root / "testing_list.txt").write_text("")
    with pytest.raises(DataError, match="no clip in the split 'test'"):
        load(root, "test")
    with pytest.raises(DataError, match="train, validation, test, all"):
        load(root, "dev")


def test_the_cache_is_used_and_notices_changes(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set")
    reports: list[int] = []
    load(root, "train", progress=lambda done, total, note="": reports.append(done))
    assert reports[-1] == 55
    reports.clear()
    again = load(root, "test", progress=lambda done, total, note="": reports.append(done))
    assert reports == []
    assert isinstance(again.pcm, np.memmap)
    write(root / "yes" / "aa_nohash_0.flac", value=-0.5)
    row = load(root, "train").path.index("yes/aa_nohash_0.flac")
    assert load(root, "train").float_pcm(slice(row, row + 1)).max() == pytest.approx(-0.5)


def test_two_processes_may_decode_at_once(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set")
    code = (
        "import sys, hashlib; from pathlib import Path; from firmware_models.data import load;"
        "print(hashlib.sha256(load(Path(sys.argv[1]), 'all').pcm.tobytes()).hexdigest())"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in started]
    assert len(set(outputs)) == 1
    assert outputs[0].strip()
    assert [p.name[:6] for p in (tmp_path / "cache").iterdir()] == ["clips-"]


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_set(tmp_path / "set")
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("EARSHOT_CACHE", str(tmp_path / "taken"))
    with pytest.raises(DataError, match="EARSHOT_CACHE"):
        load(root, "train")


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="no real recordings here")
def test_real_recordings_are_split_by_speaker() -> None:
    layout = scan(SHARED)
    assert len(layout.entries) > 9000
    assert layout.moved == 0
    assert layout.both_lists == ()
