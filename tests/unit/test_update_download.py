"""A download from servers that cut, lie, dawdle and send elsewhere."""

import hashlib
import http.server
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edge.errors import EarshotError, UnavailableError, UsageError
from edge.update.job import Patience
from edge.update.pull.download import download
from edge.update.pull.request import Wanted

CONTENT = np.random.default_rng(3).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = Patience(timeout_s=1.0, attempts=3, backoff_s=0.01, reserve_bytes=0)


class Hostile:
    """Answers each request by the next of the given behaviours; the last one stays."""

    def __init__(self, *behaviours: Callable[[http.server.BaseHTTPRequestHandler], None]) -> None:
        self.requests: list[str | None] = []
        outer, left = self, list(behaviours)

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append(self.headers.get("Range"))
                behaviour = left.pop(0) if len(left) > 1 else left[0]
                with suppress(OSError):
                    behaviour(self)
                self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/bundle"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def hostile() -> Iterator[Callable[..., Hostile]]:
    made: list[Hostile] = []

    def make(*behaviours) -> Hostile:
        made.append(Hostile(*behaviours))
        return made[-1]

    yield make
    for each in made:
        each.server.shutdown()
        each.server.server_close()


def asked_for(handler) -> int:
    wanted = handler.headers.get("Range")
    return int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0


def headers(handler, status, length=None, **more):
    handler.send_response(status)
    if length is not None:
        handler.send_header("Content-Length", str(length))
    for name, value in more.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()


def good(handler, *, send=None, content=CONTENT):
    begin = asked_for(handler)
    rest = content[begin:]
    if begin:
        whole = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        headers(handler, 206, len(rest), Content_Range=whole)
    else:
        headers(handler, 200, len(rest))
    handler.wfile.write(rest if send is None else rest[:send])


def cut_after(count):
    return lambda handler: good(handler, send=count)


def without_ranges(handler):
    headers(handler, 200, len(CONTENT))
    handler.wfile.write(CONTENT)


def status(code, **more):
    return lambda handler: headers(handler, code, 0, **more)


def raw(data, then_s=0.0):
    def answer(handler):
        handler.wfile.write(data)
        handler.wfile.flush()
        time.sleep(then_s)

    return answer


def wrong_range(handler):
    begin = max(0, asked_for(handler) - 10)
    headers(handler, 206, len(CONTENT) - begin, Content_Range=f"bytes {begin}-{len(CONTENT) - 1}/{len(CONTENT)}")
    handler.wfile.write(CONTENT[begin:])


def drip(handler):
    headers(handler, 200, len(CONTENT))
    for byte in CONTENT[:400]:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        time.sleep(0.02)


def dripping(head, drop):
    """Sends ``head``, then ``drop`` again and again, each soon enough for any single wait."""

    def answer(handler):
        handler.wfile.write(head)
        for _ in range(200):
            handler.wfile.write(drop)
            handler.wfile.flush()
            time.sleep(0.05)

    return answer


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(CONTENT)


def chunked(content):
    def answer(handler):
        handler.protocol_version = "HTTP/1.1"
        headers(handler, 200, Transfer_Encoding="chunked")
        for at in range(0, len(content), 50_000):
            piece = content[at : at + 50_000]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        handler.wfile.write(b"0\r\n\r\n")

    return answer


def pull(url: str, folder: Path, patience: Patience = QUICK, **more) -> Path:
    seen: list[int] = []
    wanted = Wanted(url, more.pop("sha256", SHA256), more.pop("size_bytes", len(CONTENT)))
    path = download(wanted, folder, patience=patience, progress=seen.append, **more)
    assert seen == sorted(seen) or len(seen) > 2
    return path


def test_a_whole_file(hostile, tmp_path):
    server = hostile(good)
    path = pull(server.url, tmp_path / "d")
    assert path.name == f"{SHA256}.part"
    assert path.read_bytes() == CONTENT
    assert server.requests == [None]


