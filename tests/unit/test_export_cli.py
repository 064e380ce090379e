"""The commands keys, export and bundle: what they print, what they leave, how they end."""

from __future__ import annotations

import copy
import json
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def earshot(monkeypatch, capsys, tmp_path) -> Callable[..., Result]:
    """Runs the command in this process: a dozen imports of torch take longer than all they test."""
    monkeypatch.setenv("EARSHOT_CACHE", str(tmp_path / "cache"))

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
    assert lines[0].startswith("earshot: ")
    return lines[0]


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> Path:
    """A data set in the upstream layout, all noise: enough words and speakers for every split."""
    import soundfile

    root = tmp_path_factory.mktemp("speech")
    rng = np.random.default_rng(0)
    validation, test = [], []
    for word in ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "marvin"):
        (root / word).mkdir()
        for speaker in range(12):
            name = f"{word}/{speaker:08x}_nohash_0.wav"
            level = 10 ** rng.uniform(-2.5, -0.7)
            soundfile.write(root / name, (rng.normal(size=16_000) * level).clip(-1, 1), 16_000, subtype="PCM_16")
            (validation if speaker < 4 else test if speaker < 8 else []).append(name)
    (root / "validation_list.txt").write_text("\n".join(validation) + "\n")
    (root / "testing_list.txt").write_text("\n".join(test) + "\n")
    return root


@pytest.fixture(scope="module")
def checkpoint(random_lms, tmp_path_factory) -> Path:
    from firmware_models.training.checkpoint import save_checkpoint

    # It says "yes" to everything, so that rounding random weights cannot move a label.
    model = copy.deepcopy(random_lms)
    model.fc.bias.data[0] += 100
    run = tmp_path_factory.mktemp("run")
    save_checkpoint(run / "model.safetensors", model, training={"seed": 7, "minutes": 0.1})
    counts = {
        "train": {"clips": 90, "per_label": {"yes": 81, "_silence_": 9}},
        "synthetic": {"clips": 5, "speakers": 1},
    }
    (run / "config.json").write_text(json.dumps({"data": counts}))
    return run


def test_keys_new(earshot, tmp_path):
    result = earshot("keys", "new", "--out", tmp_path / "lab", "--json")
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert stat.S_IMODE(Path(told["private"]).stat().st_mode) == 0o600
    assert Path(told["public"]).read_text().startswith("-----BEGIN PUBLIC KEY-----")
    assert len(told["fingerprint"]) == 16
    assert "not overwritten" in refusal(earshot("keys", "new", "--out", tmp_path / "lab"))


def test_show_and_verify(earshot, int8_bundle, keys, other_keys):
    shown = earshot("bundle", "show", int8_bundle)
    assert shown.returncode == 0
    assert "UNVERIFIED" in shown.stdout.splitlines()[0]
    assert "log floor      1e-06" in shown.stdout
    told = json.loads(earshot("bundle", "show", int8_bundle, "--json").stdout)
    assert told["verified"] is False
    assert told["manifest"]["quantisation"]["bits"] == 8
    shown = earshot("bundle", "show", int8_bundle, "--trust", keys.public, "--card")
    assert "VERIFIED, signed by" in shown.stdout
    assert "# lms-int8, version 1" in shown.stdout
    verified = earshot("bundle", "verify", int8_bundle, "--trust", keys.public, "--json")
    assert verified.returncode == 0, verified.stderr
    told = json.loads(verified.stdout)
    assert told["verified"] is True
    assert told["golden_max_abs"] <= told["golden_limit"]
    assert "another key" in refusal(earshot("bundle", "verify", int8_bundle, "--trust", other_keys.public))
    assert "--trust" in refusal(earshot("bundle", "verify", int8_bundle))


