from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edge.errors import DataError, UnavailableError, UsageError
from firmware_models.data.download import ResumingDownloader
from firmware_models.data.fetch import Archive, fetch


def make_tar(members: dict[str, bytes], *extra: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in extra:
            tar.addfile(info)
    return buffer.getvalue()


def clip() -> bytes:
    buffer = io.BytesIO()
    # Noise does not compress, so the archive is long enough to be cut.
    noise = np.random.default_rng(0).integers(-20_000, 20_000, 16_000).astype(np.int16)
    soundfile.write(buffer, noise, 16_000, format="WAV")
    return buffer.getvalue()


GOOD = make_tar({"./yes/0a_nohash_0.wav": clip(), "./no/0b_nohash_0.wav": clip(), "./README.md": b"hello"})


@dataclass
class Server:
    """A real HTTP server with Range, and with faults on request."""

    content: bytes = GOOD
    etag: str = '"one"'
    break_after: list[int] = field(default_factory=list)  # bytes of the body to send in the next answers
    fail_with: list[int] = field(default_factory=list)  # status of the next answers
    ranges: bool = True
    requests: list[str | None] = field(default_factory=list)
    url: str = ""

    def archive(self, **changes: object) -> Archive:
        sha256 = hashlib.sha256(self.content).hexdigest()
        return replace(Archive(self.url, sha256, len(self.content), 10_000_000, "CC0"), **changes)  # type: ignore[arg-type]


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.requests.append(wanted)
            if state.fail_with:
                self.send_error(state.fail_with.pop(0))
                return
            start = 0
            if wanted and state.ranges and self.headers.get("If-Range") == state.etag:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
            body = state.content[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(state.content) - 1}/{len(state.content)}")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", state.etag)
            self.end_headers()
            self.wfile.write(body[: state.break_after.pop(0)] if state.break_after else body)
            self.close_connection = True

        def log_message(self, *args: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{running.server_port}/set.tar.gz"
    thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield state
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def _no_pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EARSHOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("firmware_models.data.download._PAUSES_S", (0.01,) * 4)


def test_fetch_downloads_verifies_and_unpacks(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    count = fetch(server.archive(), tmp_path / "out", progress=lambda done, total, note="": seen.append((done, total)))
    assert count == 2
    assert sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()) == [
        *("README.md", "no/0b_nohash_0.wav", "yes/0a_nohash_0.wav")
    ]
    assert seen[-1] == (len(GOOD), len(GOOD))
    assert not list((tmp_path / "cache/downloads").iterdir())


def test_a_broken_connection_is_resumed_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.break_after = [20_000, 15_000]
    assert fetch(server.archive(), tmp_path / "out") == 2
    assert server.requests == [None, "bytes=20000-", "bytes=35000-"]


def test_a_later_run_goes_on_with_what_arrived(server: Server, tmp_path: Path) -> None:
    server.break_after = [20_000]
    server.fail_with = []
    archive = server.archive()
    broken = ResumingDownloader(tmp_path / "x.part", limit_bytes=10**9, sleep=lambda _: server.fail_with.append(503))
    with pytest.raises(UnavailableError, match="20000 bytes are kept"):
        broken(archive.url, tmp_path / "x", None)
    server.fail_with.clear()
    server.requests.clear()
    ResumingDownloader(tmp_path / "x.part", limit_bytes=10**9)(archive.url, tmp_path / "x", None)
    assert server.requests == ["bytes=20000-"]
    assert (tmp_path / "x").read_bytes() == GOOD
    assert not (tmp_path / "x.part").exists()


@pytest.mark.parametrize("how", ["file changed", "no ranges"])
def test_what_cannot_be_continued_is_begun_anew(server: Server, tmp_path: Path, how: str) -> None:
    part = tmp_path / "x.part"
    part.write_bytes(b"something else")
    about = {"url": server.url, "validator": '"old"' if how == "file changed" else server.etag}
    (tmp_path / "x.part.json").write_text(json.dumps(about))
    server.ranges = how == "file changed"
    ResumingDownloader(part, limit_bytes=10**9)(server.url, tmp_path / "x", None)
    assert (tmp_path / "x").read_bytes() == GOOD


def test_a_server_in_trouble_is_tried_again(server: Server, tmp_path: Path) -> None:
    server.fail_with = [503, 500, 429]
    assert fetch(server.archive(), tmp_path / "out") == 2
    assert len(server.requests) == 4


def test_a_missing_file_is_not_tried_again(server: Server, tmp_path: Path) -> None:
    server.fail_with = [404]
    with pytest.raises(UnavailableError, match="404"):
        fetch(server.archive(), tmp_path / "out")
    assert len(server.requests) == 1


def test_a_dead_server_is_one_line_after_some_attempts(tmp_path: Path) -> None:
    archive = Archive("http://127.0.0.1:1/set.tar.gz", "0" * 64, 1000, 1000, "CC0")
    with pytest.raises(UnavailableError, match="given up after 4 attempts") as caught:
        fetch(archive, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="checksum"):
        fetch(server.archive(sha256="0" * 64), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_more_bytes_than_allowed_are_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="allowed"):
        fetch(server.archive(size_bytes=len(GOOD) // 4), tmp_path / "out")
    with pytest.raises(DataError, match="unpacks to more"):
        fetch(server.archive(unpacked_bytes=20_000), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_tar({"../evil.wav": b"x"}), "unsafe path"),
        (lambda: make_tar({"/tmp/evil.wav": b"x"}), "unsafe path"),
        (lambda: make_tar({"yes/a.wav": b"x"}, link("yes/b.wav", "/etc/passwd")), "no plain file"),
        (lambda: make_tar({"yes/a.wav": b"x"}, link("yes/b.wav", "yes/a.wav", tarfile.LNKTYPE)), "no plain file"),
        (lambda: make_tar({"yes/a.wav": b"x"}, link("yes/pipe", "", tarfile.FIFOTYPE)), "no plain file"),
        (lambda: make_tar({"readme.txt": b"x"}), "no clips"),
        (lambda: b"<html>please log in</html>", "cannot be unpacked"),
        (lambda: GOOD[:-2000], "cannot be unpacked"),
    ],
)
def test_bad_archives_leave_nothing(server: Server, tmp_path: Path, make: Callable[[], bytes], message: str) -> None:
    server.content = make()
    with pytest.raises(DataError, match=message) as caught:
        fetch(server.archive(), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert {p.name for p in tmp_path.iterdir()} <= {"cache"}


def test_a_folder_with_content_is_not_touched(server: Server, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(UsageError, match="not empty"):
        fetch(server.archive(), tmp_path)
    assert server.requests == []


def earshot(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rig.cli.main", "data", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_says_what_it_would_do(tmp_path: Path) -> None:
    done = earshot("fetch", "speech-commands", "--out", str(tmp_path / "new"), "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["bytes"] == 2_428_923_189
    assert plan["sha256"].startswith("af14739ee7dc3114")
    assert not (tmp_path / "new").exists()


def test_the_command_ends_in_one_line(server: Server, tmp_path: Path) -> None:
    # The real set needs room on the disk before its checksum can be wrong.
    server_fault = "checksum" if shutil.disk_usage(tmp_path).free > 8e9 else "GB free"
    for arguments, code, message in (
        (("fetch", "nothing", "--out", str(tmp_path / "a")), 2, "speech-commands"),
        (("fetch", "speech-commands", "--out", str(tmp_path)), 2, "not empty"),
        (("fetch", "speech-commands", "--out", str(tmp_path / "b"), "--url", "ftp://x/y"), 2, "http"),
        (("fetch", "speech-commands", "--out", str(tmp_path / "c"), "--url", server.url), 2, server_fault),
    ):
        (tmp_path / "something").touch()
        done = earshot(*arguments)
        assert done.returncode == code, done.stderr
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
