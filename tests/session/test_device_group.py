"""``earshot device`` as an operator types it, with a real broker and real device processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = [sys.executable, "-m", "edge.cli"]


class Devices:
    """Processes of ``earshot-device run``, ended with the test."""

    def __init__(self, folder: Path, broker: str) -> None:
        self.folder, self._broker = folder, broker
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        soundfile.write(folder / "sound.wav", np.random.default_rng(2).uniform(-0.3, 0.3, 16_000), 16_000)

    def start(self, name: str, *more: str | Path) -> None:
        place = ["--name", name, "--state-dir", self.folder / "state"]
        sound = f"file:{self.folder / 'sound.wav'}?loop"
        with (self.folder / f"{name}.log").open("ab") as log:
            command = [*PROGRAM, "run", *place, "--broker", self._broker, "--microphone", sound, "--hop", "200", *more]
            self.processes[name] = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.DEVNULL, stderr=log, cwd=ROOT
            )

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()


@pytest.fixture
def devices(mosquitto: Any, tmp_path: Path) -> Iterator[Devices]:
    started = Devices(tmp_path, mosquitto.url)
    yield started
    for process in started.processes.values():
        process.terminate()
    for process in started.processes.values():
        process.wait(15)


@pytest.fixture
def provision(
    make_tiny_bundle: Callable[..., Path], keys: Any, operator_keys: Any, tmp_path: Path
) -> Callable[[str], Any]:
    def put(name: str) -> Any:
        command = [
            *PROGRAM,
            "provision",
            make_tiny_bundle(version=1),
            "--name",
            name,
            "--state-dir",
            tmp_path / "state",
        ]
        command += ["--trust", keys.public]
        command += ["--operator", operator_keys.public, "--json"]
        done = subprocess.run([str(word) for word in command], capture_output=True, check=True, cwd=ROOT)
        return json.loads(done.stdout)

    return put


@pytest.fixture
def earshot(rig: Any, mosquitto: Any, operator_keys: Any, tmp_path: Path) -> Callable[..., Any]:
    (tmp_path / "station.toml").write_text(f'broker = "{mosquitto.url}"\noperator = "{operator_keys.private}"\n')

    def call(*words: str | Path, code: int = 0) -> Any:
        done = rig.run("device", *words, "--station", tmp_path / "station.toml", timeout_s=60)
        assert done.returncode == code, done.stdout + done.stderr
        errors = [line for line in done.stderr.splitlines() if line.startswith("earshot: ")]
        assert len(errors) == (1 if code else 0), done.stderr
        assert "Traceback" not in done.stderr
        if "--json" in words and done.stdout:
            done.document = json.loads(done.stdout) if words[0] != "watch" else None
        done.complaint = errors[0] if errors else ""
        return done

    return call


def _online(earshot: Callable[..., Any], wait_until: Callable[..., None], *names: str) -> None:
    def there() -> bool:
        listed = earshot("list", "--seconds", "0", "--json").document["devices"]
        confirmed = {each["name"] for each in listed if each["status"] == "online" and each["confirmed"] is not False}
        return set(names) <= confirmed

    wait_until(there, 20)


def test_a_device_is_listed_questioned_watched_and_changed(
    devices: Devices, provision: Any, earshot: Any, wait_until: Any, make_tiny_bundle: Any, other_keys: Any, keys: Any,
    operator_keys: Any, tmp_path: Path,
) -> None:  # fmt: skip
    assert provision("kitchen")["slot"] == "a"
    assert not provision("kitchen")["changed"]
    assert "no device has said anything" in earshot("list", "--seconds", "0").stdout
    assert "never seen" in earshot("status", "kitchen", code=4).complaint
    devices.start("kitchen", "--confirm-after", "0.5")
    _online(earshot, wait_until, "kitchen")

    [listed] = earshot("list", "--json").document["devices"]
    assert (listed["bundle"], listed["bundle_version"], listed["slot"], listed["status"]) == ("level", 1, "a", "online")
    assert listed["silent_for_s"] < 10
    assert "kitchen" in earshot("list", "--seconds", "0").stdout

    told = earshot("status", "kitchen", "--json").document
    assert told["info"]["operators"] == [provision_fingerprint(operator_keys)]
    assert told["update"]["stage"] == "confirmed"
    assert told["health"]["latency_p50_ms"] > 0
    assert abs(told["clock"]["utc_ns"]) < 5e8
    assert told["level"]["rms_dbfs"] == pytest.approx(-15.2, abs=0.5)

    lines = earshot("watch", "--seconds", "2.2").stdout.splitlines()
    assert len(lines) >= 2
    assert all("kitchen online bundle level 1, hears loud" in line for line in lines[1:]), lines
    messages = [
        json.loads(line) for line in earshot("watch", "kitchen", "--seconds", "2.2", "--json").stdout.splitlines()
    ]
    assert {"state", "info", "level", "prediction", "update"} <= {message["kind"] for message in messages}
    assert {message["device"] for message in messages} == {"kitchen"}

    two = make_tiny_bundle(version=2)
    assert "kichen (never seen here)" in earshot("update", "kichen", two, code=4).complaint
    assert "would run level version 2" in earshot("update", "kitchen", two, "--dry-run").stdout
    stranger = earshot("update", "kitchen", make_tiny_bundle(version=2, key=other_keys), "--json", code=3)
    assert stranger.document["devices"][0]["result"] == "failed"
    assert "key" in stranger.complaint
    assert "other slot is empty" in earshot("rollback", "kitchen", code=3).complaint
    done = earshot("update", "kitchen", two, "--json").document
    assert done["devices"] == [{"device": "kitchen", "result": "confirmed", "detail": "", "slot": "b"}]
    assert earshot("update", "kitchen", two, "--json").document["devices"][0]["result"] == "current"
    one = make_tiny_bundle(version=1)
    assert "below 2" in earshot("update", "kitchen", one, code=3).complaint
    assert "level version 1 confirmed in slot a" in earshot("update", "kitchen", one, "--downgrade").stdout
    assert "level version 2 running in slot b" in earshot("rollback", "kitchen", "--no-wait").stdout

    told = json.loads(_device("status", "--name", "kitchen", "--state-dir", tmp_path / "state", "--json"))
    assert (told["active"], told["running"], told["slots"]["a"]["version"]) == ("b", True, 1)

    words = ["rotate", "kitchen", "--old", operator_keys.private, "--new", keys.public, "--role", "operator"]
    statement = tmp_path / "statement.json"
    assert "signature" in earshot(*words, "--dry-run", "--save", statement).stdout
    assert json.loads(statement.read_text())["role"] == "operator"
    assert ": done" in earshot("rotate", "kitchen", "--statement", statement).stdout
    assert "not among those obeyed" in earshot("rollback", "kitchen", code=3).complaint
    _online(earshot, wait_until, "kitchen")
    earshot("rollback", "kitchen", "--operator", keys.private, "--no-wait")

    devices.processes["kitchen"].kill()
    wait_until(lambda: earshot("list", "--json", "--seconds", "0").document["devices"][0]["status"] == "lost", 10)
    assert "kitchen (lost)" in earshot("rollback", "kitchen", code=4).complaint
    assert earshot("status", "kitchen", "--json").document["health"] is None


def provision_fingerprint(pair: Any) -> str:
    from edge.bundle.signing import fingerprint, load_public_key

    return fingerprint(load_public_key(pair.public))


def _device(*words: str | Path) -> bytes:
    return subprocess.run([*PROGRAM, *map(str, words)], capture_output=True, check=True, cwd=ROOT).stdout


def test_several_devices_are_updated_at_once(
    devices: Devices, provision: Any, earshot: Any, wait_until: Any, make_tiny_bundle: Any, keys: Any,
    operator_keys: Any,
) -> None:  # fmt: skip
    for name in ("hall", "kitchen"):
        provision(name)
        devices.start(name, "--confirm-after", "0.5")
    given = ["--bundle", make_tiny_bundle(version=1), "--trust", keys.public, "--operator", operator_keys.public]
    devices.start("cellar", *given)
    _online(earshot, wait_until, "hall", "kitchen", "cellar")
    done = earshot("update", "hall", "cellar", "kitchen", make_tiny_bundle(version=2), "--json", code=3)
    results = {each["device"]: each["result"] for each in done.document["devices"]}
    assert results == {"hall": "confirmed", "cellar": "refused", "kitchen": "confirmed"}
    assert "device cellar: refused: " in done.complaint
    assert "no slots" in done.complaint
    assert "has no slots" in earshot("rollback", "cellar", code=3).complaint


def test_wrong_words_are_one_line(
    earshot: Any, rig: Any, make_tiny_bundle: Any, operator_keys: Any, keys: Any, tmp_path: Path
) -> None:
    bundle = make_tiny_bundle(version=1)
    altered = tmp_path / "altered.json"
    parts = {"role": "bundle", "old_key": "1" * 64, "new_key": "2" * 64, "signature": "3" * 128}
    altered.write_text(json.dumps(parts))
    pair = ("--old", operator_keys.private, "--new", keys.public, "--role", "bundle")
    for words, code, complaint in (
        (("update", bundle), 2, "update NAME... BUNDLE"),
        (("update", "kitchen", "kitchen", bundle), 2, "named twice"),
        (("update", "Küche", bundle), 2, "device name 'Küche'"),
        (("update", "kitchen", tmp_path / "absent.earshot"), 2, "absent.earshot"),
        (("update", "kitchen", bundle, "--serve", "host:port"), 2, "--serve host:port"),
        (("update", "kitchen", bundle, "--certificate", "x"), 2, "both --certificate"),
        (("update", "kitchen", bundle, "--operator", tmp_path / "absent.pem"), 2, "absent.pem"),
        (("watch", "--seconds", "0"), 2, "--seconds 0"),
        (("list", "--seconds", "-1"), 2, "--seconds -1"),
        (("list", "--broker", "http://lab"), 2, "no scheme mqtt"),
        (("list", "--broker", "mqtt://127.0.0.1:1"), 4, "mqtt://127.0.0.1:1"),
        (("rotate", "kitchen", "--old", "x.pem", "--new", "x.pub", "--role", "bundle"), 2, "x.pem"),
        (("rotate", "kitchen", "--old", "x.pem"), 2, "--statement FILE.json"),
        (("rotate", "kitchen", "--statement", "x.json"), 2, "x.json"),
        (("rotate", "kitchen", "--statement", "/dev/zero"), 2, "no statement"),
        (("rotate", "kitchen", "--statement", altered), 2, "altered"),
        (("rotate", "kitchen", "--statement", altered, "--role", "bundle"), 2, "leave those out"),
        (("rotate", "kitchen", *pair, "--save", "/dev/null", "--dry-run"), 2, "choose another name"),
    ):
        assert complaint in earshot(*words, code=code).complaint
    environment = {key: value for key, value in os.environ.items() if key != "EARSHOT_STATION"}
    done = subprocess.run([sys.executable, "-m", "rig.cli.main", "device", "list"], capture_output=True, text=True,
                          env=environment, check=False, cwd=ROOT)  # fmt: skip
    assert done.returncode == 2
    assert "no broker: give --broker URL or --station FILE" in done.stderr
