"""The command ``earshot-device`` as a user meets it: wrong input, the doctor, passwords and certificates."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).resolve().parents[2]
NAME = "bench"
LOUD = np.random.default_rng(1).integers(-9000, 9000, 16_000).astype(np.int16)


def _ended(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge.cli", *arguments]
    environment = {**os.environ, **(env or {})}
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


def _one_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if " INFO " not in line and " WARNING " not in line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("earshot-device: ")
    return lines[0]


def test_wrong_input_is_one_line_and_its_code(tiny_bundle: Any, tmp_path: Path) -> None:
    altered = tmp_path / "altered.earshot"
    data = bytearray(tiny_bundle.path.read_bytes())
    data[len(data) // 2] ^= 1
    altered.write_bytes(data)
    base = {
        "--bundle": str(tiny_bundle.path), "--trust": str(tiny_bundle.key), "--broker": "mqtt://127.0.0.1:1",
        "--name": NAME, "--microphone": "socket:127.0.0.1:1", "--state-dir": str(tmp_path / "state"),
        "--connect-timeout": "0.5",
    }  # fmt: skip
    (tmp_path / "file").write_text("")
    wrong: list[tuple[str, str, int, str]] = [
        ("--connect-timeout", "0.5", 4, "broker mqtt://127.0.0.1:1: nobody listens there"),
        ("--bundle", str(altered), 2, "altered"),
        ("--bundle", str(tmp_path / "absent.earshot"), 2, "absent.earshot"),
        ("--trust", str(tmp_path / "absent.pub"), 2, "absent.pub"),
        ("--broker", "http://lab", 2, "mqtt"),
        ("--name", "Küche", 2, "device name"),
        ("--microphone", "ear", 2, "sounddevice"),
        ("--microphone", "file:/absent.wav", 2, "/absent.wav"),
        ("--threads", "0", 2, "--threads 0"),
        ("--threads", "many", 2, "--threads"),
        ("--hop", "1", 2, "--hop 1.0: input should be greater than or equal to 10"),
        ("--release", "0.9", 2, "--release: 0.9 is not below the threshold"),
        ("--operator", str(tmp_path / "absent.pub"), 2, "absent.pub"),
        ("--connect-timeout", "-1", 2, "--connect-timeout"),
        ("--state-dir", str(tmp_path / "file"), 4, "--state-dir"),
        ("--no-such-option", "x", 2, "--help"),
    ]
    for option, value, code, complaint in wrong:
        arguments = [text for pair in {**base, option: value}.items() for text in pair]
        done = _ended("run", *arguments)
        line = _one_line(done)
        assert done.returncode == code, line
        assert complaint in line


def _failing(done: subprocess.CompletedProcess[str]) -> set[str]:
    """The checks that failed; nobody may synchronise the clock where tests run."""
    return {line[5:].partition(":")[0] for line in done.stdout.splitlines() if line.startswith("FAIL ")} - {"clock"}


@pytest.mark.parametrize("end", [">&-", "| true"])
def test_nobody_reads_along(tmp_path: Path, end: str) -> None:
    (tmp_path / NAME).mkdir()
    words = f"'{sys.executable}' -m edge.cli status --name {NAME} --state-dir '{tmp_path}' {end}"
    command = ["bash", "-c", f"set -o pipefail; {words}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
    assert done.returncode in {0, 5}
    assert done.stderr == ""


def test_the_doctor_looks_at_everything(tiny_bundle: Any, mosquitto: Any, tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    soundfile.write(path, LOUD, 16_000)
    given = ["doctor", "--bundle", str(tiny_bundle.path), "--trust", str(tiny_bundle.key)]
    full = [*given, "--broker", mosquitto.url, "--microphone", f"file:{path}"]
    done = _ended(*full)
    assert done.returncode in {0, 3}
    assert not _failing(done), done.stdout + done.stderr
    assert "round trip" in next(line for line in done.stdout.splitlines() if line.startswith("OK   broker"))
    done = _ended(*full, "--json")
    findings = {each["check"]: each for each in json.loads(done.stdout)["findings"]}
    machine = {"system", "Python", "clock", "disk", "temperature", "throttling"}
    assert set(findings) == machine | {"bundle", "operators", "model", "providers", "broker", "microphone"}
    assert findings["model"]["values"]["latency_p50_ms"] > 0
    assert findings["microphone"]["values"]["rms_dbfs"] == pytest.approx(-15.9, abs=0.5)
    mosquitto.kill()
    done = _ended(*full)
    assert done.returncode == 4
    assert _failing(done) == {"broker"}
    (tmp_path / "other.earshot").write_bytes(b"PK")
    done = _ended("doctor", "--bundle", str(tmp_path / "other.earshot"), "--trust", str(tiny_bundle.key),
                  "--microphone", f"file:{path}")  # fmt: skip
    assert done.returncode == 3
    assert _failing(done) == {"bundle"}


def test_a_password_reaches_the_broker_and_no_log(
    make_mosquitto: Callable[[str], Any], mosquitto_program: str, tiny_bundle: Any, tmp_path: Path
) -> None:
    passwords = tmp_path / "passwords"
    passwd = shutil.which("mosquitto_passwd") or str(Path(mosquitto_program).with_name("mosquitto_passwd"))
    subprocess.run([passwd, "-b", "-c", str(passwords), "kitchen", "hunter2"], check=True)
    passwords.chmod(0o644)
    broker = make_mosquitto(f"allow_anonymous false\npassword_file {passwords}\n")
    given = ["--bundle", str(tiny_bundle.path), "--trust", str(tiny_bundle.key)]
    given += ["--broker", f"mqtt://kitchen@127.0.0.1:{broker.port}"]
    good = _ended("doctor", *given, "--microphone", "file:/absent.wav", env={"EARSHOT_MQTT_PASSWORD": "hunter2"})
    assert "OK   broker" in good.stdout
    run = ["run", *given, "--name", NAME, "--microphone", "socket:127.0.0.1:1", "--state-dir", str(tmp_path / "s")]
    wrong = _ended(*run, "--connect-timeout", "2", "--log-level", "debug", env={"EARSHOT_MQTT_PASSWORD": "swordfish"})
    assert wrong.returncode == 4
    assert "refused" in wrong.stderr
    assert "swordfish" not in wrong.stderr


def _certificates(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    import datetime as dt
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "earshot test")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=60))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, key_pem = folder / "broker.pem.crt", folder / "broker.pem.key"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return pem, key_pem


def test_tls_needs_the_right_authority(make_mosquitto: Callable[[str], Any], tiny_bundle: Any, tmp_path: Path) -> None:
    certificate, key = _certificates(tmp_path)
    broker = make_mosquitto(f"certfile {certificate}\nkeyfile {key}\n")
    given = ["doctor", "--bundle", str(tiny_bundle.path), "--trust", str(tiny_bundle.key)]
    given += ["--broker", f"mqtts://127.0.0.1:{broker.port}"]
    for ca_file, verdict in (
        (str(certificate), "OK   broker"),
        ("", "FAIL broker"),
        (str(tiny_bundle.path), "FAIL broker"),
    ):
        done = _ended(*given, env={"EARSHOT_MQTT_CA_FILE": ca_file})
        assert verdict in done.stdout, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
