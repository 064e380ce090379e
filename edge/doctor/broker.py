"""The broker: reached, let in, and back again."""

from __future__ import annotations

import secrets
import ssl
import statistics
import threading
import time
from datetime import UTC, datetime
from typing import Any, Self

import paho.mqtt.client as mqtt

from edge.doctor.finding import Finding, well, wrong
from edge.errors import UnavailableError
from edge.messages import topic
from edge.mqtt.broker_url import BrokerUrl
from edge.mqtt.client import new_client
from edge.mqtt.problems import LastError, explain, explain_alert

TIMEOUT_S = 5.0
ROUND_TRIPS = 10
SLOW_MS = 250.0
_CERTIFICATE_DAYS = 14


def broker(url: BrokerUrl, name: str | None, *, timeout_s: float = TIMEOUT_S) -> Finding:
    """Publish a few times to a topic of our own and wait for it to come back; say how the connection is protected.

    Args:
        url: the broker.
        name: the device's; a broker with an access list lets it speak below that name alone.
        timeout_s: for each answer.

    Raises:
        UnavailableError: no connection, no right, or nothing came back.
        UsageError: a file with the password or certificates cannot be used.
    """
    with _Visit(url, topic(name or f"doctor-{secrets.token_hex(4)}", "ping"), timeout_s) as visit:
        trip_ms = visit.round_trip_ms()
        protection, days = visit.protection()
    detail = f"{url}, round trip {trip_ms:.1f} ms, {protection}"
    values = {"round_trip_ms": trip_ms} | ({} if days is None else {"certificate_days": days})
    if days is not None and days < _CERTIFICATE_DAYS:
        return wrong("broker", detail, "renew the broker's certificate (earshot broker --help)", values)
    if trip_ms > SLOW_MS:
        return wrong("broker", f"{detail}: slow", f"ping -c 10 {url.host}; use a cable, or a nearer broker", values)
    return well("broker", detail, values)


class _Visit:
    """One short connection, under an id that disturbs no running device."""

    def __init__(self, url: BrokerUrl, subject: str, timeout_s: float) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._subject = subject
        self._subscribed, self._returned = threading.Event(), threading.Event()
        self._refusal = ""
        self._last_error = LastError()
        self._client = client = new_client(url, f"earshot-doctor-{secrets.token_hex(4)}")
        client.enable_logger(self._last_error)
        client.on_connect = self._connected
        client.on_subscribe = self._subscription
        client.on_message = lambda *_: self._returned.set()

    def __enter__(self) -> Self:
        try:
            self._client.connect(self._url.host, self._url.port, keepalive=20)
        except OSError as error:
            raise UnavailableError(f"{self._url}: {explain(error)}") from None
        self._client.loop_start()
        if self._subscribed.wait(self._timeout_s) and not self._refusal:
            return self
        self.__exit__()
        alert = self._last_error.take()
        reason = self._refusal or (explain_alert(alert) if alert else "no answer: check user and password")
        raise UnavailableError(f"{self._url}: {reason}")

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _connected(self, client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._refusal = f"refused: {reason}: check user {self._url.user_name()!r} and its password"
            self._subscribed.set()
        else:
            client.subscribe(self._subject, qos=1)

    def _subscription(self, _client: Any, _data: Any, _mid: int, reasons: Any, _properties: Any) -> None:
        if any(reason.is_failure for reason in reasons):
            self._refusal = f"it does not let this user subscribe to {self._subject}: check its access list"
        self._subscribed.set()

    def round_trip_ms(self) -> float:
        """The median of a few."""
        trips_ms = []
        for _ in range(ROUND_TRIPS):
            self._returned.clear()
            start_s = time.monotonic()
            self._client.publish(self._subject, b"ping", qos=1)
            if not self._returned.wait(self._timeout_s):
                raise UnavailableError(
                    f"{self._url}: what was published to {self._subject} did not come back: is the user the one"
                    " of this device? check the broker's access list"
                )
            trips_ms.append((time.monotonic() - start_s) * 1e3)
        return statistics.median(trips_ms)

    def protection(self) -> tuple[str, float | None]:
        """How the connection is protected, and for how many days the broker's certificate is valid."""
        connection = self._client.socket()
        if not isinstance(connection, ssl.SSLSocket):
            return "not encrypted", None
        cipher = connection.cipher()
        certificate = connection.getpeercert() or {}
        until = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
        named = f"{connection.version()} {cipher[0] if cipher else ''}".strip()
        day = datetime.fromtimestamp(until, UTC)
        return f"{named}, certificate until {day:%Y-%m-%d}", (until - time.time()) / 86_400
