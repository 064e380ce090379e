"""``earshot device install`` over a real sshd, into a copy of this system that is thrown away afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Sequence

import pytest

from edge.bundle.signing import fingerprint, load_public_key
from firmware_models import zoo
from rig.cli.main import main

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
UNIT = "/etc/systemd/system/earshot-device@.service"
FAKES = {
    "32-bit processor": (
        "uname",
        'if [ "$1" = -m ]; then echo armv7l; else echo Linux; fi',
        ["armv7l", "64-bit system"],
    ),
    "32-bit userland": (
        "getconf",
        'if [ "$1" = LONG_BIT ]; then echo 32; else echo glibc 2.36; fi',
        ["32 bit", "64-bit"],
    ),
    "another system": ("uname", "echo Darwin", ["Darwin", "Linux"]),
    "musl": ("getconf", 'if [ "$1" = LONG_BIT ]; then echo 64; else exit 1; fi', ["glibc 2.28"]),
    "no space": ("df", "echo header; echo 'disk 100000 0 51200 0% /'", ["50 MB free", "300 MB"]),
    "no systemd": ("systemctl", "exit 127", ["systemd is missing"]),
    "no root": ("id", "echo 1000", ["needs root", "root@127.0.0.1"]),
}


@pytest.mark.parametrize("case", FAKES)
def test_a_machine_that_cannot_be_a_device_is_told_in_one_line(case, machine, earshot, wanted) -> None:
    program, script, words = FAKES[case]
    folder = f"/srv/fake-{case.replace(' ', '-')}"
    machine.put(f"{folder}/{program}", f"#!/bin/sh\n# A fake, for a test.\n{script}\n".encode(), "755")
    machine.path(f"{folder}:{PATH}")
    # Who is not root must not become it in another way.
    machine.sh("mv /usr/bin/sudo /usr/bin/sudo.away")
    before = machine.snapshot()
    result = earshot("install", "root@127.0.0.1", *machine.options, *wanted, "--broker", "mqtt://u@h", "--no-start")
    after = machine.snapshot()
    machine.sh("mv /usr/bin/sudo.away /usr/bin/sudo")
    machine.path(PATH)
    result.refused(4, *words)
    assert after == before


def test_what_cannot_be_reached_is_told_in_one_line(machine, earshot, wanted, free_port) -> None:
    rest = [*wanted, "--broker", "mqtt://u@h", "--no-start"]
    nobody = [*machine.options[:-1], str(free_port())]
    refused = earshot("install", "root@127.0.0.1", *nobody, *rest)
    refused.refused(4, "Connection refused", "ssh root@127.0.0.1")
    machine.ssh_config(known="nothing")
    try:
        strange = earshot("install", "root@127.0.0.1", *machine.options, *rest)
    finally:
        machine.ssh_config()
    strange.refused(4, "Host key verification failed")
    denied = earshot("install", "stranger@127.0.0.1", *machine.options, *rest)
    denied.refused(4, "stranger@127.0.0.1", "denied")
    started = earshot("install", "root@127.0.0.1", *machine.options, *wanted, "--broker", "mqtt://u@h")
    started.refused(4, "--no-start")
    staged = earshot("install", "root@127.0.0.1", *machine.options, *rest, "--root", "/srv")
    staged.refused(2, "--root /srv", "etc/passwd")


def test_a_login_without_root_goes_through_sudo(machine, earshot, wanted) -> None:
    from edge.errors import UnavailableError
    from rig.deploy.install import install
    from rig.deploy.settings import check
    from rig.deploy.ssh import connected

    if machine.sh("command -v sudo").returncode:
        pytest.skip("sudo is missing: apt-get install sudo")
    machine.sh("useradd -m -s /bin/sh pi; echo pi:raspberry | chpasswd")
    dry = ["install", "pi@127.0.0.1", *machine.options, *wanted, "--broker", "mqtt://u@h", "--no-start", "--dry-run"]
    machine.put("/etc/sudoers.d/pi", b"pi ALL=(ALL) ALL\n", "440")
    earshot(*dry).refused(4, "sudo asks for a password", "root@127.0.0.1")

    target = machine.target("pi")
    name, key = zoo.bundle("lms-int8"), zoo.PUBLIC_KEY
    device = check(
        name="x", bundle=name, trust=(key,), operators=(), broker="mqtt://h", microphone="sounddevice", environment={}
    )
    with pytest.raises(UnavailableError, match="sudo refuses"):
        install(target, device, start=False, offline=True, dry_run=True, ask_password=lambda _: "touch /srv/pwned")
    typed = install(target, device, start=False, offline=True, dry_run=True, ask_password=lambda _: "raspberry")
    assert typed.changed

    machine.put("/etc/sudoers.d/pi", b"pi ALL=(ALL) NOPASSWD:ALL\n", "440")
    assert earshot(*dry).code == 0
    # A password that nobody asks for is not run as a command either.
    with connected(target) as remote:
        remote.become_root("touch /srv/pwned")
    assert machine.sh("test -e /srv/pwned").returncode
    machine.sh("rm /etc/sudoers.d/pi; userdel -r pi")


def run_as_the_unit_says(machine) -> subprocess.Popen[str]:
    """The service's command line under its account and without rights, in place of systemd."""
    unit = machine.sh(f"cat {UNIT}").stdout
    (command,) = [line.partition("=")[2] for line in unit.splitlines() if line.startswith("ExecStart=")]
    rights = "--init-groups --no-new-privs --bounding-set=-all --inh-caps=-all"
    account = "--reuid=earshot-device --regid=earshot-device"
    environment = "env -i ORT_DISABLE_TELEMETRY=1 PATH=/usr/bin:/bin"
    run = f"exec setpriv {account} {rights} {environment} {command.replace('%i', 'kitchen')} 2>&1"
    return machine.popen(f"cd /; echo $$; {run}")


