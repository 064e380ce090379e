"""The program as wheels for one machine: ours, packed from the code that runs here, and the pinned ones it needs.

pip chooses the wheels here, for the machine's Python and processor, in the versions that are installed here (those of
``constraints.txt``), and their hashes go along: what the machine installs is this and nothing else, whether it
downloads the wheels itself or is sent them.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.metadata
import io
import json
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import edge
from edge import files
from edge.errors import UnavailableError
from firmware_models.data.cache import cache_folder
from firmware_models.progress import Progress, silent

DISTRIBUTION = "earshot"
_COMMAND = "[console_scripts]\nearshot-device = edge.cli:main\n"
# Zip cannot store an earlier one; the same code gives the same bytes.
_EPOCH = (1980, 1, 1, 0, 0, 0)
_OLDEST_GLIBC = 17
_PIP_TIMEOUT_S = 1800


class Wheel(BaseModel):
    """One wheel of the program, by hash."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.!+_-]{0,99}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    @property
    def line(self) -> str:
        """For a file of requirements."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"


class _Lock(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    wheels: tuple[Wheel, ...]


class Platform(BaseModel):
    """What wheels must fit: Python ``3.11``, ``aarch64`` or ``x86_64``, glibc 2.``glibc_minor``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    python: str
    machine: str
    glibc_minor: int

    def pip_options(self) -> list[str]:
        """For pip to choose wheels for that platform instead of this one."""
        digits = self.python.replace(".", "")
        options = ["--only-binary", ":all:", "--implementation", "cp", "--python-version", self.python]
        for abi in (f"cp{digits}", "abi3", "none"):
            options += ["--abi", abi]
        for minor in range(self.glibc_minor, _OLDEST_GLIBC - 1, -1):
            options += ["--platform", f"manylinux_2_{minor}_{self.machine}"]
        return [*options, "--platform", f"manylinux2014_{self.machine}"]


