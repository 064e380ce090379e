"""A device that listens without being asked, in its own process: at speed, for a long time, to every window."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt
import pytest

from edge.messages import Health, Prediction, parse
from edge.mqtt.broker_url import BrokerUrl
from edge.mqtt.client import new_client
from edge.sound.audio_stream import AudioHeader

ROOT = Path(__file__).resolve().parents[2]
RATE_HZ, WINDOW, HOP = 16_000, 320, 160
# A word stands for so many hops.
STANDS = 20


class Follower:
    """A client of the broker that counts the predictions of a device and reads those that fired."""

    def __init__(self, url: str) -> None:
        self.count = 0
        self.others = 0
        self.fired: list[Prediction] = []
        self.last = b""
        self.health: Health | None = None
        broker = BrokerUrl.parse(url)
        self._client = client = new_client(broker)
        client.on_message = self._hear
        client.connect(broker.host, broker.port)
        client.subscribe([("earshot/1/+/prediction", 1), ("earshot/1/+/health", 0)])
        client.loop_start()

    def _hear(self, client: Any, data: Any, message: mqtt.MQTTMessage) -> None:
        if message.topic.endswith("/health"):
            self.health = parse(Health, message.payload)
            return
        if message.qos:
            self.fired.append(parse(Prediction, message.payload))
        else:
            self.count += 1
            self.last = message.payload

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def follower(mosquitto: Any) -> Iterator[Follower]:
    follower = Follower(mosquitto.url)
    yield follower
    follower.close()


@pytest.fixture
def start(mosquitto: Any, make_tiny_bundle: Callable[..., Path], keys: Any, tmp_path: Path) -> Iterator[Any]:
    processes: list[subprocess.Popen[bytes]] = []
    bundle = make_tiny_bundle(window=WINDOW)

    def start(microphone: str, *more: str) -> tuple[subprocess.Popen[bytes], Path]:
        log = tmp_path / "device.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "edge.cli", "run", "--name", "ear", "--bundle", bundle, "--trust", keys.public,
                 "--broker", mosquitto.url, "--microphone", microphone, "--state-dir", tmp_path / "state",
                 "--exit-on-stdin-eof", *more],
                stdin=subprocess.PIPE, stdout=output, stderr=output, cwd=ROOT,
            )  # fmt: skip
        processes.append(process)
        return process, log

    yield start
    for process in processes:
        process.kill()
        process.wait()


def _resident_kib(process: subprocess.Popen[bytes]) -> int:
    return int(Path(f"/proc/{process.pid}/status").read_text().split("VmRSS:")[1].split()[0])


class Player:
    """A rig that plays so many hops at once; TCP holds it back."""

    def __init__(self, hops: int, every: int, wait_for: Callable[[], bool]) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.settimeout(30)
        self.problem: OSError | None = None
        self._hops, self._every = hops, every
        self._wait_for = wait_for
        self._thread = threading.Thread(target=self._play, daemon=True)
        self._thread.start()

    @property
    def microphone(self) -> str:
        return f"socket:127.0.0.1:{self.server.getsockname()[1]}"

    def _play(self) -> None:
        rng = np.random.default_rng(0)
        period = rng.integers(-300, 300, self._every * HOP).astype("<i2")
        period[-STANDS * HOP :] = rng.integers(-32_768, 32_767, STANDS * HOP)
        try:
            connection, _ = self.server.accept()
            with connection:
                connection.sendall(AudioHeader(rate_hz=RATE_HZ, stream_id="s").to_line())
                while not self._wait_for():
                    time.sleep(0.01)
                samples = (self._hops - 1) * HOP + WINDOW
                for start in range(0, samples, len(period)):
                    connection.sendall(period[: samples - start].tobytes())
                # Not closed before it is heard: the next connection would be another stream.
                self.server.settimeout(None)
                connection.recv(1)
        except OSError as problem:
            self.problem = problem


# A short run ends before the heap has its final size, so it tells large leaks only.
@pytest.mark.parametrize(
    ("hops", "growth_limit_kib"),
    [(40_000, 4096), pytest.param(1_000_000, 2048, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])],
)
def test_every_hop_is_heard_in_flat_memory(
    hops: int, growth_limit_kib: int, start: Any, follower: Follower, mosquitto: Any, wait_until: Callable[..., None]
) -> None:
    # Nobody acknowledges here, and what is kept takes memory of its own, up to the outbox's bound: a few words suffice.
    every = max(1000, hops // 50)
    connected = threading.Event()
    player = Player(hops, every, connected.is_set)
    process, log = start(
        player.microphone,
        "--hop",
        "10",
        "--smoothing",
        "40",
        "--threshold",
        "0.6",
        "--release",
        "0.5",
        "--refractory",
        "500",
    )
    wait_until(lambda: "connected to" in log.read_text(), 30, log.read_text)
    start_s = time.monotonic()
    connected.set()
    resident_kib: list[tuple[int, int]] = []

    def all_heard() -> bool:
        assert player.problem is None, player.problem
        resident_kib.append((follower.count, _resident_kib(process)))
        return follower.count + len({each.seq for each in follower.fired}) >= hops

    wait_until(all_heard, hops / 200 + 60, lambda: f"{follower.count} of {hops} heard\n{log.read_text()}")
    took_s = time.monotonic() - start_s
    assert process.poll() is None
    words = {each.seq: each for each in follower.fired}
    assert follower.count + len(words) == hops
    last = parse(Prediction, follower.last)
    assert max(last.seq, *words) == hops - 1
    # Each word fires once, a few hops after its begin.
    assert [each.seq // every for each in words.values()] == list(range(hops // every))
    assert {each.trigger for each in words.values()} == {"loud"}
    assert all(0 <= each.seq % every - (every - STANDS) <= 5 for each in words.values())
    # Memory that is taken once is taken: streams have wrapped, kept words were repeated.
    warm = max(20_000, hops // 10)
    settled = [kib for count, kib in resident_kib if count >= warm]
    growth_kib = max(settled) - settled[0]
    print(
        f"\n{hops} hops in {took_s:.1f} s ({hops / took_s:.0f} a second): {settled[0]} KiB after {warm} hops, "
        f"{max(settled)} KiB at most after it, {settled[-1]} KiB at the end"
    )
    assert growth_kib <= growth_limit_kib, json.dumps(resident_kib[:: max(1, len(resident_kib) // 50)])
