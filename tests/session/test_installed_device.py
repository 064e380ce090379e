"""An installed device from end to end: real broker, real process, signed updates over HTTP, and what goes wrong."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from nacl.signing import SigningKey

from edge.bundle.signing import sign
from edge.messages import Info, Message, Reply, Rollback, Rotate, Update, UpdateStatus, topic
from edge.mqtt.broker_url import BrokerUrl
from edge.mqtt.client import new_client
from rig.devices.bundle_server import BundleServer
from rig.devices.operator import Operator
from rig.fleet import requests
from rig.fleet.presence import Fleet

ROOT = Path(__file__).resolve().parents[2]
NAME = "kitchen"


class Supervisor:
    """Starts the device again whenever it ends, and hears its notices, as systemd would."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._command, self.log = command, folder / "device.log"
        self._notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notices.bind(str(folder / "notify"))
        self._notices.setblocking(False)
        self._environment = {**os.environ, "NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "2000000"}
        self._stopping = False
        self.pids: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping:
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    self._command, stdin=subprocess.DEVNULL, stderr=log, cwd=ROOT, env=self._environment
                )
            self.pids.append(self._process.pid)
            self._process.wait()

    def notices(self) -> list[str]:
        """What systemd was told since the last call, without how it is."""
        told = []
        while True:
            try:
                notice = self._notices.recv(4096).decode()
            except BlockingIOError:
                return told
            if not notice.startswith("STATUS="):
                told.append(notice)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()

    def end(self) -> None:
        self._stopping = True
        if self._process is not None:
            self._process.terminate()
        self._thread.join(15)

    def stop(self) -> None:
        self.end()
        self.kill()
        self._notices.close()


class Installed:
    """The device, the fleet that hears it, and a client that may say anything."""

    def __init__(self, supervisor: Supervisor, fleet: Fleet, url: str) -> None:
        self.supervisor, self.fleet = supervisor, fleet
        broker = BrokerUrl.parse(url)
        self._client = new_client(broker)
        self._client.connect(broker.host, broker.port)
        self._client.loop_start()

    def until(self, holds: Callable[[Message], bool], what: str) -> Any:
        for _ in range(200):
            said = self.fleet.take(0.3)
            if said is not None and holds(said):
                return said
        return pytest.fail(f"never heard {what}; {self.supervisor.log.read_text()}")

    def runs(self, version: int, *, confirmed: bool | None = None) -> Info:
        def holds(said: Message) -> bool:
            fits = isinstance(said, Info) and said.bundle_version == version
            return fits and confirmed in {None, getattr(said, "confirmed", None)}

        return self.until(holds, f"version {version}, confirmed {confirmed}")

    def change(self, command: Update | Rollback) -> requests.Outcome:
        return requests.change(self.fleet, {NAME: (command, command.bundle_sha256)}, patience_s=30)[0]

    def refusal(self, verb: str, payload: bytes) -> str:
        """What the device says to a payload that it must not obey."""
        self._client.publish(topic(NAME, "command", verb), payload, qos=1)
        reply = self.until(lambda said: isinstance(said, Reply) and said.verb == verb and not said.ok, "a refusal")
        return str(reply.detail)

    def close(self) -> None:
        self.supervisor.stop()
        self._client.disconnect()
        self._client.loop_stop()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def update(bundle: Path, version: int, url: str) -> Update:
    return Update(
        device=NAME,
        url=url,
        bundle_name="level",
        bundle_version=version,
        bundle_sha256=digest(bundle),
        size_bytes=bundle.stat().st_size,
    )


@pytest.fixture
def start(
    mosquitto: Any, make_tiny_bundle: Callable[..., Path], keys: Any, operator_keys: Any, tmp_path: Path
) -> Iterator[Callable[..., Installed]]:
    stack: list[Installed | Fleet] = []

    def start(*more: str) -> Installed:
        program = [sys.executable, "-m", "edge.cli"]
        place = ["--name", NAME, "--state-dir", str(tmp_path / "state")]
        keys_of = ["--trust", str(keys.public), "--operator", str(operator_keys.public)]
        subprocess.run(
            [*program, "provision", str(make_tiny_bundle(version=1)), *place, *keys_of], check=True, cwd=ROOT
        )
        sound = tmp_path / "sound.wav"
        soundfile.write(sound, np.zeros(16_000), 16_000)
        command = [*program, "run", *place, "--broker", mosquitto.url, "--microphone", f"file:{sound}?loop", *more]
        fleet = Fleet(BrokerUrl.parse(mosquitto.url), (NAME,), operator=Operator.load(operator_keys.private))
        stack.append(fleet.__enter__())
        stack.append(Installed(Supervisor(command, tmp_path), fleet, mosquitto.url))
        return stack[-1]

    yield start
    for each in reversed(stack):
        each.__exit__() if isinstance(each, Fleet) else each.close()


