"""Ends a connection whose other side takes too long: a byte now and then keeps every single wait short."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Self


class Watchdog:
    """Shuts a connection down when ``timeout_s`` have passed since it was last fed; any thread may wait on it then.

    It holds a descriptor of its own, so that it reaches the connection during a TLS handshake as well.
    """

    def __init__(self, connection: socket.socket, timeout_s: float) -> None:
        self.barked = False
        self._connection = connection.dup()
        self._timeout_s = timeout_s
        self._lock = threading.Condition()
        self._due_s = time.monotonic() + timeout_s
        self._closed = False
        self._thread = threading.Thread(target=self._watch, name="download-watchdog", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def feed(self) -> None:
        """Something whole has come: the time begins anew."""
        with self._lock:
            self._due_s = time.monotonic() + self._timeout_s

    def close(self) -> None:
        """Watch no longer; calling it again does nothing."""
        with self._lock:
            self._closed = True
            self._lock.notify()
        self._thread.join()
        self._connection.close()

    def _watch(self) -> None:
        with self._lock:
            while not self._closed and not self.barked:
                left_s = self._due_s - time.monotonic()
                if left_s > 0:
                    self._lock.wait(left_s)
                    continue
                self.barked = True
                with contextlib.suppress(OSError):
                    self._connection.shutdown(socket.SHUT_RDWR)
