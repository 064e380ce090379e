from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from firmware_models.data import LABELS, load
from firmware_models.evaluation import evaluate
from firmware_models.scoring import torch_scorer
from firmware_models.training.checkpoint import load_checkpoint
from firmware_models.zoo import CLIPS, FOLDER

SHARED = Path(__file__).resolve().parents[2].parent / "shared/data/speech_commands"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EARSHOT_CACHE", str(tmp_path))
    torch.set_num_threads(1)


def test_the_record_belongs_to_the_checkpoint() -> None:
    record = json.loads((FOLDER / "lms.training.json").read_text())
    assert record["sha256"] == hashlib.sha256((FOLDER / "lms.safetensors").read_bytes()).hexdigest()
    _, info = load_checkpoint(FOLDER / "lms.safetensors")
    assert info.labels == LABELS
    assert info.settings["log_floor"] == record["test"]["log_floor"] == 1e-6
    assert info.metrics["validation_top1"] == pytest.approx(record["validation"]["top1"])


def test_the_shipped_model_understands_the_shipped_clips() -> None:
    model, _ = load_checkpoint(FOLDER / "lms.safetensors")
    assert evaluate(torch_scorer(model), load(CLIPS, "all")).top1 >= 0.9


def test_the_shipped_model_does_not_depend_on_the_way_features_are_computed() -> None:
    model, _ = load_checkpoint(FOLDER / "lms.safetensors")
    pcm = load(CLIPS, "all").float_pcm(slice(0, 20))
    by_fft = torch_scorer(model)(pcm)
    model.get_submodule("frontend").method = "convolution"  # type: ignore[assignment]
    np.testing.assert_allclose(by_fft, torch_scorer(model)(pcm), atol=1e-4)


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="no real recordings here")
def test_the_shipped_model_reaches_what_its_record_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EARSHOT_CACHE")
    model, _ = load_checkpoint(FOLDER / "lms.safetensors")
    found = evaluate(torch_scorer(model), load(SHARED, "test"))
    record = json.loads((FOLDER / "lms.training.json").read_text())["test"]
    assert (found.top1, found.balanced) == pytest.approx((record["top1"], record["balanced"]), abs=0.003)
    assert found.top1 >= 0.94
    assert found.balanced >= 0.95
