"""Read a bundle: nothing of it is believed before the signature, nothing of it runs before all checks.

The order is the point: size of the file, names and sizes of the members, signature over the manifest's
bytes, the manifest, hashes, the exact form of the zip, the graph (no external data), the golden vectors. Because the
manifest binds every member and the zip has one form only, no byte of the file can change unnoticed.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
import tokenize
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from edge.bundle import container
from edge.bundle.manifest import CARD, GOLDEN, MANIFEST, MEMBER_LIMITS_BYTES, MODEL, SIGNATURE, Manifest
from edge.bundle.onnx_wire import check_self_contained
from edge.errors import BundleError
from edge.validation import describe

if TYPE_CHECKING:
    from nacl.signing import VerifyKey

Floats = npt.NDArray[np.float32]

# What zipfile and numpy's header parser raise on hostile input.
_BROKEN_ARCHIVE = (
    zipfile.BadZipFile,
    struct.error,
    NotImplementedError,
    RuntimeError,
    ValueError,
    KeyError,
    SyntaxError,
    tokenize.TokenError,  # Python 3.12 and later, where 3.11 says SyntaxError
    EOFError,
    OSError,
    MemoryError,
)


@dataclass(frozen=True, eq=False)
class Bundle:
    """A verified bundle.

    Attributes:
        path: where it was read from.
        sha256: hash of the whole file, the name under which results refer to it.
        key: fingerprint of the trusted key that signed it.
        manifest: the signed statement.
        model: the ONNX graph.
        golden_pcm: float32 (n, window_samples) in [-1, 1].
        golden_scores: float32 (n, classes), what the graph gave for ``golden_pcm`` when it was packed.
        card: the model card, Markdown.
    """

    path: Path
    sha256: str
    key: str
    manifest: Manifest
    model: bytes
    golden_pcm: Floats
    golden_scores: Floats
    card: str


@dataclass(frozen=True)
class Claims:
    """What an UNVERIFIED bundle says of itself; anybody may have written it. ``intact`` is only about hashes."""

    path: Path
    sha256: str
    size_bytes: int
    manifest: Manifest
    card: str
    intact: bool


def read_bundle(path: Path, *, trusted: Sequence[VerifyKey]) -> Bundle:
    """Read and verify a bundle.

    Raises:
        BundleError: missing, no bundle, oversized, unsigned, signed by another key, altered, or holding a model that
            is not self-contained; one line that begins with the path.
    """
    from edge.bundle import signing  # noqa: PLC0415 - libsodium is loaded by those who verify

    with _explained(path), _opened(path) as (file, size_bytes):
        entries = container.scan(file, size_bytes)
        manifest_bytes, signature = _read(file, entries[MANIFEST]), _read(file, entries[SIGNATURE])
        if not trusted:
            raise BundleError("no trusted key given: name one with --trust KEY.pub")
        key = signing.verify(manifest_bytes, signature, trusted)
        if key is None:
            known = ", ".join(signing.fingerprint(each) for each in trusted)
            raise BundleError(f"manifest.json is altered, or signed by another key than the trusted ones ({known})")
        manifest = _parse_manifest(manifest_bytes)
        members = _read_members(file, entries, manifest)
        members |= {MANIFEST: manifest_bytes, SIGNATURE: signature}
        sha256 = _check_form(file, members)
        check_self_contained(members[MODEL])
        pcm, scores = _read_golden(members[GOLDEN], manifest)
        card = _decode_card(members[CARD])
    return Bundle(
        path=path,
        sha256=sha256,
        key=signing.fingerprint(key),
        manifest=manifest,
        model=members[MODEL],
        golden_pcm=pcm,
        golden_scores=scores,
        card=card,
    )


def describe_untrusted(path: Path) -> Claims:
    """Read what a bundle claims, without any trusted key and without touching its model or arrays.

    Raises:
        BundleError: missing, no bundle, oversized or unsigned.
    """
    with _explained(path), _opened(path) as (file, size_bytes):
        entries = container.scan(file, size_bytes)
        manifest_bytes = _read(file, entries[MANIFEST])
        manifest = _parse_manifest(manifest_bytes)
        intact = True
        try:
            members = _read_members(file, entries, manifest)
            _check_form(file, members | {MANIFEST: manifest_bytes, SIGNATURE: _read(file, entries[SIGNATURE])})
        except BundleError:
            intact = False
        card = _decode_card(_read(file, entries[CARD]))
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Claims(path=path, sha256=sha256, size_bytes=size_bytes, manifest=manifest, card=card, intact=intact)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror or error}") from None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BufferedReader, int]]:
    # A named pipe would block the open, and a device file has no size.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise BundleError("not a file: give the path of a NAME.earshot")
    with os.fdopen(handle, "rb") as file:
        if status.st_size > container.MAX_BYTES:
            raise BundleError(f"{status.st_size} bytes exceed the limit of {container.MAX_BYTES}")
        yield file, status.st_size


def _read(file: BufferedReader, entry: container.Entry) -> bytes:
    file.seek(entry.offset)
    data = file.read(entry.size_bytes)
    if len(data) != entry.size_bytes:
        raise BundleError(f"truncated: the file ends inside {entry.name}; copy it again")
    return data


def _parse_manifest(data: bytes) -> Manifest:
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise BundleError(f"manifest.json: {describe(error, document='content')}") from None


def _read_members(file: BufferedReader, entries: Mapping[str, container.Entry], manifest: Manifest) -> dict[str, bytes]:
    members = {}
    for name in (MODEL, GOLDEN, CARD):
        expected = manifest.members[name]
        if entries[name].size_bytes != expected.size_bytes:
            raise BundleError(f"{name} is altered: {entries[name].size_bytes} bytes instead of {expected.size_bytes}")
        data = _read(file, entries[name])
        if hashlib.sha256(data).hexdigest() != expected.sha256:
            raise BundleError(f"{name} is altered: its SHA-256 is not the signed one; copy the bundle again")
        members[name] = data
    return members


def _check_form(file: BufferedReader, members: Mapping[str, bytes]) -> str:
    """Compare the whole file with the only zip these members make; return its SHA-256."""
    expected = hashlib.sha256()
    for chunk in container.chunks(members):
        expected.update(chunk)
    file.seek(0)
    found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected.hexdigest():
        raise BundleError("altered outside its members (zip headers): copy it again, or pack it with earshot export")
    return found


def _decode_card(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise BundleError("README.md is not UTF-8") from None


def _read_golden(data: bytes, manifest: Manifest) -> tuple[Floats, Floats]:
    """The golden vectors, read without numpy's loader: it allocates what a header asks for and knows pickles."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = sorted(info.filename for info in archive.infolist())
            if names != ["pcm.npy", "scores.npy"]:
                raise BundleError("golden.npz must hold exactly pcm.npy and scores.npy")
            packed = any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist())
            if packed or sum(info.file_size for info in archive.infolist()) > MEMBER_LIMITS_BYTES[GOLDEN]:
                raise BundleError("golden.npz is compressed or too large: store its arrays as they are")
            pcm = _array(archive.read("pcm.npy"), "pcm.npy", "<i2").astype(np.float32) / np.float32(32768)
            scores = _array(archive.read("scores.npy"), "scores.npy", "<f4").astype(np.float32)
    except _BROKEN_ARCHIVE:
        raise BundleError("golden.npz cannot be read as plain arrays") from None
    samples, classes = manifest.window_samples, len(manifest.labels)
    if not len(pcm) or pcm.shape != (len(pcm), samples) or scores.shape != (len(pcm), classes):
        raise BundleError(
            f"golden.npz has pcm {pcm.shape} and scores {scores.shape} instead of (n, {samples}) and (n, {classes})"
        )
    if not np.isfinite(scores).all():
        raise BundleError("golden.npz holds numbers that are not finite")
    return pcm, scores


def _array(data: bytes, name: str, kind: str) -> npt.NDArray[Any]:
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise BundleError(f"golden.npz: {name} has an unknown array version")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=4096)
    body = memoryview(data)[file.tell() :]
    count = 1
    for length in shape:
        count *= length
    wanted = np.dtype(kind)
    if dtype != wanted or fortran or len(shape) != 2 or count * wanted.itemsize != len(body):
        raise BundleError(f"golden.npz: {name} is not a plain matrix of {wanted}")
    return np.frombuffer(body, dtype=wanted).reshape(shape)
