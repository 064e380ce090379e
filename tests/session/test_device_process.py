"""A device in its own process, a real broker, and the sound socket of a rig: what must hold between them."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt
import pytest
import soundfile

from edge.messages import (
    Acknowledge,
    Envelope,
    Health,
    Info,
    Level,
    Listen,
    Message,
    Prediction,
    Reply,
    State,
    parse,
    topic,
)
from edge.mqtt.broker_url import BrokerUrl
from edge.mqtt.client import new_client
from edge.sound.audio_stream import AudioHeader
from rig.devices.operator import Operator

ROOT = Path(__file__).resolve().parents[2]
NAME = "bench"
KINDS: dict[str, type[Message]] = {
    "state": State, "info": Info, "prediction": Prediction, "level": Level, "reply": Reply, "health": Health,
}  # fmt: skip
FORBIDDEN = ("torch", "onnx", "onnxscript", "scipy", "pyroomacoustics", "rig", "export", "firmware_models")
# Runs the command and, when it ends, writes down what the process had loaded.
RUNNER = """
import atexit, json, sys
target = sys.argv.pop(1)
atexit.register(lambda: open(target, "w").write(json.dumps(sorted(sys.modules))))
from edge.cli import main
main()
"""
LOUD = np.random.default_rng(1).integers(-9000, 9000, 16_000).astype(np.int16)
QUIET = LOUD // 100


class Rig:
    """What a rig is to a device: a sound socket, and a client of the broker that remembers every message."""

    def __init__(self, url: str, operator: Operator, wait_until: Callable[..., None]) -> None:
        self._wait_until = wait_until
        self.operator = operator
        self.boot_id = "unknown"
        self.heard: list[Message] = []
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.settimeout(20)
        self.connection: socket.socket | None = None
        self.stream_id = ""
        self.sent = 0
        broker = BrokerUrl.parse(url)
        client = self._client = new_client(broker)
        client.reconnect_delay_set(1, 1)
        client.on_connect = lambda c, *_: c.subscribe(f"earshot/1/{NAME}/+", qos=1)
        client.on_message = self._on_message
        client.connect(broker.host, broker.port)
        client.loop_start()

    def _on_message(self, client: Any, data: Any, message: mqtt.MQTTMessage) -> None:
        said = parse(KINDS[message.topic.rsplit("/", 1)[-1]], bytes(message.payload))
        if isinstance(said, State) and said.status == "online":
            self.boot_id = said.boot_id
        self.heard.append(said)

    @property
    def microphone(self) -> str:
        return f"socket:127.0.0.1:{self.server.getsockname()[1]}"

    def accept(self, stream_id: str, *, rate_hz: int = 16_000) -> None:
        if self.connection is not None:
            self.connection.close()
        self.connection, _ = self.server.accept()
        self.stream_id, self.sent = stream_id, 0
        self.connection.sendall(AudioHeader(rate_hz=rate_hz, stream_id=stream_id).to_line())

    def meet(self, stream_id: str) -> None:
        self.accept(stream_id)
        self.wait_online()

    def play(self, pcm: np.ndarray) -> int:
        """Send samples; returns the index of the first."""
        assert self.connection is not None
        first = self.sent
        self.connection.sendall(pcm.astype("<i2").tobytes())
        self.sent += len(pcm)
        return first

    def publish(self, verb: str, payload: bytes, **options: Any) -> None:
        self._client.publish(topic(NAME, "command", verb), payload, qos=1, **options)

    def seal(self, verb: str, command: Message) -> Envelope:
        return self.operator.seal(verb, command, self.boot_id)

    def command(self, verb: str, command: Message) -> None:
        self.publish(verb, self.seal(verb, command).to_json())

    def listen(self, trial_id: str, index: int, **changes: Any) -> None:
        values = {"stream_id": self.stream_id, "attempt": 0, "session_id": "s", **changes}
        self.command("listen", Listen(device=NAME, trial_id=trial_id, sample_index=index, **values))

    def acknowledge(self, *predictions: Prediction) -> None:
        for prediction in predictions:
            self.command("acknowledge", Acknowledge(device=NAME, boot_id=prediction.boot_id, seqs=(prediction.seq,)))

    def all(self, kind: type[Message]) -> list[Any]:
        return [message for message in list(self.heard) if isinstance(message, kind)]

    def predictions(self, trial_id: str) -> list[Prediction]:
        return [each for each in self.all(Prediction) if each.trial_id == trial_id]

    def replies(self, trial_id: str | None) -> list[Reply]:
        return [each for each in self.all(Reply) if each.trial_id == trial_id]

    def wait(self, holds: Callable[[], Any], timeout_s: float = 15) -> None:
        self._wait_until(lambda: bool(holds()), timeout_s, lambda: f"never came; heard {self.heard}")

    def wait_online(self) -> None:
        self.wait(lambda: [each for each in self.all(State) if each.status == "online"], 30)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        self.server.close()
        if self.connection is not None:
            self.connection.close()


class Device:
    """The process of a device; its log is on disk."""

    def __init__(self, folder: Path, arguments: list[str]) -> None:
        self.modules = folder / "modules.json"
        self.log = folder / "device.log"
        command = [sys.executable, "-c", RUNNER, str(self.modules), "run", *arguments]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=ROOT)

    def status_kib(self, key: str) -> int:
        return int(Path(f"/proc/{self.process.pid}/status").read_text().split(f"{key}:")[1].split()[0])

    def end(self) -> int:
        """Close its standard input and wait."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(10)


