"""``earshot-device doctor`` on an installed device: one settings file, and a broker that is particular."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from edge.doctor.broker import broker
from edge.doctor.finding import Finding, attempt
from edge.mqtt.broker_url import PASSWORD_VARIABLE, BrokerUrl

ROOT = Path(__file__).resolve().parents[2]


def _device(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)


def _findings(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    assert done.stdout, done.stderr
    return {each["check"]: each for each in json.loads(done.stdout)["findings"]}


def test_the_doctor_of_an_installed_device_needs_its_settings_file_alone(
    mosquitto: Any, make_tiny_bundle: Callable[..., Path], keys: Any, operator_keys: Any, tmp_path: Path
) -> None:
    sound = np.random.default_rng(1).integers(-9000, 9000, 16_000).astype(np.int16)
    soundfile.write(tmp_path / "sound.wav", sound, 48_000)
    config = tmp_path / "device.toml"
    config.write_text(
        f'name = "kitchen"\nbroker = "{mosquitto.url}"\nstate_dir = "state"\n'
        f'microphone = "file:{tmp_path}/sound.wav?loop"\n[listening]\nhop_ms = 80\n'
    )
    doctor = ["doctor", "--config", config, "--seconds", "0.5", "--json"]
    found = _findings(_device(*doctor))
    assert not found["slots"]["ok"]
    assert "earshot-device provision" in found["slots"]["fix"]
    assert "model" not in found

    place = ["--name", "kitchen", "--state-dir", tmp_path / "state"]
    given = ["--trust", keys.public, "--operator", operator_keys.public]
    done = _device("provision", make_tiny_bundle(version=3), *place, *given)
    assert done.returncode == 0, done.stderr
    assert "slot a now holds level version 3" in done.stdout
    done = _device(*doctor)
    found = _findings(done)
    assert {check for check, each in found.items() if not each["ok"]} <= {"clock"}
    assert "level version 3" in found["bundle"]["detail"]
    assert "a: level version 3 (active" in found["slots"]["detail"]
    assert "hop 80 ms" in found["model"]["detail"]
    assert "resampled from 48000 Hz" in found["microphone"]["detail"]
    assert found["operators"]["values"] == {"keys": 1.0}
    assert found["broker"]["values"]["round_trip_ms"] > 0
    # What is given on the command line wins.
    found = _findings(_device(*doctor, "--microphone", "file:/absent.wav", "--broker", "mqtt://127.0.0.1:1"))
    assert not found["microphone"]["ok"]
    assert "nobody listens there" in found["broker"]["detail"]

    (tmp_path / "state/kitchen/slots/a/bundle.earshot").write_bytes(b"PK")
    done = _device(*doctor)
    assert done.returncode == 3
    found = _findings(done)
    assert not found["bundle"]["ok"]
    assert "model" not in found
    told = json.loads(_device("status", *place, "--json").stdout)
    assert (told["running"], told["active"]) == (False, "a")
    assert told["slots"]["a"]["problem"]
    assert "slot b: empty" in _device("status", *place).stdout
    (tmp_path / "state/kitchen/slots/pointer.json").write_text("{")
    told = _device("status", *place).stdout
    assert "pointer.json is missing or unreadable" in told
    assert "slot a: a bundle: " in told
    assert "no such state folder" in _device("status", "--name", "x", "--state-dir", tmp_path).stderr
    assert _device("status").stderr.startswith("earshot-device: --name is missing")
    assert "--seconds" in _device("doctor", "--seconds", "0").stderr


def test_a_broker_with_an_access_list_lets_a_device_examine_itself(
    make_mosquitto: Callable[[str], Any],
    mosquitto_program: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rig.deploy.broker.access import devices_list

    passwords, rules = tmp_path / "passwords", tmp_path / "access"
    program = shutil.which("mosquitto_passwd") or str(Path(mosquitto_program).with_name("mosquitto_passwd"))
    subprocess.run([program, "-b", "-c", str(passwords), "kitchen", "hunter2"], check=True)
    rules.write_text(devices_list(["kitchen"], home_assistant=False))
    for path in (passwords, rules):
        path.chmod(0o644)
    running = make_mosquitto(f"allow_anonymous false\npassword_file {passwords}\nacl_file {rules}\n")
    url = BrokerUrl.parse(f"mqtt://kitchen@127.0.0.1:{running.port}")

    def visit(name: str | None) -> Finding:
        return attempt("broker", lambda: broker(url, name, timeout_s=1.0))

    monkeypatch.setenv(PASSWORD_VARIABLE, "hunter2")
    found = visit("kitchen")
    assert found.ok, found.line()
    assert "not encrypted" in found.detail
    assert "did not come back" in visit("cellar").detail
    assert visit(None).exit_code == 4
    monkeypatch.setenv(PASSWORD_VARIABLE, "swordfish")
    found = visit("kitchen")
    assert "check user 'kitchen' and its password" in found.detail
    assert "swordfish" not in found.line()
