"""What the tests of the network share: the shipped broker configuration, served by a real mosquitto."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.mqtt.broker_url import BrokerUrl

VARIABLES = ("USER", "PASSWORD", "PASSWORD_FILE", "CA_FILE", "CERT_FILE", "KEY_FILE")


def configured(out: Path, *arguments: str) -> dict[str, Any]:
    """Run the command as a user does."""
    command = [sys.executable, "-m", "rig.cli.main", "broker", "config", "--out", str(out), *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Broker:
    """A real mosquitto started from a folder that the command wrote."""

    def __init__(self, program: str, out: Path, *hosts: str) -> None:
        self.out = out
        self.device_port, self.rig_port = _free_port(), _free_port()
        ports = ["--device-port", str(self.device_port), "--rig-port", str(self.rig_port)]
        self.run_as = ["--run-as", "root"] if os.geteuid() == 0 else []
        devices = ["--device", "kitchen", "--device", "hall", "--home-assistant"]
        names = [word for host in ("localhost", "127.0.0.1", *hosts) for word in ("--host", host)]
        configured(out, *devices, *ports, *self.run_as, *names)
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.out / "log").open("ab") as log:
            command = [self._program, "-c", str(self.out / "mosquitto.conf")]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline_s = time.monotonic() + 10
        for port in (self.device_port, self.rig_port):
            while socket.socket().connect_ex(("127.0.0.1", port)) != 0:
                assert self._process.poll() is None, self.log()
                assert time.monotonic() < deadline_s, self.log()
                time.sleep(0.02)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def reload(self) -> None:
        assert self._process is not None
        self._process.send_signal(1)
        time.sleep(0.3)

    def log(self) -> str:
        return (self.out / "log").read_text()

    def folder(self, user: str) -> Path:
        return self.out / (user if user in {"rig", "home-assistant"} else f"devices/{user}")

    def environment(self, user: str) -> dict[str, str]:
        """What stands in a user's ``earshot.env``."""
        lines = (self.folder(user) / "earshot.env").read_text().split()
        return dict(line.partition("=")[::2] for line in lines)

    def url(self, user: str, host: str = "127.0.0.1") -> BrokerUrl:
        port = self.rig_port if user == "rig" else self.device_port
        return BrokerUrl(scheme="mqtts", host=host, port=port)


@pytest.fixture(scope="module")
def broker(mosquitto_program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    made = Broker(mosquitto_program, tmp_path_factory.mktemp("broker"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def credentials(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Takes the environment from a user's ``earshot.env``, as a service does; other values stand in for it."""

    def take(user: str, **others: str | None) -> None:
        for name in VARIABLES:
            monkeypatch.delenv(f"EARSHOT_MQTT_{name}", raising=False)
        given: dict[str, str | None] = {**broker.environment(user)}
        given |= {f"EARSHOT_MQTT_{name}": value for name, value in others.items()}
        for name, value in given.items():
            if value is not None:
                monkeypatch.setenv(name, value)

    return take


@pytest.fixture(name="configured")
def _configured() -> Callable[..., dict[str, Any]]:
    return configured


@pytest.fixture
def make_broker(mosquitto_program: str, tmp_path: Path) -> Iterator[Callable[..., Broker]]:
    """Makes brokers that are not running yet; the arguments are more names of the machine."""
    brokers: list[Broker] = []

    def make(*hosts: str) -> Broker:
        brokers.append(Broker(mosquitto_program, tmp_path / f"broker{len(brokers)}", *hosts))
        return brokers[-1]

    yield make
    for broker in brokers:
        broker.stop()
