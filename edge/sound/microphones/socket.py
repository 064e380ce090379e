"""A rig's socket as a microphone: see :mod:`edge.sound.audio_stream` for what is spoken there."""

from __future__ import annotations

import re
import socket

import numpy as np

from edge.errors import DataError, UnavailableError, UsageError
from edge.sound.audio_stream import BYTES_PER_SAMPLE, HEADER_LIMIT_BYTES, AudioHeader
from edge.sound.ring import Pcm16

_CONNECT_TIMEOUT_S = 5.0
_HEADER_TIMEOUT_S = 10.0
_READ_TIMEOUT_S = 0.5
_BUFFER_BYTES = 1 << 16


class SocketMicrophone:
    """Connects to ``HOST:PORT`` or ``unix:PATH`` and reads what the rig plays."""

    can_wait = True
    reopens = True

    def __init__(self, address: str, rate_hz: int) -> None:
        self.name = f"socket:{address}"
        self.xruns = self.overruns = 0
        self.stream_id = ""
        self._rate_hz = rate_hz
        self._family, self._address = _parse(address)
        self._connection: socket.socket | None = None
        self._buffer = bytearray(_BUFFER_BYTES)
        self._held = b""

    def open(self) -> str:
        """Connect and read the header; the stream's id is the rig's."""
        self.close()
        try:
            self._connection = self._connect()
            line = self._read_header(self._connection)
        except OSError as error:
            self.close()
            raise UnavailableError(f"{self.name}: {error}") from None
        except DataError:
            self.close()
            raise
        header = AudioHeader.from_line(line)
        if header.rate_hz != self._rate_hz:
            self.close()
            raise DataError(f"{self.name}: the rig sends {header.rate_hz} Hz, the model hears {self._rate_hz} Hz")
        self._connection.settimeout(_READ_TIMEOUT_S)
        self.stream_id = header.stream_id
        return header.stream_id

    def _connect(self) -> socket.socket:
        if isinstance(self._address, tuple):
            return socket.create_connection(self._address, _CONNECT_TIMEOUT_S)
        connection = socket.socket(self._family, socket.SOCK_STREAM)
        try:
            connection.settimeout(_CONNECT_TIMEOUT_S)
            connection.connect(self._address)
        except OSError:
            connection.close()
            raise
        return connection

    def _read_header(self, connection: socket.socket) -> bytes:
        connection.settimeout(_HEADER_TIMEOUT_S)
        received = b""
        while b"\n" not in received:
            if len(received) >= HEADER_LIMIT_BYTES:
                raise DataError(f"{self.name}: no end of the audio header within {HEADER_LIMIT_BYTES} bytes")
            part = connection.recv(HEADER_LIMIT_BYTES - len(received))
            if not part:
                raise UnavailableError(f"{self.name}: closed before the audio header was complete")
            received += part
        line, _, self._held = received.partition(b"\n")
        return line

    def read(self) -> Pcm16 | None:
        """Samples as the rig sends them; None when it closes the connection."""
        if self._connection is None:
            return None
        held = len(self._held)
        self._buffer[:held] = self._held
        try:
            # What came with the header is handed on before anything is waited for.
            count = 0 if held > 1 else self._connection.recv_into(memoryview(self._buffer)[held:])
        except TimeoutError:
            return np.zeros(0, np.int16)
        except OSError as error:
            raise UnavailableError(f"{self.name}: {error}") from None
        if count == 0 and held < BYTES_PER_SAMPLE:
            return None
        whole = (held + count) // BYTES_PER_SAMPLE * BYTES_PER_SAMPLE
        self._held = bytes(self._buffer[whole : held + count])
        return np.frombuffer(self._buffer, dtype="<i2", count=whole // BYTES_PER_SAMPLE).astype(np.int16)

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._held = b""


def _parse(address: str) -> tuple[int, tuple[str, int] | str]:
    form = f"socket address {address!r}: use HOST:PORT or unix:PATH"
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        # The kernel's limit for the path of a socket is 108 bytes with its end mark.
        if not path or len(path.encode()) > 107:
            raise UsageError(f"{form} of 1 to 107 bytes")
        return socket.AF_UNIX, path
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\s]+)):(\d{1,5})", address)
    if match is None or not 1 <= int(match[3]) <= 65535:
        raise UsageError(form)
    return socket.AF_INET, (match[1] or match[2], int(match[3]))
