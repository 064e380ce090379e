"""Hands one bundle to devices over HTTP or HTTPS, under a path that nobody can guess, for as long as it is needed."""

from __future__ import annotations

import contextlib
import http.server
import logging
import os
import re
import secrets
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

from edge.errors import UnavailableError, UsageError

log = logging.getLogger(__name__)

CHUNK_BYTES = 64 << 10
CLIENT_TIMEOUT_S = 30.0
_RANGE = re.compile(r"bytes=(\d{1,12})-(\d{1,12})?")


class BundleServer:
    """A threaded server of exactly one file; use it as a context.

    Args:
        bundle: the file; it is opened once, what replaces it later is not served.
        host: the address to listen on and to name in :attr:`url`, see :func:`address_for`.
        port: 0 takes a free one.
        certificate: PEM files with the certificate chain and the private key, for HTTPS.
        public_host: the name in :attr:`url` where it is not ``host``, as a certificate may want it.

    Raises:
        UnavailableError: the port is in use or cannot be bound.
        UsageError: the bundle or the certificate cannot be read.
    """

    def __init__(
        self,
        bundle: Path,
        *,
        host: str,
        port: int = 0,
        certificate: tuple[Path, Path] | None = None,
        public_host: str | None = None,
    ) -> None:
        self.path = f"/{secrets.token_urlsafe(24)}/bundle.earshot"
        try:
            self._file = os.open(bundle, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise UsageError(f"{bundle}: {error.strerror}: give the path of a NAME.earshot") from None
        self.size_bytes = os.fstat(self._file).st_size
        self._served = threading.Condition()
        self._served_count = 0
        self._tls = self._context(certificate)
        try:
            self._server = _Server((host, port), self._handler(), _family(host))
        except (OSError, OverflowError) as error:
            os.close(self._file)
            raise UnavailableError(
                f"bundle server: cannot listen on {host}:{port} ({getattr(error, 'strerror', error)}): choose another"
                " address or port"
            ) from None
        shown = public_host or host
        shown = f"[{shown}]" if ":" in shown else shown
        scheme = "http" if certificate is None else "https"
        self.url = f"{scheme}://{shown}:{self._server.server_address[1]}{self.path}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="bundles", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        os.close(self._file)

    def wait(self, *, downloads: int = 1, timeout_s: float | None = None) -> bool:
        """Wait until the last byte went out so many times; False after ``timeout_s``."""
        with self._served:
            return self._served.wait_for(lambda: self._served_count >= downloads, timeout_s)

    def _context(self, certificate: tuple[Path, Path] | None) -> ssl.SSLContext | None:
        if certificate is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(*certificate, password=_no_passphrase)
        except (OSError, ValueError) as error:
            os.close(self._file)
            names = " and ".join(str(path) for path in certificate)
            raise UsageError(f"{names}: no certificate with its key, without passphrase, in PEM ({error})") from None
        return context

    def _count(self) -> None:
        with self._served:
            self._served_count += 1
            self._served.notify_all()

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        path, file, size_bytes, tls, done = self.path, self._file, self.size_bytes, self._tls, self._count

        class Handler(_Handler):
            serves = _Served(path, file, size_bytes, tls, done)

        return Handler


class _Served:
    def __init__(
        self, path: str, file: int, size_bytes: int, tls: ssl.SSLContext | None, done: Callable[[], None]
    ) -> None:
        self.path, self.file, self.size_bytes, self.tls, self.done = path, file, size_bytes, tls, done


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    # A thread in the middle of a slow client must not hold up the end.
    block_on_close = False

    def __init__(
        self, address: tuple[str, int], handler: type[http.server.BaseHTTPRequestHandler], family: socket.AddressFamily
    ) -> None:
        self.address_family = family
        super().__init__(address, handler)

    def handle_error(self, request: object, client_address: object) -> None:
        log.debug("bundle server: %s went away", client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    serves: _Served
    protocol_version = "HTTP/1.1"
    timeout = CLIENT_TIMEOUT_S

    def setup(self) -> None:
        self.request.settimeout(CLIENT_TIMEOUT_S)
        if self.serves.tls is not None:
            # Here and not on the listening socket: a client that says nothing must hold up nobody else.
            self.request = self.serves.tls.wrap_socket(self.request, server_side=True)
        super().setup()

    def do_GET(self) -> None:
        begin, end = self._head()
        with contextlib.suppress(OSError):
            while begin < end:
                data = os.pread(self.serves.file, min(CHUNK_BYTES, end - begin), begin)
                if not data:
                    self.close_connection = True
                    return
                self.wfile.write(data)
                begin += len(data)
            if end == self.serves.size_bytes and begin == end:
                self.serves.done()
            return
        self.close_connection = True

    def do_HEAD(self) -> None:
        self._head()

    def _head(self) -> tuple[int, int]:
        """Answer with status and headers; the bytes that are to follow."""
        size_bytes = self.serves.size_bytes
        if not secrets.compare_digest(self.path.encode(), self.serves.path.encode()):
            self.send_error(404)
            return 0, 0
        begin, end, status = 0, size_bytes, 200
        if (wanted := self.headers.get("Range")) is not None:
            found = _RANGE.fullmatch(wanted.strip())
            if found:
                begin, status = int(found[1]), 206
                end = min(size_bytes, int(found[2]) + 1 if found[2] else size_bytes)
        if begin >= end:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{size_bytes}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return 0, 0
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - begin))
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size_bytes}")
        self.end_headers()
        return begin, end

    def version_string(self) -> str:
        return "earshot"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in http.server
        log.debug("bundle server: %s: %s", self.client_address[0], format % args)


def address_for(host: str) -> str:
    """The address of this machine under which ``host`` (the broker, or a device) can reach it.

    Raises:
        UnavailableError: there is no way to ``host``.
    """
    try:
        found = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        raise UnavailableError(f"{host}: has no address ({error}), give another name or the address itself") from None
    for family, kind, protocol, _, address in found:
        # Connecting a datagram socket sends nothing; it only picks the way.
        with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    raise UnavailableError(f"{host}: cannot be reached from here, see the network or give another address")


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _no_passphrase() -> bytes:
    # Without this, openssl asks at the terminal.
    return b""
