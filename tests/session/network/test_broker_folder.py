"""The shipped broker configuration, served by a real mosquitto, against a thief who holds one device's credentials."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest

from edge.errors import UsageError
from edge.messages import Info, State
from edge.mqtt.broker_url import BrokerUrl
from edge.mqtt.client import new_client
from edge.mqtt.link import NO_ANSWER, Link
from rig.deploy.broker.certificates import CLIENT_DAYS, SERVER_DAYS, Pair, new_authority, new_server
from rig.deploy.broker.certificates import new_client as certify

VARIABLES = ("USER", "PASSWORD", "PASSWORD_FILE", "CA_FILE", "CERT_FILE", "KEY_FILE")
QUIET_S = 0.4


class Person:
    """Somebody who is connected, and what they hear."""

    def __init__(self, url: BrokerUrl, client_id: str = "", subscribe: tuple[str, ...] = ()) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.refused = ""
        self.lost = 0
        self._ready = threading.Event()
        self._subscribe = subscribe
        self.client = client = new_client(url, client_id)
        client.on_connect = self._on_connect
        client.on_subscribe = lambda *_: self._ready.set()
        client.on_message = lambda _client, _data, message: self.heard.append((message.topic, message.payload))
        client.on_disconnect = self._on_disconnect
        client.connect(url.host, url.port, keepalive=20)
        client.loop_start()
        assert self._ready.wait(10), self.refused or "no answer"

    def _on_connect(self, client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self.refused = str(reason)
            self._ready.set()
        elif self._subscribe:
            client.subscribe([(name, 1) for name in self._subscribe])
        else:
            self._ready.set()

    def _on_disconnect(self, *_: Any) -> None:
        self.lost += 1

    def say(self, topic: str, payload: bytes = b"x", *, retain: bool = False) -> None:
        self.client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(10)

    def leave(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def person(broker: Any, credentials: Callable[..., None]) -> Iterator[Callable[..., Person]]:
    people: list[Person] = []

    def connect(user: str, client_id: str = "", subscribe: tuple[str, ...] = (), port: int | None = None) -> Person:
        credentials(user)
        url = broker.url(user)
        people.append(Person(url if port is None else url.model_copy(update={"port": port}), client_id, subscribe))
        return people[-1]

    yield connect
    for each in people:
        each.leave()


def test_a_device_says_what_is_its_own_and_the_rig_hears_it(person: Callable[..., Person], wait_until: Any) -> None:
    rig = person("rig", subscribe=("earshot/1/#",))
    kitchen = person("kitchen", subscribe=("earshot/1/kitchen/command/+",))
    for kind in ("state", "info", "prediction", "level", "health", "update", "clock", "reply"):
        kitchen.say(f"earshot/1/kitchen/{kind}")
    wait_until(lambda: len({topic for topic, _ in rig.heard}) >= 8, 5)
    rig.say("earshot/1/kitchen/command/listen", b"command")
    wait_until(lambda: kitchen.heard == [("earshot/1/kitchen/command/listen", b"command")], 5)


def test_a_stolen_device_neither_commands_nor_speaks_for_another(
    person: Callable[..., Person], wait_until: Any
) -> None:
    rig = person("rig", subscribe=("#", "$SYS/#"))
    kitchen = person("kitchen", subscribe=("earshot/1/kitchen/command/+",))
    everything = ("#", "earshot/1/#", "earshot/1/kitchen/command/#", "earshot/1/+/command/+", "earshot/1/kitchen/state",
                  "$share/all/earshot/1/kitchen/command/#", "$SYS/#", "homeassistant/#")  # fmt: skip
    thief = person("hall", subscribe=everything)
    rig.heard.clear()
    kinds = ("state", "info", "prediction", "level", "health", "update", "clock", "reply", "command/listen", "ping")
    for kind in kinds:
        for retain in (False, True):
            thief.say(f"earshot/1/kitchen/{kind}", b"forged", retain=retain)
    for topic in ("earshot/1/hall/command/listen", "earshot/1/hall", "earshot/1/hall/other", "earshot/1/rig/state",
                  "homeassistant/device/earshot-kitchen/config", "homeassistant/status", "earshot/2/a"):  # fmt: skip
        thief.say(topic, b"forged", retain=True)
    rig.say("earshot/1/kitchen/command/acknowledge", b"secret")
    thief.say("earshot/1/hall/state", b"own")
    wait_until(lambda: bool(kitchen.heard) and ("earshot/1/hall/state", b"own") in rig.heard, 5)
    time.sleep(QUIET_S)
    assert kitchen.heard == [("earshot/1/kitchen/command/acknowledge", b"secret")]
    assert not [heard for heard in rig.heard if heard[1] == b"forged"]
    assert not [heard for heard in thief.heard if heard[1] != b"own"]
    late = person("rig", subscribe=("earshot/1/#", "homeassistant/#"))
    time.sleep(QUIET_S)
    assert not [heard for heard in late.heard if heard[1] == b"forged"], "nothing forged may be retained"


@pytest.mark.parametrize("client_id", ["kitchen", "earshot-kitchen", "home-assistant"])
def test_no_device_ends_the_connection_of_another(
    person: Callable[..., Person], wait_until: Any, client_id: str
) -> None:
    kitchen = person("kitchen", client_id="earshot-kitchen", subscribe=("earshot/1/kitchen/command/+",))
    assistant = person("home-assistant", subscribe=("earshot/1/+/state",))
    thief = person("hall", client_id=client_id, subscribe=("earshot/1/hall/command/+",))
    time.sleep(QUIET_S)
    assert kitchen.lost == assistant.lost == thief.lost == 0
    kitchen.say("earshot/1/kitchen/state", b"still here")
    wait_until(lambda: ("earshot/1/kitchen/state", b"still here") in assistant.heard, 5)


def test_a_forged_will_is_not_published(
    broker: Any, person: Callable[..., Person], credentials: Callable[..., None]
) -> None:
    rig = person("rig", subscribe=("earshot/1/kitchen/state",))
    rig.heard.clear()
    credentials("hall")
    client = new_client(broker.url("hall"), "hall")
    client.will_set("earshot/1/kitchen/state", b"forged will", qos=1, retain=True)
    client.connect("127.0.0.1", broker.device_port)
    client.loop_start()
    time.sleep(QUIET_S)
    connection = client.socket()
    if connection is not None:
        # The line breaks: what a will is for.
        connection.shutdown(socket.SHUT_RDWR)
    time.sleep(QUIET_S)
    client.disconnect()
    client.loop_stop()
    assert not [heard for heard in rig.heard if heard[1] == b"forged will"]


def test_home_assistant_reads_and_never_commands(person: Callable[..., Person], wait_until: Any) -> None:
    assistant = person("home-assistant", subscribe=("#",))
    kitchen = person("kitchen", subscribe=("earshot/1/kitchen/command/+",))
    kitchen.say("homeassistant/device/earshot-kitchen/config", b"{}")
    kitchen.say("earshot/1/kitchen/reply", b"not for you")
    kitchen.say("earshot/1/kitchen/level", b"level")
    assistant.say("earshot/1/kitchen/command/listen")
    assistant.say("earshot/1/kitchen/state", b"forged")
    wait_until(lambda: len(assistant.heard) >= 2, 5)
    time.sleep(QUIET_S)
    heard = {heard for heard in assistant.heard if heard[1] in {b"{}", b"not for you", b"level", b"forged"}}
    assert heard == {("homeassistant/device/earshot-kitchen/config", b"{}"), ("earshot/1/kitchen/level", b"level")}
    assert kitchen.heard == []


def problem(url: BrokerUrl, wait_until: Any) -> str:
    """What a device's link says when it cannot connect."""
    link = Link(url, "kitchen", "boot", on_command=lambda *_: None, on_ready=lambda: None)
    try:
        link.start()
        wait_until(lambda: link.connected or link.problem != NO_ANSWER, 10)
        assert not link.connected, "the broker let it in"
        return link.problem
    finally:
        link.stop()


