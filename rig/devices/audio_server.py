"""The rig's side of a ``socket:`` microphone: sound goes to the device sample for sample, nothing is lost or added."""

from __future__ import annotations

import queue
import secrets
import select
import socket
import threading
from typing import Self

import numpy as np
from numpy.typing import NDArray

from edge.errors import UnavailableError
from edge.sound.audio_stream import AudioHeader
from rig.devices.events import Events, StreamChanged

POLL_S = 0.2
SEND_TIMEOUT_S = 30.0


class _Stream:
    """One connection: a queue of sound and the count of samples put on it."""

    def __init__(self, connection: socket.socket, stream_id: str) -> None:
        self.connection = connection
        self.stream_id = stream_id
        self.sent_samples = 0
        self.sound: queue.SimpleQueue[bytes] = queue.SimpleQueue()


class AudioServer:
    """Listens for one device's microphone; a new connection is a new stream and replaces the old one.

    Args:
        device: its name, for the events.
        rate_hz: announced to the device.
        events: told when a stream opens and closes.
        host, port: where to listen; port 0 takes a free one.

    Raises:
        UnavailableError: the port is in use or cannot be bound.
    """

    def __init__(self, device: str, *, rate_hz: int, events: Events, host: str = "127.0.0.1", port: int = 0) -> None:
        self._device = device
        self._rate_hz = rate_hz
        self._events = events
        try:
            self._listener = socket.create_server((host, port))
        except (OSError, OverflowError) as error:
            raise UnavailableError(
                f"sound for {device}: cannot listen on {host}:{port} ({getattr(error, 'strerror', error)}),"
                " choose another port"
            ) from None
        self._listener.settimeout(POLL_S)
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._stream: _Stream | None = None
        self._threads = [threading.Thread(target=self._accept, name=f"sound-{device}", daemon=True)]
        self._threads[0].start()

    @property
    def address(self) -> str:
        """``HOST:PORT`` for the device's ``--microphone socket:HOST:PORT``."""
        host, port = self._listener.getsockname()[:2]
        return f"{host}:{port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join(2 * POLL_S)
        self._listener.close()

    def send(self, pcm: NDArray[np.int16]) -> tuple[str, int] | None:
        """Put sound on the wire.

        Args:
            pcm: int16 (samples,), mono.

        Returns:
            the stream and the index of the first sample in it, or None when no microphone is connected.
        """
        with self._lock:
            stream = self._stream
            if stream is None:
                return None
            first = stream.sent_samples
            stream.sent_samples += len(pcm)
            stream.sound.put(pcm.astype("<i2", copy=False).tobytes())
            return stream.stream_id, first

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), name=f"sound-{self._device}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        stream = _Stream(connection, secrets.token_hex(8))
        with connection:
            try:
                connection.settimeout(SEND_TIMEOUT_S)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.sendall(AudioHeader(rate_hz=self._rate_hz, stream_id=stream.stream_id).to_line())
                with self._lock:
                    self._stream = stream
                self._events.put(StreamChanged(self._device, stream.stream_id, opened=True))
                self._pump(stream)
            except OSError:
                pass  # the device went away; the event below says so
            finally:
                with self._lock:
                    if self._stream is stream:
                        self._stream = None
                self._events.put(StreamChanged(self._device, stream.stream_id, opened=False))

    def _pump(self, stream: _Stream) -> None:
        while not self._closing.is_set() and self._stream is stream:
            try:
                stream.connection.sendall(stream.sound.get(timeout=POLL_S))
            except queue.Empty:
                readable, _, _ = select.select([stream.connection], [], [], 0)
                if readable and not stream.connection.recv(64):
                    return
