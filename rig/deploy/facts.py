"""What a machine is, and whether it can be a device: found out before anything is changed."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict

from edge.errors import UnavailableError, UsageError
from rig.deploy.script import Script
from rig.deploy.ssh import Remote

# Measured with numpy 2.4 and onnxruntime 1.31: 172 MB installed; the rest is for what pip unpacks meanwhile.
PROGRAM_MB = 300
UPLOAD_MB = 60
_MACHINES = ("aarch64", "x86_64")
_OLDEST, _NEWEST = (3, 11), (3, 13)
_PYTHON = re.compile(r"python=(\d+)\.(\d+)\.(\d+) (\d+) (\S+) (/\S*) (/\S+)")
# The service must not read these.
_PRIVATE = ("/home/", "/root/", "/run/user/")
_LIBC = re.compile(r"glibc 2\.(\d{1,2})")


class Python(BaseModel):
    """An interpreter of the machine: its version, the bits of a pointer, and where it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: tuple[int, int, int]
    bits: int
    venv: bool
    prefix: str
    path: str

    @property
    def minor(self) -> str:
        """For instance ``3.11``."""
        return f"{self.version[0]}.{self.version[1]}"


class Facts(BaseModel):
    """What :func:`look` saw; ``sudo`` is ``root``, ``free``, ``password`` or ``absent``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: str
    machine: str
    long_bit: str
    libc: str
    os: str
    apt: bool
    sudo: str
    systemd: str
    systemd_runs: bool
    root: bool
    program_free_mb: int
    upload_free_mb: int
    pythons: tuple[Python, ...]

    @property
    def glibc_minor(self) -> int:
        """36 for glibc 2.36."""
        found = _LIBC.fullmatch(self.libc)
        return int(found[1]) if found else 0

    def python(self) -> Python:
        """The interpreter to use.

        Raises:
            UnavailableError: none fits.
        """
        for python in self.pythons:
            if python.venv and python.bits == 64 and _OLDEST <= python.version[:2] <= _NEWEST and _shared(python):
                return python
        seen = ", ".join(f"{python.path} ({'.'.join(map(str, python.version))})" for python in self.pythons) or "none"
        narrow = [python for python in self.pythons if python.bits != 64]
        if narrow:
            raise UnavailableError(
                f"{narrow[0].path} is a {narrow[0].bits}-bit program: onnxruntime has no 32-bit wheels, install a "
                "64-bit system (for a Raspberry Pi: Raspberry Pi OS 64-bit)"
            )
        raise UnavailableError(
            f"no usable Python, found: {seen}: use Python 3.11, 3.12 or 3.13 with its venv module outside of home "
            "folders, as Debian 12 and 13 or Ubuntu 24.04 have it (apt-get install python3 python3-venv)"
        )


def _shared(python: Python) -> bool:
    return not any(f"{path}/".startswith(_PRIVATE) for path in (python.path, python.prefix))


def look(remote: Remote, root: str = "") -> Facts:
    """Look at the machine; ``root`` is the folder of a system that is not the running one.

    Raises:
        UnavailableError: it does not answer as a machine with a POSIX shell does.
    """
    result = remote.run(Script("probe.sh", "act", (root,)), as_root=False)
    if result.code:
        raise UnavailableError(f"{remote.target}: the machine cannot be looked at: {result.last_words}")
    return parse(result.output)


def parse(text: str) -> Facts:
    """Read what ``probe.sh`` printed; what is malformed counts as absent."""
    found: dict[str, str] = {}
    pythons: list[Python] = []
    for line in text[: 1 << 16].splitlines():
        if python := _PYTHON.fullmatch(line):
            major, minor, patch, bits = (int(part) for part in python.groups()[:4])
            pythons.append(
                Python(
                    version=(major, minor, patch), bits=bits, venv=python[5] == "venv", prefix=python[6], path=python[7]
                )
            )
            continue
        key, _, value = line.partition("=")
        found.setdefault(key, "".join(character for character in value[:200] if character.isprintable()).strip())

    def megabytes(key: str) -> int:
        text = found.get(key, "")
        return int(text) // 1024 if text.isascii() and text.isdecimal() else 0

    return Facts(
        system=found.get("system", ""),
        machine=found.get("machine", ""),
        long_bit=found.get("long_bit", ""),
        libc=found.get("libc", ""),
        os=found.get("os", ""),
        apt=bool(found.get("apt")),
        sudo=found.get("sudo", ""),
        systemd=found.get("systemd", ""),
        systemd_runs=found.get("systemd_runs") == "yes",
        root=found.get("root") == "yes",
        program_free_mb=megabytes("program_free_kb"),
        upload_free_mb=megabytes("upload_free_kb"),
        pythons=tuple(pythons),
    )


def require_device(facts: Facts, *, start: bool, root: str) -> Python:
    """The interpreter to install with, if this machine can be a device.

    Raises:
        UnavailableError: it cannot be one; the message says what to change.
        UsageError: ``root`` is no system.
    """
    if facts.system != "Linux":
        raise UnavailableError(f"{facts.system or 'an unknown system'}: a device runs Linux")
    if facts.machine not in _MACHINES or facts.long_bit != "64":
        seen = f"{facts.machine or 'an unknown processor'}, {facts.long_bit or '?'} bit"
        raise UnavailableError(
            f"{seen}: onnxruntime has wheels for 64-bit {' and '.join(_MACHINES)} only: install a 64-bit system (for a "
            "Raspberry Pi: Raspberry Pi OS 64-bit)"
        )
    if facts.glibc_minor < 28:
        raise UnavailableError(f"{facts.libc or 'no glibc'}: the wheels need glibc 2.28 or newer: use Debian or Ubuntu")
    python = facts.python()
    if root and not facts.root:
        raise UsageError(f"--root {root}: there is no system (no etc/passwd in it): name the folder of a mounted one")
    if not facts.systemd:
        raise UnavailableError("systemd is missing, which runs the device: use Debian, Ubuntu or Raspberry Pi OS")
    if start and not facts.systemd_runs:
        raise UnavailableError("systemd does not run here (a container or chroot?): use --no-start to install only")
    return python


def lack_of_space(facts: Facts, root: str) -> str | None:
    """Where there is too little space for installing another version, None if there is enough."""
    for place, free_mb, needed_mb in (
        (f"{root}/opt/earshot", facts.program_free_mb, PROGRAM_MB),
        ("/var/tmp", facts.upload_free_mb, UPLOAD_MB),  # noqa: S108 - named in a message
    ):
        if free_mb < needed_mb:
            return f"{place} has {free_mb} MB free, installing needs {needed_mb} MB: make room there"
    return None
