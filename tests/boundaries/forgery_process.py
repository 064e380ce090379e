"""Forge a bundle in many ways and read every forgery; one JSON document says what became of them.

Run as ``forgery_process.py BUNDLE KEY.pub FOLDER COUNT``; the private key lies beside the public one.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import random
import struct
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

# Whoever asks for it now gets an ImportError, which no forgery may cause.
sys.modules["onnxruntime"] = None  # type: ignore[assignment]

from edge.bundle import container, signing  # noqa: E402
from edge.bundle.manifest import CARD, GOLDEN, MANIFEST, MODEL, SIGNATURE  # noqa: E402
from edge.bundle.reading import describe_untrusted, read_bundle  # noqa: E402
from edge.errors import BundleError  # noqa: E402

Members = dict[str, bytes]


class Forger:
    """A genuine bundle, the key that signed it, a stranger's key, and ways to forge."""

    def __init__(self, path: Path, public: Path, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.folder = folder
        self.data = path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            self.members: Members = {name: archive.read(name) for name in archive.namelist()}
        self.key = signing.load_private_key(public.with_suffix(".pem"))
        stranger, _ = signing.write_key_pair(folder / "stranger")
        self.stranger = signing.load_private_key(stranger)
        secret = folder / "secret"
        secret.write_bytes(os.urandom(64))
        os.link(secret, folder / "hard-link.bin")
        (folder / "symbolic-link.bin").symlink_to(secret)

    def kinds(self) -> list[Callable[[], bytes]]:
        """One function per kind of forgery."""
        return [
            self.bit_flip,
            self.truncated,
            self.bytes_added,
            self.members_swapped,
            self.member_replaced,
            self.wrong_key,
            self.signature_of_another_manifest,
            self.zip_slip,
            self.bomb,
            self.external_data,
            self.doubled_member,
            self.reordered,
            self.size_lies,
            self.hostile_manifest,
            self.hostile_golden,
        ]

    def bit_flip(self) -> bytes:
        """One to eight bits are not what they were."""
        data = bytearray(self.data)
        for bit in self.random.sample(range(8 * len(data)), self.random.randint(1, 8)):
            data[bit // 8] ^= 1 << bit % 8
        return bytes(data)

    def truncated(self) -> bytes:
        """The download ended early."""
        return self.data[: self.random.randrange(len(self.data))]

    def bytes_added(self) -> bytes:
        """Something before, inside or behind the zip."""
        more = self.random.choice([b"\0", b"PK\5\6" + bytes(18), self.data, self.random.randbytes(100)])
        at = self.random.choice([0, len(self.data), self.random.randrange(len(self.data))])
        return self.data[:at] + more + self.data[at:]

    def members_swapped(self) -> bytes:
        """Two members carry each other's bytes."""
        one, other = self.random.sample([MODEL, GOLDEN, CARD, SIGNATURE, MANIFEST], 2)
        members = self.members | {one: self.members[other], other: self.members[one]}
        return self._zip(members)

    def member_replaced(self) -> bytes:
        """A member is somebody else's, the signature is the old one."""
        name = self.random.choice([MODEL, GOLDEN, CARD])
        return self._zip(self.members | {name: self.random.randbytes(self.random.randint(0, 5000))})

    def wrong_key(self) -> bytes:
        """Whole and consistent, but signed by a stranger."""
        manifest = self._manifest(version=self.random.randint(1, 1 << 30))
        return self._signed(manifest, self.members, by_stranger=True)

    def signature_of_another_manifest(self) -> bytes:
        """A higher version under the signature of a lower one: an upgrade that nobody signed."""
        manifest = self._manifest(version=self.random.randint(2, 1 << 30))
        return self._zip(self.members | {MANIFEST: json.dumps(manifest).encode()})

    def zip_slip(self) -> bytes:
        """A member wants to be unpacked somewhere else."""
        names = [
            "../../etc/passwd",
            "/etc/passwd",
            "..\\..\\x",
            "model.onnx/../x",
            "slots/../../x",
            "a" * 64,
            "\0",
            ".",
        ]
        return self._any_zip([*self.members.items(), (self.random.choice(names), b"x")])

    def bomb(self) -> bytes:
        """Little on disk, much in memory."""
        name = self.random.choice([MODEL, GOLDEN, CARD, MANIFEST])
        members = self.members | {name: bytes(self.random.choice([1 << 20, 4 << 20]))}
        return self._any_zip(members.items(), zipfile.ZIP_DEFLATED)

    def external_data(self) -> bytes:
        """Signed by the right key, but the model would open another file."""
        links = ["secret", "hard-link.bin", "symbolic-link.bin", "/etc/passwd", "../secret", ""]
        location = self.random.choice([str(self.folder / links[1]), str(self.folder / links[2]), *links])
        return self._signed(self._manifest(), self.members | {MODEL: self._external_model(location)})

    def doubled_member(self) -> bytes:
        """Two members of one name: which one does a reader take?"""
        name = self.random.choice(list(self.members))
        doubled = [*self.members.items(), (name, self.random.choice([b"", self.members[name], b"other"]))]
        return self._any_zip(doubled)

    def reordered(self) -> bytes:
        """All members, another zip."""
        names = list(self.members)
        while names == list(self.members):
            self.random.shuffle(names)
        return self._any_zip([(name, self.members[name]) for name in names])

    def size_lies(self) -> bytes:
        """A zip header says that a member is larger, smaller or elsewhere."""
        data = bytearray(self.data)
        at = self.random.choice([18, 22, 26, 28])
        value = self.random.choice([0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, self.random.getrandbits(32)])
        size = 4 if at < 26 else 2
        before = bytes(data[at : at + size])
        data[at : at + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        if bytes(data[at : at + size]) == before:
            data[at] ^= 1
        return bytes(data)

    def hostile_manifest(self) -> bytes:
        """Signed by the right key, but it says what no manifest may."""
        changes: list[dict[str, object]] = [
            {"schema": 2},
            {"version": 0},
            {"version": -1},
            {"version": 1 << 40},
            {"version": "1"},
            {"name": "../up"},
            {"labels": ["same", "same"]},
            {"labels": []},
            {"rate_hz": 0},
            {"window_samples": 1 << 60},
            {"members": {}},
            {"golden_tolerance": {"max_abs": -1}},
            {"surprise": self.random.getrandbits(30)},
            {"quantisation": {"bits": 7}},
        ]
        manifest = self._manifest() | self.random.choice(changes)
        members = self.members | {MANIFEST: json.dumps(manifest).encode()}
        members[SIGNATURE] = signing.sign(self.key, members[MANIFEST])
        return self._zip(members)

    def hostile_golden(self) -> bytes:
        """Signed by the right key, but the arrays are pickles, huge, compressed or of other shapes."""
        golden = self.random.choice(
            [
                self.random.randbytes(300),
                self._npz({"pcm.npy": _npy("(9999999999, 16000)"), "scores.npy": _npy("(2, 2)", "<f4")}),
                self._npz({"pcm.npy": _npy("(2, 16000)", "|O"), "scores.npy": _npy("(2, 2)", "<f4")}),
                self._npz({"pcm.npy": _npy("(0, 16000)"), "scores.npy": _npy("(0, 2)", "<f4")}),
                self._npz({"../pcm.npy": b"", "scores.npy": b""}),
                self._npz({"pcm.npy": bytes(1 << 20), "scores.npy": b""}, zipfile.ZIP_DEFLATED),
            ]
        )
        return self._signed(self._manifest(), self.members | {GOLDEN: golden})

    def _manifest(self, **changed: object) -> dict[str, object]:
        return json.loads(self.members[MANIFEST]) | changed

    def _signed(self, manifest: dict[str, object], members: Members, *, by_stranger: bool = False) -> bytes:
        listed = {
            name: {"sha256": hashlib.sha256(members[name]).hexdigest(), "size_bytes": len(members[name])}
            for name in (MODEL, GOLDEN, CARD)
        }
        content = json.dumps(manifest | {"members": listed}).encode()
        signature = signing.sign(self.stranger if by_stranger else self.key, content)
        return self._zip(members | {MANIFEST: content, SIGNATURE: signature})

    @staticmethod
    def _zip(members: Members) -> bytes:
        return b"".join(container.chunks(members))

    @staticmethod
    def _any_zip(members: object, method: int = zipfile.ZIP_STORED) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as archive:
            for name, data in members:  # type: ignore[attr-defined]
                archive.writestr(zipfile.ZipInfo(name), data, method)
        return file.getvalue()

    def _npz(self, arrays: Members, method: int = zipfile.ZIP_STORED) -> bytes:
        return self._any_zip(arrays.items(), method)

    @staticmethod
    def _external_model(location: str) -> bytes:
        """An ONNX model with one initializer that lies in another file, written field by field."""
        entry = _field(1, b"location") + _field(2, location.encode())
        tensor = _number(1, 16) + _number(2, 1) + _field(8, b"w") + _field(13, entry) + _number(14, 1)
        graph = _field(2, b"g") + _field(5, tensor)
        return _number(1, 10) + _field(7, graph) + _field(8, _number(2, 21))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _npy(shape: str, kind: str = "<i2") -> bytes:
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (-(10 + len(head) + 1) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _forgeries(forger: Forger, count: int) -> Iterator[tuple[str, bytes]]:
    for make in itertools.islice(itertools.cycle(forger.kinds()), count):
        data = make()
        while data == forger.data:
            data = make()
        yield make.__name__, data


def main(bundle: Path, public: Path, folder: Path, count: int) -> dict[str, object]:
    """Forge ``count`` times."""
    forger = Forger(bundle, public, folder, seed=1)
    trusted = [signing.load_public_key(public)]
    read_bundle(bundle, trusted=trusted)
    report: Counter[str] = Counter(genuine=1, accepted=0, crashed=0, refused=0)
    path = folder / "forged.earshot"
    warm_mb = 0.0
    for number, (kind, data) in enumerate(_forgeries(forger, count)):
        path.write_bytes(data)
        report[f"kind {kind}"] += 1
        try:
            read_bundle(path, trusted=trusted)
        except BundleError as error:
            report["refused" if "\n" not in str(error) else "crashed"] += 1
        except Exception as error:  # noqa: BLE001 - that it is no BundleError is the finding
            report["crashed"] += 1
            sys.stderr.write(f"{kind}: {type(error).__name__}: {error}\n")
        else:
            report["accepted"] += 1
            sys.stderr.write(f"{kind}: accepted, crc {zlib.crc32(data):08x}\n")
        with contextlib.suppress(BundleError):
            describe_untrusted(path)
        if number == count // 3:
            warm_mb = _resident_mb()
    kinds = " ".join(make.__name__ for make in forger.kinds())
    return {**report, "kinds": kinds, "growth_mb": round(_resident_mb() - warm_mb, 1)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))))