def pair_files(folder: Path, pair: Pair) -> dict[str, str]:
    (folder / "c.crt").write_bytes(pair.certificate)
    key = folder / "c.key"
    key.touch(0o600)
    key.write_bytes(pair.key)
    return {"CERT_FILE": str(folder / "c.crt"), "KEY_FILE": str(key)}


def test_every_way_to_be_refused_is_one_line(
    broker: Any, credentials: Callable[..., None], tmp_path: Path, wait_until: Any
) -> None:
    url, now = broker.url("kitchen"), dt.datetime.now(dt.UTC)
    foreign = new_authority(now)
    (tmp_path / "foreign.crt").write_bytes(foreign.certificate)
    authority = Pair((broker.out / "authority/ca.crt").read_bytes(), (broker.out / "authority/ca.key").read_bytes())
    expired = pair_files(tmp_path, certify(authority, "kitchen", now - dt.timedelta(days=CLIENT_DAYS + 1)))

    credentials("kitchen", CA_FILE=str(tmp_path / "foreign.crt"))
    assert "signed by nobody trusted here: check EARSHOT_MQTT_CA_FILE" in problem(url, wait_until)
    credentials("kitchen", CERT_FILE=None, KEY_FILE=None)
    assert "the broker wants a client certificate" in problem(url, wait_until)
    credentials("kitchen", **expired)
    assert "this client's certificate has expired" in problem(url, wait_until)
    credentials("kitchen", **pair_files(tmp_path, certify(foreign, "kitchen", now)))
    assert "EARSHOT_MQTT_CERT_FILE" in problem(url, wait_until)
    credentials("kitchen", PASSWORD="wrong")
    assert problem(url, wait_until) == "refused: Not authorized: check user 'kitchen' and its password"
    credentials("kitchen", USER=None)
    assert problem(url, wait_until).endswith("a user is missing")
    credentials("hall", USER="kitchen")
    assert "check user 'kitchen'" in problem(url, wait_until)
    credentials("kitchen")
    assert problem(broker.url("rig"), wait_until).startswith("refused"), "a device does not enter by the rig's door"
    credentials("rig")
    assert problem(url, wait_until).startswith("refused")
    credentials("kitchen")
    other_name = broker.url("kitchen", host="127.0.0.2")
    assert "the broker's certificate is for another name" in problem(other_name, wait_until)
    plain = url.model_copy(update={"scheme": "mqtt"})
    assert problem(plain, wait_until)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
    assert "nobody listens there" in problem(url.model_copy(update={"port": port}), wait_until)