def test_one_flipped_byte(earshot, int8_bundle, keys, tmp_path):
    data = bytearray(int8_bundle.read_bytes())
    data[len(data) // 2] ^= 1
    path = tmp_path / "altered.earshot"
    path.write_bytes(data)
    assert "model.onnx is altered" in refusal(earshot("bundle", "verify", path, "--trust", keys.public))
    assert "ALTERED" in earshot("bundle", "show", path).stdout


def test_text_of_strangers_cannot_steer_the_terminal(earshot, tmp_path, keys, lms_graphs, random_lms):
    from export.card import Facts
    from export.pack import pack
    from export.source import Source

    path = tmp_path / "a.earshot"
    facts = Facts(training_data="\x1b[2Jgone\r", notes=("\x1b]0;title\x07",))
    pack(path, lms_graphs[32], Source.of_model(random_lms).identity(name="a", version=1), key=keys.signer, facts=facts)
    shown = earshot("bundle", "show", path, "--card").stdout
    assert "gone" in shown
    assert not set(shown) & {"\x1b", "\x07", "\r"}


def test_export_both_widths(earshot, tmp_path, checkpoint, speech, keys):
    common = ("--calibration", speech, "--key", keys.private, "--clips", 32)
    dry = earshot("export", checkpoint, *common, "--out", tmp_path / "a.earshot", "--dry-run", "--json")
    assert dry.returncode == 0, dry.stderr
    told = json.loads(dry.stdout)
    assert (told["version"], told["calibration_clips"], told["scheme"]) == (1, 0, "FP32")
    assert not (tmp_path / "a.earshot").exists()
    done = earshot("export", checkpoint, *common, "--out", tmp_path / "a.earshot", "--json")
    assert done.returncode == 0, done.stderr
    shown = earshot("bundle", "show", tmp_path / "a.earshot", "--card").stdout
    assert "`earshot train lms --data DIR --synthetic DIR --out RUN --seed 7` (seed 7, minutes 0.1)" in shown
    assert "(81 recordings and 9 cuts of its background noise); 5 clips synthesised with espeak-ng" in shown
    told = json.loads(done.stdout)
    assert told["parity"]["max_abs"] <= 1e-4
    assert told["metrics"]["test_n"] >= 16
    assert told["bits"] == 32
    # The file is there already, and is given the next version.
    again = earshot("export", checkpoint, *common, "--out", tmp_path / "a.earshot", "--bits", 8, "--json")
    assert again.returncode == 0, again.stderr
    told = json.loads(again.stdout)
    assert (told["version"], told["bits"], told["drop"]) == (2, 8, 0)
    assert told["size_bytes"] <= 600_000
    assert told["metrics"]["fp32_test_top1"] == told["metrics"]["test_top1"]
    verified = earshot("bundle", "verify", tmp_path / "a.earshot", "--trust", keys.public)
    assert verified.returncode == 0, verified.stderr
    # The command is there, without the places on this machine.
    card = earshot("bundle", "show", tmp_path / "a.earshot", "--card").stdout
    told = "Export: `earshot export RUN --key KEY.pem --calibration DIR --bits 8 --clips 32 --out a.earshot`"
    assert told in card.splitlines()
    assert str(speech) not in card


def test_export_refusals(earshot, tmp_path, checkpoint, speech, keys):
    good = {
        "--calibration": speech,
        "--key": keys.private,
        "--out": tmp_path / "a.earshot",
        "--bits": 32,
        "--profile": "cpu",
        "--method": "minmax",
    }

    def run(model: Path = checkpoint, **changed: object) -> str:
        options = good | {f"--{key}": value for key, value in changed.items()}
        return refusal(earshot("export", model, *[part for item in options.items() for part in item]))

    assert "should be 4, 8, 16 or 32" in run(bits=5)
    assert "computes in 32 or in 8 bits" in run(bits=16, profile="cpu")
    assert "should be 'cpu', 'portable' or 'storage'" in run(profile="gpu")
    assert "use one of mse, minmax" in run(method="magic")
    assert "is a public key" in run(key=_private(keys.public, tmp_path))
    assert "no such key file" in run(key=tmp_path / "absent.pem")
    assert "no such checkpoint" in run(tmp_path / "absent.safetensors")
    assert "ends in .earshot" in run(out=tmp_path / "a.onnx")
    assert "no such folder" in run(out=tmp_path / "nowhere/a.earshot")
    assert "no such folder" in run(calibration=tmp_path / "nowhere")
    assert not (tmp_path / "a.earshot").exists()


def _private(public: Path, folder: Path) -> Path:
    copy = folder / "copy.pub"
    copy.write_bytes(public.read_bytes())
    copy.chmod(0o600)
    return copy


def test_low_rank_and_ensemble(earshot, tmp_path, checkpoint, speech, keys):
    common = ("--calibration", speech, "--key", keys.private, "--rank-conv", 40, "--rank-fc", 4, "--json")
    done = earshot("export", checkpoint, *common, "--out", tmp_path / "low.earshot")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (
        told["low_rank"]["parameters_after"]
        < told["low_rank"]["parameters_before"]
        == told["metrics"]["full_parameters"]
    )
    assert told["metrics"]["parameters"] == told["low_rank"]["parameters_after"]
    assert told["metrics"]["rank_conv2"] == 40
    assert {"full_test_top1", "split_test_top1", "test_top1"} <= told["metrics"].keys()
    done = earshot("export", checkpoint, *common, "--ensemble", 3, "--sigma", 0.1, "--out", tmp_path / "many.earshot")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["parity"]["max_abs"] <= 1e-5, told["twin"]["labels_equal"]) == (True, 1)
    manifest = json.loads(earshot("bundle", "show", tmp_path / "many.earshot", "--json").stdout)["manifest"]
    assert manifest["ensemble"]["members"] == 3
    assert manifest["score_kind"] == "probabilities"
    assert earshot("bundle", "verify", tmp_path / "many.earshot", "--trust", keys.public).returncode == 0