@pytest.fixture
def rig(mosquitto: Any, operator_keys: Any, wait_until: Callable[..., None]) -> Iterator[Rig]:
    rig = Rig(mosquitto.url, Operator.load(operator_keys.private), wait_until)
    yield rig
    rig.close()


@pytest.fixture
def start(
    rig: Rig, mosquitto: Any, tiny_bundle: Any, operator_keys: Any, tmp_path: Path
) -> Iterator[Callable[..., Device]]:
    devices: list[Device] = []

    def start(*more: str, microphone: str | None = None) -> Device:
        arguments = ["--bundle", str(tiny_bundle.path), "--trust", str(tiny_bundle.key), "--broker", mosquitto.url]
        arguments += [
            "--operator",
            str(operator_keys.public),
            "--name",
            NAME,
            "--microphone",
            microphone or rig.microphone,
        ]
        arguments += ["--state-dir", str(tmp_path / "state"), "--exit-on-stdin-eof", *more]
        devices.append(Device(tmp_path, arguments))
        return devices[-1]

    yield start
    for device in devices:
        if device.process.poll() is None:
            device.process.kill()
        device.process.wait()


def test_trials_from_sound_to_prediction(rig: Rig, start: Callable[..., Device], tiny_bundle: Any) -> None:
    device = start()
    rig.meet("stream-1")
    rig.wait(lambda: rig.all(Info) and rig.all(Info)[-1].stream_id == "stream-1")
    info = rig.all(Info)[-1]
    digest = hashlib.sha256(tiny_bundle.path.read_bytes()).hexdigest()
    assert (info.bundle_sha256, info.rate_hz, info.window_samples) == (digest, 16_000, 16_000)
    assert info.labels == ("quiet", "loud")

    past = rig.play(LOUD)
    rig.listen("past", past, return_audio=True)
    rig.listen("future", past + 20_000)
    rig.play(np.zeros(4_000, np.int16))
    rig.play(QUIET)
    rig.wait(lambda: rig.predictions("past") and rig.predictions("future"))
    loud, quiet = rig.predictions("past")[0], rig.predictions("future")[0]
    assert (loud.label, quiet.label) == ("loud", "quiet")
    assert loud.pcm_sha256 == hashlib.sha256(LOUD.astype("<i2").tobytes()).hexdigest()
    assert quiet.pcm_sha256 == hashlib.sha256(QUIET.astype("<i2").tobytes()).hexdigest()
    assert loud.scores[1] == pytest.approx(np.abs(LOUD / 32768).mean() - 0.05, abs=1e-5)
    assert (loud.seq, quiet.seq) == (0, 1)
    assert (loud.session_id, loud.attempt, loud.sample_index, loud.xruns) == ("s", 0, past, 0)
    rig.wait(lambda: rig.replies("past"))
    assert base64.b64decode(rig.replies("past")[0].audio or "") == LOUD.astype("<i2").tobytes()
    rig.wait(lambda: rig.all(Level) and rig.all(Level)[-1].rms_dbfs < 0)

    # Asked again before it was acknowledged: the same answer, not another inference.
    rig.listen("past", past)
    rig.wait(lambda: len(rig.predictions("past")) >= 2)
    assert {each.seq for each in rig.predictions("past")} == {0}
    rig.acknowledge(loud, quiet)

    maps = Path(f"/proc/{device.process.pid}/maps").read_text()
    assert not [name for name in ("torch", "scipy", "pyroomacoustics", "cryptography") if f"/{name}" in maps]
    assert device.status_kib("VmRSS") * 1024 < 85_000_000
    assert device.end() == 0
    loaded = {name.partition(".")[0] for name in json.loads(device.modules.read_text())}
    assert "onnxruntime" in loaded
    assert loaded & set(FORBIDDEN) == set()