def test_an_old_protocol_and_a_broker_without_tls_are_refused(
    broker: Any, credentials: Callable[..., None], mosquitto: Any, wait_until: Any
) -> None:
    credentials("kitchen")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore"):
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", broker.device_port)) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain)
    without = BrokerUrl(scheme="mqtts", host="127.0.0.1", port=mosquitto.port)
    assert problem(without, wait_until)


def test_a_broker_whose_certificate_expired_is_named(
    broker: Any, credentials: Callable[..., None], tmp_path: Path, mosquitto_program: str, wait_until: Any
) -> None:
    authority = Pair((broker.out / "authority/ca.crt").read_bytes(), (broker.out / "authority/ca.key").read_bytes())
    # The authority is younger than this certificate: only its end counts.
    past = dt.datetime.now(dt.UTC) - dt.timedelta(days=SERVER_DAYS + 1)
    files = pair_files(tmp_path, new_server(authority, ["127.0.0.1"], past))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files["CERT_FILE"], files["KEY_FILE"])
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                    context.wrap_socket(connection, server_side=True)
                except ssl.SSLError:
                    continue
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        credentials("kitchen")
        url = BrokerUrl(scheme="mqtts", host="127.0.0.1", port=listener.getsockname()[1])
        said = problem(url, wait_until)
        listener.close()
    assert "the broker's certificate has expired" in said


