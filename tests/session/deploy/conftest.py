"""A copy of this system that is thrown away, with an sshd in front, and the command that installs into it."""

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
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

import edge
from firmware_models import zoo
from rig.cli.main import main
from rig.deploy.target import Target

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

    def refused(self, code: int, *words: str) -> None:
        """Check that it ended with ``code`` and one line that has all ``words``."""
        assert self.code == code, (self.output, self.errors)
        lines = [line for line in self.errors.splitlines() if line.startswith("earshot:")]
        assert len(lines) == 1, self.errors
        for word in words:
            assert word in lines[0], lines[0]

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
        self.put("/root/.ssh/environment", f"PATH={path}\n".encode())  # of another machine

    @property
    def options(self) -> list[str]:
        config, identity = self._folder / "ssh_config", self._folder / "login"
        return ["--ssh-config", str(config), "--identity", str(identity), "--port", str(self.port)]

    def target(self, user: str) -> Target:
        """For the library's own calls."""
        config, identity = self._folder / "ssh_config", self._folder / "login"
        return Target.parse(f"{user}@127.0.0.1", port=self.port, identity=identity, config=config)

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
            "cd /srv/changes && find * -path srv -prune -o -path tmp -prune -o -path root/.ssh -prune -o -type d"
            " -printf '/%p %M %U:%G\\n' -o -printf '/%p %M %U:%G %s %T@ %l\\n';"
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
    """Without systemd as process 1."""
    return make_machine(SSHD)


@pytest.fixture(scope="module")
def booted(make_machine) -> Machine:
    """With systemd as process 1."""
    return make_machine(BOOT)


@pytest.fixture(scope="module")
def code(tmp_path_factory) -> Path:
    """A copy of the device's code, from which its wheel is packed: nobody edits it meanwhile."""
    folder = tmp_path_factory.mktemp("code") / "edge"
    return shutil.copytree(Path(edge.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))


@pytest.fixture(scope="module")
def earshot(code) -> Callable[..., Result]:
    """``earshot device ...``, in this process."""

    def run(*arguments: str | Path) -> Result:
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

    return run


@pytest.fixture(scope="module")
def wanted(tmp_path_factory, keys) -> list[str | Path]:
    """What is installed, but for the broker and the machine."""
    folder = tmp_path_factory.mktemp("wanted")
    (folder / "password").write_text("correct horse\n")
    (folder / "more.toml").write_text("threads = 2\n[listening]\nhop_ms = 80\n")
    options = ["--name", "kitchen", "--bundle", zoo.bundle("lms-int8"), "--trust", zoo.PUBLIC_KEY]
    options += ["--operator", keys.public, "--password-file", folder / "password", "--settings", folder / "more.toml"]
    return [*options, "--microphone", "file:/srv/it's $(touch pwned).wav?loop", "--json", "--offline"]


@pytest.fixture(scope="module")
def clip() -> bytes:
    """A WAV file of three seconds of noise."""
    file = io.BytesIO()
    sound = np.random.default_rng(0).normal(0, 0.1, 48_000).clip(-1, 1)
    soundfile.write(file, sound, 16_000, format="WAV", subtype="PCM_16")
    return file.getvalue()
