"""Ed25519 keys and signatures: who may say what a device runs.

A key pair is two PEM files: ``NAME.pem`` (private, PKCS #8, mode 0600) signs bundles on the workstation, ``NAME.pub``
(SubjectPublicKeyInfo) is what a device trusts. Private keys carry no passphrase; a private key that others can
read is refused, as ssh does.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edge.errors import UsageError

SIGNATURE_BYTES = 64
_MAX_KEY_FILE_BYTES = 16 << 10


def sign(key: Ed25519PrivateKey, data: bytes) -> bytes:
    """The 64 byte signature of ``data``; the same key and data always give the same signature (RFC 8032)."""
    return key.sign(data)


def verify(data: bytes, signature: bytes, trusted: Sequence[Ed25519PublicKey]) -> Ed25519PublicKey | None:
    """The first trusted key under which ``signature`` is valid for ``data``, or None."""
    for key in trusted:
        try:
            key.verify(signature, data)
        except InvalidSignature:
            continue
        return key
    return None


def fingerprint(key: Ed25519PublicKey) -> str:
    """SHA-256 of the raw 32 byte public key, its first 16 hex digits: short enough to compare by eye."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


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
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    _write_new(private_path, private, mode=0o600)
    try:
        _write_new(public_path, public, mode=0o644)
    except UsageError:
        private_path.unlink(missing_ok=True)
        raise
    return private_path, public_path


def load_private_key(path: Path) -> Ed25519PrivateKey:
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
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except TypeError:
        raise UsageError(f"{path} is protected by a passphrase, which earshot does not ask for: remove it") from None
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(f"{path} is no private key in PEM: make one with earshot keys new") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path} is another kind of key than Ed25519: make one with earshot keys new")
    return key


def load_public_key(path: Path) -> Ed25519PublicKey:
    """Read a public key.

    Raises:
        UsageError: missing, or not an Ed25519 public key in PEM.
    """
    data = _read(path)
    if b"PRIVATE KEY" in data:
        raise UsageError(f"{path} is a private key and belongs on no device: give the public one (NAME.pub)")
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(f"{path} is no public key in PEM (NAME.pub of earshot keys new)") from None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{path} is another kind of key than Ed25519: make one with earshot keys new")
    return key


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