def test_files_that_cannot_be_used_are_named(broker: Any, credentials: Callable[..., None], tmp_path: Path) -> None:
    url, own = broker.url("kitchen"), broker.folder("kitchen")
    loose = tmp_path / "loose.key"
    shutil.copy(own / "client.key", loose)
    loose.chmod(0o644)
    other = broker.folder("hall") / "client.key"
    (tmp_path / "text").write_text("no key")
    (tmp_path / "text").chmod(0o600)
    for given, said in (
        ({"KEY_FILE": str(loose)}, "chmod 600"),
        ({"KEY_FILE": str(tmp_path / "absent")}, "No such file"),
        ({"KEY_FILE": str(other)}, "not a certificate and its unencrypted private key"),
        ({"KEY_FILE": str(tmp_path / "text")}, "not a certificate and its"),
        ({"KEY_FILE": None}, "EARSHOT_MQTT_KEY_FILE is not"),
        ({"CERT_FILE": None}, "EARSHOT_MQTT_CERT_FILE is not"),
        ({"CERT_FILE": str(tmp_path / "absent")}, "no such file"),
        ({"CA_FILE": str(tmp_path / "text")}, "not a PEM file"),
    ):
        credentials("kitchen", **given)
        with pytest.raises(UsageError) as caught:
            new_client(url)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
    loose.chmod(0o640)
    credentials("kitchen", KEY_FILE=str(loose))
    new_client(url)


def test_a_device_process_and_the_rig_meet_there(
    broker: Any, credentials: Callable[..., None], tiny_bundle: Any, tmp_path: Path
) -> None:
    import queue

    import numpy as np
    import soundfile

    from rig.devices.events import Event, Received
    from rig.devices.link import Link as RigLink

    soundfile.write(tmp_path / "a.wav", np.zeros(16_000, np.int16), 16_000)
    credentials("kitchen")
    command = [sys.executable, "-m", "edge.cli", "run", "--name", "kitchen", "--bundle", str(tiny_bundle.path)]
    command += ["--trust", str(tiny_bundle.key), "--broker", str(broker.url("kitchen", "localhost"))]
    command += ["--microphone", f"file:{tmp_path / 'a.wav'}?loop", "--state-dir", str(tmp_path / "state")]
    with (tmp_path / "log").open("wb") as log:
        device = subprocess.Popen(command, stdout=log, stderr=log)
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    try:
        credentials("rig")
        seen: dict[type, Any] = {}
        with RigLink(broker.url("rig", "localhost"), ["kitchen"], events):
            deadline_s = time.monotonic() + 30
            while time.monotonic() < deadline_s and not {State, Info} <= set(seen):
                event = events.get(timeout=30)
                if isinstance(event, Received):
                    seen[type(event.report)] = event.report
        assert seen[State].status == "online", (tmp_path / "log").read_text()
        assert seen[Info].device == "kitchen"
    finally:
        device.terminate()
        assert device.wait(10) == 0, (tmp_path / "log").read_text()


def test_the_station_file_lets_the_rig_in(broker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(f"EARSHOT_MQTT_{name}", raising=False)
    command = [
        sys.executable,
        "-m",
        "rig.cli.main",
        "device",
        "list",
        "--station",
        str(broker.out / "rig/station.toml"),
    ]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "devices" in json.loads(done.stdout)


def test_a_removed_device_is_out_and_the_others_notice_nothing(
    configured: Any, broker: Any, person: Callable[..., Person], credentials: Callable[..., None], wait_until: Any
) -> None:
    hall = person("hall")
    before = {name: (broker.folder(name) / "password").read_text() for name in ("rig", "hall", "kitchen")}
    authority = (broker.out / "authority/ca.key").read_bytes()
    lines = (broker.out / "broker/passwords-devices").read_text().splitlines()
    assert "attic" in configured(broker.out, "--device", "attic")["devices"]
    broker.reload()
    attic = person("attic", subscribe=("earshot/1/attic/command/+",))
    attic.say("earshot/1/attic/state")
    assert set(lines) < set((broker.out / "broker/passwords-devices").read_text().splitlines())
    stolen = broker.out.parent / "stolen"
    shutil.copytree(broker.folder("attic"), stolen)
    configured(broker.out, "--remove", "attic")
    broker.reload()
    credentials("kitchen")
    credentials("kitchen", USER="attic", PASSWORD_FILE=str(stolen / "password"), CERT_FILE=str(stolen / "client.crt"),
                KEY_FILE=str(stolen / "client.key"))  # fmt: skip
    assert problem(broker.url("kitchen"), wait_until).startswith("refused")
    assert before == {name: (broker.folder(name) / "password").read_text() for name in before}
    assert authority == (broker.out / "authority/ca.key").read_bytes()
    assert hall.lost == 0
