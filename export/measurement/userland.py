"""An aarch64 userland without an aarch64 machine and without root: Debian's Python, the device's wheels, an emulator.

``mmdebstrap`` unpacks Debian packages without running any of them, ``pip`` fetches the wheels that a device would,
in the versions that are installed here, and ``qemu-aarch64-static`` runs a single program, so that neither a root file
system nor binfmt_misc is needed. The folder is kept in the cache and made once: under another name first, which is
changed when everything is there and has been seen to work.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.errors import UnavailableError
from firmware_models.data.cache import cache_folder
from firmware_models.progress import Progress, silent

SUITE = "bookworm"
PYTHON = "3.11"
DEFAULT_MIRROR = "http://deb.debian.org/debian"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
INSTALL_LINE = "apt-get install qemu-user-static mmdebstrap debian-archive-keyring"
# What it takes, measured: package lists 9 MB, Debian packages 16 MB, wheels 45 MB; 204 MB in the end.
DOWNLOAD_MB = 70
DISK_MB = 205
# What each step puts on the disk, some of it for a while only: by it progress is told.
_DEBIAN_MB, _WHEELS_MB, _START_MB = 207, 180, 7

_FORMAT = 2
_PACKAGES = ("python3.11-minimal", "libpython3.11-stdlib", "libstdc++6")
_DISTRIBUTION = "earshot"
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
_CPU = "cortex-a76"  # Raspberry Pi 5
# onnxruntime reads this file to choose its kernels, and ends with a segmentation fault on an x86 machine's.
_CPUINFO = """processor\t: {number}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

"""
_CORES = 4
# The emulator looks for every absolute path in the userland first; these must be the machine's own, or are not needed.
_HOSTS_OWN = ("dev", "sys", "tmp", "var", "run", "usr/share", "etc/python3.11", "usr/lib/python3.11/sitecustomize.py")
_COMPLETE = "earshot.json"


@dataclass(frozen=True)
class Userland:
    """A complete userland: ``root`` holds Debian's files, ``site`` the Python packages, ``emulator`` runs them."""

    folder: Path
    emulator: Path

    @property
    def root(self) -> Path:
        """What programs inside see as ``/``, where it exists; everything else is the machine's own."""
        return self.folder / "root"

    @property
    def site(self) -> Path:
        """The packages of a device, compiled for aarch64."""
        return self.folder / "site"

    def command(self, arguments: Sequence[str], *, python_path: Sequence[Path] = ()) -> list[str]:
        """The command line that runs Python inside with ``arguments``."""
        path = os.pathsep.join(map(str, (self.site, *python_path)))
        program = self.root / f"usr/bin/python{PYTHON}"
        emulator = [str(self.emulator), "-cpu", _CPU, "-L", str(self.root), "-E", f"PYTHONPATH={path}"]
        return [*emulator, str(program), "-P", *arguments]

    def environment(self) -> dict[str, str]:
        """The environment to run :meth:`command` in: nothing of the machine's own Python, one thread."""
        return {
            "PATH": "/usr/bin:/bin",
            "LC_ALL": "C.UTF-8",
            "HOME": str(self.folder),
            "OMP_NUM_THREADS": "1",
            "ORT_DISABLE_TELEMETRY": "1",
        }


@dataclass(frozen=True)
class Outline:
    """What :func:`prepare` would do: nothing when ``ready``; it cannot when something is ``missing``."""

    folder: Path
    ready: bool
    emulator: Path | None
    missing: str | None
    mirror: str
    wheels: tuple[str, ...]

    @property
    def download_mb(self) -> int:
        """About what would be downloaded."""
        return 0 if self.ready else DOWNLOAD_MB


def outline() -> Outline:
    """Look at what is there, download nothing."""
    wheels, mirror = _requirements(), debian_mirror()
    folder = cache_folder() / f"aarch64-{_key(wheels)}"
    ready = (folder / _COMPLETE).is_file()
    emulator = _emulator()
    missing = _missing(emulator, ready=ready)
    return Outline(folder=folder, ready=ready, emulator=emulator, missing=missing, mirror=mirror, wheels=wheels)


def prepare(progress: Progress = silent) -> Userland:
    """The userland, made if it is not there yet (a minute, most of it downloads).

    Raises:
        UnavailableError: a program is missing, a download failed, or what was made does not run; one line.
    """
    plan = outline()
    if plan.emulator is None or plan.missing:
        raise UnavailableError(plan.missing or INSTALL_LINE)
    if not plan.ready:
        try:
            _make(plan, plan.emulator, progress)
        except OSError as error:
            raise UnavailableError(
                f"{plan.folder}: the aarch64 userland cannot be kept here ({error.strerror}); set EARSHOT_CACHE to a "
                f"folder with {DISK_MB} MB of space"
            ) from None
    return Userland(plan.folder, plan.emulator)


