"""A bundle is read only when every byte of it is what its signer packed."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.bundle import container, signing
from edge.bundle.manifest import CARD, GOLDEN, MANIFEST, MEMBER_LIMITS_BYTES, MODEL, SIGNATURE, Manifest
from edge.bundle.reading import describe_untrusted, read_bundle
from edge.errors import BundleError


class Forge:
    """A good bundle, and what a forger or a bad disk could make of it."""

    def __init__(self, path: Path, public: Path, folder: Path) -> None:
        self.good, self.folder = path, folder
        self.data = path.read_bytes()
        self.trusted = [signing.load_public_key(public)]
        self.key = signing.load_private_key(public.with_suffix(".pem"))
        with zipfile.ZipFile(path) as archive:
            self.members = {name: archive.read(name) for name in archive.namelist()}
        self.manifest = Manifest.model_validate_json(self.members[MANIFEST])

    def write(self, data: bytes) -> Path:
        out = self.folder / "forged.earshot"
        out.write_bytes(data)
        return out

    def zipped(self, members: list[tuple[str, bytes]], **options: object) -> Path:
        out = self.folder / "forged.earshot"
        with zipfile.ZipFile(out, "w", **options) as archive:
            for name, data in members:
                archive.writestr(name, data)
        return out

    def signed(self, changed: dict[str, bytes] | None = None, **manifest: object) -> Path:
        """A bundle with other members or manifest keys, signed again by the trusted key: a careless signer's."""
        members = self.members | (changed or {})
        listed = {
            name: {"sha256": hashlib.sha256(members[name]).hexdigest(), "size_bytes": len(members[name])}
            for name in (MODEL, GOLDEN, CARD)
        }
        facts = self.manifest.model_dump(mode="json", by_alias=True) | {"members": listed} | manifest
        import json

        members[MANIFEST] = json.dumps(facts).encode()
        members[SIGNATURE] = signing.sign(self.key, members[MANIFEST])
        return self.write(b"".join(container.chunks(members)))

    def refusal(self, path: Path) -> str:
        with pytest.raises(BundleError) as caught:
            read_bundle(path, trusted=self.trusted)
        message = str(caught.value)
        assert message.startswith(str(path))
        assert "\n" not in message
        return message


@pytest.fixture
def forge(tiny_bundle, tmp_path) -> Forge:
    return Forge(tiny_bundle.path, tiny_bundle.key, tmp_path)


def test_good_bundle(forge):
    bundle = read_bundle(forge.good, trusted=forge.trusted)
    assert bundle.sha256 == hashlib.sha256(forge.data).hexdigest()
    assert bundle.model == forge.members[MODEL]
    assert bundle.key == signing.fingerprint(forge.trusted[0])
    assert bundle.golden_pcm.dtype == bundle.golden_scores.dtype == np.float32
    assert bundle.golden_pcm.shape == (2, forge.manifest.window_samples)
    with zipfile.ZipFile(forge.good) as archive:
        assert archive.testzip() is None
        assert tuple(archive.namelist()) == container.ORDER


def test_several_trusted_keys(forge, other_keys):
    other = signing.load_public_key(other_keys.public)
    assert read_bundle(forge.good, trusted=[other, *forge.trusted]).key == signing.fingerprint(forge.trusted[0])


def test_signed_again_is_good(forge):
    read_bundle(forge.signed(), trusted=forge.trusted)


# --- the file -------------------------------------------------------------------------------------------------------


def headers(data: bytes) -> list[int]:
    """Offsets of all bytes that belong to no member."""
    file = io.BufferedReader(io.BytesIO(data))
    inside = [range(e.offset, e.offset + e.size_bytes) for e in container.scan(file, len(data)).values()]
    return [offset for offset in range(len(data)) if not any(offset in each for each in inside)]


def test_every_changed_byte_around_the_members(forge):
    for offset in headers(forge.data):
        data = bytearray(forge.data)
        data[offset] ^= 1 << offset % 8
        forge.refusal(forge.write(data))


