from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from edge.errors import UsageError
from firmware_models.architectures import ARCHITECTURES, build, register_file
from firmware_models.training.checkpoint import load_checkpoint, save_checkpoint
from rig.cli.main import main

# What the documents show: everything that a file of one's own needs.
EXAMPLE = '''
"""Two convolutions on the log-mel front end, and the mean."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from firmware_models.architectures import FirmwareModel
from firmware_models.frontend import LogMel, LogMelSettings


class TinySettings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    log_floor: float = Field(default=1e-6, gt=0, lt=1)
    channels: int = Field(default=16, ge=1, le=256)


class Tiny(FirmwareModel):
    name = "tiny"
    Settings = TinySettings

    def __init__(self, settings: TinySettings, *, labels: Sequence[str], window_samples: int, rate_hz: int) -> None:
        super().__init__(settings, labels=labels, window_samples=window_samples, rate_hz=rate_hz)
        self.frontend = LogMel(LogMelSettings(log_floor=settings.log_floor), rate_hz=rate_hz)
        self.conv1 = nn.Conv2d(1, settings.channels, kernel_size=5, stride=4, bias=False)
        self.bn1 = nn.BatchNorm2d(settings.channels)
        self.conv2 = nn.Conv2d(settings.channels, settings.channels, kernel_size=3, stride=2, bias=False)
        self.bn2 = nn.BatchNorm2d(settings.channels)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(settings.channels, len(labels))

    def features(self, pcm: Tensor) -> Tensor:
        return self.frontend(pcm)

    def classify(self, features: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(features.unsqueeze(1))))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))
'''
RECIPE = "architecture: tiny\nsettings: {channels: 4}\nsteps: 2\nbatch: 4\nvalidate_every: 2\nwindow_s: 0.5\n"
LABELS = ("low", "high")


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """A file that one test registers is unknown to the next."""
    before = dict(ARCHITECTURES)
    yield
    ARCHITECTURES.clear()
    ARCHITECTURES.update(before)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.py"
    path.write_text(EXAMPLE)
    return path


def test_a_registered_architecture_is_built_by_its_name(file: Path) -> None:
    assert register_file(file) == ["tiny"]
    model = build("tiny", labels=LABELS, window_samples=8_000, channels=8)
    assert model.training
    assert model.eval()(torch.zeros(3, 8_000)).shape == (3, 2)
    with pytest.raises(UsageError, match="tiny: channels"):
        build("tiny", labels=LABELS, channels=0)
    with pytest.raises(UsageError, match="tiny: chanels"):
        build("tiny", labels=LABELS, chanels=3)


def test_it_exports(file: Path) -> None:
    from export.graphs.from_torch import to_onnx

    register_file(file)
    graph = to_onnx(build("tiny", labels=LABELS))
    assert {"Conv", "Relu"} <= {node.op_type for node in graph.graph.node}


def test_a_file_may_be_changed_and_registered_again(file: Path) -> None:
    register_file(file)
    file.write_text(EXAMPLE.replace("default=16", "default=24"))
    assert register_file(file) == ["tiny"]
    assert build("tiny", labels=LABELS).settings.model_dump()["channels"] == 24


def test_building_draws_no_more_than_the_model_does(file: Path) -> None:
    register_file(file)
    weights = []
    for _ in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            weights.append((build("tiny", labels=LABELS).state_dict(), torch.rand(1)))
    assert all(torch.equal(weights[0][0][name], weights[1][0][name]) for name in weights[0][0])
    # Trying the model on silence moves no statistic.
    assert int(weights[0][0]["bn1.num_batches_tracked"]) == 0
    assert torch.equal(weights[0][0]["bn1.running_mean"], torch.zeros(16))


def test_a_checkpoint_tells_which_option_it_needs(file: Path, tmp_path: Path) -> None:
    register_file(file)
    save_checkpoint(tmp_path / "model.safetensors", build("tiny", labels=LABELS))
    assert load_checkpoint(tmp_path)[1].architecture == "tiny"
    del ARCHITECTURES["tiny"]
    with pytest.raises(UsageError, match=r"model.safetensors: architecture 'tiny': .*--architecture FILE.py"):
        load_checkpoint(tmp_path)


