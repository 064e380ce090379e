"""Ed25519 keys and signatures: who may say what a device runs and does.

A key pair is two PEM files: ``NAME.pem`` (private, PKCS #8, mode 0600) signs bundles and commands on the workstation,
``NAME.pub`` (SubjectPublicKeyInfo) is what a device trusts. Both are as RFC 8410 has them, so that openssl reads ours
and we read openssl's; of their DER exactly one form is accepted. Private keys carry no passphrase; a private key that
others can read is refused, as ssh does.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from edge.errors import UsageError

SIGNATURE_BYTES = 64
KEY_BYTES = 32
_MAX_KEY_FILE_BYTES = 16 << 10

# RFC 8410, section 4 and 7: all that stands before the 32 raw bytes of an Ed25519 key.
_PUBLIC_DER = bytes.fromhex("302a300506032b6570032100")
_PRIVATE_DER = bytes.fromhex("302e020100300506032b657004220420")
_ED25519_OID = bytes.fromhex("06032b6570")
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\r?\n([A-Za-z0-9+/=\r\n]+)-----END \1-----\s*")


def sign(key: SigningKey, data: bytes) -> bytes:
    """The 64 byte signature of ``data``; the same key and data always give the same signature (RFC 8032)."""
    return key.sign(data).signature


def verify(data: bytes, signature: bytes, trusted: Sequence[VerifyKey]) -> VerifyKey | None:
    """The first trusted key under which ``signature`` is valid for ``data``, or None."""
    if len(signature) != SIGNATURE_BYTES:
        return None
    for key in trusted:
        try:
            key.verify(data, signature)
        except BadSignatureError:
            continue
        return key
    return None


def fingerprint(key: VerifyKey) -> str:
    """SHA-256 of the raw 32 byte public key, its first 16 hex digits: short enough to compare by eye."""
    return hashlib.sha256(bytes(key)).hexdigest()[:16]


def public_pem(key: VerifyKey) -> bytes:
    """A public key as the content of its file."""
    return _pem(b"PUBLIC KEY", _PUBLIC_DER + bytes(key))


def write_key_pair(stem: Path) -> tuple[Path, Path]:
    """Make a new key pair in ``stem.pem`` (mode 0600) and ``stem.pub``; nothing is ever overwritten.

    Returns:
        the paths of the private and of the public key.

    Raises:
        UsageError: one of the files exists, or the folder is missing or read-only.
    """
    if not stem.name:
        raise UsageError(f"{str(stem)!r} is no name for a key pair: give one, e.g. mine for mine.pem and mine.pub")
    private_path, public_path = stem.with_name(stem.name + ".pem"), stem.with_name(stem.name + ".pub")
    for path in (private_path, public_path):
        if path.exists() or path.is_symlink():
            raise UsageError(f"{path} exists and is not overwritten: choose another name")
    key = SigningKey.generate()
    private, public = _pem(b"PRIVATE KEY", _PRIVATE_DER + bytes(key)), public_pem(key.verify_key)
    _write_new(private_path, private, mode=0o600)
    try:
        _write_new(public_path, public, mode=0o644)
    except UsageError:
        private_path.unlink(missing_ok=True)
        raise
    return private_path, public_path


def load_private_key(path: Path) -> SigningKey:
    """Read a private key.

    Raises:
        UsageError: missing, readable by others, protected by a passphrase, or not an Ed25519 private key in PEM.
    """
    data = _read(path)
    if b"PUBLIC KEY" in data:
        raise UsageError(f"{path} is a public key: signing needs the private one (NAME.pem of earshot keys new)")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise UsageError(f"{path} has mode {mode:04o}, others can read it: run chmod 600 {path}")
    if b"ENCRYPTED" in data:
        raise UsageError(f"{path} is protected by a passphrase, which earshot does not ask for: remove it")
    raw = _raw_key(path, data, b"PRIVATE KEY", _PRIVATE_DER)
    if raw is None:
        raise UsageError(f"{path} is no private key in PEM: make one with earshot keys new")
    return SigningKey(raw)


def load_public_key(path: Path) -> VerifyKey:
    """Read a public key.

    Raises:
        UsageError: missing, or not an Ed25519 public key in PEM.
    """
    data = _read(path)
    if b"PRIVATE KEY" in data:
        raise UsageError(f"{path} is a private key and belongs on no device: give the public one (NAME.pub)")
    raw = _raw_key(path, data, b"PUBLIC KEY", _PUBLIC_DER)
    if raw is None:
        raise UsageError(f"{path} is no public key in PEM (NAME.pub of earshot keys new)")
    return VerifyKey(raw)


def _pem(label: bytes, der: bytes) -> bytes:
    """DER of at most 48 bytes in PEM: one line of base64."""
    return b"-----BEGIN %s-----\n%s\n-----END %s-----\n" % (label, base64.b64encode(der), label)


def _raw_key(path: Path, data: bytes, label: bytes, prefix: bytes) -> bytes | None:
    """The 32 bytes in a PEM file, None where it is none.

    Raises:
        UsageError: it holds a key of another kind.
    """
    found = _PEM.fullmatch(data)
    if found is None:
        return None
    try:
        der = base64.b64decode(re.sub(rb"[\r\n]", b"", found[2]), validate=True)
    except binascii.Error:
        return None
    if found[1] == label and der.startswith(prefix) and len(der) == len(prefix) + KEY_BYTES:
        return der[len(prefix) :]
    if found[1].endswith(label) and der.startswith(b"\x30") and _ED25519_OID not in der:
        raise UsageError(f"{path} is another kind of key than Ed25519: make one with earshot keys new")
    return None


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise UsageError(f"{path}: no such key file")
        with path.open("rb") as file:
            data = file.read(_MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    if len(data) > _MAX_KEY_FILE_BYTES:
        raise UsageError(f"{path} is larger than {_MAX_KEY_FILE_BYTES} bytes: not a key")
    return data


def _write_new(path: Path, data: bytes, *, mode: int) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
