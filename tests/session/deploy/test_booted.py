"""The installed service under a real systemd: its limits, its watchdog, an upgrade, a version that does not run."""

from __future__ import annotations

import json
import time

import pytest

pytestmark = pytest.mark.soak

SERVICE = "earshot-device@kitchen.service"
MICROPHONE = "file:/srv/clip.wav?loop"


def shown(booted, *properties: str) -> dict[str, str]:
    wanted = " ".join(f"--property={each}" for each in properties)
    lines = booted.sh(f"systemctl show {wanted} {SERVICE}").stdout.splitlines()
    return dict(line.split("=", 1) for line in lines)


@pytest.fixture(scope="module")
def broker(mosquitto_program, tmp_path_factory, free_port):
    import subprocess

    folder, port = tmp_path_factory.mktemp("broker"), free_port()
    config = folder / "mosquitto.conf"
    config.write_text(f"user root\nlistener {port} 127.0.0.1\nallow_anonymous true\n")
    process = subprocess.Popen([mosquitto_program, "-c", str(config)], stderr=subprocess.DEVNULL)
    yield f"mqtt://kitchen@127.0.0.1:{port}"
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def install(booted, wanted, broker, clip):
    booted.put("/srv/clip.wav", clip)
    return ["install", "root@127.0.0.1", *booted.options, *wanted, "--microphone", MICROPHONE, "--broker", broker]


def test_the_service_starts_keeps_within_its_limits_and_comes_back(booted, earshot, install) -> None:
    done = earshot(*install)
    report = done.report
    assert {step["status"] for step in report["steps"]} <= {"done", "already"}, done.errors
    failed = {finding["check"] for finding in report["doctor"] if not finding["ok"]}
    # Nothing sets the clock in there, of which the doctor rightly complains.
    assert failed <= {"clock"}, report["doctor"]
    assert done.code == (3 if failed else 0)
    again = earshot(*install)
    assert again.code == 0
    assert again.statuses == {"already"}, again.output

    state = shown(booted, "ActiveState", "MainPID", "NRestarts", "WatchdogUSec", "StatusText")
    assert state["ActiveState"] == "active"
    assert state["NRestarts"] == "0"
    assert state["StatusText"]
    status = booted.sh(f"cat /proc/{state['MainPID']}/status").stdout
    limits = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert limits["NoNewPrivs"] == "1"
    assert limits["Seccomp"] == "2"
    assert int(limits["CapEff"], 16) == int(limits["CapBnd"], 16) == 0
    assert "0" not in limits["Uid"].split()
    enter = f"nsenter --target {state['MainPID']} --mount --"
    forbidden = ("/etc/earshot/x", "/opt/earshot/x", "/usr/x", "/var/lib/x", "/home/x")
    for place in (*forbidden, "/root/x"):  # of another machine
        assert booted.sh(f"{enter} touch {place}").returncode, place
    assert not booted.sh(f"{enter} sh -c 'touch /var/lib/earshot/x && rm /var/lib/earshot/x'").returncode

    booted.sh(f"kill -KILL {state['MainPID']}")
    wait(lambda: shown(booted, "ActiveState", "NRestarts") == {"ActiveState": "active", "NRestarts": "1"}, 40)
    process = shown(booted, "MainPID")["MainPID"]
    # A process that hangs is found by the watchdog.
    booted.sh(f"kill -STOP {process}")
    wait(lambda: shown(booted, "ActiveState", "NRestarts") == {"ActiveState": "active", "NRestarts": "2"}, 120)
    assert "atchdog" in booted.sh(f"journalctl --unit {SERVICE} --output cat").stdout


def test_a_new_version_replaces_the_old_one_and_a_broken_one_does_not(booted, earshot, install, code) -> None:
    earshot(*install)
    first = booted.sh("readlink /opt/earshot/current").stdout
    (code / "new_in_this_version.py").write_text('"""New."""\n')
    upgraded = earshot(*install)
    assert upgraded.code in {0, 3}, upgraded.errors
    second = booted.sh("readlink /opt/earshot/current").stdout
    assert second != first
    assert booted.sh("readlink /opt/earshot/previous").stdout == first
    assert shown(booted, "ActiveState")["ActiveState"] == "active"

    # It can say its version and no more.
    broken = code / "agent/device.py"
    whole = broken.read_text()
    broken.write_text('raise RuntimeError("broken by a test")\n')
    refused = earshot(*install)
    refused.refused(4, "does not run", f"went back to {second.strip()}, which runs", "journalctl")
    assert booted.sh("readlink /opt/earshot/current").stdout == second
    assert shown(booted, "ActiveState")["ActiveState"] == "active"
    broken.write_text(whole)
    mended = earshot(*install)
    assert mended.code == 0, mended.errors
    assert booted.sh("cd /opt/earshot && ls -d venv-*").stdout.split() == [second.strip()]


