"""The commands keys, export and bundle: what they print, what they leave, how they end."""

from __future__ import annotations

import copy
import json
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
    for word in ("yes", "no", "up", "marvin"):
        (root / word).mkdir()
        for speaker in range(30):
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
    from export.pack import identity_of, pack

    path = tmp_path / "a.earshot"
    facts = Facts(training_data="\x1b[2Jgone\r", notes=("\x1b]0;title\x07",))
    pack(path, lms_graphs[32], identity_of(random_lms, name="a", version=1), key=keys.signer, facts=facts)
    shown = earshot("bundle", "show", path, "--card").stdout
    assert "gone" in shown
    assert not set(shown) & {"\x1b", "\x07", "\r"}


def test_export_both_widths(earshot, tmp_path, checkpoint, speech, keys):
    common = ("--calibration", speech, "--key", keys.private, "--clips", 32)
    dry = earshot("export", checkpoint, *common, "--out", tmp_path / "a.earshot", "--dry-run", "--json")
    assert dry.returncode == 0, dry.stderr
    told = json.loads(dry.stdout)
    assert (told["version"], told["calibration_clips"]) == (1, 32)
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

    assert "use --bits 32 --profile cpu, --bits 8 --profile cpu" in run(bits=16)
    assert "not available" in run(profile="portable")
    assert "use one of minmax" in run(method="magic")
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
