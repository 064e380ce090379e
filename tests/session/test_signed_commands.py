"""Whose commands are obeyed between a real rig, a real broker and a real device process."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from edge.bundle.signing import fingerprint, load_public_key
from edge.errors import UnavailableError, UsageError
from edge.messages import Acknowledge, Envelope, Health, Info, Prediction, Reply, Rollback, State, Update, parse, topic
from edge.mqtt.broker_url import BrokerUrl
from edge.mqtt.client import new_client
from rig.devices.events import Events, Received
from rig.devices.link import REPORTS, Link
from rig.devices.operator import Operator

ROOT = Path(__file__).resolve().parents[2]
NAME = "kitchen"


@pytest.fixture
def start(mosquitto: Any, tiny_bundle: Any, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    sound = tmp_path / "sound.wav"
    soundfile.write(sound, np.random.default_rng(0).uniform(-0.3, 0.3, 16_000), 16_000)
    processes: list[subprocess.Popen[bytes]] = []

    def start(*more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "edge.cli", "run", "--name", NAME, "--bundle", str(tiny_bundle.path)]
        command += ["--trust", str(tiny_bundle.key), "--broker", mosquitto.url, "--state-dir", str(tmp_path / "state")]
        command += ["--microphone", f"file:{sound}?loop", "--exit-on-stdin-eof", *more]
        with (tmp_path / "device.log").open("ab") as log:
            processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log, cwd=ROOT))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


class Rig:
    """A link and what came over it."""

    def __init__(self, url: str, operator: Operator | None) -> None:
        self.events: Events = queue.SimpleQueue()
        self.link = Link(BrokerUrl.parse(url), (NAME,), self.events, operator=operator, reports=tuple(REPORTS))

    def until(self, kind: type, holds: Callable[[Any], bool] = lambda _: True, timeout_s: float = 20) -> Any:
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            try:
                event = self.events.get(timeout=0.2)
            except queue.Empty:
                continue
            if isinstance(event, Received) and isinstance(event.report, kind) and holds(event.report):
                return event.report
        return pytest.fail(f"no {kind.__name__} in time")


@pytest.fixture
def connect(mosquitto: Any) -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def connect(operator: Operator | None) -> Rig:
        rigs.append(Rig(mosquitto.url, operator))
        rigs[-1].link.__enter__()
        return rigs[-1]

    yield connect
    for rig in rigs:
        rig.link.__exit__()


def nothing(boot_id: str = "b") -> Acknowledge:
    return Acknowledge(device=NAME, boot_id=boot_id, seqs=(1,))


def test_clocks_are_compared_over_the_broker(
    start: Callable[..., Any], connect: Callable[..., Rig], operator_keys: Any
) -> None:
    start("--operator", str(operator_keys.public))
    rig = connect(Operator.load(operator_keys.private))
    info = rig.until(Info)
    assert info.operators == (fingerprint(load_public_key(operator_keys.public)),)
    found = rig.link.measure_clock(NAME)
    # Device and rig share this machine's clocks, so the truth is zero.
    assert found.round_trips == 16
    assert found.boot_id == info.boot_id
    assert abs(found.monotonic_ns) <= found.uncertainty_ns
    assert abs(found.utc_ns) <= found.uncertainty_ns + 1_000_000
    assert found.uncertainty_ns < 50_000_000
    assert rig.link.measure_clock(NAME, round_trips=1).round_trips == 1
    with pytest.raises(UnavailableError, match="device cellar: is not online"):
        rig.link.measure_clock("cellar")

    stranger = connect(Operator.ephemeral())
    stranger.until(Info)
    with pytest.raises(UnavailableError, match="3 echoes and no answer: is it online, and obeys this operator"):
        stranger.link.measure_clock(NAME)
    # Each echo of the stranger was counted.
    assert rig.until(Health, lambda health: health.rejected_commands >= 3).rejected_commands == 3


def test_a_device_without_operators_listens_and_obeys_nobody(
    start: Callable[..., Any], connect: Callable[..., Rig], operator_keys: Any
) -> None:
    start()
    rig = connect(Operator.load(operator_keys.private))
    assert rig.until(Info).operators == ()
    assert rig.until(Prediction).trial_id is None
    rig.link.send("acknowledge", nothing())
    reply = rig.until(Reply)
    assert not reply.ok
    assert "obeys nobody: start it with --operator KEY.pub" in reply.detail


def test_a_device_that_runs_a_file_is_not_updated(
    start: Callable[..., Any], connect: Callable[..., Rig], operator_keys: Any
) -> None:
    start("--operator", str(operator_keys.public))
    rig = connect(Operator.load(operator_keys.private))
    rig.until(Info)
    digest = "0" * 64
    update = Update(
        device=NAME, url="http://rig/b", bundle_name="level", bundle_version=2, bundle_sha256=digest, size_bytes=9
    )
    for verb, command in (("update", update), ("rollback", Rollback(device=NAME, bundle_sha256=digest))):
        rig.link.send(verb, command)
        reply = rig.until(Reply)
        assert (reply.verb, reply.ok) == (verb, False)
        assert "this device runs a file given with --bundle and has no slots" in reply.detail


def test_commands_wait_for_a_boot_and_are_signed_for_it(
    connect: Callable[..., Rig], mosquitto: Any, wait_until: Callable[..., None]
) -> None:
    """The device is this test: it sees what the rig signs, and for which boot."""
    heard: queue.SimpleQueue[Envelope] = queue.SimpleQueue()
    broker = BrokerUrl.parse(mosquitto.url)
    device = new_client(broker)
    device.on_message = lambda _c, _d, message: heard.put(parse(Envelope, bytes(message.payload)))
    device.on_connect = lambda client, *_: client.subscribe(topic(NAME, "command", "+"), qos=1)
    device.reconnect_delay_set(1, 1)
    device.connect(broker.host, broker.port)
    device.loop_start()

    def announce(boot_id: str, status: str = "online") -> None:
        state = State.model_validate({"device": NAME, "boot_id": boot_id, "status": status})
        device.publish(topic(NAME, "state"), state.to_json(), qos=1, retain=True).wait_for_publish(15)

    try:
        rig = connect(Operator.ephemeral())
        for number in range(3):
            rig.link.send("acknowledge", nothing(f"boot-{number}"))
        time.sleep(0.3)
        assert heard.empty()
        assert rig.link.boot_id(NAME) is None
        announce("one")
        early = [heard.get(timeout=5) for _ in range(3)]
        assert [json.loads(each.body)["boot_id"] for each in early] == ["boot-0", "boot-1", "boot-2"]
        announce("one", "lost")
        rig.until(State, lambda state: state.status == "lost")
        rig.link.send("acknowledge", nothing())
        announce("two")
        late = heard.get(timeout=5)
        # A will that comes late changes nothing.
        announce("one", "lost")
        announce("one", "stopped")
        rig.until(State, lambda state: state.status == "stopped")
        assert rig.link.boot_id(NAME) == "two"
        envelopes = [*early, late]
        assert [each.boot_id for each in envelopes] == ["one", "one", "one", "two"]
        counters = [each.counter for each in envelopes]
        assert counters == sorted(set(counters))

        # While the broker is away the device begins again: what was not sent yet is signed for the new boot.
        mosquitto.kill()
        wait_until(lambda: rig.link.boot_id(NAME) is None, 10)
        rig.link.send("acknowledge", nothing("kept"))
        mosquitto.start()
        wait_until(device.is_connected, 10)
        announce("three")
        envelope = heard.get(timeout=15)
        assert (envelope.boot_id, json.loads(envelope.body)["boot_id"]) == ("three", "kept")
    finally:
        device.disconnect()
        device.loop_stop()


def test_without_a_key_nothing_is_sent(connect: Callable[..., Rig]) -> None:
    rig = connect(None)
    with pytest.raises(UsageError, match=r"no key signs the command: give --operator KEY\.pem"):
        rig.link.send("acknowledge", nothing())
    with pytest.raises(UsageError, match="no key signs the command"):
        rig.link.measure_clock(NAME)
    full = connect(Operator.ephemeral())
    for _ in range(1000):
        full.link.send("acknowledge", nothing())
    with pytest.raises(UnavailableError, match="device kitchen: 1000 commands wait for it already"):
        full.link.send("acknowledge", nothing())
