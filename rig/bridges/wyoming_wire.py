"""Wyoming events over a socket, with a limit to everything that the other side may send."""

from __future__ import annotations

import io
import re
import select
import socket
import time
from typing import BinaryIO, Self, cast
from urllib.parse import urlsplit

from wyoming.event import Event, read_event, write_event

from edge.errors import DataError, UnavailableError, UsageError

CONNECT_TIMEOUT_S = 5.0
# From the first byte of an event to its last one.
EVENT_TIMEOUT_S = 5.0
SEND_TIMEOUT_S = 10.0
MAX_LINE_BYTES = 1 << 18
MAX_PART_BYTES = 1 << 22
_BLOCK_BYTES = 1 << 16


class Address:
    """``tcp://HOST:PORT`` or ``unix:///PATH``.

    Raises:
        UsageError: it is neither.
    """

    def __init__(self, option: str, uri: str) -> None:
        self.uri = uri
        form = f"{option} {uri!r}: use tcp://HOST:PORT or unix:///PATH"
        try:
            parts = urlsplit(uri)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise UsageError(form) from None
        self.path = parts.path if parts.scheme == "unix" else ""
        self.host, self.port = host or "", port or 0
        usable = bool(re.fullmatch(r"[^\s\x00]+", self.host) and self.port and parts.path in {"", "/"})
        if parts.scheme == "unix":
            # The kernel's limit for the path of a socket is 108 bytes with its end mark.
            usable = bool(self.path and not host and len(self.path.encode()) <= 107)
        if not usable or parts.scheme not in {"tcp", "unix"} or parts.query or parts.fragment or "@" in parts.netloc:
            raise UsageError(form)

    def connect(self) -> socket.socket:
        """Open a connection.

        Raises:
            UnavailableError: nobody answers there.
        """
        try:
            if not self.path:
                connection = socket.create_connection((self.host, self.port), CONNECT_TIMEOUT_S)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return connection
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(CONNECT_TIMEOUT_S)
            connection.connect(self.path)
        except (OSError, UnicodeError) as error:
            raise UnavailableError(f"{self.uri}: cannot connect ({_reason(error)}), start the service") from None
        return connection

    def listen(self) -> socket.socket:
        """Wait for connections here.

        Raises:
            UnavailableError: the address cannot be used.
        """
        try:
            if not self.path:
                return socket.create_server((self.host, self.port))
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(self.path)
            listener.listen()
        except (OSError, UnicodeError) as error:
            raise UnavailableError(f"{self.uri}: cannot listen ({_reason(error)}), choose another address") from None
        return listener


class Wire:
    """One connection. What is malformed raises DataError, what ends or stalls UnavailableError; both in one line."""

    def __init__(self, connection: socket.socket, name: str) -> None:
        self._connection = connection
        self._name = name
        self._held = bytearray()
        self._ended = False
        self._deadline_s = 0.0
        connection.settimeout(SEND_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def send(self, event: Event) -> None:
        """Send one event."""
        buffer = io.BytesIO()
        write_event(event, buffer)
        try:
            self._connection.sendall(buffer.getvalue())
        except OSError as error:
            raise UnavailableError(f"{self._name}: went away ({_reason(error)})") from None

    def receive(self, timeout_s: float) -> Event | None:
        """The next event, or None when none begins within ``timeout_s``."""
        if not self._held and not select.select([self._connection], [], [], timeout_s)[0]:
            return None
        self._deadline_s = time.monotonic() + EVENT_TIMEOUT_S
        try:
            # It asks for nothing but `readline` and `read`.
            event = read_event(cast("BinaryIO", self))
        except (AttributeError, KeyError, TypeError, RecursionError):
            raise DataError(f"{self._name}: sent a malformed event") from None
        if event is None:
            if self._ended:
                raise UnavailableError(f"{self._name}: closed the connection")
            raise DataError(f"{self._name}: sent a malformed event")
        if not isinstance(event.type, str) or not isinstance(event.data, dict):
            raise DataError(f"{self._name}: sent a malformed event")
        return event

    def readline(self) -> bytes:
        """A line, nothing at the end of the connection."""
        searched = 0
        while (end := self._held.find(b"\n", searched)) < 0:
            searched = len(self._held)
            if searched > MAX_LINE_BYTES:
                raise DataError(f"{self._name}: sent a line of over {MAX_LINE_BYTES} bytes")
            if not self._fill():
                return b""
        return self._take(end + 1)

    def read(self, count: int) -> bytes:
        """``count`` bytes, nothing at the end of the connection."""
        if count > MAX_PART_BYTES:
            raise DataError(f"{self._name}: announced a part of over {MAX_PART_BYTES} bytes")
        while len(self._held) < count:
            if not self._fill():
                return b""
        return self._take(count)

    def _fill(self) -> bool:
        self._connection.settimeout(max(0.001, self._deadline_s - time.monotonic()))
        try:
            received = self._connection.recv(_BLOCK_BYTES)
        except TimeoutError:
            raise UnavailableError(f"{self._name}: stopped in the middle of an event") from None
        except OSError as error:
            raise UnavailableError(f"{self._name}: went away ({_reason(error)})") from None
        finally:
            self._connection.settimeout(SEND_TIMEOUT_S)
        self._held += received
        self._ended = not received
        return bool(received)

    def _take(self, count: int) -> bytes:
        taken = bytes(self._held[:count])
        del self._held[:count]
        return taken


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
