"""A device that runs a stochastic ensemble: fresh noise for every window, seeds only when told to, replay by seed."""

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

from edge.bundle.classifier import Classifier
from edge.bundle.reading import read_bundle
from edge.bundle.signing import load_public_key
from edge.messages import Info, Message, Prediction, parse
from edge.mqtt.broker_url import BrokerUrl
from edge.mqtt.client import new_client

ROOT = Path(__file__).resolve().parents[2]
NAME = "crowd"
HOP_MS = 200
RATE_HZ = 16_000
SOUND = np.random.default_rng(2).integers(-3000, 3000, 3 * RATE_HZ).astype(np.int16)
FORBIDDEN = ("torch", "onnx", "scipy", "export", "firmware_models", "rig")


@pytest.fixture
def heard(mosquitto: Any) -> Iterator[list[Message]]:
    """Info and predictions as they come."""
    messages: list[Message] = []
    kinds: dict[str, type[Message]] = {"info": Info, "prediction": Prediction}

    def receive(_: Any, __: Any, message: Any) -> None:
        kind = kinds.get(message.topic.rsplit("/", 1)[-1])
        if kind is not None:
            messages.append(parse(kind, bytes(message.payload)))

    broker = BrokerUrl.parse(mosquitto.url)
    client = new_client(broker)
    client.on_connect = lambda c, *_: c.subscribe(f"earshot/1/{NAME}/+", qos=1)
    client.on_message = receive
    client.connect(broker.host, broker.port)
    client.loop_start()
    yield messages
    client.disconnect()
    client.loop_stop()


@pytest.fixture
def arguments(ensemble_bundle: Path, keys: Any, mosquitto: Any, tmp_path: Path) -> list[str]:
    path = tmp_path / "sound.wav"
    soundfile.write(path, SOUND, RATE_HZ, subtype="PCM_16")
    given = ["--bundle", str(ensemble_bundle), "--trust", str(keys.public), "--broker", mosquitto.url]
    return ["run", *given, "--name", NAME, "--microphone", f"file:{path}", "--state-dir", str(tmp_path / "state")]


def _started(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "edge.cli", *arguments, "--exit-on-stdin-eof"],
            stdin=subprocess.PIPE,
            stderr=output,
            cwd=ROOT,
        )


def _predictions(messages: list[Message]) -> list[Prediction]:
    return [each for each in list(messages) if isinstance(each, Prediction)]


def test_published_seeds_replay_every_window(
    arguments: list[str],
    heard: list[Message],
    ensemble_bundle: Path,
    keys: Any,
    wait_until: Callable[..., None],
    tmp_path: Path,
) -> None:
    log = tmp_path / "device.log"
    more = ["--members", "6", "--log-noise-seed", "--listen-continuously", str(HOP_MS)]
    process = _started([*arguments, *more], log)
    try:
        wait_until(lambda: len(_predictions(heard)) >= 6, 60, log.read_text)
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        assert not [name for name in FORBIDDEN if f"/site-packages/{name}/" in maps]
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(15) == 0
    finally:
        process.kill()
        process.wait()
    assert "stochastic ensemble of 6 members" in log.read_text()
    assert {each.members for each in heard if isinstance(each, Info)} == {6}
    predictions = _predictions(heard)
    seeds = [each.noise_seed for each in predictions]
    assert len(set(seeds)) == len(seeds)
    bundle = read_bundle(ensemble_bundle, trusted=[load_public_key(keys.public)])
    classifier = Classifier(bundle, members=6)
    for each in predictions:
        assert each.noise_seed is not None
        assert f"noise seed {each.noise_seed}" in log.read_text()
        assert sum(each.scores) == pytest.approx(1, abs=1e-5)
        window = SOUND[each.sample_index : each.sample_index + RATE_HZ].astype(np.float32)[None] / np.float32(32768)
        replayed = classifier.scores(window, noise=classifier.noise(bytes.fromhex(each.noise_seed)))
        assert tuple(replayed[0].tolist()) == each.scores


def test_nobody_learns_the_seed_unless_told(
    arguments: list[str], heard: list[Message], wait_until: Callable[..., None], tmp_path: Path
) -> None:
    log = tmp_path / "device.log"
    process = _started([*arguments, "--listen-continuously", str(HOP_MS), "--log-level", "debug"], log)
    try:
        wait_until(lambda: len(_predictions(heard)) >= 3, 60, log.read_text)
    finally:
        process.kill()
        process.wait()
    assert {each.noise_seed for each in _predictions(heard)} == {None}
    assert {each.members for each in heard if isinstance(each, Info)} == {4}
    assert "noise seed" not in log.read_text()


def _ended(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=dict(os.environ),
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


def test_options_that_do_not_fit_are_one_line(arguments: list[str], tiny_bundle: Any) -> None:
    plain = ["run", "--bundle", str(tiny_bundle.path), "--trust", str(tiny_bundle.key), *arguments[5:]]
    for given, complaint in (
        ([*arguments, "--members", "0"], "--members 0: use 1 to 256"),
        ([*arguments, "--members", "257"], "--members 257: use 1 to 256"),
        ([*plain, "--members", "8"], "level is no stochastic ensemble"),
        ([*plain, "--log-noise-seed"], "level is no stochastic ensemble"),
    ):
        done = _ended(*given)
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("earshot-device: ")
        assert complaint in done.stderr


def test_the_doctor_times_as_many_members_as_asked(ensemble_bundle: Path, keys: Any) -> None:
    given = ["doctor", "--bundle", str(ensemble_bundle), "--trust", str(keys.public)]
    done = _ended(*given, "--members", "3", "--json")
    model = next(each for each in json.loads(done.stdout)["findings"] if each["check"] == "model")
    assert model["ok"], done.stdout
    assert model["values"]["members"] == 3
    assert "ensemble of 3" in model["detail"]