def test_install_shows_does_and_undoes(
    machine, earshot, wanted, keys, clip, make_mosquitto, tmp_path_factory, wait_until
) -> None:
    passwords = tmp_path_factory.mktemp("broker") / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "kitchen", "correct horse"], check=True)
    passwords.chmod(0o644)
    passwords.parent.chmod(0o755)
    broker = make_mosquitto(f"allow_anonymous false\npassword_file {passwords}\n")
    install = ["install", "root@127.0.0.1", *machine.options, *wanted]
    install += ["--broker", broker.url.replace("://", "://kitchen@"), "--no-start"]
    machine.put("/srv/it's $(touch pwned).wav", clip)
    fresh = machine.snapshot()

    shown = earshot(*install, "--dry-run")
    assert shown.code == 0, shown.errors
    assert "would" in shown.statuses
    assert machine.snapshot() == fresh
    scripts = [script["script"] for script in shown.report["scripts"]]
    assert len(scripts) == len(shown.report["steps"]) >= 7
    assert "***" in "".join(scripts)
    assert "correct horse" not in shown.output + shown.errors

    done = earshot(*install)
    assert done.code == 0, done.errors
    assert [step["status"] for step in done.report["steps"][:-1]] == ["done"] * (len(scripts) - 1)
    print(f"installed in {sum(step['duration_s'] for step in done.report['steps']):.1f} s")
    installed = machine.snapshot()
    files = {line.split()[0]: line.split()[1] for line in installed}
    assert files["/etc/earshot/kitchen/password"] == "-rw-------"
    assert files["/var/lib/earshot"] == "drwx------"
    assert files["/opt/earshot/current"].startswith("l")
    assert not [path for path in files if path.startswith("/var/tmp/") or "pwned" in path or path.endswith(".pem")]
    settings = tomllib.loads(machine.sh("cat /etc/earshot/kitchen.toml").stdout)
    assert settings["microphone"] == "file:/srv/it's $(touch pwned).wav?loop"
    assert settings["listening"] == {"hop_ms": 80}
    assert "correct horse" not in str(settings)
    frozen = machine.sh("/opt/earshot/current/bin/python -I -c 'import torch'")
    assert "ModuleNotFoundError" in frozen.stderr

    again = earshot(*install)
    assert again.statuses == {"already"}, again.output
    assert machine.snapshot() == installed

    heard: list[str] = []
    watcher = subscriber(broker, heard)
    process = run_as_the_unit_says(machine)
    try:
        wait_until(lambda: any("/level" in topic for topic in heard), 20, lambda: f"{heard}")
    finally:
        machine.sh(f"kill {process.stdout.readline()}")
        output, _ = process.communicate(timeout=20)
        watcher.loop_stop()
    assert output.endswith("stopped\n")
    assert f"earshot/1/kitchen/info {fingerprint(load_public_key(keys.public))}" in heard
    assert "earshot/1/kitchen/state online" in heard

    changed = earshot(*install, "--microphone", "sounddevice:USB", "--dry-run")
    would = [step["detail"] for step in changed.report["steps"] if step["status"] == "would"]
    assert "/etc/earshot/kitchen.toml differs" in would

    removed = earshot("uninstall", "root@127.0.0.1", *machine.options, "--json")
    assert removed.statuses == {"done"}
    left = {line.split()[0] for line in machine.snapshot()}
    assert not [path for path in left if path.startswith(("/opt/earshot", "/etc/earshot", "/usr/local/bin/earshot"))]
    assert "/var/lib/earshot/kitchen/slots/pointer.json" in left
    purged = earshot("uninstall", "root@127.0.0.1", *machine.options, "--json", "--purge", "--name", "kitchen")
    assert purged.statuses == {"done"}
    nothing = earshot("uninstall", "root@127.0.0.1", *machine.options, "--json", "--purge")
    assert nothing.statuses == {"already"}
    assert not [line for line in machine.snapshot() if "earshot" in line]
    assert "earshot" not in machine.sh("cat /etc/passwd /etc/group").stdout


