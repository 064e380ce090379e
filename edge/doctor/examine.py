"""Find out whether this machine can be a device, line by line and with the fix for what is wrong."""

from __future__ import annotations

import contextlib
import platform
import secrets
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt

from edge.bundle.classifier import Classifier
from edge.bundle.reading import Bundle, read_bundle
from edge.bundle.signing import load_public_key
from edge.errors import EXIT_INCOMPLETE, EXIT_OK, EXIT_UNAVAILABLE, EarshotError, UnavailableError
from edge.mqtt.broker_url import BrokerUrl
from edge.mqtt.client import new_client
from edge.sound.level import level_dbfs
from edge.sound.microphones.opening import microphone
from edge.sound.microphones.portaudio import import_sounddevice

_TIMED_RUNS = 100
_BROKER_TIMEOUT_S = 5.0
_RECORD_S = 1.0
_ROUND_TRIPS = 10


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, whether it is well, and what was seen. ``exit_code`` counts where it is not."""

    check: str
    ok: bool
    detail: str
    exit_code: int = EXIT_OK
    values: dict[str, float] = field(default_factory=dict)

    def line(self) -> str:
        """For people."""
        return f"{'OK  ' if self.ok else 'FAIL'} {self.check}: {self.detail}"

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)


def examine(
    *,
    bundle_path: Path,
    key_paths: Sequence[Path],
    threads: int = 1,
    members: int | None = None,
    broker: str | None = None,
    microphone_spec: str | None = None,
) -> list[Finding]:
    """Look at everything that was named; one thing being broken does not hide the next."""
    findings = [_system(), _python()]
    bundle, finding = _bundle(bundle_path, key_paths)
    findings.append(finding)
    if bundle is not None:
        findings.append(_attempt("model", lambda: _model(bundle, threads, members)))
    if microphone_spec is None or microphone_spec.partition(":")[0] == "sounddevice":
        findings.append(_attempt("PortAudio", _portaudio))
    if broker is not None:
        findings.append(_attempt("broker", lambda: _broker(BrokerUrl.parse(broker))))
    if microphone_spec is not None:
        rate_hz = 16_000 if bundle is None else bundle.manifest.rate_hz
        findings.append(_attempt("microphone", lambda: _microphone(microphone_spec, rate_hz)))
    return findings


def exit_code(findings: Sequence[Finding]) -> int:
    """0 when all is well, 4 when something cannot be reached, otherwise 3."""
    codes = {finding.exit_code for finding in findings if not finding.ok}
    if not codes:
        return EXIT_OK
    return EXIT_UNAVAILABLE if EXIT_UNAVAILABLE in codes else EXIT_INCOMPLETE


def _attempt(check: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except EarshotError as error:
        return Finding(check, ok=False, detail=" ".join(str(error).split()), exit_code=error.exit_code)


def _system() -> Finding:
    bits, machine = struct.calcsize("P") * 8, platform.machine()
    seen = f"{platform.system()} {machine}, {bits} bit"
    if sys.platform == "linux" and bits == 64:
        return Finding("system", ok=True, detail=seen)
    fix = "onnxruntime has no wheels for it: install a 64-bit Linux (Raspberry Pi OS 64-bit, for instance)"
    return Finding("system", ok=False, detail=f"{seen}: {fix}", exit_code=EXIT_INCOMPLETE)


def _python() -> Finding:
    seen = platform.python_version()
    if (3, 11) <= sys.version_info < (3, 14):
        return Finding("Python", ok=True, detail=seen)
    return Finding("Python", ok=False, detail=f"{seen}: use 3.11, 3.12 or 3.13", exit_code=EXIT_INCOMPLETE)


def _portaudio() -> Finding:
    sounddevice = import_sounddevice()
    version = sounddevice.get_portaudio_version()[1].split(",")[0]
    inputs = [device["name"] for device in sounddevice.query_devices() if device["max_input_channels"] > 0]
    return Finding("PortAudio", ok=True, detail=f"{version}, inputs: {', '.join(inputs) or 'none'}")


def _bundle(path: Path, key_paths: Sequence[Path]) -> tuple[Bundle | None, Finding]:
    try:
        bundle = read_bundle(path, trusted=[load_public_key(key_path) for key_path in key_paths])
    except EarshotError as error:
        detail = " ".join(str(error).split())
        return None, Finding("bundle", ok=False, detail=detail, exit_code=error.exit_code)
    manifest = bundle.manifest
    detail = f"{manifest.name} version {manifest.version}, signed by {bundle.key}, sha256 {bundle.sha256}"
    return bundle, Finding("bundle", ok=True, detail=detail)


def _model(bundle: Bundle, threads: int, members: int | None) -> Finding:
    classifier = Classifier(bundle, threads=threads, members=members)
    difference = classifier.check_golden()
    clip = bundle.golden_pcm[:1]
    times_ms = []
    for _ in range(_TIMED_RUNS):
        start_ns = time.perf_counter_ns()
        classifier.scores(clip)
        times_ms.append((time.perf_counter_ns() - start_ns) / 1e6)
    p50, p95, p99 = (float(value) for value in np.percentile(times_ms, (50, 95, 99)))
    detail = f"golden vectors within {difference:.2g}; latency p50 {p50:.2f} ms, p95 {p95:.2f} ms, p99 {p99:.2f} ms"
    values = {"golden_difference": difference, "latency_p50_ms": p50, "latency_p95_ms": p95, "latency_p99_ms": p99}
    detail += f" ({threads} thread(s))"
    if classifier.members is not None:
        detail += f", ensemble of {classifier.members}"
        values["members"] = float(classifier.members)
    return Finding("model", ok=True, detail=detail, values=values)


def _broker(url: BrokerUrl) -> Finding:
    """Subscribe to a topic of our own, publish there a few times, and wait for it to come back."""
    subject = f"earshot/1/doctor-{secrets.token_hex(4)}/ping"
    subscribed, returned = threading.Event(), threading.Event()
    refusal: list[str] = []

    def connected(client: mqtt.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            refusal.append(str(reason))
            subscribed.set()
        else:
            client.subscribe(subject, qos=1)

    client = new_client(url)
    client.on_connect = connected
    client.on_subscribe = lambda *_: subscribed.set()
    client.on_message = lambda *_: returned.set()
    try:
        client.connect(url.host, url.port, keepalive=20)
    except OSError as error:
        raise UnavailableError(f"{url}: {error}: is the broker running, and is the address right?") from None
    client.loop_start()
    try:
        if not subscribed.wait(_BROKER_TIMEOUT_S) or refusal:
            raise UnavailableError(f"{url}: {refusal[0] if refusal else 'no answer'}: check user and password")
        trips_ms = []
        for _ in range(_ROUND_TRIPS):
            returned.clear()
            start_s = time.monotonic()
            client.publish(subject, b"ping", qos=1)
            if not returned.wait(_BROKER_TIMEOUT_S):
                raise UnavailableError(f"{url}: what was published did not come back: check the broker's access list")
            trips_ms.append((time.monotonic() - start_s) * 1e3)
    finally:
        client.disconnect()
        client.loop_stop()
    trip_ms = float(np.median(trips_ms))
    detail = f"{url}, round trip {trip_ms:.1f} ms"
    return Finding("broker", ok=True, detail=detail, values={"round_trip_ms": trip_ms})


def _microphone(spec: str, rate_hz: int) -> Finding:
    source = microphone(spec, rate_hz)
    with _recording(source.open, source.close):
        blocks, count, start_s = [], 0, time.monotonic()
        while count < _RECORD_S * rate_hz and time.monotonic() - start_s < 5 * _RECORD_S:
            pcm = source.read()
            if pcm is None:
                break
            blocks.append(pcm)
            count += len(pcm)
    if not count:
        raise UnavailableError(f"{source.name}: no sound came within {5 * _RECORD_S:.0f} s")
    rms_dbfs, peak_dbfs = level_dbfs(np.concatenate(blocks))
    detail = f"{source.name}: {count / rate_hz:.1f} s, {rms_dbfs:.1f} dBFS, peak {peak_dbfs:.1f} dBFS"
    values = {"rms_dbfs": rms_dbfs, "peak_dbfs": peak_dbfs, "xruns": float(source.xruns)}
    return Finding("microphone", ok=True, detail=f"{detail}, {source.xruns} xruns", values=values)


@contextlib.contextmanager
def _recording(start: Callable[[], str], end: Callable[[], None]) -> Iterator[None]:
    start()
    try:
        yield
    finally:
        end()