def test_a_second_device_beside_it_takes_an_update_within_its_limits(
    booted, earshot, install, broker, keys, make_bundle, tmp_path
) -> None:
    """The worker of an update runs under the unit's limits, too; the first device is left alone."""
    earshot(*install)
    before = shown(booted, "MainPID")["MainPID"]
    old = make_bundle(tmp_path, bits=8, version=1).rename(tmp_path / "old.earshot")
    new = make_bundle(tmp_path, bits=8, version=2)
    office = ["--name", "office", "--bundle", old, "--trust", keys.public]
    added = earshot(*install, *office)
    assert added.code in {0, 3}, added.errors
    titles = {step["title"]: step["status"] for step in added.report["steps"]}
    assert titles["service account"] == "already"
    assert shown(booted, "MainPID")["MainPID"] == before
    pointer = "cat /var/lib/earshot/office/slots/pointer.json"
    wait(lambda: json.loads(booted.sh(pointer).stdout)["confirmed"], 100)
    updated = earshot(
        *("update", "office", new, "--broker", broker, "--operator", keys.private, "--serve", "127.0.0.1", "--json")
    )
    assert updated.code == 0, (updated.output, updated.errors)
    assert json.loads(booted.sh(pointer).stdout)["active"] == "b"
    active = booted.sh("systemctl show --property=ActiveState --property=NRestarts earshot-device@office").stdout
    assert set(active.split()) == {"ActiveState=active", "NRestarts=0"}
    one = earshot("uninstall", "root@127.0.0.1", *booted.options, "--json", "--purge", "--name", "office")
    assert one.code == 0, one.errors
    assert shown(booted, "MainPID")["MainPID"] == before


def test_uninstall_stops_and_purge_forgets(booted, earshot, install) -> None:
    earshot(*install)
    removed = earshot("uninstall", "root@127.0.0.1", *booted.options, "--json", "--purge")
    assert removed.code == 0, removed.errors
    assert not booted.sh("systemctl list-units --no-legend 'earshot*'").stdout.strip()
    assert not [line for line in booted.snapshot() if "earshot" in line and "/var/log/" not in line]
    assert "earshot" not in booted.sh("cat /etc/passwd /etc/group").stdout


def test_a_system_in_a_folder_is_installed_into_and_nothing_else(booted, earshot, install) -> None:
    """The card of another machine: accounts, program, settings and the link that starts it, all below one folder."""
    booted.sh("mkdir -p /mnt/card/etc && cp /etc/passwd /etc/group /etc/os-release /mnt/card/etc")
    before = [line for line in booted.snapshot() if not line.startswith(("/mnt", "/var/log", "/tmp"))]
    staged = [*install, "--root", "/mnt/card"]
    assert earshot(*staged).code == 0
    again = earshot(*staged)
    assert again.statuses == {"already"}, again.output
    after = [line for line in booted.snapshot() if not line.startswith(("/mnt", "/var/log", "/tmp"))]
    assert after == before
    link = "/mnt/card/etc/systemd/system/multi-user.target.wants/earshot-device@kitchen.service"
    assert booted.sh(f"readlink {link}").stdout.strip() == "/etc/systemd/system/earshot-device@.service"
    assert "earshot-device" in booted.sh("cat /mnt/card/etc/passwd").stdout
    assert json.loads(booted.sh("cat /mnt/card/var/lib/earshot/kitchen/slots/pointer.json").stdout)
    removed = earshot("uninstall", "root@127.0.0.1", *booted.options, "--json", "--purge", "--root", "/mnt/card")
    assert removed.code == 0, removed.errors
    left = booted.sh("grep -rl earshot /mnt/card; find /mnt/card -name '*earshot*'").stdout.split()
    assert [path for path in left if not path.endswith("-")] == []


def wait(holds, timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.5)
