"""What systemd hears, on a path and on an abstract name, and that its absence harms nobody."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.agent.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(5)
        if request.param == "path":
            name = str(tmp_path / "notify")
            listener.bind(name)
        else:
            name = f"@earshot-{os.getpid()}-notify"
            listener.bind("\0" + name[1:])
        yield listener, name


def test_each_message_is_one_datagram(systemd: tuple[socket.socket, str]) -> None:
    listener, name = systemd
    notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())})
    assert notifier.watchdog_s == 30
    notifier.ready()
    notifier.status("connected;\nsound  comes")
    notifier.status("connected; sound comes")
    notifier.alive()
    notifier.stopping()
    heard = [listener.recv(200) for _ in range(4)]
    assert heard == [b"READY=1", b"STATUS=connected; sound comes", b"WATCHDOG=1", b"STOPPING=1"]


@pytest.mark.parametrize("name", ["", "relative", "vsock:2:1234"])
def test_without_a_socket_nothing_is_said(name: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1000"})
    assert notifier.watchdog_s is None
    notifier.ready()


def test_a_socket_that_nobody_reads_holds_nothing_up(tmp_path: Path) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "absent")}).ready()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "full"))
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "full")})
        for _ in range(1000):
            notifier.alive()


@pytest.mark.parametrize(
    "wish", [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}]
)
def test_who_is_not_watched(tmp_path: Path, wish: dict[str, str]) -> None:
    assert Notifier({"NOTIFY_SOCKET": str(tmp_path / "n"), **wish}).watchdog_s is None
