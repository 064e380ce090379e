"""A device on the network is hostile until checked: what it says counts only if it fits what was sent."""

import hashlib
import json
import socket
import threading
import time

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from edge.bundle.reading import read_bundle
from edge.bundle.signing import load_public_key
from edge.messages import Clock, Echo, Envelope, Info, Listen, Prediction, State, parse, topic


class Liar:
    """Speaks the protocol of a device; ``twist`` may change or repeat each prediction before it is sent."""

    def __init__(self, broker, port, bundle, twist):
        self._bundle, self._twist, self._seq = bundle, twist, 0
        self._pcm, self._stream, self._asked = b"", None, []
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2)
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", broker.port)
        self._client.subscribe([(topic("liar", "command", verb), 1) for verb in ("listen", "echo")])
        self._client.loop_start()
        manifest = bundle.manifest
        self._say("state", State(device="liar", boot_id="b", status="online"), retain=True)
        info = Info(
            device="liar",
            boot_id="b",
            version="0",
            bundle_name=manifest.name,
            bundle_version=1,
            bundle_sha256=bundle.sha256,
            labels=manifest.labels,
            rate_hz=16000,
            window_samples=16000,
            microphone="none",
        )
        self._say("info", info, retain=True)
        self._thread = threading.Thread(target=self._hear, args=(port,))
        self._thread.start()

    def _say(self, kind, message, *, retain=False):
        payload = message if isinstance(message, bytes) else message.to_json()
        self._client.publish(topic("liar", kind), payload, qos=1, retain=retain)

    def _on_message(self, _client, _data, message):
        envelope = parse(Envelope, message.payload)
        if envelope.verb == "echo":
            self._tell_time(parse(Echo, envelope.body.encode()))
            return
        with self._lock:
            self._asked.append(parse(Listen, envelope.body.encode()))

    def _tell_time(self, echo):
        times = {f"{moment}_{clock}_ns": 1 for moment in ("received", "sent") for clock in ("monotonic", "utc")}
        self._say("clock", Clock(device="liar", boot_id="b", nonce=echo.nonce, **times))

    def _hear(self, port):
        while not self._closing.is_set():
            try:
                connection = socket.create_connection(("127.0.0.1", port), timeout=0.05)
            except OSError:
                time.sleep(0.05)
                continue
            with connection:
                self._listen(connection)

    def _listen(self, connection):
        data = b""
        while not self._closing.is_set():
            try:
                received = connection.recv(1 << 16)
            except TimeoutError:
                received = None
            except OSError:
                return
            if received == b"":
                return
            data += received or b""
            if b"\n" in data:
                header, _, sound = data.partition(b"\n")
                self._answer(json.loads(header)["stream_id"], sound)

    def _answer(self, stream, sound):
        with self._lock:
            ready = [a for a in self._asked if a.stream_id == stream and len(sound) >= 2 * (a.sample_index + 16000)]
            self._asked = [a for a in self._asked if a not in ready]
        for asked in ready:
            window = sound[2 * asked.sample_index :][: 2 * 16000]
            labels = self._bundle.manifest.labels
            honest = Prediction(
                device="liar",
                boot_id="b",
                seq=self._seq,
                session_id=asked.session_id,
                trial_id=asked.trial_id,
                attempt=asked.attempt,
                stream_id=stream,
                sample_index=asked.sample_index,
                t_monotonic_ns=1,
                t_utc_ns=1,
                label=labels[0],
                scores=(1.0, *[0.0] * (len(labels) - 1)),
                latency_ms=1.0,
                bundle_sha256=self._bundle.sha256,
                pcm_sha256=hashlib.sha256(window).hexdigest(),
                xruns=0,
            )
            for said in self._twist(honest):
                self._say("prediction", said)
                self._seq += 1

    def close(self):
        self._closing.set()
        self._thread.join()
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def session(rig, write_plan, tmp_path, mosquitto, free_port, fp32_bundle, keys, operator_keys):
    """Runs twelve benign trials on a device that twists its predictions; returns the summary."""

    def run(twist, **changes):
        bundle = read_bundle(fp32_bundle, trusted=[load_public_key(keys.public)])
        port = free_port()
        liar = Liar(mosquitto, port, bundle, twist)
        plan = write_plan(attacks=[{"name": "benign"}], **changes)
        try:
            arguments = (
                "--device",
                f"{mosquitto.url}/liar",
                "--listen",
                f"127.0.0.1:{port}",
                "--operator",
                operator_keys.private,
                "--out",
                tmp_path / "out",
            )
            done = rig.run("session", "run", plan, *arguments)
        finally:
            liar.close()
        assert done.returncode == 0, done.stderr
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        assert summary["complete"]
        return summary

    return run


def test_repeated_and_malformed_messages_change_nothing(session):
    def twist(honest):
        yield b"\xff{"
        yield honest.to_json().replace(b'"seq"', b'"squid"')
        for _ in range(3):
            yield honest

    (row,) = session(twist)["rows"]
    assert (row["valid"], row["invalid_attempts"]) == (12, 0)


def test_other_sound_is_invalid_and_tried_again(session):
    lied = set()

    def twist(honest):
        first = honest.trial_id not in lied
        lied.add(honest.trial_id)
        yield honest.model_copy(update={"pcm_sha256": "0" * 64}) if first else honest

    summary = session(twist)
    (row,) = summary["rows"]
    assert (row["valid"], row["invalid"], row["invalid_attempts"]) == (12, 0, 12)
    assert summary["excluded"] == [
        {
            "air": "digital",
            "reason": "the device heard other samples than were sent",
            "attempts": 12,
            "trials_given_up": 0,
        }
    ]


@pytest.mark.parametrize(
    "lie",
    [
        {"pcm_sha256": "0" * 64},
        {"bundle_sha256": "0" * 64},
        {"label": "no"},
        {"label": "open sesame"},
        {"scores": (1.0, 0.0)},
    ],
)
def test_what_never_fits_is_given_up_and_counted(session, lie):
    def twist(honest):
        yield honest.model_copy(update=lie)

    (row,) = session(twist, max_attempts=2)["rows"]
    assert (row["valid"], row["invalid"], row["invalid_attempts"]) == (0, 12, 24)
    assert row["error_rate"] is None


def test_predictions_of_other_sessions_and_trials_do_not_count(session):
    def twist(honest):
        yield honest.model_copy(update={"session_id": "another"})
        yield honest.model_copy(update={"trial_id": "9999999"})
        yield honest.model_copy(update={"attempt": 7})
        yield honest

    (row,) = session(twist)["rows"]
    assert (row["valid"], row["invalid_attempts"]) == (12, 0)