def test_update_rollback_and_a_version_that_crashes(
    start: Callable[..., Installed], make_tiny_bundle: Callable[..., Path], operator_keys: Any
) -> None:
    device = start("--confirm-after", "1.5")
    first = device.runs(1, confirmed=True)
    assert first.slot == "a"
    one, two, three = (make_tiny_bundle(version=version) for version in (1, 2, 3))

    with BundleServer(two, host="127.0.0.1") as server:
        asked = update(two, 2, server.url)
        outcome = device.change(asked)
    assert (outcome.result, outcome.slot) == ("confirmed", "b"), outcome
    second = device.runs(2, confirmed=True)
    assert second.boot_id != first.boot_id
    assert second.spare is not None
    assert second.spare.version == 1
    # It began again as the same process, and systemd saw no end.
    assert len(device.supervisor.pids) == 1
    notices = device.supervisor.notices()
    assert notices.count("READY=1") == 2
    assert notices.count("WATCHDOG=1") >= 4
    assert set(notices) == {"READY=1", "WATCHDOG=1"}

    operator = Operator.load(operator_keys.private)
    back = Rollback(device=NAME, bundle_sha256=digest(one))
    stranger = Operator.ephemeral()
    assert "Envelope" in device.refusal("rollback", back.to_json())
    assert "for boot" in device.refusal("update", operator.seal("update", asked, first.boot_id).to_json())
    assert "not among those obeyed" in device.refusal(
        "rollback", stranger.seal("rollback", back, second.boot_id).to_json()
    )
    other = back.model_copy(update={"device": "cellar"})
    assert "for device 'cellar'" in device.refusal(
        "rollback", operator.seal("rollback", other, second.boot_id).to_json()
    )
    assert "signed as 'rollback'" in device.refusal("rotate", operator.seal("rollback", back, second.boot_id).to_json())
    # A captured command is worth nothing the second time.
    nonsense = operator.seal("rollback", Rollback(device=NAME, bundle_sha256="0" * 64), second.boot_id).to_json()
    assert "roll back to that one" in device.refusal("rollback", nonsense)
    assert "received before" in device.refusal("rollback", nonsense)

    outcome = device.change(back)
    assert (outcome.result, outcome.slot) == ("confirmed", "a"), outcome
    device.runs(1, confirmed=True)

    with BundleServer(three, host="127.0.0.1") as server:
        device.fleet.link.send("update", update(three, 3, server.url))
        for _ in range(3):
            device.runs(3)
            device.supervisor.kill()
    reverted = device.until(
        lambda said: isinstance(said, UpdateStatus) and said.stage == "reverted", "that it went back"
    )
    assert (reverted.bundle_version, reverted.slot) == (3, "b")
    assert device.runs(1).confirmed
    assert len(device.supervisor.pids) == 4


def test_an_operators_key_is_exchanged_for_good(start: Callable[..., Installed], operator_keys: Any) -> None:
    device = start()
    boot_id = device.runs(1).boot_id
    old, key = Operator.load(operator_keys.private), SigningKey.generate()
    new = Operator(key)
    raw = {"old_key": bytes(old.public_key).hex(), "new_key": bytes(new.public_key).hex()}
    statement = Rotate(device=NAME, role="operator", **raw, signature="0" * 128)
    forged = statement.model_copy(update={"signature": sign(key, statement.signed_bytes()).hex()})
    assert "the old key did not sign it" in device.refusal("rotate", old.seal("rotate", forged, boot_id).to_json())
    signed = statement.model_copy(update={"signature": sign(old._key, statement.signed_bytes()).hex()})
    [outcome] = requests.rotate(device.fleet, {NAME: signed})
    assert outcome.good, outcome
    assert device.until(lambda said: isinstance(said, Info), "info").operators == (new.fingerprint,)
    back = Rollback(device=NAME, bundle_sha256="0" * 64)
    assert "not among those obeyed" in device.refusal("rollback", old.seal("rollback", back, boot_id).to_json())
    assert "slot" in device.refusal("rollback", new.seal("rollback", back, boot_id).to_json())

    device.supervisor.kill()
    again = device.until(lambda said: isinstance(said, Info) and said.boot_id != boot_id, "another boot")
    assert again.operators == (new.fingerprint,)
    device.supervisor.notices()
    device.supervisor.end()
    assert device.supervisor.notices()[-1] == "STOPPING=1"
