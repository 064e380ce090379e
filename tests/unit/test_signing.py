"""Keys on disk: private ones stay private, and the wrong file is one clear line."""

from __future__ import annotations

import base64
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, x25519
from nacl.signing import SigningKey

from edge.bundle import signing
from edge.bundle.reading import read_bundle
from edge.errors import UsageError
from firmware_models import zoo

PEM, PKCS8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def test_pair_signs_and_verifies(tmp_path):
    private_path, public_path = signing.write_key_pair(tmp_path / "mine")
    assert (private_path.name, public_path.name) == ("mine.pem", "mine.pub")
    assert stat.S_IMODE(private_path.stat().st_mode) == 0o600
    key, public = signing.load_private_key(private_path), signing.load_public_key(public_path)
    signature = signing.sign(key, b"words")
    assert len(signature) == signing.SIGNATURE_BYTES
    stranger = SigningKey.generate().verify_key
    assert signing.verify(b"words", signature, [stranger, public]) is public
    assert signing.verify(b"words", signature, [stranger]) is None
    assert signing.verify(b"other", signature, [public]) is None
    assert signing.verify(b"words", b"", [public]) is None
    assert signing.verify(b"words", signature + b"x", [public]) is None
    assert signing.verify(b"words", signature, []) is None
    assert signing.fingerprint(public) != signing.fingerprint(stranger)


