from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from edge.errors import DataError
from firmware_models.architectures import build
from firmware_models.data import COMMANDS, LABELS, Clips, load
from firmware_models.evaluation import Evaluation, check_labels, evaluate
from firmware_models.training.checkpoint import save_checkpoint
from rig.cli.main import main

CLIPS = Path(__file__).resolve().parents[2] / "firmware_models/zoo/clips"


def clips_of(labels: list[int]) -> Clips:
    """Clips whose first sample tells their label, in steps of 1/32768."""
    pcm = np.zeros((len(labels), 16_000), np.int16)
    pcm[:, 0] = labels
    names = tuple(map(str, range(len(labels))))
    return Clips(Path("memory"), "test", pcm, np.array(labels, np.int64), LABELS, names, names)


def oracle(pcm: np.ndarray) -> np.ndarray:
    return np.eye(len(LABELS), dtype=np.float32)[np.rint(pcm[:, 0] * 32768).astype(int)]


def always_yes(pcm: np.ndarray) -> np.ndarray:
    return np.tile(np.eye(len(LABELS), dtype=np.float32)[0], (len(pcm), 1))


def test_a_model_that_knows_everything() -> None:
    found = evaluate(oracle, clips_of([0, 1, 2, 11, 10, 0]), batch=4)
    assert (found.top1, found.balanced, found.n) == (1.0, 1.0, 6)


def test_rates_are_those_counted_by_hand() -> None:
    found = evaluate(always_yes, clips_of([0] * 6 + [1] * 3 + [2]), batch=4)
    assert found.top1 == pytest.approx(0.6)
    assert found.balanced == pytest.approx(1 / 3)  # labels without clips do not count
    assert found.recalls == {"yes": 1.0, "no": 0.0, "up": 0.0}
    assert found.confusion[1, 0] == 3
    content = found.to_json()
    assert {"top1", "balanced", "n", "per_label", "confusion"} <= content.keys()
    assert content["per_label"]["no"] == {"recall": 0.0, "n": 3}
    json.dumps(content)


def test_progress_reaches_the_end() -> None:
    seen: list[tuple[int, int]] = []
    evaluate(oracle, clips_of([0] * 10), batch=4, progress=lambda done, total, note="": seen.append((done, total)))
    assert seen == [(4, 10), (8, 10), (10, 10)]


def test_other_labels_and_no_clips_are_errors() -> None:
    with pytest.raises(DataError, match="3 scores"):
        evaluate(lambda pcm: np.zeros((len(pcm), 3), np.float32), clips_of([0]))
    with pytest.raises(DataError, match="no clips"):
        evaluate(oracle, clips_of([]))
    with pytest.raises(DataError, match="quiet loud"):
        check_labels(("quiet", "loud"), clips_of([0]))
    with pytest.raises(DataError):
        check_labels((*LABELS[1:], LABELS[0]), clips_of([0]))


@pytest.fixture
def earshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command in this process: exit code, standard output, standard error."""
    monkeypatch.setenv("EARSHOT_CACHE", str(tmp_path / "cache"))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["earshot", "evaluate", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        output = capsys.readouterr()
        return int(ended.value.code or 0), output.out, output.err

    return run


def test_the_command_scores_a_checkpoint(tmp_path: Path, earshot: Callable[..., tuple[int, str, str]]) -> None:
    torch.manual_seed(0)
    model = build("lms", labels=LABELS)
    save_checkpoint(tmp_path / "model.safetensors", model)
    plot = tmp_path / "plots" / "confusion.png"
    arguments = (str(tmp_path), "--data", str(CLIPS), "--split", "all", "--plot", str(plot))
    code, output, errors = earshot(*arguments, "--json")
    assert code == 0, errors
    found = json.loads(output)
    clips = load(CLIPS, "all")
    with torch.inference_mode():
        answers = model.eval()(torch.from_numpy(clips.float_pcm(slice(None)))).argmax(1).numpy()
    assert found["top1"] == pytest.approx(np.mean(answers == clips.label_index))
    assert found["n"] == len(clips)
    assert np.sum(found["confusion"]) == len(clips)
    assert set(found["per_label"]) == set(COMMANDS)
    assert plot.read_bytes().startswith(b"\x89PNG")
    _, text, _ = earshot(str(tmp_path), "--data", str(CLIPS), "--split", "all")
    assert "top-1" in text
    assert "log floor" in text


def test_wrong_input_of_the_command_is_one_line(tmp_path: Path, earshot: Callable[..., tuple[int, str, str]]) -> None:
    save_checkpoint(tmp_path / "two.safetensors", build("lms", labels=("quiet", "loud")))
    save_checkpoint(tmp_path / "good.safetensors", build("lms", labels=LABELS))
    good, data = str(tmp_path / "good.safetensors"), ("--data", str(CLIPS))
    for arguments, message in (
        ((str(tmp_path / "absent"), *data), "no such checkpoint"),
        ((str(tmp_path / "absent.earshot"), *data), "no such bundle"),
        ((str(tmp_path / "two.safetensors"), *data, "--split", "all"), "labels"),
        ((good, *data, "--split", "dev"), "dev"),
        ((good, "--data", str(tmp_path / "none")), "no such folder"),
        ((good, *data, "--split", "all", "--plot", "x.bmp"), "x.bmp"),
    ):
        code, _, errors = earshot(*arguments)
        assert code == 2, errors
        assert message in errors
        assert errors.count("\n") == 1


def test_evaluation_can_be_made_from_a_confusion_matrix() -> None:
    confusion = np.array([[8, 2], [0, 10]])
    assert Evaluation(("a", "b"), confusion).balanced == pytest.approx(0.9)
