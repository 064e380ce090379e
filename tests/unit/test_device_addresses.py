from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.agent.state_folder import claimed, default_state_dir
from edge.errors import DataError, EarshotError, UnavailableError, UsageError
from edge.mqtt.broker_url import CA_FILE_VARIABLE, PASSWORD_FILE_VARIABLE, PASSWORD_VARIABLE, BrokerUrl
from edge.sound.audio_stream import HEADER_LIMIT_BYTES, AudioHeader


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("mqtt://localhost", "mqtt://localhost:1883"),
        ("mqtt://10.0.0.1:1884/", "mqtt://10.0.0.1:1884"),
        ("mqtt://rig@lab.example:1883", "mqtt://rig@lab.example:1883"),
        ("mqtts://lab.example", "mqtts://lab.example:8883"),
        ("mqtt://[::1]:1883", "mqtt://[::1]:1883"),
    ],
)
def test_a_broker_url_reads_and_shows_itself(text: str, shown: str) -> None:
    url = BrokerUrl.parse(text)
    assert str(url) == shown
    assert BrokerUrl.parse(str(url)) == url


@pytest.mark.parametrize(
    "text",
    ["", "localhost", "localhost:1883", "http://x", "mqtt://", "mqtt://x:0", "mqtt://x:99999", "mqtt://x:abc",
     "mqtt://x/path", "mqtt://x?q=1", "mqtt://[::1", "mqtt://a b", "mqtt://a..b"],
)  # fmt: skip
def test_a_wrong_broker_url_is_one_line(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        BrokerUrl.parse(text)
    assert "\n" not in str(caught.value)


def test_a_password_in_the_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError, match=PASSWORD_VARIABLE) as caught:
        BrokerUrl.parse("mqtt://rig:hunter2@lab")
    assert "hunter2" not in str(caught.value)


@given(st.text(max_size=40))
def test_no_text_breaks_the_url(text: str) -> None:
    for candidate in (text, f"mqtt://{text}"):
        try:
            BrokerUrl.parse(candidate)
        except UsageError:
            continue


def test_the_password_comes_from_the_environment_or_a_file(tmp_path: Path) -> None:
    url = BrokerUrl.parse("mqtt://rig@lab")
    secret = tmp_path / "secret"
    secret.write_text("two words\n")
    assert url.password({}) is None
    assert url.password({PASSWORD_FILE_VARIABLE: str(secret)}) == "two words"
    assert url.password({PASSWORD_VARIABLE: "first", PASSWORD_FILE_VARIABLE: str(secret)}) == "first"
    with pytest.raises(UsageError, match="absent"):
        url.password({PASSWORD_FILE_VARIABLE: str(tmp_path / "absent")})
    with pytest.raises(UsageError, match="more than 4096 bytes"):
        url.password({PASSWORD_FILE_VARIABLE: "/dev/zero"})
    with pytest.raises(UsageError, match="no such file"):
        url.ca_file({CA_FILE_VARIABLE: str(tmp_path / "absent")})


def test_an_audio_header_survives_its_line() -> None:
    header = AudioHeader(rate_hz=16_000, stream_id="7f3a")
    line = header.to_line()
    assert line == b'{"earshot_audio":1,"rate_hz":16000,"channels":1,"format":"s16le","stream_id":"7f3a"}\n'
    assert AudioHeader.from_line(line) == header


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"RIFF",
        b"{}",
        b"x" * (HEADER_LIMIT_BYTES + 1),
        b'{"earshot_audio":2,"rate_hz":16000,"channels":1,"format":"s16le","stream_id":"a"}',
        b'{"earshot_audio":1,"rate_hz":16000,"channels":2,"format":"s16le","stream_id":"a"}',
        b'{"earshot_audio":1,"rate_hz":16000,"channels":1,"format":"f32le","stream_id":"a"}',
        b'{"earshot_audio":1,"rate_hz":16000,"channels":1,"format":"s16le","stream_id":"a b"}',
        b'{"earshot_audio":1,"rate_hz":16000,"channels":1,"format":"s16le","stream_id":"a","x":1}',
    ],
)
def test_a_wrong_audio_header_is_one_line(line: bytes) -> None:
    with pytest.raises(DataError, match="audio header"):
        AudioHeader.from_line(line)


@given(st.binary(max_size=HEADER_LIMIT_BYTES + 10))
def test_no_bytes_break_the_header(line: bytes) -> None:
    with pytest.raises(EarshotError):
        AudioHeader.from_line(line)


def test_a_state_folder_belongs_to_one_process(tmp_path: Path) -> None:
    with claimed(tmp_path, "kitchen") as folder:
        assert folder == tmp_path / "kitchen"
        with claimed(tmp_path, "hall"):
            pass
        with pytest.raises(UnavailableError, match="another earshot-device"), claimed(tmp_path, "kitchen"):
            pass
    with claimed(tmp_path, "kitchen"):
        pass


def test_a_state_folder_is_waited_for(tmp_path: Path) -> None:
    first = claimed(tmp_path, "kitchen")
    first.__enter__()
    leaving = threading.Timer(0.3, first.__exit__, (None, None, None))
    leaving.start()
    began_s = time.monotonic()
    with claimed(tmp_path, "kitchen", patience_s=20):
        assert 0.2 < time.monotonic() - began_s < 10
        with pytest.raises(UnavailableError, match="another"), claimed(tmp_path, "kitchen", patience_s=0.1):
            pass


def test_the_default_state_folder_follows_systemd_and_xdg() -> None:
    assert default_state_dir({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}) == Path("/var/lib/a")
    assert default_state_dir({"XDG_STATE_HOME": "/x"}) == Path("/x/earshot")
    assert default_state_dir({}) == Path.home() / ".local/state/earshot"