def test_retraining_goes_on_and_needs_its_folder(earshot, tmp_path, checkpoint, speech, keys):
    recipe = tmp_path / "short.yaml"
    recipe.write_text("architecture: any\nsteps: 2\nbatch: 4\nvalidate_every: 1\ndistillation: {recipe: start}\n")
    command = ["export", checkpoint, "--calibration", speech, "--key", keys.private, "--rank-conv", 40]
    command += ["--retrain", recipe, "--run", tmp_path / "run", "--out", tmp_path / "low.earshot", "--json"]
    first = earshot(*command)
    assert first.returncode == 0, first.stderr
    again = earshot(*command)
    assert again.returncode == 0, again.stderr
    one, two = json.loads(first.stdout), json.loads(again.stdout)
    assert two["version"] == one["version"] + 1
    assert two["metrics"]["test_top1"] == one["metrics"]["test_top1"]
    assert "The factors were retrained" in earshot("bundle", "show", tmp_path / "low.earshot", "--card").stdout


def test_factors_are_taught_by_the_teacher_that_is_there(earshot, tmp_path, checkpoint, speech, keys):
    from firmware_models.architectures import build
    from firmware_models.data import LABELS
    from firmware_models.training.checkpoint import load_checkpoint, save_checkpoint

    run = tmp_path / "trained"
    shutil.copytree(checkpoint, run)
    teacher = build("residual", labels=LABELS, channels=8)
    told = {"seed": 1, "minutes": 2.5}
    for folder in (run / "teacher", tmp_path / "other"):
        folder.mkdir()
        save_checkpoint(folder / "model.safetensors", teacher, metrics={"validation_top1": 0.5}, training=told)
    (run / "teacher/metrics.json").write_text(json.dumps({"minutes": 2.5, "finished": True}))
    recipe = tmp_path / "short.yaml"
    recipe.write_text("architecture: any\nsteps: 1\nbatch: 4\ndistillation: {recipe: residual}\n")
    command = ["export", run, "--calibration", speech, "--key", keys.private, "--rank-conv", 40, "--json"]
    command += ["--out", tmp_path / "low.earshot"]
    for name, more in (("beside", ()), ("named", ("--teacher", tmp_path / "other"))):
        done = earshot(*command, "--retrain", recipe, "--run", tmp_path / name, *more)
        assert done.returncode == 0, done.stderr
        assert not (tmp_path / name / "teacher").exists()
        assert load_checkpoint(tmp_path / name)[1].training["teacher_minutes"] == 2.5
        assert "teacher" in json.loads((tmp_path / name / "config.json").read_text())["start"]
    assert "add --retrain" in refusal(earshot(*command, "--teacher", tmp_path / "other"))
    nowhere = ("--retrain", recipe, "--run", tmp_path / "third", "--teacher", tmp_path / "nowhere")
    assert "no such checkpoint" in refusal(earshot(*command, *nowhere))


def test_somebody_elses_model(earshot, tmp_path, speech, keys, lms_graphs):
    import onnx

    foreign = tmp_path / "foreign.onnx"
    onnx.save(lms_graphs[32], foreign)
    labels = ",".join(f"word{number}" for number in range(12))
    command = ["export", foreign, "--input", "pcm", "--key", keys.private, "--out", tmp_path / "f.earshot"]
    done = earshot(*command, "--labels", labels, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["parity"], told["twin"]["labels_equal"]) == (None, 1)
    shown = earshot("bundle", "show", tmp_path / "f.earshot", "--card").stdout
    assert "not trained here; brought in from foreign.onnx" in shown
    rounded = earshot(*command, "--labels", labels, "--bits", 8, "--calibration", speech, "--clips", 16, "--json")
    assert rounded.returncode == 0, rounded.stderr
    card = earshot("bundle", "show", tmp_path / "f.earshot", "--card").stdout
    assert (
        f"Export: `earshot export foreign.onnx --key KEY.pem --calibration DIR --bits 8 --clips 16 --labels {labels} "
        in card
    )
    assert "--labels names 2" in refusal(earshot(*command, "--labels", "a,b"))
    assert "needs --labels" in refusal(earshot(*command))
    assert "use pcm or logmel" in refusal(earshot(*command, "--labels", labels, "--input", "sound"))
    assert "--calibration DIR is needed" in refusal(earshot(*command, "--labels", labels, "--bits", 8))
    assert "not split" in refusal(earshot(*command, "--labels", labels, "--rank-fc", 4))


def test_contradictions_are_one_line(earshot, tmp_path, checkpoint, speech, keys):
    def run(*options: object) -> str:
        common = ("--calibration", speech, "--key", keys.private, "--out", tmp_path / "a.earshot")
        return refusal(earshot("export", checkpoint, *common, *options))

    assert "--rank-fc 0: use 1 or more" in run("--rank-fc", 0)
    assert "finds the ranks itself" in run("--rank-fc", 4, "--max-drop", "2%")
    assert "use a share such as 2%" in run("--max-drop", "much")
    assert "go together" in run("--rank-fc", 4, "--retrain", "low-rank")
    assert "exported with 32 bits" in run("--ensemble", 4, "--bits", 8)
    assert "no layer is factored" in run("--ensemble", 4)
    assert "are for a foreign" in run("--labels", "a,b")
    assert "use channels or spatial" in run("--rank-fc", 4, "--reshape", "round")
    assert "trains for rounded activations" in run("--finish", 10)