@pytest.mark.parametrize("answer", [good, chunked(CONTENT), without_ranges], ids=["plain", "chunked", "200"])
def test_what_came_before_a_restart_is_kept(hostile, tmp_path, answer):
    (tmp_path / f"{SHA256}.part").write_bytes(CONTENT[:123_456])
    (tmp_path / f"{'0' * 64}.part").write_bytes(b"of another update")
    server = hostile(answer)
    assert pull(server.url, tmp_path).read_bytes() == CONTENT
    assert server.requests == ["bytes=123456-"]
    assert [path.name for path in tmp_path.iterdir()] == [f"{SHA256}.part"]


def test_a_file_that_is_there_is_not_fetched_again(hostile, tmp_path):
    (tmp_path / f"{SHA256}.part").write_bytes(CONTENT)
    server = hostile(status(500))
    assert pull(server.url, tmp_path).read_bytes() == CONTENT
    assert server.requests == []


def test_cuts_are_resumed_as_often_as_something_comes(hostile, tmp_path):
    server = hostile(*[cut_after(50_000)] * 5, good)
    assert pull(server.url, tmp_path).read_bytes() == CONTENT
    assert server.requests == [None, *(f"bytes={50_000 * n}-" for n in range(1, 6))]


@pytest.mark.parametrize(
    "trouble",
    [
        status(500),
        status(503),
        status(429),
        raw(b""),
        raw(b"HTTP/1.1 nonsense\r\n\r\n"),
        raw(b"SSH-2.0-OpenSSH_9\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n"),
        raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nxx"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nxx"),
        raw(b"", then_s=1.5),
        drip,
    ],
    ids=lambda _: "",
)
def test_trouble_that_may_pass_is_tried_again_a_few_times(hostile, tmp_path, trouble):
    server = hostile(trouble, good)
    assert pull(server.url, tmp_path).read_bytes() == CONTENT
    assert 2 <= len(server.requests) <= 3


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (b"HTTP/1.1 ", b"2"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"y"),
        (CHUNKED, b"0"),
        (CHUNKED + b"0\r\n", b"X: y\r\n"),
    ],
    ids=["status line", "continue", "header", "chunk length", "trailer"],
)
def test_an_answer_that_drips_is_broken_off(hostile, tmp_path, head, drop):
    server = hostile(dripping(head, drop), good)
    began_s = time.monotonic()
    path = pull(server.url, tmp_path, QUICK.model_copy(update={"timeout_s": 0.4}))
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 2
    assert time.monotonic() - began_s < 5


