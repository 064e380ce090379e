"""The real agent with the real wheels on an emulated Cortex-A76: it says what the same agent says here.

File microphone, real broker, continuous listening. ``make test-aarch64`` runs this and tests/parity/test_aarch64.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import paho.mqtt.client as mqtt
import pytest
import soundfile
from paho.mqtt.enums import CallbackAPIVersion

import edge
from edge.messages import Info, Prediction, parse, topic
from export.measurement import userland
from firmware_models import zoo
from firmware_models.data import load

pytestmark = pytest.mark.aarch64

HOP_MS = 500
SPOKEN_S = 8


@pytest.fixture(scope="module")
def aarch64() -> userland.Userland:
    plan = userland.outline()
    if plan.missing:
        pytest.skip(plan.missing)
    return userland.prepare()


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words of the demo, one after the other; no two windows of it are alike."""
    clips = load(zoo.CLIPS, "all")
    chosen = np.linspace(0, len(clips) - 1, SPOKEN_S).astype(np.intp)
    path = tmp_path_factory.mktemp("sound") / "words.wav"
    soundfile.write(path, clips.float_pcm(chosen).reshape(-1), 16_000, subtype="PCM_16")
    return path


class Heard:
    """What a device says, by sample index."""

    def __init__(self, broker: str, port: int, device: str) -> None:
        self.predictions: dict[int, Prediction] = {}
        self.infos: list[Info] = []
        self._lock = threading.Lock()
        client = mqtt.Client(CallbackAPIVersion.VERSION2)
        client.on_message = self._received
        client.connect(broker, port)
        client.subscribe([(topic(device, "prediction"), 1), (topic(device, "info"), 1)])
        client.loop_start()
        self._client = client

    def _received(self, client: object, userdata: object, message: mqtt.MQTTMessage) -> None:
        with self._lock:
            if message.topic.endswith("info"):
                self.infos.append(parse(Info, message.payload))
            else:
                prediction = parse(Prediction, message.payload)
                self.predictions[prediction.sample_index] = prediction

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@contextmanager
def _agent(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _arguments(name: str, bundle: str, recording: Path, port: int, folder: Path) -> list[str]:
    return [
        *("-m", "edge.cli", "run", "--name", name, "--bundle", str(zoo.bundle(bundle))),
        *("--trust", str(zoo.PUBLIC_KEY), "--broker", f"mqtt://127.0.0.1:{port}"),
        *("--microphone", f"file:{recording}", "--listen-continuously", str(HOP_MS), "--state-dir", str(folder)),
    ]


@pytest.mark.timeout(280)
@pytest.mark.parametrize("bundle", ["lms-int8", "lms-fp32"])
def test_predictions_are_those_of_this_machine(
    bundle: str, aarch64: userland.Userland, recording: Path, mosquitto, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    windows = (SPOKEN_S - 1) * 1000 // HOP_MS + 1
    code = tmp_path / "code"
    code.mkdir()
    # Only edge may be seen inside: beside it lie packages compiled for this machine.
    (code / "edge").symlink_to(Path(edge.__file__).resolve().parent)
    commands = {
        "here": ([sys.executable], dict(os.environ)),
        "there": (aarch64.command([], python_path=[code]), aarch64.environment()),
    }
    heard = {name: Heard("127.0.0.1", mosquitto.port, name) for name in commands}
    with ExitStack() as running:
        for name, (interpreter, environment) in commands.items():
            log = tmp_path / f"{name}.log"
            command = [*interpreter, *_arguments(name, bundle, recording, mosquitto.port, tmp_path / name)]
            process = running.enter_context(_agent(command, environment, log))

            def complete(name: str = name, process: subprocess.Popen[bytes] = process, log: Path = log) -> bool:
                assert process.poll() is None, log.read_text()
                return len(heard[name].predictions) >= windows

            running.callback(wait_until, complete, 120, log.read_text)
    for each in heard.values():
        each.close()
    here, there = heard["here"].predictions, heard["there"].predictions
    assert heard["there"].infos[-1].bundle_sha256 == heard["here"].infos[-1].bundle_sha256
    assert sorted(here) == sorted(there) == [HOP_MS * 16 * at for at in range(windows)]
    # Different words: a device that always says the same would pass nothing.
    assert len({prediction.label for prediction in here.values()}) > 2
    for index, prediction in here.items():
        other = there[index]
        assert other.pcm_sha256 == prediction.pcm_sha256
        assert other.label == prediction.label
        if bundle == "lms-int8":
            assert other.scores == prediction.scores
        else:
            np.testing.assert_allclose(other.scores, prediction.scores, atol=1e-3)