def test_commands_that_cannot_be_carried_out_are_refused(rig: Rig, start: Callable[..., Device]) -> None:
    start()
    rig.meet("first")
    rig.listen("nowhere", 0, stream_id="no-such-stream")
    rig.play(np.zeros(40 * 16_000, np.int16))
    rig.listen("overtaken", 0, stream_id="second")
    rig.listen("unreached", 39 * 16_000 + 1)
    time.sleep(0.5)
    rig.accept("second")
    rig.wait(lambda: rig.replies("unreached"))
    assert "ended at sample 640000, 1 too early" in rig.replies("unreached")[0].detail
    rig.listen("overwritten", 0, stream_id="first")
    rig.wait(lambda: rig.replies("overwritten"))
    assert "overwritten" in rig.replies("overwritten")[0].detail
    rig.play(LOUD)
    rig.wait(lambda: rig.predictions("overtaken"))
    rig.wait(lambda: rig.replies("nowhere"), 15)
    assert not rig.replies("nowhere")[0].ok
    assert "no-such-stream" in rig.replies("nowhere")[0].detail


def test_a_killed_device_tells_later_what_it_had_stored(rig: Rig, start: Callable[..., Device]) -> None:
    device = start()
    rig.meet("one")
    for number in range(6):
        rig.listen(f"t{number}", rig.play(LOUD))
    rig.wait(lambda: all(rig.predictions(f"t{number}") for number in range(6)))
    kept = [rig.predictions(f"t{number}")[0] for number in (1, 3, 5)]
    rig.acknowledge(*(rig.predictions(f"t{number}")[0] for number in (0, 2, 4)))
    # Commands are taken in their order, so the refusal of this one says that the acknowledgements were taken.
    rig.publish("acknowledge", b"{}")
    rig.wait(lambda: rig.replies(None))
    time.sleep(0.5)
    device.process.send_signal(signal.SIGKILL)
    device.process.wait()
    rig.wait(lambda: rig.all(State)[-1].status == "lost")
    rig.heard.clear()

    device = start()
    rig.accept("two")
    rig.wait(lambda: len(rig.all(Prediction)) >= 3)
    assert {(each.boot_id, each.seq) for each in rig.all(Prediction)} == {(each.boot_id, each.seq) for each in kept}
    assert rig.all(Prediction)[0] in kept
    # Asked again by a rig that was killed too: the stored answer comes, with the old boot's id.
    rig.heard.clear()
    rig.listen("t3", 0, stream_id="one")
    rig.wait(lambda: rig.predictions("t3"))
    assert rig.predictions("t3")[0] == kept[1]
    rig.acknowledge(*kept)
    time.sleep(0.5)
    assert device.end() == 0
    rig.heard.clear()
    start()
    rig.accept("three")
    rig.wait_online()
    time.sleep(1)
    assert rig.all(Prediction) == []


def test_nothing_is_lost_when_the_broker_is_killed(rig: Rig, start: Callable[..., Device], mosquitto: Any) -> None:
    start()
    rig.meet("one")
    rig.listen("before", rig.play(LOUD))
    rig.wait(lambda: rig.predictions("before"))
    rig.listen("during", 20 * 16_000)
    time.sleep(0.5)
    mosquitto.kill()
    rig.play(np.zeros(21 * 16_000 - rig.sent, np.int16))
    time.sleep(1)
    rig.heard.clear()
    mosquitto.start()
    rig.wait(lambda: rig.predictions("during") and rig.predictions("before"), 30)
    rig.wait_online()
    assert rig.predictions("during")[0].label == "quiet"
    rig.listen("after", rig.play(LOUD))
    rig.wait(lambda: rig.predictions("after"))


def test_many_trials_and_no_sound_is_lost_to_haste(rig: Rig, start: Callable[..., Device]) -> None:
    """The rig pushes 150 s of sound at once: five times what the device remembers."""
    device = start()
    rig.meet("one")
    for number in range(100):
        rig.listen(f"t{number}", number * 24_000 + 100)
    clip = np.concatenate((LOUD, np.zeros(8_000, np.int16)))
    for _ in range(100):
        rig.play(clip)
    rig.wait(lambda: len({each.trial_id for each in rig.all(Prediction)}) == 100, 30)
    assert rig.all(Reply) == []
    expected = hashlib.sha256(clip[100:16_100].astype("<i2").tobytes()).hexdigest()
    assert {each.pcm_sha256 for each in rig.all(Prediction)} == {expected}
    assert {each.xruns for each in rig.all(Prediction)} == {0}
    assert device.status_kib("VmHWM") * 1024 < 85_000_000


