"""paho over a socket that reads ahead, and the command that follows devices, at a real broker."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from edge.mqtt.broker_url import BrokerUrl
from edge.mqtt.client import new_client
from rig.devices.receiving import BufferedSocket, ReceivingClient


@pytest.fixture(params=["plain", "tls"])
def url(request: Any, mosquitto: Any, make_broker: Callable[..., Any], monkeypatch: Any) -> BrokerUrl:
    if request.param == "plain":
        return BrokerUrl.parse(mosquitto.url)
    broker = make_broker()
    broker.start()
    for name, value in broker.environment("kitchen").items():
        monkeypatch.setenv(name, value)
    return broker.url("kitchen")


def test_it_hears_everything_in_order_and_answers_the_broker(url: BrokerUrl, wait_until: Any) -> None:
    heard: list[bytes] = []
    ready = threading.Event()
    client = new_client(url, "reader", kind=ReceivingClient)
    client.on_connect = lambda *_: client.subscribe("earshot/1/kitchen/ping", qos=1)
    client.on_subscribe = lambda *_: ready.set()
    client.on_message = lambda _client, _data, message: heard.append(message.payload)
    client.connect(url.host, url.port)
    client.loop_start()
    assert ready.wait(10)
    assert isinstance(client.socket(), BufferedSocket), "this paho makes its socket elsewhere"
    payloads = [bytes([number % 251]) * size for number, size in enumerate([1, 10, 200, 70_000, 3] * 40)]
    payloads.append(os.urandom(1_000_000))
    # It publishes to itself: replies, its own publications and their acknowledgements share the buffer.
    publications = [client.publish("earshot/1/kitchen/ping", payload, qos=1) for payload in payloads]
    wait_until(lambda: len(heard) >= len(payloads), 30, lambda: f"{len(heard)} of {len(payloads)}")
    assert heard == payloads
    wait_until(lambda: all(each.is_published() for each in publications), 10)
    client.disconnect()
    client.loop_stop()


def test_it_says_goodbye(mosquitto: Any, wait_until: Any) -> None:
    url = BrokerUrl.parse(mosquitto.url)
    wills: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    witness = mqtt.Client(CallbackAPIVersion.VERSION2)
    ready = threading.Event()
    witness.on_subscribe = lambda *_: ready.set()
    witness.on_message = lambda _client, _data, message: wills.put(message.payload)
    witness.connect(url.host, url.port)
    witness.loop_start()
    witness.subscribe("will/#", 1)
    assert ready.wait(10)
    for name in ("polite", "rude"):
        client = new_client(url, name, kind=ReceivingClient)
        client.will_set(f"will/{name}", name.encode(), qos=1)
        client.connect(url.host, url.port)
        client.loop_start()
        wait_until(client.is_connected, 10)
        if name == "polite":
            client.disconnect()
        else:
            client._sock._connection.close()
        client.loop_stop()
    assert wills.get(timeout=10) == b"rude"
    time.sleep(0.2)
    assert wills.empty()
    witness.disconnect()
    witness.loop_stop()


def test_the_command_follows_a_device(
    make_broker: Callable[..., Any], tiny_bundle: Any, keys: Any, tmp_path: Path
) -> None:
    import numpy as np
    import soundfile

    broker = make_broker()
    broker.start()
    noise = np.random.default_rng(0).normal(0, 3000, 16_000).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", np.concatenate([noise * 0, noise, noise * 0, noise]), 16_000)
    command = [sys.executable, "-m", "edge.cli", "run", "--name", "kitchen", "--bundle", str(tiny_bundle.path)]
    command += ["--trust", str(tiny_bundle.key), "--operator", str(keys.public)]
    command += ["--broker", str(broker.url("kitchen")), "--microphone", f"file:{tmp_path / 'a.wav'}?loop"]
    command += ["--hop", "50", "--keep", "all", "--state-dir", str(tmp_path / "state")]
    with (tmp_path / "log").open("wb") as log:
        device = subprocess.Popen(command, stderr=log, env={**os.environ, **broker.environment("kitchen")})
    try:
        rig = [sys.executable, "-m", "rig.cli.main", "device", "follow", "--out", str(tmp_path / "f.sqlite")]
        rig += ["--broker", str(broker.url("rig")), "--operator", str(keys.private), "--seconds", "2.5", "--json"]
        environment = {**os.environ, **broker.environment("rig")}
        told = []
        for _ in range(2):
            done = subprocess.run(rig, capture_output=True, text=True, timeout=60, check=False, env=environment)
            assert done.returncode == 0, done.stderr + (tmp_path / "log").read_text()
            told.append(json.loads(done.stdout))
        assert told[0]["new"] > 2, (tmp_path / "log").read_text()
        assert told[1]["kept"] == told[0]["kept"] + told[1]["new"]
    finally:
        device.terminate()
        assert device.wait(10) == 0