@settings(max_examples=150, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_any_changed_byte(tiny_bundle, tmp_path_factory, where, flip):
    forge = Forge(tiny_bundle.path, tiny_bundle.key, tmp_path_factory.getbasetemp())
    data = bytearray(forge.data)
    data[int(where * len(data))] ^= flip
    forge.refusal(forge.write(data))


def test_altered_members_are_named(forge):
    for name, data in forge.members.items():
        altered = bytearray(forge.data)
        altered[forge.data.index(data) + len(data) // 2] ^= 1
        expected = MANIFEST if name == SIGNATURE else name
        assert f"{expected} is altered" in forge.refusal(forge.write(altered))


@settings(max_examples=60, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True))
def test_truncated_anywhere(tiny_bundle, tmp_path_factory, where):
    forge = Forge(tiny_bundle.path, tiny_bundle.key, tmp_path_factory.getbasetemp())
    message = forge.refusal(forge.write(forge.data[: int(where * len(forge.data))]))
    assert "truncated" in message or "not a bundle" in message


def test_not_a_bundle(forge, tmp_path):
    assert "not a bundle" in forge.refusal(forge.write(b""))
    assert "not a bundle" in forge.refusal(forge.write(os.urandom(5000)))
    assert "No such file" in forge.refusal(tmp_path / "absent.earshot")
    assert "not a file" in forge.refusal(tmp_path)
    pipe = tmp_path / "pipe.earshot"
    os.mkfifo(pipe)
    assert "not a file" in forge.refusal(pipe)


@pytest.mark.parametrize("extra", [b"x", b"PK\x05\x06" + bytes(18)])
def test_bytes_after_and_before(forge, extra):
    assert "too many" in forge.refusal(forge.write(forge.data + extra))
    assert "not a bundle" in forge.refusal(forge.write(extra + forge.data))


def test_member_comments_and_archive_comment(forge):
    path = forge.write(forge.data)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"hello"
    forge.refusal(path)


def test_oversized_file_is_not_read(forge, tmp_path):
    path = tmp_path / "huge.earshot"
    path.write_bytes(forge.data)
    os.truncate(path, container.MAX_BYTES + 1)
    assert "exceed the limit" in forge.refusal(path)


@pytest.mark.parametrize("name", container.ORDER)
def test_oversized_member_is_not_read(forge, tmp_path, name):
    # A sparse file of the declared size: reading it would need the memory, refusing it must not.
    before = b"".join(_before(forge.members, name))
    size = MEMBER_LIMITS_BYTES[name] + 1
    head = struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 0, 0, 33, 0, size, size, len(name), 0) + name.encode()
    path = tmp_path / "huge.earshot"
    path.write_bytes(before + head)
    os.truncate(path, min(len(before + head) + size + 100, container.MAX_BYTES))
    assert f"{name} has {size} bytes, more than the limit" in forge.refusal(path)


def _before(members: dict[str, bytes], name: str) -> list[bytes]:
    pieces = list(container.chunks(members))
    return pieces[: 2 * container.ORDER.index(name)]


# --- the members ----------------------------------------------------------------------------------------------------


def test_unsigned(forge):
    members = [(name, data) for name, data in forge.members.items() if name != SIGNATURE]
    assert "unsigned" in forge.refusal(forge.zipped(members))


@pytest.mark.parametrize("signature", [b"", b"short", bytes(64)])
def test_invalid_signature(forge, signature):
    members = forge.members | {SIGNATURE: signature}
    assert "signed by another key" in forge.refusal(forge.write(b"".join(container.chunks(members))))


def test_wrong_key(forge, other_keys):
    with pytest.raises(BundleError, match="signed by another key than the trusted ones"):
        read_bundle(forge.good, trusted=[signing.load_public_key(other_keys.public)])
    with pytest.raises(BundleError, match="no trusted key given"):
        read_bundle(forge.good, trusted=[])


def test_missing_extra_and_doubled_members(forge):
    good = list(forge.members.items())
    for name in forge.members:
        if name != SIGNATURE:
            assert f"{name} missing" in forge.refusal(forge.zipped([item for item in good if item[0] != name]))
    assert "unexpected member 'weights.bin'" in forge.refusal(forge.zipped([*good, ("weights.bin", b"x")]))
    assert "unexpected member '../model.onnx'" in forge.refusal(forge.zipped([*good, ("../model.onnx", b"x")]))
    with pytest.warns(UserWarning, match="Duplicate"):
        path = forge.zipped([*good, (MODEL, b"other")])
    assert "'model.onnx' is there twice" in forge.refusal(path)
    assert "out of order" in forge.refusal(forge.zipped(good[::-1]))


def test_compressed_member(forge):
    path = forge.zipped(list(forge.members.items()), compression=zipfile.ZIP_DEFLATED)
    assert "compressed" in forge.refusal(path)


def test_other_zip_with_the_same_members(forge):
    # Time stamps of another tool: harmless, but then two files would carry one signature.
    assert "altered outside its members" in forge.refusal(forge.zipped(list(forge.members.items())))


def test_member_swapped_between_two_signed_bundles(forge):
    read_bundle(forge.signed({CARD: b"another card"}), trusted=forge.trusted)
    members = forge.members | {CARD: b"another card"}
    assert f"{CARD} is altered" in forge.refusal(forge.write(b"".join(container.chunks(members))))