CLASS = EXAMPLE.index("class Tiny(")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class Broken(:\n", "line 1: invalid syntax"),
        ("x = 1\n\nprint(undefined)\n", "line 3: NameError: name 'undefined'"),
        ("import sys\nsys.exit(3)\n", "line 2: SystemExit: 3"),
        ("import no_such_library\n", "line 1: ModuleNotFoundError"),
        ("x = 1\n", "defines no architecture"),
        ("from firmware_models.architectures.lms import Lms\n", "defines no architecture"),
        ("\0", "null byte|source code"),
        (EXAMPLE.replace('name = "tiny"', 'name = "lms"'), "'lms' is shipped already"),
        (EXAMPLE.replace('name = "tiny"', 'name = "My Net"'), "needs a name of its own.*got 'My Net'"),
        (EXAMPLE.replace('    name = "tiny"\n', ""), "needs a name of its own"),
        (EXAMPLE.replace("    Settings = TinySettings\n", ""), "needs Settings"),
        (EXAMPLE.replace(', extra="forbid"', ""), "must refuse unknown keys"),
        (EXAMPLE.replace("def classify", "def classifies"), "needs the method classify"),
        (EXAMPLE + EXAMPLE[CLASS:].replace("class Tiny(", "class Other("), "'tiny' twice"),
    ],
)
def test_an_unusable_file_is_one_line(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        register_file(file)
    assert "\n" not in str(caught.value)
    assert "tiny" not in ARCHITECTURES


def test_a_name_belongs_to_one_file(file: Path, tmp_path: Path) -> None:
    register_file(file)
    other = tmp_path / "other.py"
    other.write_text(EXAMPLE)
    with pytest.raises(UsageError, match=r"'tiny' is defined by .*tiny.py already"):
        register_file(other)
    for absent in (tmp_path / "none.py", tmp_path, tmp_path / "recipe.yaml"):
        with pytest.raises(UsageError, match="no such Python file"):
            register_file(absent)


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        ("nn.Linear(settings.channels", "nn.Linear(settings.width", "cannot be built: AttributeError"),
        ("self.fc(x.mean((2, 3)))", "self.fc(x)", r"fails on PCM of shape \(2, 16000\): RuntimeError"),
        ("self.fc(x.mean((2, 3)))", "x.mean((2, 3))", r"gives \(2, 16\) .* instead of logits \(2, 2\)"),
        ("self.fc(x.mean((2, 3)))", "None", "gives NoneType"),
        ("self.fc(x.mean((2, 3)))", "self.fc(x.mean((2, 3))).double()", "float64"),
        ("labels=labels, window", "labels=('a',), window", "unchanged"),
    ],
)
def test_an_unusable_model_is_one_line(file: Path, was: str, now: str, message: str) -> None:
    file.write_text(EXAMPLE.replace(was, now))
    register_file(file)
    with pytest.raises(UsageError, match=message) as caught:
        build("tiny", labels=LABELS)
    assert "\n" not in str(caught.value)


@pytest.fixture
def earshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process: exit code, standard output, standard error."""
    monkeypatch.setenv("EARSHOT_CACHE", str(tmp_path / "cache"))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["earshot", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        output = capsys.readouterr()
        return int(ended.value.code or 0), output.out, output.err

    return run


def test_the_commands_train_and_score_it(
    file: Path, tmp_path: Path, earshot: Callable[..., tuple[int, str, str]]
) -> None:
    data, run, recipe = tmp_path / "data", tmp_path / "run", tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE)
    for label, frequency_hz in (("low", 200), ("high", 3000)):
        (data / label).mkdir(parents=True)
        for take in range(10):
            tone = np.sin(2 * np.pi * frequency_hz * np.arange(8_000) / 16_000 + take) * 0.3
            soundfile.write(data / label / f"take{take}x.wav", tone, 16_000)
    common = ("--data", str(data), "--threads", "1")
    arguments = ("train", "tiny", "--recipe", str(recipe), *common, "--out", str(run))
    code, _, errors = earshot(*arguments)
    assert code == 2
    assert "--architecture FILE.py" in errors
    code, _, errors = earshot("train", "tiny", "--architecture", str(file), *common, "--out", str(run))
    assert code == 2
    assert "--recipe" in errors
    code, output, errors = earshot(*arguments, "--architecture", str(file), "--json")
    assert code == 0, errors
    assert json.loads(output)["parameters"] == 4 * 25 + 8 + 4 * 4 * 9 + 8 + 4 * 2 + 2
    del ARCHITECTURES["tiny"]
    code, _, errors = earshot("evaluate", str(run), *common)
    assert code == 2
    assert "--architecture FILE.py" in errors
    code, output, errors = earshot("evaluate", str(run), *common, "--architecture", str(file), "--json")
    assert code == 0, errors
    assert json.loads(output)["labels"] == ["high", "low"]