def test_rfc_8032_vector():
    # RFC 8032, 7.1, test 2.
    secret = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    key = SigningKey(secret)
    expected = (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    assert signing.sign(key, bytes.fromhex("72")).hex() == expected


def test_cryptography_reads_ours_and_we_read_theirs(tmp_path):
    private_path, public_path = signing.write_key_pair(tmp_path / "ours")
    theirs = serialization.load_pem_private_key(private_path.read_bytes(), password=None)
    assert isinstance(theirs, ed25519.Ed25519PrivateKey)
    assert theirs.public_key().public_bytes(PEM, SPKI) == public_path.read_bytes()
    assert theirs.private_bytes(PEM, PKCS8, serialization.NoEncryption()) == private_path.read_bytes()
    assert theirs.sign(b"words") == signing.sign(signing.load_private_key(private_path), b"words")

    made = ed25519.Ed25519PrivateKey.generate()
    private = write(tmp_path / "theirs.pem", made.private_bytes(PEM, PKCS8, serialization.NoEncryption()))
    public = write(tmp_path / "theirs.pub", made.public_key().public_bytes(PEM, SPKI))
    assert bytes(signing.load_private_key(private)) == made.private_bytes_raw()
    key = signing.load_public_key(public)
    assert bytes(key) == made.public_key().public_bytes_raw()
    assert signing.verify(b"words", made.sign(b"words"), [key]) is key
    assert signing.public_pem(key) == public.read_bytes()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl: apt-get install openssl")
def test_openssl_reads_ours_and_we_read_its(tmp_path):
    private_path, public_path = signing.write_key_pair(tmp_path / "ours")
    message, signature = write(tmp_path / "message", b"words"), tmp_path / "signature"

    def openssl(*arguments: str | Path) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=30)

    signature.write_bytes(signing.sign(signing.load_private_key(private_path), b"words"))
    openssl("pkeyutl", "-verify", "-pubin", "-inkey", public_path, "-rawin", "-in", message, "-sigfile", signature)
    private, public = write(tmp_path / "its.pem", b""), tmp_path / "its.pub"
    openssl("genpkey", "-algorithm", "ed25519", "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    assert signing.load_private_key(private).verify_key == signing.load_public_key(public)


def test_the_zoos_key_still_verifies_its_bundles():
    key = signing.load_public_key(zoo.PUBLIC_KEY)
    assert read_bundle(zoo.bundle("lms-int8"), trusted=[key]).key == signing.fingerprint(key)


def test_one_form_of_a_key_is_accepted(tmp_path):
    made = SigningKey.generate()
    prefix = bytes.fromhex("302a300506032b6570032100")
    raw = bytes(made.verify_key)

    def pem(der: bytes, label: bytes = b"PUBLIC KEY") -> bytes:
        return b"-----BEGIN %s-----\n%s\n-----END %s-----\n" % (label, base64.b64encode(der), label)

    good = pem(prefix + raw)
    assert signing.load_public_key(write(tmp_path / "key", good.replace(b"\n", b"\r\n"))) == made.verify_key
    padded = bytes.fromhex("302b300506032b65700322000000")[:12] + b"\x00" + raw
    bad = [pem(prefix + raw[:-1]), pem(prefix + raw + b"\x00"), pem(padded), pem(prefix + raw, b"ANY KEY")]
    bad += [
        b"Subject: me\n" + good,
        good + good,
        good.replace(b"END PUBLIC", b"END ANY"),
        good.replace(b"MCow", b"MC*w"),
    ]
    for data in bad:
        with pytest.raises(UsageError, match="is no public key in PEM"):
            signing.load_public_key(write(tmp_path / "key", data))
    exchange = x25519.X25519PrivateKey.generate()
    with pytest.raises(UsageError, match="another kind of key"):
        signing.load_public_key(write(tmp_path / "key", exchange.public_key().public_bytes(PEM, SPKI)))
    data = exchange.private_bytes(PEM, PKCS8, serialization.NoEncryption())
    with pytest.raises(UsageError, match="another kind of key"):
        signing.load_private_key(write(tmp_path / "key", data))


def test_names_with_dots_keep_them(tmp_path):
    assert signing.write_key_pair(tmp_path / "lab.v1")[0].name == "lab.v1.pem"


@pytest.mark.parametrize("existing", ["mine.pem", "mine.pub"])
def test_nothing_is_overwritten(tmp_path, existing):
    (tmp_path / existing).write_text("precious")
    with pytest.raises(UsageError, match="not overwritten"):
        signing.write_key_pair(tmp_path / "mine")
    assert [path.name for path in tmp_path.iterdir()] == [existing]
    assert (tmp_path / existing).read_text() == "precious"


def test_missing_folder(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        signing.write_key_pair(tmp_path / "nowhere/mine")


def test_private_key_that_others_can_read(tmp_path):
    private_path, _ = signing.write_key_pair(tmp_path / "mine")
    private_path.chmod(0o640)
    with pytest.raises(UsageError, match=r"mode 0640.*chmod 600"):
        signing.load_private_key(private_path)


def test_keys_of_the_wrong_kind(tmp_path):
    private_path, public_path = signing.write_key_pair(tmp_path / "mine")
    with pytest.raises(UsageError, match="is a private key and belongs on no device"):
        signing.load_public_key(private_path)
    public_path.chmod(0o600)
    with pytest.raises(UsageError, match="is a public key"):
        signing.load_private_key(public_path)
    curve = ec.generate_private_key(ec.SECP256R1())
    data = curve.private_bytes(PEM, PKCS8, serialization.NoEncryption())
    with pytest.raises(UsageError, match="another kind of key"):
        signing.load_private_key(write(tmp_path / "p256.pem", data))
    data = curve.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(UsageError, match="another kind of key"):
        signing.load_public_key(write(tmp_path / "p256.pub", data))


def test_passphrase(tmp_path):
    key = ed25519.Ed25519PrivateKey.generate()
    data = key.private_bytes(PEM, PKCS8, serialization.BestAvailableEncryption(b"secret"))
    with pytest.raises(UsageError, match="passphrase"):
        signing.load_private_key(write(tmp_path / "locked.pem", data))


@pytest.mark.parametrize("load", [signing.load_private_key, signing.load_public_key])
@pytest.mark.parametrize("content", [b"", b"\x00\xff" * 50, b"-----BEGIN NOTHING-----", b"x" * 20_000])
def test_garbage_is_one_line(tmp_path, load, content):
    with pytest.raises(UsageError) as caught:
        load(write(tmp_path / "key", content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("load", [signing.load_private_key, signing.load_public_key])
def test_missing_file_and_folder(tmp_path, load):
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(UsageError, match="no such key file"):
            load(path)
