"""What a device is told by options and settings file, and a workstation by its station file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge.cli.entry import parser
from edge.cli.settings import DeviceSettings, from_options
from edge.errors import UsageError
from edge.mqtt.broker_url import CA_FILE_VARIABLE, PASSWORD_FILE_VARIABLE, PASSWORD_VARIABLE, USER_VARIABLE
from edge.mqtt.tls import CERTIFICATE_FILE_VARIABLE, KEY_FILE_VARIABLE
from rig import station

FILE = """
name = "kitchen"
broker = "mqtts://kitchen@lab.local"
microphone = "sounddevice"
state_dir = "/var/lib/earshot"
operator = ["keys/operator.pub"]
password_file = "kitchen/password"
ca_file = "/etc/ssl/ca.crt"
threads = 2
home_assistant = "homeassistant"

[listening]
hop_ms = 80
threshold = 0.7
"""


@pytest.fixture
def settings(tmp_path: Path):
    def read(text: str, *options: str, command: str = "run") -> DeviceSettings:
        path = tmp_path / "device.toml"
        path.write_text(text)
        return from_options(parser().parse_args([command, "--config", str(path), *options]))

    return read


def _without(*options: str) -> DeviceSettings:
    return from_options(parser().parse_args(["run", *options]))


def test_a_file_says_it_all(settings: Any, tmp_path: Path) -> None:
    told = settings(FILE)
    assert (told.name, told.threads, told.home_assistant) == ("kitchen", 2, "homeassistant")
    assert str(told.url) == "mqtts://kitchen@lab.local:8883"
    assert told.state_dir == Path("/var/lib/earshot")
    assert told.operator == (tmp_path / "keys/operator.pub",)
    assert told.password_file == tmp_path / "kitchen/password"
    assert (told.listening.hop_ms, told.listening.threshold, told.listening.keep) == (80, 0.7, "triggered")


def test_options_win_over_the_file(settings: Any) -> None:
    told = settings(FILE, "--name", "cellar", "--hop", "200", "--threads", "1", "--home-assistant", "ha")
    assert (told.name, told.threads, told.home_assistant) == ("cellar", 1, "ha")
    assert (told.listening.hop_ms, told.listening.threshold) == (200, 0.7)
    assert settings(FILE, "--home-assistant").home_assistant == "homeassistant"
    assert settings(FILE, "--listen-continuously", "300").listening.hop_ms == 300


def test_the_doctor_reads_the_same_file(settings: Any) -> None:
    assert settings(FILE, "--hop", "90", command="doctor").listening.hop_ms == 90
    assert settings(FILE, command="status").name == "kitchen"


def test_without_a_file_and_listening_nothing_is_assumed() -> None:
    told = _without("--name", "kitchen")
    assert told.listening is None
    assert told.bundle is None
    assert _without("--keep", "all").listening.keep == "all"


@pytest.mark.parametrize(
    ("text", "options", "complaint"),
    [
        ("nmae = 'x'", [], "device.toml: nmae: unknown key: a device knows name, broker"),
        ("password = 'hunter2'", [], "device.toml: password: unknown key"),
        ("threads = 'two'", [], "device.toml: threads: "),
        ("threads = 99", [], "device.toml: threads: "),
        ("[listening]\nhop = 3", [], "device.toml: listening.hop: unknown key"),
        ("[listening]\nhop_ms = 3", [], "device.toml: listening.hop_ms: "),
        ("name", [], "not TOML"),
        ("name = 'Küche'", [], "device name 'Küche'"),
        ("name = 3", [], "device.toml: name: "),
        ("operator = 'a.pub'", [], "device.toml: operator: "),
        ("operator = [3]", [], "device.toml: operator.0: "),
        ("home_assistant = '+/#'", [], "device.toml: home_assistant: "),
        ("", ["--threads", "0"], "--threads 0: use 1 to 64"),
        ("", ["--members", "1000"], "--members 1000: use 1 to 256"),
        ("", ["--home-assistant", "#"], "--home-assistant #: "),
        ("", ["--threshold", "2"], "--threshold 2.0: "),
        ("[listening]\nthreshold = 0.5", ["--release", "0.6"], "--release: 0.6 is not below the threshold of 0.5"),
        ("", ["--bundle", "x.earshot"], "give --trust KEY.pub"),
        ("", ["--trust", "x.pub"], "--trust goes with --bundle"),
    ],
)
def test_what_is_wrong_is_one_line(settings: Any, text: str, options: list[str], complaint: str) -> None:
    with pytest.raises(UsageError) as raised:
        settings(text, *options)
    assert complaint in str(raised.value)
    assert "hunter2" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent.toml: No such file or directory: .* --config"):
        _without("--config", str(tmp_path / "absent.toml"))
    (tmp_path / "huge.toml").write_bytes(b"#" * (65 << 10))
    with pytest.raises(UsageError, match="larger than"):
        _without("--config", str(tmp_path / "huge.toml"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not TOML"):
        _without("--config", str(tmp_path / "binary.toml"))


def test_what_is_needed_and_missing_is_named() -> None:
    with pytest.raises(UsageError, match="--state-dir is missing: give it, or state_dir in the file of --config"):
        DeviceSettings.need("state_dir", None)
    with pytest.raises(UsageError, match="--broker is missing"):
        _ = DeviceSettings().url


def test_secrets_are_paths_in_the_environment(tmp_path: Path) -> None:
    told = DeviceSettings(
        user="kitchen", password_file=tmp_path / "p", ca_file=tmp_path / "c", certificate_file=tmp_path / "d",
        key_file=tmp_path / "k",
    )  # fmt: skip
    environment = {CA_FILE_VARIABLE: "mine"}
    told.set_environment(environment)
    assert environment == {
        CA_FILE_VARIABLE: "mine",
        USER_VARIABLE: "kitchen",
        PASSWORD_FILE_VARIABLE: str(tmp_path / "p"),
        CERTIFICATE_FILE_VARIABLE: str(tmp_path / "d"),
        KEY_FILE_VARIABLE: str(tmp_path / "k"),
    }
    environment = {PASSWORD_VARIABLE: "hunter2"}
    told.set_environment(environment)
    assert PASSWORD_FILE_VARIABLE not in environment


def test_a_station_names_broker_and_keys(tmp_path: Path) -> None:
    path = tmp_path / "station.toml"
    path.write_text('broker = "mqtts://rig@lab"\noperator = "keys/op.pem"\nca_file = "/ca.crt"\n')
    facts = station.load(path)
    assert str(facts.url) == "mqtts://rig@lab:8883"
    assert (facts.operator, facts.ca_file, facts.password_file) == (tmp_path / "keys/op.pem", Path("/ca.crt"), None)
    for text, complaint in (
        ('broker = "mqtt://lab"\npassword = "hunter2"', "password: unknown key: a station says broker, operator"),
        ("", "broker: "),
        ("broker", "not TOML"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError) as raised:
            station.load(path)
        assert complaint in str(raised.value)
        assert "hunter2" not in str(raised.value)
    with pytest.raises(UsageError, match="--station, or --broker"):
        station.load(tmp_path / "absent.toml")
    with pytest.raises(UsageError, match="larger than 65536 bytes"):
        station.load(Path("/dev/zero"))
