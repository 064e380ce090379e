"""Feed every parser with payloads that atheris (libFuzzer) derives from valid ones; a line of JSON for each tells how.

Run as ``fuzzing_process.py RUNS SEED FOLDER JOBS``. What a parser may do with any bytes is return or raise an
EarshotError of one printable line; anything else ends its process.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import time
import zipfile
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["edge"]):
    from edge import messages
    from edge.bundle import container, manifest, onnx_wire, reading, signing
    from edge.cli import settings
    from edge.commands.authority import Authority
    from edge.mqtt.broker_url import BrokerUrl
    from edge.sound.audio_stream import AudioHeader
    from edge.update import pointer
    from edge.update.pull.request import split

from edge.errors import EarshotError, UsageError

ZOO = Path(__file__).resolve().parents[2] / "firmware_models/zoo"
SHA256, BOOT = "0" * 64, "0123456789abcdef"
# A model with a graph of one tensor, byte by byte.
ONNX = b"\x08\x0a\x3a\x0b\x12\x01g\x2a\x06\x08\x01\x10\x01\x4a\x00\x42\x02\x10\x15"


_PREDICTION = {
    "boot_id": BOOT,
    "seq": 3,
    "session_id": "s",
    "trial_id": "t",
    "attempt": 1,
    "stream_id": "x",
    "sample_index": 16000,
    "t_monotonic_ns": 1,
    "t_utc_ns": 2,
    "label": "yes",
    "scores": [0.25, -1e3],
    "latency_ms": 0.5,
    "bundle_sha256": SHA256,
    "pcm_sha256": SHA256,
    "xruns": 0,
    "trigger": "yes",
}
_ENVELOPE = {"boot_id": BOOT, "verb": "echo", "operator": BOOT, "counter": 1, "body": "{}", "signature": "0" * 128}
_UPDATE = {
    "url": "https://host:1/x",
    "bundle_name": "lms",
    "bundle_version": 2,
    "bundle_sha256": SHA256,
    "size_bytes": 9,
}
EXAMPLES: dict[type[messages.Message], dict[str, object]] = {
    messages.State: {"boot_id": BOOT, "status": "online"},
    messages.Info: {
        "boot_id": BOOT,
        "version": "1",
        "bundle_name": "lms",
        "bundle_version": 1,
        "bundle_sha256": SHA256,
        "labels": ["yes", "no"],
        "rate_hz": 16000,
        "window_samples": 16000,
        "microphone": "m",
        "slot": "a",
    },
    messages.Prediction: _PREDICTION,
    messages.Level: {"boot_id": BOOT, "rms_dbfs": -20.0, "peak_dbfs": -3.0, "xruns": 0},
    messages.Health: {"boot_id": BOOT, "uptime_s": 1.5, "throttled": ["under-voltage"], "cpu_temperature_c": 50.0},
    messages.UpdateStatus: {
        "boot_id": BOOT,
        "stage": "testing",
        "bundle_name": "lms",
        "bundle_version": 2,
        "bundle_sha256": SHA256,
    },
    messages.Clock: {
        "boot_id": BOOT,
        "nonce": "n",
        "received_monotonic_ns": 1,
        "received_utc_ns": 2,
        "sent_monotonic_ns": 3,
        "sent_utc_ns": 4,
    },
    messages.Envelope: _ENVELOPE,
    messages.Listen: {
        "session_id": "s",
        "trial_id": "t",
        "attempt": 0,
        "stream_id": "x",
        "sample_index": 5,
        "return_audio": True,
    },
    messages.Acknowledge: {"boot_id": BOOT, "seqs": [1, 2, 3]},
    messages.Echo: {"nonce": "n"},
    messages.Update: _UPDATE,
    messages.Rollback: {"bundle_sha256": SHA256},
    messages.Rotate: {"role": "operator", "old_key": SHA256, "new_key": SHA256, "signature": "0" * 128},
    messages.Reply: {"boot_id": BOOT, "verb": "listen", "ok": True, "detail": "d", "audio": "AAAA"},
}


class Target:
    """A parser: ``parse(data)`` and valid inputs to begin with."""

    def __init__(self, parse: Callable[[bytes], object], seeds: list[bytes]) -> None:
        self.parse, self.seeds = parse, seeds


def _json_target(example: dict[str, object], parse: Callable[[bytes], object]) -> Target:
    """Bytes that begin with 0 stand for themselves, others for changes to a valid document.

    A JSON parser in Rust tells libFuzzer nothing about itself, so nearly all raw payloads end at its first check.
    """

    def parse_either(data: bytes) -> None:
        parse(_altered(example, data[1:]) if data[:1] > b"\x7f" else data[1:])

    valid = json.dumps(example).encode()
    return Target(parse_either, [b"\0" + valid, b"\xff" + bytes(24), b"\xff" + bytes(range(64))])


def _altered(example: dict[str, object], data: bytes) -> bytes:
    choose = atheris.FuzzedDataProvider(data)
    document = dict(example)
    for _ in range(choose.ConsumeIntInRange(0, 3)):
        key = choose.PickValueInList(list(example)) if choose.ConsumeBool() else choose.ConsumeUnicode(8)
        if choose.ConsumeIntInRange(0, 7) == 0:
            document.pop(key, None)
        else:
            document[key] = _hostile(choose, example.get(key), 2)
    return json.dumps(document, ensure_ascii=choose.ConsumeBool()).encode("utf-8", "surrogatepass")


def _hostile(choose: atheris.FuzzedDataProvider, usual: object, depth: int) -> object:
    kind = choose.ConsumeIntInRange(0, 9 if depth else 6)
    values: dict[int, Callable[[], object]] = {
        0: lambda: None,
        1: choose.ConsumeBool,
        2: lambda: choose.ConsumeIntInRange(-(1 << 63), (1 << 63) - 1),
        3: lambda: (1 << 64) * choose.ConsumeIntInRange(-3, 3),
        4: choose.ConsumeFloat,
        5: lambda: choose.ConsumeUnicode(40),
        6: lambda: usual[: choose.ConsumeIntInRange(0, len(usual))] if isinstance(usual, str | list) else usual,
        7: lambda: [_hostile(choose, usual, depth - 1) for _ in range(choose.ConsumeIntInRange(0, 4))],
        8: lambda: {choose.ConsumeUnicode(6): _hostile(choose, usual, depth - 1)},
        9: lambda: [usual] * choose.ConsumeIntInRange(0, 2000),
    }
    return values[kind]()


def _message_target(kind: type[messages.Message]) -> Target:
    return _json_target({"schema": 1, "device": "kitchen"} | EXAMPLES[kind], partial(messages.parse, kind))


def _file_target(name: str, read: Callable[[Path], object], seeds: list[bytes]) -> Target:
    """A parser that wants a path; the file lies in memory."""
    handle = os.memfd_create(name)
    path = Path(f"/proc/self/fd/{handle}")

    def parse(data: bytes) -> None:
        os.truncate(handle, 0)
        os.pwrite(handle, data, 0)
        read(path)

    return Target(parse, seeds)


def _small_manifest() -> manifest.Manifest:
    """A manifest whose golden vectors are a few bytes."""
    known = reading.describe_untrusted(ZOO / "lms-int8.earshot").manifest
    return known.model_copy(update={"window_samples": 2, "labels": ("a", "b")})


def _small_golden() -> bytes:
    head = "{'descr': '%s', 'fortran_order': False, 'shape': (1, 2), }"
    pcm, scores = (
        b"\x93NUMPY\1\0v\0" + (head % kind).encode().ljust(117) + b"\n" + bytes(size)
        for kind, size in (("<i2", 4), ("<f4", 8))
    )
    return _zipped(("pcm.npy", pcm), ("scores.npy", scores))


def _zipped(*members: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def _golden_target() -> Target:
    known = _small_manifest()
    return Target(lambda data: reading._read_golden(data, known), [_small_golden()])


def _small_bundle(folder: Path) -> tuple[bytes, list[signing.VerifyKey]]:
    private, public = signing.write_key_pair(folder / "key")
    members = {manifest.MODEL: ONNX, manifest.GOLDEN: _small_golden(), manifest.CARD: b"# card"}
    listed = {n: {"sha256": hashlib.sha256(d).hexdigest(), "size_bytes": len(d)} for n, d in members.items()}
    facts = _small_manifest().model_dump(mode="json", by_alias=True)
    members[manifest.MANIFEST] = json.dumps(facts | {"members": listed}).encode()
    members[manifest.SIGNATURE] = signing.sign(signing.load_private_key(private), members[manifest.MANIFEST])
    return b"".join(container.chunks(members)), [signing.load_public_key(public)]


def _bundle_target(folder: Path) -> Target:
    whole, trusted = _small_bundle(folder)
    return _file_target("bundle", lambda path: reading.read_bundle(path, trusted=trusted), [whole])


def _container_target(folder: Path) -> Target:
    def scan(data: bytes) -> None:
        container.scan(io.BufferedReader(io.BytesIO(data)), len(data))  # type: ignore[arg-type]

    return Target(scan, [_small_bundle(folder)[0], _zipped(("a", b"b"))])


def _authority_target(folder: Path) -> Target:
    private, public = signing.write_key_pair(folder / "operator")
    key = signing.load_private_key(private)
    envelope = messages.Envelope.model_validate(
        {"device": "kitchen", **_ENVELOPE, "operator": signing.fingerprint(signing.load_public_key(public))}
    )
    signed = envelope.model_copy(update={"signature": signing.sign(key, envelope.signed_bytes()).hex()})
    operators = [signing.load_public_key(public)]
    # A fresh one each time: the second use of a counter is refused.
    return Target(lambda data: Authority("kitchen", BOOT, operators).open("echo", data), [signed.to_json()])


def _pointer(path: Path) -> None:
    if pointer.read(path) is None:
        raise UsageError("no pointer")


def _pointer_example() -> bytes:
    content = {"sha256": SHA256, "name": "lms", "version": 3, "key": BOOT}
    known = {"lms": {"version": 3, "sha256": SHA256}}
    return json.dumps(
        {"schema": 1, "active": "a", "confirmed": True, "slots": {"a": content}, "highest": known}
    ).encode()


def _settings_target(folder: Path) -> Target:
    example = (
        b'name = "kitchen"\nbroker = "mqtts://u@h"\nstate_dir = "/s"\n[listening]\nhop_ms = 100\nthreshold = 0.8\n'
    )
    read = lambda path: settings.from_options(Namespace(config=path))  # noqa: E731 - one line, once
    return _file_target("settings", read, [example])


def targets(folder: Path) -> dict[str, Callable[[], Target]]:
    """All parsers of bytes that come from a network, a file or a user."""
    manifest_json = reading.describe_untrusted(ZOO / "lms-int8.earshot").manifest.model_dump_json(by_alias=True)
    pem = (ZOO / "zoo.pub").read_bytes()
    header = AudioHeader(rate_hz=16000, stream_id="x").to_line()
    named = {f"message-{kind.__name__.lower()}": partial(_message_target, kind) for kind in EXAMPLES}
    return {
        **named,
        "authority": lambda: _authority_target(folder),
        "pointer": lambda: _file_target("pointer", _pointer, [_pointer_example()]),
        "settings": lambda: _settings_target(folder),
        "bundle-url": lambda: Target(
            lambda data: split(data.decode("utf-8", "surrogateescape")), [b"https://host.example:8443/bundle?x=1"]
        ),
        "audio-header": lambda: Target(AudioHeader.from_line, [header]),
        "broker-url": lambda: Target(
            lambda data: BrokerUrl.parse(data.decode("utf-8", "surrogateescape")), [b"mqtts://user@[::1]:8883/"]
        ),
        "manifest": lambda: _json_target(json.loads(manifest_json), reading._parse_manifest),
        "onnx-wire": lambda: Target(onnx_wire.check_self_contained, [ONNX]),
        "zip-container": lambda: _container_target(folder),
        "golden": _golden_target,
        "bundle-file": lambda: _bundle_target(folder),
        "public-key": lambda: _file_target("key", signing.load_public_key, [pem]),
    }


def fuzz(name: str, runs: int, seed: int, folder: Path) -> None:
    """Fuzz one parser; ends the process."""
    target = targets(folder)[name]()
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, content in enumerate(target.seeds):
        (corpus / str(number)).write_bytes(content)
    # Where the first seed is refused, little but refusals would be tested.
    target.parse(target.seeds[0])
    counts = {"runs": 0, "refused": 0, "accepted": 0}
    blocks, began_s = 0, time.monotonic()

    def one(data: bytes) -> None:
        nonlocal blocks
        counts["runs"] += 1
        try:
            target.parse(data)
            counts["accepted"] += 1
        except EarshotError as error:
            if not str(error).isprintable():
                raise RuntimeError(f"an error that no log may hold: {error!r}") from error
            counts["refused"] += 1
        if counts["runs"] == runs // 2:
            blocks = sys.getallocatedblocks()
        if counts["runs"] == runs:
            report = {"target": name, **counts, "grown_blocks": sys.getallocatedblocks() - blocks}
            report["seconds"] = round(time.monotonic() - began_s, 1)
            os.write(1, json.dumps(report).encode() + b"\n")

    arguments = ["fuzz", str(corpus), f"-runs={runs}", f"-seed={seed}", "-max_len=4096", "-len_control=0"]
    arguments += ["-verbosity=0", "-timeout=20", "-rss_limit_mb=1024", f"-artifact_prefix={folder}/"]
    atheris.Setup(arguments, one)
    atheris.Fuzz()


def main(runs: int, seed: int, folder: Path, jobs: int) -> int:
    """Fuzz every parser, each in a fork of this process, ``jobs`` at a time; 1 when one of them failed."""
    spoken = {kind for kind in vars(messages).values() if isinstance(kind, type) and issubclass(kind, messages.Message)}
    if forgotten := spoken - set(EXAMPLES) - {messages.Message}:
        sys.stderr.write(f"not fuzzed: {', '.join(kind.__name__ for kind in forgotten)}\n")
        return 1
    waiting, running, failed = sorted(targets(folder)), set[int](), False
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop(0)
            child = os.fork()
            if child == 0:
                (folder / name).mkdir()
                fuzz(name, runs, seed, folder / name)
            running.add(child)
        child, status = os.wait()
        running.remove(child)
        failed = failed or status != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])))
