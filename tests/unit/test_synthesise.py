from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from edge.errors import UnavailableError, UsageError
from firmware_models.data import COMMANDS, read_clip
from firmware_models.zoo import synthesise

CLIPS = Path(__file__).resolve().parents[2] / "firmware_models/zoo/clips"
needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


def test_the_shipped_clips_are_the_takes_of_the_script() -> None:
    expected = {take.path for take in synthesise.takes("clips")}
    assert {p.relative_to(CLIPS).as_posix() for p in CLIPS.rglob("*.flac")} == expected


def test_no_voice_is_in_both_sets() -> None:
    shipped = {take.variant for take in synthesise.takes("clips")}
    training = list(synthesise.takes("training"))
    assert not shipped & {take.variant for take in training}
    assert len({take.path for take in training}) == len(training)
    assert training == list(synthesise.takes("training"))


@needs_espeak
def test_a_word_is_spoken_in_the_middle_of_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesise, "CLIP_VOICES", (("en-us", "m3"),))
    assert synthesise.synthesise(tmp_path / "out", "clips") == len(COMMANDS)
    for word in COMMANDS:
        pcm = read_clip(tmp_path / "out" / word / "en-us-m3_nohash_0.flac")
        assert np.abs(pcm).max() == pytest.approx(0.5, abs=0.01)
        loud = np.flatnonzero(np.abs(pcm) > 0.02)
        assert 3000 < loud[0] + loud[-1] - 16_000 + 6000 < 9000  # its middle lies near the clip's


def test_without_espeak_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match="apt-get install espeak-ng"):
        synthesise.synthesise(tmp_path / "out", "clips")


@needs_espeak
def test_a_folder_with_content_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(UsageError, match="not empty"):
        synthesise.synthesise(tmp_path, "clips")