# --- what a careless signer could sign ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"surprise": 1}, "manifest.json: surprise"),
        ({"version": 0}, "manifest.json: version"),
        ({"schema": 2}, "manifest.json: schema"),
        ({"labels": ["a", "a"]}, "labels must differ"),
        ({"name": "../up"}, "manifest.json: name"),
        ({"members": {}}, "members must be"),
        ({"window_samples": 8000}, "golden.npz has pcm"),
    ],
)
def test_manifest_that_makes_no_sense(forge, changed, expected):
    assert expected in forge.refusal(forge.signed(**changed))


def test_manifest_that_is_no_json(forge):
    members = forge.members | {MANIFEST: b"\xff{"}
    members[SIGNATURE] = signing.sign(forge.key, members[MANIFEST])
    assert "manifest.json: content" in forge.refusal(forge.write(b"".join(container.chunks(members))))


def test_card_that_is_no_text(forge):
    assert "README.md is not UTF-8" in forge.refusal(forge.signed({CARD: b"\xff\xfe"}))


def _npz(save: Callable[..., None] = np.savez, **arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


PCM, SCORES = np.zeros((2, 16_000), np.int16), np.zeros((2, 2), np.float32)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("/tmp/earshot-pickle-was-run",)


def _header(shape: str, descr: str = "<i2") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    body = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("pcm.npy", body)
        archive.writestr("scores.npy", body)
    return file.getvalue()


@pytest.mark.parametrize(
    "golden",
    [
        b"",
        b"PK\x03\x04 not a zip",
        _npz(pcm=PCM),
        _npz(pcm=PCM, scores=SCORES, more=SCORES),
        _npz(np.savez_compressed, pcm=PCM, scores=SCORES),
        _npz(pcm=np.array([[Bomb()]], dtype=object), scores=SCORES),
        _npz(pcm=PCM.astype(np.float32), scores=SCORES),
        _npz(pcm=PCM, scores=SCORES.astype(np.float64)),
        _npz(pcm=PCM[:1], scores=SCORES),
        _npz(pcm=PCM[:0], scores=SCORES[:0]),
        _npz(pcm=PCM[0], scores=SCORES),
        _npz(pcm=PCM[:, :8000], scores=SCORES),
        _npz(pcm=PCM, scores=np.zeros((2, 3), np.float32)),
        _npz(pcm=PCM, scores=SCORES + np.float32(np.nan)),
        _npz(pcm=np.asfortranarray(PCM), scores=SCORES),
        _header("(1000000000000, 16000)"),
        _header("(-1, -16000)"),
        _header("(2, 16000)", "|O"),
        _header("(" * 200 + ")" * 200),
        _header("__import__('os')"),
    ],
)
def test_golden_vectors_that_are_no_plain_arrays(forge, golden):
    assert "golden.npz" in forge.refusal(forge.signed({GOLDEN: golden}))
    assert not Path("/tmp/earshot-pickle-was-run").exists()


# --- nothing runs before all checks ---------------------------------------------------------------------------------


def test_onnxruntime_is_not_even_imported_for_a_bad_bundle(forge, tmp_path):
    model = bytearray(forge.members[MODEL])
    model[len(model) // 2] ^= 1
    altered = forge.write(b"".join(container.chunks(forge.members | {MODEL: bytes(model)})))
    script = (
        "import sys\nfrom pathlib import Path\nfrom edge.bundle.reading import read_bundle\n"
        "from edge.errors import BundleError\nfrom edge.bundle.signing import load_public_key\n"
        "key = load_public_key(Path(sys.argv[2]))\n"
        "try:\n    read_bundle(Path(sys.argv[1]), trusted=[key])\n"
        "except BundleError as error:\n    print(error)\n"
        "print(sorted({'onnxruntime', 'onnx', 'torch', 'scipy'} & set(sys.modules)))\n"
    )
    public = signing.write_key_pair(tmp_path / "unused")[1]
    for key in (public, tmp_path / "trusted.pub"):
        if not key.exists():
            key.write_bytes(signing.public_pem(forge.trusted[0]))
        result = subprocess.run(
            [sys.executable, "-c", script, str(altered), str(key)], capture_output=True, text=True, check=True
        )
        lines = result.stdout.splitlines()
        assert "altered" in lines[0]
        assert lines[1] == "[]"


def test_describe_untrusted(forge):
    claims = describe_untrusted(forge.good)
    assert claims.intact
    assert claims.manifest == forge.manifest
    assert claims.sha256 == hashlib.sha256(forge.data).hexdigest()
    altered = bytearray(forge.data)
    altered[forge.data.index(forge.members[MODEL]) + 5] ^= 1
    assert not describe_untrusted(forge.write(altered)).intact
    with pytest.raises(BundleError, match="unsigned"):
        describe_untrusted(forge.zipped([(n, d) for n, d in forge.members.items() if n != SIGNATURE]))
