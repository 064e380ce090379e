"""The folder of a broker as it is written: what stays, what is renewed, what is refused."""

from __future__ import annotations

import datetime as dt
import shutil
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge.errors import UsageError
from edge.mqtt.problems import explain
from rig.deploy.broker import folder as broker_folder
from rig.deploy.broker.certificates import CLIENT_DAYS, RENEW_DAYS, SERVER_DAYS
from rig.deploy.broker.passwords import matches, password_line
from rig.deploy.broker.settings import Settings, configuration

VARIABLES = ("USER", "PASSWORD", "PASSWORD_FILE", "CA_FILE", "CERT_FILE", "KEY_FILE")


def test_a_second_run_changes_nothing_and_a_dry_run_never_does(configured: Any, tmp_path: Path) -> None:
    out = tmp_path / "broker"
    planned = configured(out, "--device", "kitchen", "--dry-run")
    assert planned["changes"]
    assert not out.exists()
    configured(out, "--device", "kitchen")
    assert configured(out)["changes"] == []
    secrets = [path for path in out.rglob("*") if path.name in {"password", "ca.key", "server.key", "client.key"}]
    secrets += list((out / "broker").glob("passwords-*"))
    assert len(secrets) == 8
    assert {path.stat().st_mode & 0o777 for path in secrets} == {0o600}
    (out / "rig/password").chmod(0o644)
    assert [change["action"] for change in configured(out)["changes"]] == ["replace"]
    assert (out / "rig/password").stat().st_mode & 0o777 == 0o600


def test_the_station_file_follows_the_broker_and_keeps_what_its_user_wrote(tmp_path: Path) -> None:
    out = tmp_path / "broker"
    settings = Settings(hosts=("::1",), path=out)
    broker_folder.plan(out, settings).carry_out()
    station = out / "rig/station.toml"
    assert 'broker = "mqtts://rig@[::1]:8884"' in station.read_text()
    station.write_text(station.read_text() + 'operator = "mine.pem"\n')
    broker_folder.plan(out, settings.model_copy(update={"rig_port": 9884})).carry_out()
    assert station.read_text().startswith('broker = "mqtts://rig@[::1]:9884"\n')
    assert station.read_text().endswith('operator = "mine.pem"\n')
    elsewhere = station.read_text().replace("[::1]", "tunnel.example")
    station.write_text(elsewhere)
    broker_folder.plan(out, settings).carry_out()
    assert station.read_text() == elsewhere


def test_certificates_are_renewed_before_they_end_and_when_the_host_changes(tmp_path: Path) -> None:
    out, now = tmp_path / "b", dt.datetime.now(dt.UTC)
    settings = Settings(hosts=("lab.local", "10.0.0.1"), path=out)

    def changed(settings: Settings, after_days: int) -> set[str]:
        planned = broker_folder.plan(out, settings, now=now + dt.timedelta(days=after_days))
        planned.carry_out()
        return {change.path.name for change in planned.changes if change.action != "keep"}

    broker_folder.plan(out, settings, add=["kitchen"], now=now).carry_out()
    assert changed(settings, SERVER_DAYS - RENEW_DAYS - 1) == set()
    assert changed(settings, SERVER_DAYS - RENEW_DAYS + 1) == {"server.crt", "server.key"}
    moved = settings.model_copy(update={"hosts": ("10.0.0.1",)})
    assert changed(moved, 0) == {"server.crt", "server.key", "earshot-broker.json", "README.md", "station.toml"}
    assert changed(moved, CLIENT_DAYS - 1) >= {"client.crt", "client.key"}
    (out / "devices/kitchen/client.crt").write_bytes((out / "rig/client.crt").read_bytes())
    assert changed(moved, CLIENT_DAYS - 1) == {"client.crt", "client.key"}, "a certificate that does not fit its key"
    (out / "devices/kitchen/client.crt").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="malformed"):
        changed(moved, 0)


def test_nobody_is_served_without_tls_and_a_password(tmp_path: Path) -> None:
    text = configuration(Settings(hosts=("lab",), path=tmp_path))
    head, *listeners = text.split("\nlistener ")
    assert head.startswith("# ")
    assert "per_listener_settings true" in head
    assert len(listeners) == 2
    for listener in listeners:
        for line in ("allow_anonymous false", "require_certificate true", "tls_version tlsv1.2"):
            assert listener.count(line) == 1
        for option in ("password_file", "acl_file", "cafile", "certfile", "keyfile"):
            assert f"\n{option} {tmp_path}/broker/" in listener


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "Kitchen"], "use 1 to 63 of a-z"),
        (["--device", "a/b"], "use 1 to 63 of a-z"),
        (["--device", "rig"], "another user of that name"),
        (["--host", "bad host"], "DNS name or an IP address"),
        (["--host", "a_b"], "DNS name or an IP address"),
        (["--rig-port", "8883"], "they need two"),
        (["--rig-port", "0"], "--rig-port 0: use 1 to 65535"),
        (["--remove", "attic"], "knows no such device"),
        (["--at", "with space"], "absolute path without spaces"),
        (["--run-as", "x\ny"], "name of an account"),
    ],
)
def test_wrong_input_is_one_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    command = [sys.executable, "-m", "rig.cli.main", "broker", "config", "--out", str(tmp_path / "b"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "b").exists()


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    command = [sys.executable, "-m", "rig.cli.main", "broker", "config", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "holds other files" in done.stderr


def test_our_hashes_are_those_of_mosquitto(tmp_path: Path) -> None:
    program = shutil.which("mosquitto_passwd")
    if program is None:
        pytest.skip("mosquitto_passwd is missing: apt-get install mosquitto")
    (tmp_path / "p").write_text("kitchen:pass word\n")
    subprocess.run([program, "-U", str(tmp_path / "p")], check=True, timeout=30)
    line = (tmp_path / "p").read_text().strip()
    assert matches(line, "kitchen", "pass word")
    assert not matches(line, "kitchen", "password")
    assert not matches(line, "hall", "pass word")
    assert matches(password_line("hall", "x"), "hall", "x")
    for broken in ("", "kitchen", "kitchen:$6$a$b", "kitchen:$7$x$!$", "kitchen:$7$101$AAAA"):
        assert not matches(broken, "kitchen", "x")


def test_network_errors_are_explained() -> None:
    assert "check the host name" in explain(socket.gaierror(-2, "Name or service not known"))
    assert "no answer" in explain(TimeoutError())
    assert explain(OSError(113, "No route to host")) == "no route to host"
    assert "\n" not in explain(ssl.SSLError("strange\nthing"))
