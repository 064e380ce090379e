"""A small authority of our own: EC P-256 certificates for one broker and its clients."""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edge.errors import UsageError

AUTHORITY_DAYS = 3650
SERVER_DAYS = 825
CLIENT_DAYS = 1825
RENEW_DAYS = 60
# A device without a clock of its own wakes up in the past, but rarely more than a day.
_BACKDATED = dt.timedelta(days=1)


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes


def new_authority(now: dt.datetime) -> Pair:
    """An authority that signs itself and may sign nothing but ends of connections."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(f"earshot broker authority {x509.random_serial_number() & 0xFFFFFFFF:08x}")
    usage = _usage(signs_certificates=True)
    certificate = (
        _builder(subject, subject, key.public_key(), now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return _pem(certificate, key)


def new_server(authority: Pair, hosts: Sequence[str], now: dt.datetime) -> Pair:
    """The broker's certificate for DNS names and IP addresses."""
    names = x509.SubjectAlternativeName([_alternative(host) for host in hosts])
    return _end(authority, hosts[0][:64], ExtendedKeyUsageOID.SERVER_AUTH, now, days=SERVER_DAYS, names=names)


def new_client(authority: Pair, name: str, now: dt.datetime) -> Pair:
    """The certificate of a device or a person's machine."""
    return _end(authority, name[:64], ExtendedKeyUsageOID.CLIENT_AUTH, now, days=CLIENT_DAYS)


def is_current(pair: Pair, authority: Pair, now: dt.datetime, hosts: Sequence[str] | None = None) -> bool:
    """Whether a certificate fits its key, is of this authority, is for these hosts, and is good for 60 days more.

    Raises:
        UsageError: it is no certificate.
    """
    certificate, key = _certificate(pair), _key(pair)
    public = certificate.public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey) or public != key.public_key():
        return False
    try:
        certificate.verify_directly_issued_by(_certificate(authority))
    except Exception:  # noqa: BLE001 - by whom else it is signed does not matter
        return False
    if certificate.not_valid_after_utc < now + dt.timedelta(days=RENEW_DAYS):
        return False
    if hosts is None:
        return True
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return set(names) == {_alternative(host) for host in hosts}


def expires(pair: Pair) -> dt.datetime:
    """When a certificate ends, UTC."""
    return _certificate(pair).not_valid_after_utc


def check_host(host: str) -> str:
    """Return ``host`` if a certificate can name it.

    Raises:
        UsageError: it is neither an IP address nor a DNS name.
    """
    _alternative(host)
    return host


def is_host(host: str) -> bool:
    """Whether a certificate can name ``host``."""
    try:
        check_host(host)
    except UsageError:
        return False
    return True


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.split(".")
    ok = len(host) <= 253 and all(
        0 < len(label) <= 63 and label.isascii() and label.replace("-", "").isalnum() and label.strip("-") == label
        for label in labels
    )
    if not ok:
        raise UsageError(f"host {host!r}: use a DNS name or an IP address, as clients will write it")
    return x509.DNSName(host.lower())


def _end(
    authority: Pair,
    name: str,
    purpose: x509.ObjectIdentifier,
    now: dt.datetime,
    *,
    days: int,
    names: x509.SubjectAlternativeName | None = None,
) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer, issuer_key = _certificate(authority), _key(authority)
    issuer_mark = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        _builder(_name(name), issuer.subject, key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_mark), critical=False)
    )
    if names is not None:
        builder = builder.add_extension(names, critical=False)
    return _pem(builder.sign(issuer_key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: dt.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _pem(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    return Pair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def _certificate(pair: Pair) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pair.certificate)
    except ValueError:
        raise UsageError("a certificate of the broker's folder is malformed: remove it, and it is made anew") from None


def _key(pair: Pair) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pair.key, None)
    except (ValueError, TypeError):
        raise UsageError("a key of the broker's folder is malformed: remove it, and it is made anew") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UsageError("a key of the broker's folder is not on P-256: remove it, and it is made anew")
    return key
