"""Get a public data set: download, verify, unpack, check."""

from __future__ import annotations

import re
import shutil
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import pooch

from edge.errors import DataError, UsageError
from firmware_models.data.cache import cache_folder
from firmware_models.data.download import ResumingDownloader
from firmware_models.data.layout import scan
from firmware_models.progress import Progress, silent


@dataclass(frozen=True, slots=True)
class Archive:
    """A published archive: where it is, what it must hash to, and how large it and its content may be."""

    url: str
    sha256: str
    size_bytes: int
    unpacked_bytes: int
    licence: str


SPEECH_COMMANDS = Archive(
    # The server has no certificate for this name; the checksum is what protects the content.
    url="http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
    sha256="af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
    size_bytes=2_428_923_189,
    unpacked_bytes=4_000_000_000,
    licence="CC BY 4.0",
)
ARCHIVES = {"speech-commands": SPEECH_COMMANDS}
_MOST_FILES = 500_000


def fetch(
    archive: Archive,
    out: Path,
    *,
    downloads: Path | None = None,
    keep_archive: bool = False,
    progress: Progress = silent,
) -> int:
    """Download ``archive`` unless it has arrived before, verify it, and unpack it into the new folder ``out``.

    ``downloads`` is where the archive lies meanwhile (default: below the cache folder), so that a broken download
    goes on when the same is asked again. ``out`` appears only when everything is in it.

    Returns:
        the number of clips in ``out``.

    Raises:
        UsageError: ``out`` exists and is not empty, or the URL is not http or https.
        DataError: wrong checksum, too large, not an archive, unsafe or unknown content, or no space.
        UnavailableError: the server cannot be reached or breaks off again and again.
    """
    check_target(archive, out)
    folder = downloads or cache_folder() / "downloads"
    name = f"{archive.sha256[:16]}-{PurePosixPath(archive.url).name or 'archive'}"
    _check_space(out, archive.size_bytes + archive.unpacked_bytes)
    downloader = ResumingDownloader(folder / f"{name}.part", limit_bytes=2 * archive.size_bytes, progress=progress)
    pooch.get_logger().setLevel("WARNING")
    try:
        path = Path(pooch.retrieve(archive.url, f"sha256:{archive.sha256}", name, folder, downloader=downloader))
    except ValueError:
        raise DataError(f"{archive.url}: the checksum is not {archive.sha256}; what arrived was removed") from None
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error})") from None
    _unpack(path, out, limit_bytes=2 * archive.unpacked_bytes, total_bytes=archive.size_bytes, progress=progress)
    if not keep_archive:
        path.unlink()
    return len(scan(out).entries)


def check_target(archive: Archive, out: Path) -> None:
    """Refuse what cannot work before anything is downloaded.

    Raises:
        UsageError: ``out`` exists and is not empty, or the URL is not http or https.
    """
    try:
        host = urlsplit(archive.url).hostname
    except ValueError:
        host = None
    if not host or re.match(r"https?://\S+$", archive.url) is None:
        raise UsageError(f"--url {archive.url}: use http://HOST/PATH or https://HOST/PATH")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(
            f"{out}: exists and is not empty; name a new folder, or look at it with: earshot data check {out}"
        )


def _check_space(out: Path, needed_bytes: int) -> None:
    place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if free < needed_bytes:
        raise DataError(f"{place}: {free / 1e9:.1f} GB free, {needed_bytes / 1e9:.1f} GB are needed")


def _unpack(archive: Path, out: Path, *, limit_bytes: int, total_bytes: int, progress: Progress) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        unfinished = Path(folder) / "content"
        unfinished.mkdir()
        try:
            with archive.open("rb") as raw, tarfile.open(fileobj=raw, mode="r:*") as tar:
                unpacked = 0
                for count, member in enumerate(tar, 1):
                    unpacked += member.size
                    if count > _MOST_FILES or unpacked > limit_bytes:
                        raise DataError(f"{archive}: unpacks to more than {_MOST_FILES} files or {limit_bytes} bytes")
                    _unpack_member(tar, member, unfinished)
                    progress(min(raw.tell(), total_bytes), total_bytes, "unpacking")
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DataError(f"{archive}: cannot be unpacked ({' '.join(str(error).split())})") from None
        scan(unfinished)
        if out.exists():
            out.rmdir()
        unfinished.rename(out)


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Write one plain file below ``folder``; links, devices and paths that lead out of it are refused.

    tarfile's own filter="data" does the same but is missing in the Python 3.11.2 of Debian 12.
    """
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name:
        raise DataError(f"the archive holds the unsafe path {member.name!r}")
    target = folder.joinpath(*path.parts)
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    source = tar.extractfile(member) if member.isreg() else None
    if source is None:
        raise DataError(f"the archive holds {member.name!r}, which is no plain file")
    target.parent.mkdir(parents=True, exist_ok=True)
    with source, target.open("xb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