def test_a_handshake_that_drips_is_broken_off(tmp_path, free_port):
    # A record of 4 kB is announced and comes byte by byte.
    def serve(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with suppress(OSError), connection:
                    connection.sendall(b"\x16\x03\x03\x10\x00\x02\x00\x0f\xfc")
                    for _ in range(200):
                        connection.sendall(b"\x03")
                        time.sleep(0.05)

    with socket.create_server(("127.0.0.1", free_port())) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        patience = QUICK.model_copy(update={"timeout_s": 0.4, "attempts": 2})
        began_s = time.monotonic()
        with pytest.raises(UnavailableError, match="did not come in time"):
            pull(f"https://127.0.0.1:{listener.getsockname()[1]}/x", tmp_path, patience, environment={})
        assert time.monotonic() - began_s < 5


def test_trouble_that_stays_is_given_up(hostile, tmp_path):
    server = hostile(cut_after(1000), status(503))
    with pytest.raises(UnavailableError, match=r"answers 503 \(3 attempts in vain\)") as caught:
        pull(server.url, tmp_path)
    assert len(server.requests) == 1 + 2
    assert "/bundle" not in str(caught.value), "the path may be a secret"
    assert (tmp_path / f"{SHA256}.part").stat().st_size == 1000


def test_nobody_there(tmp_path, free_port):
    with pytest.raises(UnavailableError, match="Connection refused"):
        pull(f"http://127.0.0.1:{free_port()}/x", tmp_path)
    with pytest.raises(UnavailableError, match="no address"):
        pull("http://nowhere.invalid/x", tmp_path)


@pytest.mark.parametrize("answer", [wrong_range, status(416), status(206), chunked(CONTENT[::-1])])
def test_a_part_that_does_not_fit_is_thrown_away(hostile, tmp_path, answer):
    (tmp_path / f"{SHA256}.part").write_bytes(CONTENT[:100_000])
    server = hostile(answer, good)
    assert pull(server.url, tmp_path).read_bytes() == CONTENT
    assert server.requests == ["bytes=100000-", None]


@pytest.mark.parametrize("torn", [b"\0" * 4096, b"x"])
def test_a_part_torn_by_a_power_cut_is_fetched_again(hostile, tmp_path, torn):
    (tmp_path / f"{SHA256}.part").write_bytes(CONTENT[: 100_000 - len(torn)] + torn)
    server = hostile(good)
    assert pull(server.url, tmp_path).read_bytes() == CONTENT
    assert server.requests == ["bytes=100000-", None]


def test_a_part_longer_than_the_file_is_thrown_away(hostile, tmp_path):
    (tmp_path / f"{SHA256}.part").write_bytes(CONTENT + b"x")
    assert pull(hostile(good).url, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (status(404), "answers 404"),
        (status(403), "answers 403"),
        (status(204), "answers 204"),
        (lambda handler: good(handler, content=CONTENT + b"x"), "has 300001 bytes for it, 300000 were announced"),
        (endless, "sends more than the 300000 bytes"),
        (chunked(CONTENT + b"x"), "sends more than the 300000 bytes"),
        (lambda handler: good(handler, content=CONTENT[::-1]), "has a file with SHA-256"),
        (status(302, Location="file:///etc/passwd"), "no address of a file"),
        (status(302, Location="ftp://127.0.0.1/x"), "no address of a file"),
        (status(302, Location="https://127.0.0.1/x"), "from http to https, which is not followed"),
        (status(302, Location="/bundle"), "more than 3 redirects"),
        (status(302), "more than 3 redirects"),
        (status(302, Location="http://[x"), "which is no address"),
    ],
)
def test_what_is_wrong_for_good_ends_at_once(hostile, tmp_path, answer, message):
    server = hostile(answer)
    with pytest.raises(UsageError, match=message) as caught:
        pull(server.url, tmp_path)
    assert "\n" not in str(caught.value)
    assert len(server.requests) <= 4
    left = list(tmp_path.iterdir())
    assert not left or left[0].stat().st_size <= len(CONTENT)


def test_a_redirect_within_the_scheme_is_followed(hostile, tmp_path):
    there = hostile(good)
    server = hostile(status(307, Location=there.url))
    assert pull(server.url, tmp_path).read_bytes() == CONTENT
    assert len(there.requests) == 1


@pytest.mark.parametrize("url", ["http://a:b@127.0.0.1/x", "ftp://127.0.0.1/", "http:///x", "http://h:0/", "http://[/"])
def test_addresses_that_are_refused(tmp_path, url):
    with pytest.raises(UsageError) as caught:
        pull(url, tmp_path)
    assert "a:b" not in str(caught.value)


def test_room_is_kept_free(hostile, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    server = hostile(good)
    with pytest.raises(UsageError, match="300000 bytes do not fit"):
        pull(server.url, tmp_path, QUICK.model_copy(update={"reserve_bytes": 800_000}))
    assert server.requests == []
    assert pull(server.url, tmp_path, QUICK.model_copy(update={"reserve_bytes": 700_000})).read_bytes() == CONTENT


def test_a_disk_that_fills_up_is_no_network_trouble(hostile, tmp_path, monkeypatch):
    from edge.update.pull import download as module

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_write_all", full)
    server = hostile(good)
    with pytest.raises(OSError, match="No space left"):
        pull(server.url, tmp_path)
    assert len(server.requests) == 1


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that is its own authority, and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is missing: apt-get install openssl")
    command = f"{program} req -x509 -newkey ed25519 -nodes -days 2 -subj /CN=rig -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        [*command.split(), "-keyout", folder / "key", "-out", folder / "crt"], check=True, capture_output=True
    )
    return folder / "crt", folder / "key"


@contextmanager
def serving(content: bytes, folder: Path, **settings):
    from rig.devices.bundle_server import BundleServer

    file = folder / "served.earshot"
    file.write_bytes(content)
    with BundleServer(file, host="127.0.0.1", **settings) as server:
        yield server