def subscriber(broker, heard: list[str]):
    import paho.mqtt.client as mqtt
    from paho.mqtt.enums import CallbackAPIVersion

    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.username_pw_set("kitchen", "correct horse")

    def note(client, userdata, message) -> None:
        said = json.loads(message.payload)
        heard.append(" ".join([message.topic, said.get("status", ""), *said.get("operators", [])]).replace("  ", " "))

    client.on_message = note
    client.on_connect = lambda *_: client.subscribe("earshot/#")
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    return client


HOSTILE: list[Sequence[str]] = [
    ["-oProxyCommand=touch pwned"],
    ["root@-oProxyCommand=touch"],
    ["$(touch pwned)@127.0.0.1"],
    ["root@127.0.0.1;touch pwned"],
    ["root@a b"],
    ["root@127.0.0.1", "--name", "../x"],
    ["root@127.0.0.1", "--name", "a b"],
    ["root@127.0.0.1", "--name", "a'b"],
    ["root@127.0.0.1", "--port", "0"],
    ["root@127.0.0.1", "--identity", "/dev/null/nowhere"],
    ["root@127.0.0.1", "--root", "relative"],
    ["root@127.0.0.1", "--root", "/mnt/../etc"],
    ["root@127.0.0.1", "--microphone", "file:/a\nb"],
    ["root@127.0.0.1", "--microphone", "ears"],
    ["root@127.0.0.1", "--broker", "mqtt://u:secret@h"],
    ["root@127.0.0.1", "--broker", "http://h"],
    ["root@127.0.0.1", "--ca", "/etc/hostname"],
    ["root@127.0.0.1", "--bundle", "/etc/hostname"],
    ["root@127.0.0.1", "--settings", "/etc/hostname"],
]


@pytest.mark.parametrize("arguments", HOSTILE, ids=lambda arguments: " ".join(arguments).replace("\n", "~"))
def test_hostile_words_are_refused(arguments, monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    key = str(zoo.PUBLIC_KEY)
    options = ["--name", "kitchen", "--bundle", str(zoo.bundle("lms-int8")), "--trust", key, "--broker", "mqtts://h"]
    target, more = arguments[:1], list(arguments[1:])
    monkeypatch.setattr(sys, "argv", ["earshot", "device", "install", *options, *more, "--", *target])
    with pytest.raises(SystemExit) as caught:
        main()
    errors = capsys.readouterr().err
    assert caught.value.code == 2, errors
    assert len(errors.splitlines()) == 1
    assert "secret" not in errors
    assert not list(tmp_path.iterdir())
