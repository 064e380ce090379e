"""A paho client that takes many messages at once: one system call for a hundred small ones instead of six for each."""

from __future__ import annotations

import contextlib
import ssl
import threading
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import MQTTErrorCode

_CHUNK_BYTES = 1 << 16
# The other side of the connection must not starve behind what comes in.
_MAX_PACKETS = 1000


class BufferedSocket:
    """A connected socket, plain or TLS, that reads ahead and collects what is written until :meth:`flush`."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._ahead = b""
        self._at = 0
        self._unsent = bytearray()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def recv(self, size: int) -> bytes:
        """At most ``size`` bytes, from what was read ahead where there is any; empty at the end."""
        if self._at >= len(self._ahead):
            self._ahead, self._at = b"", 0
            self._ahead = self._connection.recv(_CHUNK_BYTES)
        begin, self._at = self._at, min(self._at + size, len(self._ahead))
        return self._ahead[begin : self._at]

    def pending(self) -> int:
        """Bytes that can be read without waiting."""
        in_tls = self._connection.pending() if isinstance(self._connection, ssl.SSLSocket) else 0
        return len(self._ahead) - self._at + in_tls

    def send(self, data: bytes) -> int:
        """Take ``data`` along with the next :meth:`flush`."""
        self._unsent += data
        return len(data)

    @property
    def wants_write(self) -> bool:
        """Whether something is left to flush."""
        return bool(self._unsent)

    def flush(self) -> None:
        """Send what was collected, as far as the connection takes it now; that it is lost, reading will tell."""
        with contextlib.suppress(OSError):
            while self._unsent:
                del self._unsent[: self._connection.send(self._unsent)]

    def close(self) -> None:
        """Send what was collected and close."""
        self.flush()
        self._connection.close()


class _Waker:
    """The socket that wakes paho's thread; the thread itself, which answers every message, is awake."""

    def __init__(self, wake: Any) -> None:
        self._wake = wake
        self.awake: int | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wake, name)

    def send(self, data: bytes) -> int:
        """Wake the thread, unless it is the one that asks."""
        return len(data) if threading.get_ident() == self.awake else int(self._wake.send(data))


class ReceivingClient(mqtt.Client):
    """paho's client over a :class:`BufferedSocket`; where a paho makes its socket elsewhere it is a plain client."""

    def _create_socket(self) -> Any:
        return BufferedSocket(super()._create_socket())

    def _buffer(self) -> BufferedSocket | None:
        connection: Any = self.socket()
        return connection if isinstance(connection, BufferedSocket) else None

    def loop_start(self) -> MQTTErrorCode:
        """Start the network thread."""
        code = super().loop_start()
        wake: Any = self._sockpairW
        if wake is not None:
            waker: Any = _Waker(wake)
            self._sockpairW = waker
        return code

    def loop_read(self, max_packets: int = 1) -> MQTTErrorCode:
        """Handle every packet that has come, and answer them all at once."""
        waker: Any = self._sockpairW
        if not isinstance(waker, _Waker):
            return self._read_all(max_packets)
        waker.awake = threading.get_ident()
        try:
            code = self._read_all(max_packets)
        finally:
            waker.awake = None
        return self.loop_write() if code == MQTTErrorCode.MQTT_ERR_SUCCESS and super().want_write() else code

    def _read_all(self, max_packets: int) -> MQTTErrorCode:
        code = super().loop_read(max_packets)
        for _ in range(_MAX_PACKETS):
            buffer = self._buffer()
            if code != MQTTErrorCode.MQTT_ERR_SUCCESS or buffer is None or not buffer.pending():
                break
            code = super().loop_read(max_packets)
        return code

    def loop_write(self) -> MQTTErrorCode:
        """Send every packet that waits."""
        code = super().loop_write()
        if (buffer := self._buffer()) is not None:
            buffer.flush()
        return code

    def want_write(self) -> bool:
        """Whether something waits to be sent."""
        buffer = self._buffer()
        return super().want_write() or (buffer is not None and buffer.wants_write)
