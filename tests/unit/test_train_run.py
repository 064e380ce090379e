from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edge.errors import UsageError
from firmware_models.architectures import build
from firmware_models.data import LABELS, load
from firmware_models.scoring import torch_scorer
from firmware_models.training.checkpoint import CheckpointInfo, load_checkpoint, save_checkpoint
from firmware_models.training.loop import train
from firmware_models.training.recipe import Augmentation, Recipe
from firmware_models.training.run import Material, Run
from rig.cli.main import main

CLIPS = Path(__file__).resolve().parents[2] / "firmware_models/zoo/clips"
TINY = {"architecture": "lms", "batch": 8, "warmup_steps": 2, "validate_every": 4, "ema_decay": 0.9}


class KilledError(Exception):
    pass


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EARSHOT_CACHE", str(tmp_path_factory.mktemp("cache")))
        clips = load(CLIPS, "all")
    return Material(train=clips, validation=clips, noises=())


def tiny(**changes: object) -> Recipe:
    return Recipe.model_validate(TINY | {"steps": 12} | changes)


def test_training_learns_the_words_it_is_shown(material: Material, tmp_path: Path) -> None:
    calm = Augmentation(speed_probability=0, noise_probability=0, shift_ms=20, time_masks=0, band_masks=0)
    recipe = tiny(steps=50, batch=20, validate_every=50, augmentation=calm)
    metrics = train(recipe, material, tmp_path / "run")
    assert metrics["validation"]["top1"] > 0.5  # a tenth of the clips is the chance level
    assert metrics["finished"]
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        *("config.json", "metrics.json", "model.safetensors", "state.safetensors")
    }
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["recipe"]["seed"] == 1
    assert config["data"]["train"]["clips"] == 100
    model, info = load_checkpoint(tmp_path / "run")
    assert info.labels == LABELS
    assert info.metrics["validation_top1"] == metrics["validation"]["top1"]
    scores = torch_scorer(model)(material.train.float_pcm(slice(0, 100)))
    assert np.mean(scores.argmax(1) == material.train.label_index) == pytest.approx(metrics["validation"]["top1"])


