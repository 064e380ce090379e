"""Why a broker cannot be used, in one line: what an exception of the network or of TLS means for who set it up."""

from __future__ import annotations

import logging
import socket
import ssl

from edge.mqtt.broker_url import CA_FILE_VARIABLE
from edge.mqtt.tls import CERTIFICATE_FILE_VARIABLE, KEY_FILE_VARIABLE

# OpenSSL's numbers, x509_vfy.h.
_NOT_YET_VALID, _EXPIRED, _HOST_MISMATCH, _ADDRESS_MISMATCH = 9, 10, 62, 64
_UNKNOWN_AUTHORITIES = frozenset({2, 18, 19, 20, 21})
_MY_CERTIFICATE = f"check {CERTIFICATE_FILE_VARIABLE} and {KEY_FILE_VARIABLE}"
# Alerts that the broker sends, by a part of OpenSSL's name for them.
_ALERTS = (
    ("CERTIFICATE_REQUIRED", f"the broker wants a client certificate: {_MY_CERTIFICATE}"),
    (
        "ALERT_HANDSHAKE_FAILURE",
        f"the broker broke the handshake off, it may want a certificate: {_MY_CERTIFICATE}",
    ),
    ("ALERT_UNKNOWN_CA", f"the broker knows no authority that signed this client's certificate: {_MY_CERTIFICATE}"),
    ("ALERT_CERTIFICATE_EXPIRED", f"this client's certificate has expired: renew {CERTIFICATE_FILE_VARIABLE}"),
    ("ALERT_BAD_CERTIFICATE", f"the broker refuses this client's certificate: {_MY_CERTIFICATE}"),
    ("ALERT_CERTIFICATE_REVOKED", "this client's certificate is revoked: it needs a new one"),
    ("WRONG_VERSION_NUMBER", "the broker does not speak TLS on this port: use another port, or mqtt:// without TLS"),
    ("PROTOCOL_VERSION", "the broker speaks no TLS of version 1.2 or newer"),
    ("UNSUPPORTED_PROTOCOL", "the broker speaks no TLS of version 1.2 or newer"),
)
_NETWORK: tuple[tuple[type[OSError], str], ...] = (
    (socket.gaierror, "no machine of that name is known here: check the host name"),
    (ConnectionRefusedError, "nobody listens there: is the broker running, and is the port right?"),
    (TimeoutError, "no answer: is the machine on, and does a firewall let this port through?"),
)


def explain(error: BaseException) -> str:
    """What ``error``, raised while connecting, says about broker, certificates or network; one line without the URL."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _explain_certificate(error)
    if isinstance(error, ssl.SSLError):
        return explain_alert(getattr(error, "reason", None) or str(error))
    for kind, meaning in _NETWORK:
        if isinstance(error, kind):
            return meaning
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return f"cannot be reached ({str(error) or type(error).__name__})"


def explain_alert(text: str) -> str:
    """The same for the text of an OpenSSL error, such as ``SSLV3_ALERT_CERTIFICATE_EXPIRED``."""
    normal = text.upper().replace(" ", "_")
    for part, meaning in _ALERTS:
        if part in normal:
            return meaning
    return f"TLS failed ({' '.join(text.split())})"


def _explain_certificate(error: ssl.SSLCertVerificationError) -> str:
    code = error.verify_code
    if code == _EXPIRED:
        return "the broker's certificate has expired: renew it, or set this machine's clock if it is wrong"
    if code == _NOT_YET_VALID:
        return "the broker's certificate is not valid yet: set this machine's clock"
    if code in {_HOST_MISMATCH, _ADDRESS_MISMATCH}:
        return f"the broker's certificate is for another name ({error.verify_message})"
    if code in _UNKNOWN_AUTHORITIES:
        return f"the broker's certificate is signed by nobody trusted here: check {CA_FILE_VARIABLE}"
    return f"the broker's certificate is refused ({error.verify_message})"


class LastError(logging.Logger):
    """Given to paho as its logger: remembers the last failure of the socket, which paho tells nobody else."""

    def __init__(self) -> None:
        super().__init__("earshot.mqtt", logging.WARNING)
        self.text = ""
        self.propagate = False
        self.addHandler(_Remember(self))

    def take(self) -> str:
        """The last failure of TLS, once; empty when there was none."""
        text, self.text = self.text, ""
        return text


class _Remember(logging.Handler):
    def __init__(self, last: LastError) -> None:
        super().__init__(logging.ERROR)
        self._last = last

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what stands in brackets, ``[SSL: REASON]``."""
        text = record.getMessage()
        if "[SSL: " in text:
            self._last.text = text.split("[SSL: ", 1)[1].split("]", 1)[0]
