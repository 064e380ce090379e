"""A whole session on an assistant that is not ours: attacks made on a bundle, its own answers, nothing lost."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from edge.mqtt.broker_url import BrokerUrl
from edge.mqtt.client import new_client

LEAD_MS, TAIL_MS = 1200, 480
TRIALS = 24


@pytest.fixture
def plan(tmp_path) -> Path:
    def write(name: str, **changes) -> Path:
        document = {
            "schema": 1,
            "name": "transfer",
            "seed": 3,
            "bundles": ["zoo:lms-fp32"],
            "recogniser": {"name": name, "hears": {"stop": "okay_stop"}},
            "clips": {"data": "zoo", "split": "all", "count": 6, "labels": ["stop", "yes"]},
            "attacks": [
                {"name": "benign"},
                {"name": "random-sign", "eps": [0.002]},
                {"name": "pgd", "steps": 3, "eps": [0.002, 0.02]},
            ],
            **changes,
        }
        path = tmp_path / "plan.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    return write


class Bridge:
    """``earshot bridge`` in a process of its own."""

    def __init__(self, folder: Path, broker: str, sound: str, operator: Path) -> None:
        self.log = folder / "bridge.log"
        common = ["--name", "stranger", "--broker", broker, "--microphone", f"socket:{sound}", "--operator", operator]
        common += ["--state-dir", folder / "state", "--lead-ms", LEAD_MS, "--tail-ms", TAIL_MS, "--exit-on-stdin-eof"]
        self._common = [str(part) for part in common]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "rig.cli.main", "bridge", arguments[0], *self._common, *arguments[1:]]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)

    def stop(self) -> int:
        if self._process is None or self._process.stdin is None:
            return 0
        self._process.stdin.close()
        return self._process.wait(20)


@pytest.fixture
def bridge(tmp_path, mosquitto, free_port, keys):
    sound = f"127.0.0.1:{free_port()}"
    bridge = Bridge(tmp_path, mosquitto.url, sound, keys.public)
    bridge.session = ["--device", f"{mosquitto.url}/stranger", "--listen", sound, "--operator", str(keys.private)]
    yield bridge
    assert bridge.stop() == 0, bridge.log.read_text()


def answers(folder: Path) -> dict[str, str]:
    """The label that counts for each trial."""
    from rig.journal import Journal

    with Journal(folder, read_only=True) as journal:
        return {attempt.trial_id: str(attempt.label) for attempt in journal.attempts() if attempt.outcome == "valid"}


def expected_answers(folder: Path, assistant, cache: Path) -> dict[str, str]:
    """The same, computed here: the air's sound, heard by the assistant's own code."""
    from rig.craft import Crafter
    from rig.journal import Journal
    from rig.plan import load
    from rig.session import material as materials

    material = materials.load(load(folder / "plan.yaml"), "digital")
    crafter = Crafter(material.bundles, material.clips, seed=material.plan.seed, cache=cache)
    crafter.prepare(material.conditions)
    heard = {}
    with Journal(folder, read_only=True) as journal:
        for trial in journal.trials():
            condition = material.conditions[trial.condition]
            perturbation = crafter.perturbation(condition, trial.clip)
            sound = material.air.render(trial.trial_id, material.clips[trial.clip].pcm, perturbation, condition)
            heard[trial.trial_id] = assistant.hears(sound.pcm, lead_ms=LEAD_MS, tail_ms=TAIL_MS) or "_background_"
    return heard


def check_summary(folder: Path, name: str, *, clips: int = 6) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["complete"]
    rows = {(row["attack"], row["eps"]): row for row in summary["rows"]}
    assert {row["bundle"] for row in rows.values()} == {name}
    assert {key: row["crafted_on"] for key, row in rows.items()} == {
        ("benign", 0.0): None,
        ("random-sign", 0.002): None,
        ("pgd-3", 0.002): "lms-fp32",
        ("pgd-3", 0.02): "lms-fp32",
    }
    assert all(
        (row["n"], row["valid"], row["invalid"], row["bits"]) == (clips, clips, 0, None) for row in rows.values()
    )
    assert rows["benign", 0.0]["error_rate"] <= rows["pgd-3", 0.02]["error_rate"] > 0
    assert "behind a bridge" in (folder / "report.html").read_text()


def test_through_wyoming_and_a_plain_subscriber(rig, plan, assistant, bridge, mosquitto, tmp_path, free_port):
    uri = f"tcp://127.0.0.1:{free_port()}"
    assistant.start("wyoming", "--uri", uri)
    wait_for_service(uri)
    bridge.start("wyoming", "--service", uri)
    out = tmp_path / "out"
    with subscriber(mosquitto, TRIALS) as lines:
        done = rig.run("session", "run", plan("wyoming-okay_stop"), *bridge.session, "--out", out)
        assert done.returncode == 0, done.stderr + bridge.log.read_text()
        said = [json.loads(line) for line in lines()]
    check_summary(out, "wyoming-okay_stop")
    heard = answers(out)
    assert {each["trial_id"]: each["label"] for each in said} == heard
    assert heard == expected_answers(out, assistant, rig.cache)
    assert set(heard.values()) == {"okay_stop", "_background_"}


def test_through_hermes(rig, plan, assistant, bridge, mosquitto, tmp_path):
    assistant.start("hermes", "--broker", mosquitto.url, "--site", "kitchen")
    hermes = ("hermes", "--site", "kitchen", "--wake-word", "okay_stop", "--pace", "fast", "--answer-timeout", "0.2")
    bridge.start(*hermes)
    out = tmp_path / "out"
    clips = {"data": "zoo", "split": "all", "count": 3, "labels": ["stop", "yes"]}
    document = plan("hermes-okay_stop", clips=clips)
    done = rig.run("session", "run", document, *bridge.session, "--out", out)
    assert done.returncode == 0, done.stderr + bridge.log.read_text()
    check_summary(out, "hermes-okay_stop", clips=3)
    assert answers(out) == expected_answers(out, assistant, rig.cache)


def test_a_service_that_dies_costs_attempts_but_no_trial(
    rig, plan, assistant, bridge, tmp_path, free_port, concluded, wait_until
):
    uri = f"tcp://127.0.0.1:{free_port()}"
    assistant.start("wyoming", "--uri", uri)
    wait_for_service(uri)
    bridge.start("wyoming", "--service", uri, "--pace", "real-time", "--lead-ms", "160", "--tail-ms", "80")
    out = tmp_path / "out"
    clips = {"data": "zoo", "split": "all", "count": 3, "labels": ["stop", "yes"]}
    document = plan("wyoming-okay_stop", attacks=[{"name": "benign"}], clips=clips)
    process = rig.start("session", "run", document, *bridge.session, "--out", out)
    try:
        wait_until(lambda: len(concluded(out)) >= 1 or process.poll() is not None, 60)
        assistant.kill()
        wait_until(lambda: "went away" in bridge.log.read_text(), 20)
        assistant.start_again()
        _, errors = process.communicate(timeout=90)
    finally:
        process.kill()
    assert process.returncode == 0, errors + bridge.log.read_text()
    summary = json.loads((out / "summary.json").read_text())
    (row,) = summary["rows"]
    assert (row["n"], row["valid"], row["invalid"]) == (3, 3, 0)
    # What was asked when it died is told; what was asked afterwards is taken back, and uses up no attempts.
    reasons = {entry["reason"]: entry["attempts"] for entry in summary["excluded"]}
    assert sum(attempts for reason, attempts in reasons.items() if uri in reason) == 1, reasons
    assert all(uri in reason or reason == "device lost" for reason in reasons), reasons


def test_a_stranger_is_never_started_by_the_session(rig, plan, tmp_path):
    done = rig.run("session", "run", plan("wyoming-okay_stop"), "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "start 'earshot bridge'" in done.stderr
    assert not (tmp_path / "out").exists()


@contextmanager
def subscriber(mosquitto, count: int) -> Iterator[Callable[[], list[str]]]:
    """What ``mosquitto_sub`` prints of the next predictions, or paho where mosquitto's clients are not installed."""
    topic = "earshot/1/+/prediction"
    program = shutil.which("mosquitto_sub")
    if program is not None:
        line = [program, "-h", "127.0.0.1", "-p", str(mosquitto.port), "-t", topic, "-C", str(count)]
        with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:

            def lines() -> list[str]:
                return process.communicate(timeout=20)[0].splitlines()

            yield lines
        return
    heard: list[str] = []
    client = new_client(BrokerUrl.parse(mosquitto.url))
    client.on_connect = lambda *_: client.subscribe(topic)
    client.on_message = lambda _client, _data, message: heard.append(message.payload.decode())
    client.connect("127.0.0.1", mosquitto.port)
    client.loop_start()
    yield lambda: heard
    client.loop_stop()


def wait_for_service(uri: str) -> None:
    place = urlsplit(uri)
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex((place.hostname, place.port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail(f"nobody serves {uri}")