@pytest.mark.parametrize("changes", [{}, {"mixup": 0.3, "bf16": False}], ids=["plain", "mixup, float32"])
def test_an_interrupted_run_ends_with_the_same_weights(
    material: Material, tmp_path: Path, changes: dict[str, object]
) -> None:
    recipe = tiny(**changes)
    train(recipe, material, tmp_path / "whole")

    def kill(done: int, total: int, note: str = "") -> None:
        if done == 10:
            raise KilledError

    with pytest.raises(KilledError):
        train(recipe, material, tmp_path / "cut", progress=kill)
    steps: list[int] = []
    train(recipe, material, tmp_path / "cut", resume=True, progress=lambda done, total, note="": steps.append(done))
    assert steps == [9, 10, 11, 12]
    whole, cut = (load_file(tmp_path / name / "state.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, cut[name]), name
    histories = [json.loads((tmp_path / name / "metrics.json").read_text())["history"] for name in ("whole", "cut")]
    assert histories[0] == histories[1]


@pytest.mark.parametrize("killed_while", ["teacher", "student"])
def test_a_teacher_is_trained_first_and_taught_from(material: Material, tmp_path: Path, killed_while: str) -> None:
    (tmp_path / "teacher.yaml").write_text(
        "architecture: residual\nsettings: {channels: 8}\nsteps: 8\nbatch: 4\nvalidate_every: 4\nwarmup_steps: 1\n"
    )
    recipe = tiny(steps=8, distillation={"recipe": str(tmp_path / "teacher.yaml"), "weight": 0.9})
    train(recipe, material, tmp_path / "whole")

    def kill(done: int, total: int, note: str = "") -> None:
        if done % 8 == 6 and note.startswith("teacher") == (killed_while == "teacher"):
            raise KilledError

    with pytest.raises(KilledError):
        train(recipe, material, tmp_path / "cut", progress=kill)
    train(recipe, material, tmp_path / "cut", resume=True)
    alone = tiny(steps=8)
    train(alone, material, tmp_path / "alone")
    whole, cut, taught_by_nobody = (
        load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut", "alone")
    )
    assert all(torch.equal(tensor, cut[name]) for name, tensor in whole.items())
    assert not torch.equal(whole["fc.weight"], taught_by_nobody["fc.weight"])
    assert load_checkpoint(tmp_path / "whole/teacher")[1].architecture == "residual"
    assert "teacher_minutes" in load_checkpoint(tmp_path / "whole")[1].training


def test_answers_like_the_teachers_cost_nothing(material: Material) -> None:
    recipe = tiny(distillation={"recipe": "residual", "weight": 1.0, "temperature": 3.0}, bf16=False)
    torch.manual_seed(0)
    teacher = build("lms", labels=LABELS).eval()
    info = CheckpointInfo("lms", LABELS, 16_000, 16_000, {})
    run = Run(recipe, material, "cpu", (teacher, info))
    sound = torch.from_numpy(material.train.float_pcm(slice(0, 4)))
    answers = teacher(sound)
    target = torch.eye(len(LABELS))[:4]
    # A constant added to all scores changes no probability.
    assert run.loss_of(answers + 2.0, target, sound).item() == pytest.approx(0, abs=1e-5)
    assert run.loss_of(-answers, target, sound).item() > 0.01


def test_resuming_a_finished_run_changes_nothing(material: Material, tmp_path: Path) -> None:
    train(tiny(steps=4), material, tmp_path / "run")
    before = (tmp_path / "run/model.safetensors").read_bytes()
    assert train(tiny(steps=4), material, tmp_path / "run", resume=True)["finished"]
    assert (tmp_path / "run/model.safetensors").read_bytes() == before


def test_a_folder_in_use_is_not_touched(material: Material, tmp_path: Path) -> None:
    train(tiny(steps=4), material, tmp_path / "run")
    with pytest.raises(UsageError, match="--resume"):
        train(tiny(steps=4), material, tmp_path / "run")
    with pytest.raises(UsageError, match="another recipe"):
        train(tiny(steps=8), material, tmp_path / "run", resume=True)
    with pytest.raises(UsageError, match="no run to resume"):
        train(tiny(), material, tmp_path / "new", resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").touch()
    with pytest.raises(UsageError, match="other files"):
        train(tiny(), material, tmp_path / "mine")


def test_training_leaves_the_callers_random_numbers_alone(material: Material, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(tiny(steps=2), material, tmp_path / "run")
    load_checkpoint(tmp_path / "run")
    assert torch.equal(torch.rand(3), expected)


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    model = build("lms", labels=LABELS, log_floor=1e-7)
    save_checkpoint(tmp_path / "a.safetensors", model, metrics={"x": 0.5}, training={"seed": 1})
    found, info = load_checkpoint(tmp_path / "a.safetensors")
    assert not found.training
    assert (info.architecture, info.metrics, info.settings["log_floor"]) == ("lms", {"x": 0.5}, 1e-7)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, found.state_dict()[name])


def test_what_is_no_checkpoint_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("hello")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    good = tmp_path / "good.safetensors"
    save_checkpoint(good, build("lms", labels=LABELS))
    (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:-100])
    other = build("lms", labels=LABELS)
    short = {name: t for name, t in other.state_dict().items() if not name.startswith("fc")}
    save_checkpoint(tmp_path / "short.safetensors", other, weights=short)
    for name, message in (
        ("absent", "no such checkpoint"),
        ("text.safetensors", "not a readable"),
        ("foreign.safetensors", "not a model"),
        ("cut.safetensors", "not a readable"),
        ("short.safetensors", "do not fit"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            load_checkpoint(tmp_path / name)
        assert "\n" not in str(caught.value)


def earshot(*arguments: str, cache: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"EARSHOT_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "rig.cli.main", "train", *arguments, "--threads", "1"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_the_command_resumes_after_a_kill(tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(
        "architecture: lms\nsteps: 40\nbatch: 8\nvalidate_every: 4\nsettings: {log_floor: 1.0e-6}\nwarmup_steps: 2\n"
    )
    common = ("lms", "--data", str(CLIPS), "--recipe", str(recipe), "--json")
    whole = earshot(*common, "--out", str(tmp_path / "whole"), cache=tmp_path / "cache")
    output, errors = whole.communicate(timeout=120)
    assert whole.returncode == 0, errors
    assert json.loads(output)["finished"]
    cut = earshot(*common, "--out", str(tmp_path / "cut"), cache=tmp_path / "cache")
    deadline = time.monotonic() + 60
    while not (tmp_path / "cut/state.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    cut.send_signal(signal.SIGKILL)
    cut.communicate()
    assert not json.loads((tmp_path / "cut/metrics.json").read_text())["finished"]
    again = earshot(*common, "--out", str(tmp_path / "cut"), "--resume", cache=tmp_path / "cache")
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_wrong_input_of_the_command_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EARSHOT_CACHE", str(tmp_path / "cache"))
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("architecture: lms\nsteps: 4\nspeed: 3\n")
    out = ("--out", str(tmp_path / "run"))
    for arguments, message in (
        (("lms", "--data", str(tmp_path / "none"), *out), "no such folder"),
        (("lms", "--data", str(CLIPS), "--recipe", str(wrong), *out), "speed"),
        (("lm9", "--data", str(CLIPS), *out), "lm9"),
        (("lms", "--data", str(CLIPS), "--device", "tpu", *out), "tpu"),
    ):
        monkeypatch.setattr(sys, "argv", ["earshot", "train", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        errors = capsys.readouterr().err
        assert ended.value.code == 2
        assert message in errors
        assert errors.count("\n") == 1
    assert not (tmp_path / "run").exists()
