"""What a TLS connection to the broker trusts and shows: files named in the environment, never on a command line."""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Mapping
from pathlib import Path

from edge.errors import UsageError
from edge.mqtt.broker_url import CA_FILE_VARIABLE, BrokerUrl

CERTIFICATE_FILE_VARIABLE = "EARSHOT_MQTT_CERT_FILE"
KEY_FILE_VARIABLE = "EARSHOT_MQTT_KEY_FILE"
# Who may write the key can replace it; a group that may read it is how a service gets its key.
_REFUSED_MODE = stat.S_IRWXO | stat.S_IWGRP


def tls_context(url: BrokerUrl, environment: Mapping[str, str] = os.environ) -> ssl.SSLContext:
    """TLS 1.2 or newer that checks the broker's certificate and name, and shows a client certificate where one is set.

    Args:
        url: the broker; ``mqtts`` is assumed.
        environment: ``EARSHOT_MQTT_CA_FILE`` replaces the system's authorities; ``EARSHOT_MQTT_CERT_FILE`` and
            ``EARSHOT_MQTT_KEY_FILE`` are PEM files of the client's certificate and its private key.

    Raises:
        UsageError: a file is absent, malformed, does not fit the other, or the key may be read by everybody.
    """
    ca_file = url.ca_file(environment)
    try:
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except (ssl.SSLError, OSError) as error:
        raise UsageError(f"{CA_FILE_VARIABLE}={ca_file}: not a PEM file of certificates ({error})") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    certificate, key = environment.get(CERTIFICATE_FILE_VARIABLE), environment.get(KEY_FILE_VARIABLE)
    if not certificate and not key:
        return context
    if not certificate or not key:
        given, absent = (CERTIFICATE_FILE_VARIABLE, KEY_FILE_VARIABLE)[:: 1 if certificate else -1]
        raise UsageError(f"{given} is set and {absent} is not: a client certificate needs both")
    _check_files(Path(certificate), Path(key))
    try:
        # An encrypted key must not stop a service at a prompt.
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except ssl.SSLError as error:
        raise UsageError(
            f"{CERTIFICATE_FILE_VARIABLE}={certificate}, {KEY_FILE_VARIABLE}={key}: not a certificate and its"
            f" unencrypted private key in PEM ({error.reason or 'malformed'})"
        ) from None
    except OSError as error:
        raise UsageError(f"{KEY_FILE_VARIABLE}={key}: {error.strerror or error}") from None
    return context


def _check_files(certificate: Path, key: Path) -> None:
    if not certificate.is_file():
        raise UsageError(f"{CERTIFICATE_FILE_VARIABLE}={certificate}: no such file")
    try:
        mode = key.stat().st_mode
    except OSError as error:
        raise UsageError(f"{KEY_FILE_VARIABLE}={key}: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise UsageError(f"{KEY_FILE_VARIABLE}={key}: not a file")
    if mode & _REFUSED_MODE:
        raise UsageError(f"{KEY_FILE_VARIABLE}={key}: mode {mode & 0o777:o} lets others at the key: chmod 600 {key}")