def test_hostile_messages_do_not_stop_a_device(rig: Rig, start: Callable[..., Device]) -> None:
    device = start()
    rig.meet("one")
    rng = np.random.default_rng(0)
    listen = Listen(device=NAME, session_id="s", trial_id="x", attempt=0, stream_id="one", sample_index=0)
    good = rig.seal("listen", listen).to_json()
    for number in range(600):
        cut = bytearray(good)
        cut[int(rng.integers(len(cut)))] = int(rng.integers(256))
        payload = (bytes(cut), rng.bytes(200), good[: int(rng.integers(len(good)))])[number % 3]
        rig.publish(("listen", "acknowledge", "reboot")[number % 3 if number % 7 else 0], payload)
    rig.publish("listen", b"[" * 100_000)
    rig.publish("listen", b" " * (1 << 21))
    kept = listen.model_copy(update={"trial_id": "kept"})
    rig.publish("listen", rig.seal("listen", kept).to_json(), retain=True)
    rig.listen("after", rig.play(LOUD))
    rig.wait(lambda: rig.predictions("after"), 30)
    log = device.log.read_text()
    assert "Traceback" not in log
    assert log.count("rejected a command") < 60
    rig.publish("listen", b"", retain=True)
    device.process.send_signal(signal.SIGTERM)
    assert device.process.wait(10) == 0
    rig.wait(lambda: rig.all(State)[-1].status == "stopped")


def test_a_wrong_stream_is_reported_and_the_next_one_heard(rig: Rig, start: Callable[..., Device]) -> None:
    start()
    rig.accept("wrong", rate_hz=8_000)
    rig.wait(lambda: rig.all(Info) and "[error:" in rig.all(Info)[-1].microphone, 30)
    assert "sends 8000 Hz, the model hears 16000 Hz" in rig.all(Info)[-1].microphone
    rig.accept("right")
    rig.wait(lambda: rig.all(Info)[-1].stream_id == "right")
    assert "error" not in rig.all(Info)[-1].microphone
    rig.listen("t", rig.play(LOUD))
    rig.wait(lambda: rig.predictions("t"))


def test_an_8_khz_file_is_heard_without_being_asked(rig: Rig, start: Callable[..., Device], tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 8_000)
    soundfile.write(path, tone, 8_000)
    device = start("--listen-continuously", "250", microphone=f"file:{path}")
    rig.wait(lambda: len(rig.all(Prediction)) >= 3)
    rig.wait(lambda: "at its end" in device.log.read_text())
    assert rig.all(Info)[0].microphone == f"file:{path} (resampled from 8000 Hz)"
    predictions = rig.all(Prediction)
    assert [each.sample_index for each in predictions] == [4_000 * number for number in range(len(predictions))]
    assert {(each.label, each.trial_id) for each in predictions} == {("loud", None)}
    rig.wait(lambda: rig.all(Info)[-1].stream_id is None)
    device.process.send_signal(signal.SIGINT)
    assert device.process.wait(10) == 0


@pytest.mark.parametrize("kills", [4, pytest.param(25, marks=pytest.mark.soak)])
def test_kills_at_any_moment_give_each_trial_one_answer(rig: Rig, start: Callable[..., Device], kills: int) -> None:
    """A rig that asks until it is answered, and a device that is killed again and again."""
    generator = random.Random(kills)
    answers: dict[str, set[tuple[str, int]]] = {}
    taken = 0

    def take() -> None:
        nonlocal taken
        predictions = rig.all(Prediction)
        for each in predictions[taken:]:
            answers.setdefault(each.trial_id, set()).add((each.boot_id, each.seq))
            rig.acknowledge(each)
        taken = len(predictions)

    device, trials = start(), 0
    rig.accept("stream-0")
    for number in range(1, kills + 1):
        kill_s = time.monotonic() + generator.uniform(0.0, 1.5)
        while time.monotonic() < kill_s:
            trial_id = f"t{trials}"
            first = rig.play(LOUD)
            while trial_id not in answers and time.monotonic() < kill_s:
                # Asked again and again, since a command to a device that is not there yet is lost.
                rig.listen(trial_id, first)
                asked_s = time.monotonic()
                while trial_id not in answers and time.monotonic() < min(asked_s + 0.1, kill_s):
                    take()
                    time.sleep(0.001)
            trials += trial_id in answers
        device.process.kill()
        device.process.wait()
        device = start()
        rig.accept(f"stream-{number}")
    rig.wait_online()
    time.sleep(3)
    take()
    assert trials > 2 * kills
    assert len({boot_id for found in answers.values() for boot_id, _ in found}) > kills / 2
    assert {trial_id: found for trial_id, found in answers.items() if len(found) != 1} == {}
    assert set(answers) >= {f"t{trial}" for trial in range(trials)}
