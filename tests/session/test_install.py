"""``earshot device install`` over a real sshd, into a copy of this system that is thrown away afterwards.

The copy is an overlay in a mount namespace of its own: the real root folder, real accounts, a real virtual environment,
and nothing of it reaches this machine. systemd does not run in it; the soak test at the end boots it.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

import edge
from edge.bundle.signing import fingerprint, load_public_key
from firmware_models import zoo
from rig.cli.main import main

UNIT = "earshot-device@kitchen.service"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OVERLAY = """
set -eu
space=$1 keys=$2
mount -t tmpfs tmpfs "$space"
mkdir "$space/upper" "$space/work" "$space/root"
root=$space/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$space/upper,workdir=$space/work" "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mkdir -p "$root/run/sshd" "$root/srv/ssh" "$root/opt"
mount -t tmpfs -o mode=1777 tmpfs "$root/var/tmp"
mkdir "$root/srv/changes"
mount --bind "$space/upper" "$root/srv/changes"
cp "$keys"/* "$root/srv/ssh"
rm -f "$root/root/.bashrc" "$root/root/.profile"
"""
SSHD = 'exec chroot "$root" /usr/sbin/sshd -D -e -f /srv/ssh/sshd_config\n'
# systemd as process 1 of the copy, with nothing to do but let ssh in.
BOOT = """
rm -rf "$root"/etc/systemd/system/*
for unit in systemd-udevd systemd-udev-trigger systemd-networkd systemd-resolved systemd-timesyncd systemd-logind \
  systemd-remount-fs systemd-tmpfiles-setup-dev systemd-modules-load systemd-sysctl systemd-random-seed \
  systemd-binfmt getty@tty1 console-getty mosquitto ssh; do
  ln -s /dev/null "$root/etc/systemd/system/$unit.service"
done
: >"$root/etc/fstab"
cat >"$root/etc/systemd/system/door.service" <<END
[Service]
ExecStart=/usr/sbin/sshd -D -e -f /srv/ssh/sshd_config
END
cat >"$root/etc/systemd/system/small.target" <<END
[Unit]
Requires=basic.target door.service
END
mkdir "$root/put"
cd "$root"
pivot_root . put
umount -l /put
exec env container=other /lib/systemd/systemd --system --unit=small.target --show-status=0
"""


@dataclass(frozen=True)
class Result:
    """What a command of ours said."""

    code: int
    output: str
    errors: str

    @property
    def report(self) -> dict:
        return json.loads(self.output)

    @property
    def statuses(self) -> set[str]:
        return {step["status"] for step in self.report["steps"]}


class Machine:
    """A copy of this system behind an sshd on loopback."""

    def __init__(self, folder: Path, port: int, script: str) -> None:
        self._folder, self.port = folder, port
        keys, space = folder / "keys", folder / "space"
        for each in (keys, space):
            each.mkdir()
        for name in ("host", "login"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
        shutil.copy(folder / "login.pub", keys / "authorized_keys")
        shutil.copy(folder / "host", keys / "host")
        (keys / "sshd_config").write_text(
            f"Port {port}\nListenAddress 127.0.0.1\nHostKey /srv/ssh/host\n"
            "AuthorizedKeysFile /srv/ssh/authorized_keys\nPermitUserEnvironment yes\n"
            "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nPidFile none\n"
        )
        host = (folder / "host.pub").read_text().split()
        (folder / "known").write_text(f"[127.0.0.1]:{port} {host[0]} {host[1]}\n")
        self.ssh_config()
        self._log = folder / "machine.log"
        namespaces = [
            "--mount",
            "--pid",
            "--uts",
            "--ipc",
            "--cgroup",
            "--fork",
            "--kill-child",
            "--propagation",
            "private",
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "unshare",
                    *namespaces,
                    "--fork",
                    "--kill-child",
                    "sh",
                    "-c",
                    OVERLAY + script,
                    "machine",
                    str(space),
                    str(keys),
                ],
                stdout=log,
                stderr=log,
            )
        deadline_s = time.monotonic() + 60
        while self.sh("true").returncode:
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self.stop()
                pytest.skip(f"needs root that may mount and chroot: {self._log.read_text()[-300:]}")
            time.sleep(0.1)

    def ssh_config(self, *, known: str = "known") -> None:
        """Write the configuration that ssh is given."""
        known_hosts = f"UserKnownHostsFile {self._folder / known}\n  StrictHostKeyChecking yes\n"
        (self._folder / "ssh_config").write_text(f"Host *\n  {known_hosts}")

    def path(self, path: str) -> None:
        """Set the PATH of logins."""
        self.put("/root/.ssh/environment", f"PATH={path}\n".encode())

    @property
    def options(self) -> list[str]:
        config, identity = self._folder / "ssh_config", self._folder / "login"
        return ["--ssh-config", str(config), "--identity", str(identity), "--port", str(self.port)]

    def words(self) -> list[str]:
        """The start of a command line of ssh; one connection serves all."""
        kept = ["-o", "ControlMaster=auto", "-o", f"ControlPath={self._folder}/c", "-o", "ControlPersist=60"]
        words = ["ssh", "-F", str(self._folder / "ssh_config"), "-i", str(self._folder / "login"), *kept]
        return [*words, "-p", str(self.port), "root@127.0.0.1"]

    def sh(self, command: str) -> subprocess.CompletedProcess[str]:
        with (self._folder / "errors").open("w+") as errors:
            done = subprocess.run(
                [*self.words(), command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                check=False,
            )
            errors.seek(0)
            done.stderr = errors.read()
        return done

    def popen(self, command: str) -> subprocess.Popen[str]:
        return subprocess.Popen([*self.words(), command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)

    def put(self, path: str, content: bytes, mode: str = "644") -> None:
        quoted = shlex.quote(path)
        command = f"mkdir -p $(dirname {quoted}); cat > {quoted}; chmod {mode} {quoted}"
        subprocess.run([*self.words(), command], input=content, check=True)

    def snapshot(self) -> list[str]:
        """What differs from this system, with mode, owner, size, time of change and target of a link."""
        script = (
            "cd /srv/changes && find * -path srv -prune -o -path root/.ssh -prune -o -type d -printf '/%p %M %U:%G\\n'"
            " -o -printf '/%p %M %U:%G %s %T@ %l\\n';"
            " find /var/tmp -mindepth 1"
        )
        return sorted(self.sh(script).stdout.splitlines())

    def stop(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


def missing_programs() -> list[str]:
    wanted = {"sshd": "openssh-server", "ssh": "openssh-client", "unshare": "util-linux", "systemd-sysusers": "systemd"}
    path = f"{os.environ.get('PATH', '')}:{PATH}"
    return [package for program, package in wanted.items() if shutil.which(program, path=path) is None]


@pytest.fixture(scope="module")
def make_machine(tmp_path_factory, free_port) -> Iterator[Callable[[str], Machine]]:
    if os.geteuid():
        pytest.skip("needs root for a copy of the system: sudo make test")
    if missing := missing_programs():
        pytest.skip(f"not installed: apt-get install {' '.join(missing)}")
    machines: list[Machine] = []

    def make(script: str) -> Machine:
        machines.append(Machine(tmp_path_factory.mktemp("machine"), free_port(), script))
        return machines[-1]

    yield make
    for machine in machines:
        machine.stop()


@pytest.fixture(scope="module")
def machine(make_machine) -> Machine:
    return make_machine(SSHD)


@pytest.fixture(scope="module")
def code(tmp_path_factory) -> Path:
    """A copy of the device's code, from which its wheel is packed: nobody edits it meanwhile."""
    folder = tmp_path_factory.mktemp("code") / "edge"
    return shutil.copytree(Path(edge.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))


def earshot(*arguments: str | Path, code: Path) -> Result:
    """``earshot device ...``, in this process."""
    output, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(errors):
        patch.setattr(edge, "__file__", str(code / "__init__.py"))
        patch.setattr(sys, "argv", ["earshot", "device", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
    result = Result(caught.value.code, output.getvalue(), errors.getvalue())
    if "pip cannot get the wheels" in result.errors:
        pytest.skip(f"needs a package index: {result.errors}")
    return result


@pytest.fixture(scope="module")
def wanted(tmp_path_factory, keys) -> list[str | Path]:
    """What is installed, but for the broker and the machine."""
    folder = tmp_path_factory.mktemp("wanted")
    (folder / "password").write_text("correct horse\n")
    (folder / "more.toml").write_text("threads = 2\n[listening]\nhop_ms = 80\n")
    options = ["--name", "kitchen", "--bundle", zoo.bundle("lms-int8"), "--trust", zoo.PUBLIC_KEY]
    options += ["--operator", keys.public, "--password-file", folder / "password", "--settings", folder / "more.toml"]
    return [*options, "--microphone", "file:/srv/it's $(touch pwned).wav?loop", "--json", "--offline"]


def clip() -> bytes:
    file = io.BytesIO()
    sound = np.random.default_rng(0).normal(0, 0.1, 48_000).clip(-1, 1)
    soundfile.write(file, sound, 16_000, format="WAV", subtype="PCM_16")
    return file.getvalue()


def one_line(result: Result, code: int, *words: str) -> None:
    assert result.code == code, (result.output, result.errors)
    lines = [line for line in result.errors.splitlines() if line.startswith("earshot:")]
    assert len(lines) == 1, result.errors
    for word in words:
        assert word in lines[0], lines[0]


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
def test_a_machine_that_cannot_be_a_device_is_told_in_one_line(case, machine, code, wanted) -> None:
    program, script, words = FAKES[case]
    folder = f"/srv/fake-{case.replace(' ', '-')}"
    machine.put(f"{folder}/{program}", f"#!/bin/sh\n# A fake, for a test.\n{script}\n".encode(), "755")
    machine.path(f"{folder}:{PATH}")
    before = machine.snapshot()
    result = earshot(
        "install", "root@127.0.0.1", *machine.options, *wanted, "--broker", "mqtt://u@h", "--no-start", code=code
    )
    after = machine.snapshot()
    machine.path(PATH)
    one_line(result, 4, *words)
    assert after == before


def test_what_cannot_be_reached_is_told_in_one_line(machine, code, wanted, free_port) -> None:
    rest = [*wanted, "--broker", "mqtt://u@h", "--no-start"]
    nobody = [*machine.options[:-1], str(free_port())]
    one_line(
        earshot("install", "root@127.0.0.1", *nobody, *rest, code=code), 4, "Connection refused", "ssh root@127.0.0.1"
    )
    machine.ssh_config(known="nothing")
    try:
        strange = earshot("install", "root@127.0.0.1", *machine.options, *rest, code=code)
    finally:
        machine.ssh_config()
    one_line(strange, 4, "Host key verification failed")
    one_line(
        earshot("install", "stranger@127.0.0.1", *machine.options, *rest, code=code), 4, "stranger@127.0.0.1", "denied"
    )
    started = [*wanted, "--broker", "mqtt://u@h"]
    one_line(earshot("install", "root@127.0.0.1", *machine.options, *started, code=code), 4, "--no-start")
    staged = earshot("install", "root@127.0.0.1", *machine.options, *rest, "--root", "/srv", code=code)
    one_line(staged, 2, "--root /srv", "etc/passwd")


def run_as_the_unit_says(machine: Machine) -> subprocess.Popen[str]:
    """The service's command line under its account and without rights, in place of systemd."""
    unit = machine.sh(f"cat /etc/systemd/system/{UNIT.replace('kitchen', '')}").stdout
    (command,) = [line.partition("=")[2] for line in unit.splitlines() if line.startswith("ExecStart=")]
    rights = "--init-groups --no-new-privs --bounding-set=-all --inh-caps=-all"
    account = "--reuid=earshot-device --regid=earshot-device"
    environment = "env -i ORT_DISABLE_TELEMETRY=1 PATH=/usr/bin:/bin"
    run = f"exec setpriv {account} {rights} {environment} {command.replace('%i', 'kitchen')} 2>&1"
    return machine.popen(f"cd /; echo $$; {run}")


def test_install_shows_does_and_undoes(
    machine, code, wanted, keys, make_mosquitto, tmp_path_factory, wait_until
) -> None:
    passwords = tmp_path_factory.mktemp("broker") / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "kitchen", "correct horse"], check=True)
    passwords.chmod(0o644)
    passwords.parent.chmod(0o755)
    broker = make_mosquitto(f"allow_anonymous false\npassword_file {passwords}\n")
    install = ["install", "root@127.0.0.1", *machine.options, *wanted]
    install += ["--broker", broker.url.replace("://", "://kitchen@"), "--no-start"]
    machine.put("/srv/it's $(touch pwned).wav", clip())
    fresh = machine.snapshot()

    shown = earshot(*install, "--dry-run", code=code)
    assert shown.code == 0, shown.errors
    assert "would" in shown.statuses
    assert machine.snapshot() == fresh
    scripts = [script["script"] for script in shown.report["scripts"]]
    assert len(scripts) == len(shown.report["steps"]) >= 7
    assert "***" in "".join(scripts)
    assert "correct horse" not in shown.output + shown.errors

    done = earshot(*install, code=code)
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

    again = earshot(*install, code=code)
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

    changed = earshot(*install, "--microphone", "sounddevice:USB", "--dry-run", code=code)
    would = [step["detail"] for step in changed.report["steps"] if step["status"] == "would"]
    assert "/etc/earshot/kitchen.toml differs" in would

    removed = earshot("uninstall", "root@127.0.0.1", *machine.options, "--json", code=code)
    assert removed.statuses == {"done"}
    left = {line.split()[0] for line in machine.snapshot()}
    assert not [path for path in left if path.startswith(("/opt/earshot", "/etc/earshot", "/usr/local/bin/earshot"))]
    assert "/var/lib/earshot/kitchen/slots/pointer.json" in left
    purged = earshot(
        "uninstall", "root@127.0.0.1", *machine.options, "--json", "--purge", "--name", "kitchen", code=code
    )
    assert purged.statuses == {"done"}
    nothing = earshot("uninstall", "root@127.0.0.1", *machine.options, "--json", "--purge", code=code)
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
