"""The command parity: gates, what is compared, what is said where something is missing."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from edge.bundle.manifest import Quantisation
from edge.bundle.reading import describe_untrusted
from export.measurement import userland
from export.measurement.parity_report import Comparison, Gate, gate_of
from firmware_models import zoo


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def earshot(monkeypatch, capsys) -> Callable[..., Result]:
    """Runs the command in this process."""

    def run(*arguments: object) -> Result:
        from rig.cli.main import main

        monkeypatch.setattr(sys, "argv", ["earshot", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Result(int(ended.value.code or 0), *capsys.readouterr())

    return run


def refusal(result: Result, code: int = 2) -> str:
    assert result.returncode == code, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0].removeprefix("earshot: ")


@pytest.fixture
def no_emulator(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture(scope="module")
def other_run(random_lms, tmp_path_factory) -> Path:
    """A run of the same architecture with other weights."""
    from firmware_models.training.checkpoint import save_checkpoint

    run = tmp_path_factory.mktemp("other")
    save_checkpoint(run / "model.safetensors", random_lms)
    return run


DATA = ("--data", zoo.CLIPS, "--split", "all")
CHECKPOINT = zoo.FOLDER / "lms.safetensors"


@pytest.mark.parametrize(
    ("settings", "torch", "twin", "aarch64"),
    [
        ({"bits": 32}, Gate(max_abs=1e-4), Gate(max_abs=1e-4), Gate(max_abs=1e-4)),
        ({"bits": 8, "activation_bits": 8}, None, Gate(labels_equal=0.999), Gate(bit_identical=True)),
        ({"bits": 8, "profile": "portable"}, None, Gate(labels_equal=0.999), Gate(max_abs=0.1)),
        ({"bits": 16, "activation_bits": 16, "profile": "storage"}, None, Gate(labels_equal=0.999), Gate(max_abs=0.1)),
        ({"bits": 16, "activation_bits": 4, "profile": "storage"}, None, Gate(labels_equal=0.995), Gate(max_abs=0.1)),
        ({"bits": 4, "activation_bits": 32, "profile": "storage"}, None, Gate(labels_equal=0.995), Gate(max_abs=0.1)),
    ],
)
def test_gates(settings, torch, twin, aarch64):
    manifest = describe_untrusted(zoo.bundle("lms-int8")).manifest
    manifest = manifest.model_copy(update={"quantisation": Quantisation(**settings)})
    assert manifest.golden_tolerance.max_abs == 0.1
    assert [gate_of(manifest, way) for way in ("torch", "twin", "onnxruntime-aarch64")] == [torch, twin, aarch64]


def test_verdicts():
    def verdict(gate: Gate | None, *, max_abs: float = 0.0, labels: int = 1000, bits: bool = False) -> bool | None:
        return Comparison("twin", 1000, max_abs, labels, bits, None, gate).passed

    assert verdict(None) is None
    assert verdict(Gate(labels_equal=0.999), labels=999) is True
    assert verdict(Gate(labels_equal=0.999), labels=998) is False
    assert verdict(Gate(max_abs=1e-4), max_abs=1e-4) is True
    assert verdict(Gate(max_abs=1e-4), max_abs=float("inf")) is False
    assert verdict(Gate(bit_identical=True), bits=True) is True
    assert verdict(Gate(bit_identical=True), max_abs=0.0) is False


def test_released_bundles_without_aarch64(earshot):
    bundles = [zoo.bundle(name) for name in ("lms-fp32", "lms-int8")]
    result = earshot("parity", *bundles, *DATA, "--checkpoint", CHECKPOINT, "--no-aarch64", "--json")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["passed"] is True
    fp32, int8 = answer["bundles"]
    for each in (fp32, int8):
        assert each["n"] == 100
        assert each["top1"] > 0.5
        assert [row["way"] for row in each["comparisons"]] == ["torch", "twin"]
        assert each["not_measured"] == {"onnxruntime-aarch64": "left out"}
    assert all(row["max_abs"] <= 1e-4 and row["passed"] for row in fp32["comparisons"])
    rounding, twin = int8["comparisons"]
    assert rounding["max_abs"] > 0.01
    assert (rounding["gate"], rounding["passed"]) == (None, None)
    assert (twin["gate"], twin["passed"], twin["labels_equal"]) == ("99.9 % labels", True, 100)
    assert twin["labels_equal_ci_low"] < 1.0 == twin["labels_equal_rate"]


def test_another_checkpoint_misses_the_gate(earshot, other_run):
    result = earshot("parity", zoo.bundle("lms-fp32"), *DATA, "--checkpoint", other_run, "--no-aarch64")
    assert "gate was missed by lms-fp32.earshot" in refusal(result, 3)
    torch = next(line for line in result.stdout.splitlines() if "torch FP32" in line)
    assert torch.endswith("MISSED")
    twin = next(line for line in result.stdout.splitlines() if "twin" in line)
    assert twin.endswith("ok")


def test_ensembles_get_the_same_noise_everywhere(earshot, ensemble_bundle, keys, other_run):
    trusted = ("--trust", keys.public)
    result = earshot("parity", ensemble_bundle, *DATA, *trusted, "--checkpoint", other_run, "--no-aarch64", "--json")
    assert result.returncode == 0, result.stderr
    (found,) = json.loads(result.stdout)["bundles"]
    (twin,) = found["comparisons"]
    assert (twin["way"], twin["passed"]) == ("twin", True)
    assert "ensemble" in found["not_measured"]["torch"]


@pytest.mark.usefixtures("no_emulator")
def test_a_missing_emulator_is_told_with_the_line_that_installs_it(earshot):
    arguments = ("parity", zoo.bundle("lms-int8"), *DATA)
    result = earshot(*arguments)
    assert result.returncode == 0, result.stderr
    line = next(line for line in result.stdout.splitlines() if "aarch64 emulated" in line)
    assert "not measured: " in line
    assert "apt-get install qemu-user-static mmdebstrap" in line
    assert "torch, twin" in result.stdout
    assert "apt-get install qemu-user-static mmdebstrap" in refusal(earshot(*arguments, "--require-aarch64"), 4)


def test_dry_run_downloads_nothing(earshot, monkeypatch, tmp_path):
    monkeypatch.setenv("EARSHOT_CACHE", str(tmp_path))
    if missing := userland.outline().missing:
        pytest.skip(missing)
    result = earshot("parity", zoo.bundle("lms-int8"), *DATA, "--dry-run")
    assert result.returncode == 0
    assert "about 70 MB to download" in result.stdout
    assert "onnxruntime==" in result.stdout
    assert not list(tmp_path.glob("*aarch64*"))
    answer = json.loads(earshot("parity", zoo.bundle("lms-int8"), *DATA, "--dry-run", "--json").stdout)
    assert answer["aarch64"]["ready"] is False
    assert answer["clips"] == {"lms-int8.earshot": 100}


def test_a_failed_download_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("EARSHOT_CACHE", str(tmp_path))
    if missing := userland.outline().missing:
        pytest.skip(missing)
    # A port that nobody listens on.
    monkeypatch.setattr(userland, "debian_mirror", lambda: "http://127.0.0.1:9/debian")
    from edge.errors import UnavailableError

    with pytest.raises(UnavailableError, match=r"no aarch64 userland: Debian's Python .* from http://127.0.0.1:9") as e:
        userland.prepare()
    assert "\n" not in str(e.value)
    assert not list(tmp_path.iterdir())


def test_wrong_arguments_are_one_line(earshot, tmp_path, other_run):
    bundle = zoo.bundle("lms-int8")
    assert "--data" in refusal(earshot("parity", bundle))
    assert str(tmp_path) in refusal(earshot("parity", bundle, "--data", tmp_path))
    assert "no such checkpoint" in refusal(earshot("parity", bundle, *DATA, "--checkpoint", tmp_path))
    assert "split 'exam'" in refusal(earshot("parity", bundle, "--data", zoo.CLIPS, "--split", "exam"))
    assert "--clips" in refusal(earshot("parity", bundle, *DATA, "--clips", 0))
    assert "No such file" in refusal(earshot("parity", tmp_path / "none.earshot", *DATA))


def test_a_checkpoint_of_another_task_is_refused(earshot, tmp_path):
    from firmware_models.architectures import build
    from firmware_models.training.checkpoint import save_checkpoint

    save_checkpoint(tmp_path / "model.safetensors", build("lms", labels=("a", "b")))
    told = refusal(earshot("parity", zoo.bundle("lms-int8"), *DATA, "--checkpoint", tmp_path))
    assert "2 labels" in told
    assert "12 labels" in told


def test_clips_of_another_length_are_refused():
    from edge.errors import DataError
    from export.measurement.parity_report import check_fits
    from firmware_models.data import load

    manifest = describe_untrusted(zoo.bundle("lms-int8")).manifest.model_copy(update={"window_samples": 48_000})
    with pytest.raises(DataError, match="16000 samples at 16000 Hz, lms-int8 takes 48000"):
        check_fits(manifest, load(zoo.CLIPS, "all"), None)


def test_a_graph_without_a_twin_is_told_so(tiny_bundle):
    import onnx

    from edge.bundle.reading import read_bundle
    from edge.bundle.signing import load_public_key
    from export.measurement.parity_report import compare
    from firmware_models.data import load

    bundle = read_bundle(tiny_bundle.path, trusted=[load_public_key(tiny_bundle.key)])
    graph = onnx.load_from_string(bundle.model)
    graph.graph.node[0].op_type = "Asinh"
    report = compare(dataclasses.replace(bundle, model=graph.SerializeToString()), load(zoo.CLIPS, "all"))
    assert report.comparisons == ()
    assert "Asinh" in report.not_measured["twin"]
    assert report.passed
