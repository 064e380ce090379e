from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from firmware_models.data import COMMANDS, load
from firmware_models.data.check import check

CLIPS = Path(__file__).resolve().parents[2] / "firmware_models/zoo/clips"


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)).astype(np.float32)
    clips = {
        "yes/a_nohash_0.wav": tone,
        "yes/b_nohash_0.wav": tone[:9000],
        "no/a_nohash_0.wav": tone / 1000,
        "no/b_nohash_0.wav": np.clip(tone * 10, -1, 1),
        "bed/c_nohash_0.wav": tone,
    }
    for name, sound in clips.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(str(root / name), sound, 16_000, subtype="PCM_16")
    (root / "bed/d_nohash_0.wav").write_text("not audio")
    (root / "testing_list.txt").write_text("yes/b_nohash_0.wav\n")
    return root


def test_every_kind_of_file_is_found(data_set: Path) -> None:
    found = check(data_set)
    assert found.short == ("yes/b_nohash_0.wav",)
    assert found.silent == ("no/a_nohash_0.wav",)
    assert found.clipped == ("no/b_nohash_0.wav",)
    assert [item.path for item in found.unreadable] == ["bed/d_nohash_0.wav"]
    assert found.moved == 1  # no/b follows b into the test
    assert found.speakers == {"train": 2, "validation": 0, "test": 1}
    assert found.clips["train"]["_unknown_"] == 1
    assert found.clips["test"] | {"yes": 1, "no": 1} == found.clips["test"]
    assert found.clips["test"]["_silence_"] == 0  # no background noise here


def test_the_command_prints_tables_and_json(data_set: Path) -> None:
    command = [sys.executable, "-m", "rig.cli.main", "data", "check", str(data_set)]
    text = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert text.returncode == 0, text.stderr
    assert "bed/d_nohash_0.wav" in text.stdout
    found = json.loads(subprocess.run([*command, "--json"], capture_output=True, timeout=60, check=True).stdout)
    assert found["clips"]["train"]["yes"] == 1
    wrong = subprocess.run([*command[:-1], "/nowhere"], capture_output=True, text=True, timeout=60, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1


def test_the_shipped_clips_are_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EARSHOT_CACHE", str(tmp_path))
    found = check(CLIPS)
    assert found.short == found.silent == found.clipped == found.unreadable == ()
    clips = load(CLIPS, "all")
    assert len(clips) >= 80
    assert len(set(clips.speaker)) >= 8
    assert {label for label, count in clips.counts().items() if count} == set(COMMANDS)
    assert sum(path.stat().st_size for path in CLIPS.rglob("*") if path.is_file()) < 3_000_000