class Program(BaseModel):
    """What is installed: ``wheels`` are all of them, ``files`` those that are sent, by name: ours, pip's own, and more.

    ``folder_name`` is made of version, Python and the hash of all that, so that another program has another one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    wheels: tuple[Wheel, ...]
    files: dict[str, Path | bytes]
    folder_name: str

    @property
    def requirements(self) -> str:
        """What pip is told on the machine."""
        return "".join(f"{wheel.line}\n" for wheel in self.wheels)


def gather(platform: Platform, *, offline: bool, progress: Progress = silent) -> Program:
    """Choose the wheels for ``platform`` and download those that are sent: pip's own, and all with ``offline``.

    What was chosen and downloaded is kept in the cache, so that doing it again needs no network.

    Raises:
        UnavailableError: pip is missing here, or there is no such wheel, or the index cannot be reached.
    """
    wanted = _requirements()
    key = hashlib.sha256(json.dumps([*wanted, *platform.pip_options()]).encode()).hexdigest()[:16]
    folder = cache_folder() / "device-wheels" / key
    folder.mkdir(parents=True, exist_ok=True)
    name, content = pack()
    locked = _locked(folder / "lock.json", wanted, platform, progress)
    pip = next(wheel for wheel in locked if canonicalize_name(wheel.name) == "pip")
    rest = [wheel for wheel in locked if wheel is not pip]
    pip_file = _downloaded(folder, [pip], platform, silent)[0]
    downloaded = _downloaded(folder, rest, platform, progress) if offline else []
    version = importlib.metadata.version(DISTRIBUTION)
    own = Wheel(name=DISTRIBUTION, version=version, sha256=hashlib.sha256(content).hexdigest())
    wheels = (own, *rest)
    digest = hashlib.sha256("".join(sorted(wheel.line for wheel in wheels)).encode()).hexdigest()[:8]
    return Program(
        wheels=wheels,
        files={name: content, **{path.name: path for path in (pip_file, *downloaded)}},
        folder_name=f"venv-{version}-py{platform.python}-{digest}",
    )


def pack() -> tuple[str, bytes]:
    """Our wheel for devices, as name and content: the package ``edge`` as it runs here, and ``earshot-device``.

    The same code gives the same bytes.
    """
    about = importlib.metadata.distribution(DISTRIBUTION)
    version, package = about.version, Path(edge.__file__).resolve().parent
    information = f"{DISTRIBUTION}-{version}.dist-info"
    members = {
        path.relative_to(package.parent).as_posix(): path.read_bytes()
        for path in sorted(package.rglob("*"))
        if path.is_file() and path.suffix != ".pyc" and "__pycache__" not in path.parts
    }
    head = (about.read_text("METADATA") or "").partition("\n\n")[0]
    lines = [line for line in head.splitlines() if not line.startswith("Provides-Extra") and "extra ==" not in line]
    members[f"{information}/METADATA"] = ("\n".join(lines) + "\n").encode()
    members[f"{information}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: earshot\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    members[f"{information}/entry_points.txt"] = _COMMAND.encode()
    record = io.StringIO()
    writer = csv.writer(record, lineterminator="\n")
    for name, content in members.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        writer.writerow((name, f"sha256={digest}", len(content)))
    writer.writerow((f"{information}/RECORD", "", ""))
    members[f"{information}/RECORD"] = record.getvalue().encode()
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            member = zipfile.ZipInfo(name, _EPOCH)
            member.compress_type, member.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(member, content)
    return f"{DISTRIBUTION}-{version}-py3-none-any.whl", wheel.getvalue()


def _requirements() -> tuple[str, ...]:
    """Everything the base installation needs, as ``name==version`` of what is installed here, and pip."""
    seen: set[str] = set()
    todo = [DISTRIBUTION]
    while todo:
        for line in importlib.metadata.requires(todo.pop()) or []:
            requirement = Requirement(line)
            name = canonicalize_name(requirement.name)
            if name not in seen and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
                seen.add(name)
                todo.append(name)
    try:
        # A local version ("+cpu") is on no index.
        pinned = [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in sorted({*seen, "pip"})]
    except importlib.metadata.PackageNotFoundError as error:
        raise UnavailableError(f"{error.name} is not installed here: run {sys.executable} -m ensurepip") from None
    return tuple(pinned)


def _locked(path: Path, wanted: Sequence[str], platform: Platform, progress: Progress) -> tuple[Wheel, ...]:
    try:
        return _Lock.model_validate_json(path.read_bytes()).wheels
    except (OSError, ValidationError):
        pass
    with tempfile.TemporaryDirectory(prefix="earshot-") as name:
        report = Path(name) / "report.json"
        options = ["install", "--dry-run", "--ignore-installed", "--no-deps", "--report", str(report), "--target", name]
        _pip([*options, *platform.pip_options(), *wanted], len(wanted), progress)
        try:
            chosen = tuple(
                Wheel(
                    name=each["metadata"]["name"],
                    version=each["metadata"]["version"],
                    sha256=each["download_info"]["archive_info"]["hashes"]["sha256"],
                )
                for each in json.loads(report.read_bytes())["install"]
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UnavailableError(f"pip's report cannot be read ({error!r}): use a newer pip") from None
    chosen = tuple(sorted(chosen, key=lambda wheel: canonicalize_name(wheel.name)))
    files.write(path, _Lock(wheels=chosen).model_dump_json().encode())
    return chosen


def _downloaded(folder: Path, wheels: Sequence[Wheel], platform: Platform, progress: Progress) -> list[Path]:
    """The files of ``wheels`` in ``folder``, downloaded if they are not there."""
    by_hash = {_sha256(path): path for path in folder.glob("*.whl")}
    missing = [wheel for wheel in wheels if wheel.sha256 not in by_hash]
    if missing:
        with tempfile.TemporaryDirectory(prefix="earshot-") as name:
            requirements = Path(name) / "requirements.txt"
            requirements.write_text("".join(f"{wheel.line}\n" for wheel in missing), encoding="utf-8")
            options = ["download", "--no-deps", "--require-hashes", "--dest", name, "--progress-bar", "off"]
            _pip([*options, *platform.pip_options(), "-r", str(requirements)], len(missing), progress)
            for path in Path(name).glob("*.whl"):
                kept = folder / path.name
                files.write(kept, path.read_bytes())
                by_hash[_sha256(kept)] = kept
    return [by_hash[wheel.sha256] for wheel in wheels]


def _pip(arguments: Sequence[str], count: int = 0, progress: Progress = silent) -> None:
    """Run pip; ``progress`` is told which of ``count`` wheels it is at."""
    command = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", *arguments]
    lines: list[str] = []
    at = 0
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as pip:
        timer = threading.Timer(_PIP_TIMEOUT_S, pip.kill)
        timer.start()
        for line in pip.stdout or ():
            lines.append(line.strip())
            if count and line.startswith(("Collecting ", "Processing ")):
                at += 1
                progress(min(at, count), count + 1, line.split()[1].rpartition("/")[2][:60])
        timer.cancel()
    if pip.returncode:
        told = [line for line in lines if line.startswith("ERROR")] or [line for line in lines if line] or ["no reason"]
        reason = told[-1].removeprefix("ERROR: ")
        raise UnavailableError(f"pip cannot get the wheels: {reason[:300]}: is the package index reachable?")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