def debian_mirror() -> str:
    """The mirror this machine's apt uses for Debian, or Debian's own where it uses none (Ubuntu, other systems)."""
    folder = Path("/etc/apt")
    files = [folder / "sources.list", *sorted(folder.glob("sources.list.d/*.list"))]
    files += sorted(folder.glob("sources.list.d/*.sources"))
    for file in files:
        try:
            lines = file.read_text(errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            found = re.match(r"\s*(?:deb\s+(?:\[[^]]*\]\s+)?|URIs:\s*)(https?://\S+?/debian)/?(?:\s|$)", line)
            if found:
                return found[1]
    return DEFAULT_MIRROR


def _emulator() -> Path | None:
    found = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    return Path(found) if found else None


def _missing(emulator: Path | None, *, ready: bool) -> str | None:
    lacking = [] if emulator else ["qemu-aarch64-static"]
    if not ready:
        lacking += [] if shutil.which("mmdebstrap") else ["mmdebstrap"]
        lacking += [] if KEYRING.is_file() else ["the keys of the Debian archive"]
    if not lacking:
        return None
    return f"aarch64 cannot be emulated, not installed: {', '.join(lacking)}; install with: {INSTALL_LINE}"


def _requirements() -> tuple[str, ...]:
    """What a device installs, as ``name==version``: the version that runs here if it is made for that Python."""
    from packaging.requirements import Requirement  # noqa: PLC0415 - onnxruntime brings it; a dry look needs no more
    from packaging.specifiers import SpecifierSet  # noqa: PLC0415 - as above

    stated = [Requirement(line) for line in importlib.metadata.requires(_DISTRIBUTION) or ()]
    wanted = []
    for name in sorted(each.name for each in stated if each.marker is None):
        about = importlib.metadata.metadata(name).json
        fits = SpecifierSet(str(about.get("requires_python", ""))).contains(f"{PYTHON}.2")
        wanted.append(f"{name}=={about['version']}" if fits else name)
    return tuple(wanted)


def _key(wheels: tuple[str, ...]) -> str:
    settings = [_FORMAT, SUITE, PYTHON, _PACKAGES, wheels, _PLATFORMS, _CPUINFO, _CORES, _HOSTS_OWN]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]


def _make(plan: Outline, emulator: Path, progress: Progress) -> None:
    plan.folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-aarch64-", dir=plan.folder.parent))
    try:
        made = Userland(unfinished, emulator)
        _unpack_debian(made, plan.mirror, progress)
        _install_wheels(made, plan.wheels, progress)
        _try_out(made, progress)
        (unfinished / _COMPLETE).write_text(json.dumps({"suite": SUITE, "wheels": plan.wheels}) + "\n")
        try:
            unfinished.rename(plan.folder)
        except OSError:
            # Another process was faster; what it made is the same.
            if not (plan.folder / _COMPLETE).is_file():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _unpack_debian(made: Userland, mirror: str, progress: Progress) -> None:
    # Chrootless needs no rights; the check warns of packages' scripts, of which "extract" runs none.
    command = ["mmdebstrap", "--quiet", "--mode=chrootless", "--variant=extract", "--format=directory"]
    command += ["--skip=check/chrootless"] if os.geteuid() == 0 else []
    command += ["--architectures=arm64", f"--include={','.join(_PACKAGES)}", SUITE, str(made.root)]
    command += [f"deb [signed-by={KEYRING}] {mirror} {SUITE} main"]
    _run(command, made.folder, f"Debian's Python {PYTHON} for aarch64 from {mirror}", _DEBIAN_MB, progress)
    for name in _HOSTS_OWN:
        path = made.root / name
        if path.is_symlink() or path.is_file():
            path.unlink()
        else:
            shutil.rmtree(path, ignore_errors=True)
    cpuinfo = made.root / "proc/cpuinfo"
    cpuinfo.parent.mkdir(exist_ok=True)
    cpuinfo.write_text("".join(_CPUINFO.format(number=number) for number in range(_CORES)))


def _install_wheels(made: Userland, wheels: Sequence[str], progress: Progress) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--target", str(made.site), "--only-binary=:all:", "--no-compile", "--implementation", "cp"]
    command += ["--python-version", PYTHON, *(part for name in _PLATFORMS for part in ("--platform", name)), *wheels]
    _run(command, made.folder, f"wheels for aarch64 ({', '.join(wheels)})", _WHEELS_MB, progress)


def _try_out(made: Userland, progress: Progress) -> None:
    """Import what a device imports; on the way, Python keeps its compiled form, which saves seconds in every run."""
    code = (
        "import nacl.signing, numpy, onnxruntime, paho.mqtt.client, platform, pydantic, soundfile, soxr, sqlite3, ssl; "
    )
    code += "assert platform.machine() == 'aarch64'"
    command = made.command(["-c", code])
    _run(command, made.folder, "first start", _START_MB, progress, environment=made.environment())


def _run(
    command: Sequence[str],
    folder: Path,
    what: str,
    expected_mb: int,
    progress: Progress,
    *,
    environment: dict[str, str] | None = None,
) -> None:
    """Run one step; progress is told in MB that have come into ``folder``, out of those that are expected."""
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    own = {"PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0", "TMPDIR": str(scratch)}
    before_mb, looked_s = _size_mb(folder), 0.0
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment or os.environ | own)
        try:
            while process.poll() is None:
                if time.monotonic() - looked_s > 1:
                    looked_s = time.monotonic()
                    progress(min(max(_size_mb(folder) - before_mb, 0), expected_mb - 1), expected_mb, what)
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        output.seek(0)
        said = output.read().decode(errors="replace")
    shutil.rmtree(scratch, ignore_errors=True)
    if process.returncode != 0:
        raise UnavailableError(f"no aarch64 userland: {what}: {_last_words(said, process.returncode)}")
    progress(expected_mb, expected_mb, what)


def _last_words(said: str, code: int) -> str:
    """The line that tells most: the first that names an error, else the last."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    told = [line for line in lines if re.match(r"(?i)(e:|err:|error|.*unable to)", line)]
    return (told or lines[-1:] or [f"ended with code {code}"])[0][:300]


def _size_mb(folder: Path) -> int:
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(Path(where) / name).st_size
            except OSError:  # it went away while we looked
                continue
    return total // 1_000_000
