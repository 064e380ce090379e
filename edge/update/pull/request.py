"""One HTTP or HTTPS request for the rest of a file, and what may be wrong with the answer."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urljoin, urlsplit

from edge.errors import UsageError
from edge.mqtt.broker_url import CA_FILE_VARIABLE
from edge.update.pull.watchdog import Watchdog

_CONTENT_RANGE = re.compile(r"bytes (\d{1,12})-(\d{1,12})/(\d{1,12})")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Answers that another try may mend; any other 4xx is meant.
_TRY_AGAIN = frozenset({408, 425, 429})


class BrokenError(Exception):
    """This attempt failed, another one may not."""


class UselessPartError(BrokenError):
    """What has come is of no use: the next attempt begins at zero."""


@dataclass(frozen=True)
class Wanted:
    """What the command announced."""

    url: str
    sha256: str
    size_bytes: int

    @property
    def server(self) -> str:
        """The address without its path, which may be a secret."""
        parts = split(self.url)
        return f"{parts.scheme}://{parts.netloc}"


@dataclass(frozen=True)
class Answer:
    """The bytes of the file from ``begin`` on, not all of them for certain."""

    begin: int
    response: http.client.HTTPResponse = field(repr=False)
    watchdog: Watchdog = field(repr=False)

    def read(self, most_bytes: int) -> bytes:
        """What has come, at least one byte; nothing at the end.

        Raises:
            BrokenError: the connection broke, or nothing came in time.
        """
        with _network_errors_named(self.watchdog):
            data = self.response.read1(most_bytes)
        self.watchdog.feed()
        if len(data) > most_bytes:
            raise BrokenError("the answer is no HTTP (a chunk of negative length)")
        return data


@contextlib.contextmanager
def request(
    wanted: Wanted, begin: int, *, timeout_s: float, redirects: int, environment: Mapping[str, str] = os.environ
) -> Iterator[Answer]:
    """Ask for a file from byte ``begin`` on; redirects are followed within the same scheme.

    ``timeout_s`` is for each connection, for each answer from its handshake to its last header, and for each read.

    Raises:
        BrokenError: not reached, or an answer that another attempt may mend.
        UsageError: an answer that it will not.
    """
    headers = {"Accept-Encoding": "identity", "User-Agent": "earshot-device"}
    if begin:
        headers["Range"] = f"bytes={begin}-"
    url = wanted.url
    scheme = split(url).scheme
    for _ in range(redirects + 1):
        parts = split(url)
        if parts.scheme != scheme:
            raise UsageError(f"{wanted.server} sends from {scheme} to {parts.scheme}, which is not followed")
        with _connected(parts, timeout_s, environment) as (connection, watchdog):
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            with _network_errors_named(watchdog):
                connection.request("GET", target, headers=headers)
                response = connection.getresponse()
            watchdog.feed()
            if response.status not in _REDIRECTS:
                yield Answer(_begin(wanted, response, begin), response, watchdog)
                return
            url = _joined(wanted, url, response.getheader("Location") or "")
    raise UsageError(f"{wanted.server}: more than {redirects} redirects: give the address of the file itself")


def _joined(wanted: Wanted, url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise UsageError(f"{wanted.server} sends on to {location[:100]!r}, which is no address") from None


def split(url: str) -> SplitResult:
    """The parts of an address.

    Raises:
        UsageError: it is no http or https address, or carries a user or password.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not re.fullmatch(r"[!-~]+", url):
        raise UsageError(f"{url[:100]!r} is no address of a file: give http://HOST[:PORT]/PATH or https://...")
    if parts.username is not None or parts.password is not None:
        raise UsageError(f"{parts.scheme}://{parts.hostname}: user and password in an address are refused, leave them")
    return parts


@contextlib.contextmanager
def _connected(
    parts: SplitResult, timeout_s: float, environment: Mapping[str, str]
) -> Iterator[tuple[http.client.HTTPConnection, Watchdog]]:
    """A connection, after its handshake, and who ends it when the server takes too long."""
    host = parts.hostname or ""
    port = parts.port or (http.client.HTTPS_PORT if parts.scheme == "https" else http.client.HTTP_PORT)
    context = _context(environment) if parts.scheme == "https" else None
    with _network_errors_named():
        raw = socket.create_connection((host, port), timeout_s)
    with contextlib.closing(raw), Watchdog(raw, timeout_s) as watchdog:
        # Only for the form of the request: it is given the socket, and opens none itself.
        kind = http.client.HTTPConnection if context is None else http.client.HTTPSConnection
        connection = kind(host, port)
        with _network_errors_named(watchdog):
            connection.sock = raw if context is None else context.wrap_socket(raw, server_hostname=host)
        with contextlib.closing(connection):
            yield connection, watchdog


def _context(environment: Mapping[str, str]) -> ssl.SSLContext:
    ca_file = environment.get(CA_FILE_VARIABLE) or None
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise UsageError(f"{CA_FILE_VARIABLE}={ca_file}: no certificates in PEM there ({error})") from None


def _begin(wanted: Wanted, response: http.client.HTTPResponse, asked: int) -> int:
    """Where in the file the answer begins: where it was asked to, or at zero."""
    _check_status(wanted, response)
    begin = 0
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        found = _CONTENT_RANGE.fullmatch(response.getheader("Content-Range") or "")
        if not asked or found is None or int(found[1]) != asked:
            raise UselessPartError(f"the server sends another range than that from byte {asked}")
        _check_size(wanted, int(found[3]))
        begin = asked
    if response.length is not None:
        _check_size(wanted, begin + response.length)
    return begin


def _check_status(wanted: Wanted, response: http.client.HTTPResponse) -> None:
    if response.status in {200, 206}:
        return
    if response.status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        raise UselessPartError("the server has nothing after what has come (416)")
    if response.status >= 500 or response.status in _TRY_AGAIN:
        raise BrokenError(f"the server answers {response.status}")
    raise UsageError(f"{wanted.server} answers {response.status}: see that the file is there and send the update again")


def _check_size(wanted: Wanted, found: int) -> None:
    if found > wanted.size_bytes:
        raise UsageError(
            f"{wanted.server} has {found} bytes for it, {wanted.size_bytes} were announced: send the update again"
        )


@contextlib.contextmanager
def _network_errors_named(watchdog: Watchdog | None = None) -> Iterator[None]:
    try:
        yield
        if watchdog is None or not watchdog.barked:
            return
        error: Exception = TimeoutError()
    except (OSError, ValueError, http.client.HTTPException) as found:
        error = found
    if watchdog is not None and watchdog.barked:
        raise BrokenError("the answer did not come in time")
    if isinstance(error, ssl.SSLCertVerificationError):
        raise UsageError(
            f"the server's certificate is not trusted ({error.verify_message}): name its authority in"
            f" {CA_FILE_VARIABLE}"
        )
    if isinstance(error, http.client.HTTPException):
        raise BrokenError(f"the answer is no HTTP ({type(error).__name__})")
    if isinstance(error, socket.gaierror):
        raise BrokenError(f"the host has no address ({error.strerror})")
    # http.client lets through what int() says of a chunk's length.
    raise BrokenError(str(getattr(error, "strerror", None) or error or type(error).__name__))