def test_https_wants_an_authority_that_is_known(tmp_path, certificate):
    with serving(CONTENT, tmp_path, certificate=certificate) as server:
        assert server.url.startswith("https://127.0.0.1:")
        with pytest.raises(UsageError, match=r"certificate is not trusted.*EARSHOT_MQTT_CA_FILE"):
            pull(server.url, tmp_path / "d", environment={})
        known = {"EARSHOT_MQTT_CA_FILE": str(certificate[0])}
        assert pull(server.url, tmp_path / "d", environment=known).read_bytes() == CONTENT
        with pytest.raises(UsageError, match="EARSHOT_MQTT_CA_FILE=/nowhere"):
            pull(server.url, tmp_path / "e", environment={"EARSHOT_MQTT_CA_FILE": "/nowhere"})


def test_the_bundle_server_serves_one_file_with_ranges(tmp_path):
    with serving(CONTENT, tmp_path) as server:
        assert not server.wait(timeout_s=0)
        (tmp_path / "d").mkdir()
        (tmp_path / f"d/{SHA256}.part").write_bytes(CONTENT[:1234])
        assert pull(server.url, tmp_path / "d").read_bytes() == CONTENT
        assert server.wait(timeout_s=5)
        for path in ("/", "/bundle.earshot", server.path + "x", server.path + "/../../etc/passwd", "/%2e%2e/"):
            with pytest.raises(UsageError, match="404"):
                pull(server.url.replace(server.path, path), tmp_path / "e")


def talk(server, request: bytes) -> bytes:
    host, port = server.url.split("/")[2].split(":")
    with socket.create_connection((host, int(port)), 5) as connection:
        connection.sendall(request)
        connection.settimeout(5)
        answer = b""
        while part := connection.recv(65536):
            answer += part
        return answer


@pytest.mark.parametrize(
    ("wanted", "status_line", "body"),
    [
        ("bytes=0-9", b"206", CONTENT[:10]),
        ("bytes=299990-", b"206", CONTENT[-10:]),
        ("bytes=299990-999999", b"206", CONTENT[-10:]),
        ("bytes=300000-", b"416", b""),
        ("bytes=9-1", b"416", b""),
        ("bytes=-5", b"200", CONTENT),
        ("bytes=0-1,3-4", b"200", CONTENT),
        ("nonsense", b"200", CONTENT),
        ("bytes=" + "9" * 200 + "-", b"200", CONTENT),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,
)
def test_ranges_of_the_bundle_server(tmp_path, wanted, status_line, body):
    with serving(CONTENT, tmp_path) as server:
        request = f"GET {server.path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nRange: {wanted}\r\n\r\n"
        head, _, found = talk(server, request.encode()).partition(b"\r\n\r\n")
        assert head.split()[1] == status_line
        assert found == body


def test_the_bundle_server_is_not_held_up_by_who_says_nothing(tmp_path, certificate):
    with serving(CONTENT, tmp_path, certificate=certificate) as server:
        host, port = server.url.split("/")[2].split(":")
        with socket.create_connection((host, int(port))):
            known = {"EARSHOT_MQTT_CA_FILE": str(certificate[0])}
            assert pull(server.url, tmp_path / "d", environment=known).read_bytes() == CONTENT


def test_bundle_server_errors_are_one_line(tmp_path, certificate):
    from rig.devices.bundle_server import BundleServer, address_for

    with pytest.raises(UsageError, match="No such file"):
        BundleServer(tmp_path / "none", host="127.0.0.1")
    file = tmp_path / "x"
    file.write_bytes(b"x")
    with pytest.raises(UsageError, match="in PEM"):
        BundleServer(file, host="127.0.0.1", certificate=(file, file))
    with pytest.raises(EarshotError, match=r"cannot listen on 203\.0\.113\.7"):
        BundleServer(file, host="203.0.113.7")
    assert address_for("127.0.0.1") == "127.0.0.1"
    assert address_for("localhost") in {"127.0.0.1", "::1"}
    with pytest.raises(UnavailableError, match="no address"):
        address_for("nowhere.invalid")
