"""Refuse files that must never be committed: private keys, large files, paths of somebody's home.

``python .ci/refuse_files.py FILE...`` checks the files named, without names all files of the checkout.
Each finding is one line; the exit status is 1 if there is one.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

LIMIT_BYTES = 2 * 1024 * 1024
_PRIVATE_KEY = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----|PuTTY-User-Key-File-\d")
_KEY_SUFFIXES = {".pem", ".key", ".p12", ".pfx", ".jks"}
# A path into a home or a private work folder works on one machine only; a line may say that it means another machine's.
_HOME = re.compile(rb"(?<![\w.-])/(?:home/[a-z_][\w-]*|root|Users/\w+|work/(?:main|shared))(?=/[\w.])")


def findings(path: Path) -> Iterator[str]:
    """Why ``path`` must not be committed, one sentence each; nothing if it may."""
    size = path.stat().st_size
    if size > LIMIT_BYTES:
        yield f"{path}: {size} bytes, allowed {LIMIT_BYTES}: fetch it or make it instead"
    if path.suffix in _KEY_SUFFIXES:
        yield f"{path}: looks like a private key by its name: keep keys outside the repository"
    content = path.read_bytes()
    if _PRIVATE_KEY.search(content):
        yield f"{path}: holds a private key: keep keys outside the repository"
    if b"\0" not in content:
        for number, line in enumerate(content.splitlines(), start=1):
            if (found := _HOME.search(line)) and b"another machine" not in line:
                yield f"{path}:{number}: '{found[0].decode()}/' exists on one machine only: take a relative path"


def tracked(root: Path) -> list[Path]:
    """The files that git tracks in ``root`` and that exist.

    Raises:
        OSError: there is no git.
        subprocess.CalledProcessError: ``root`` is no checkout.
    """
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True)  # noqa: S607
    paths = [root / name.decode() for name in listed.stdout.split(b"\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def main(arguments: list[str]) -> int:
    """Print the findings of the files named; returns the exit status."""
    paths = [Path(name) for name in arguments] or tracked(Path.cwd())
    lines = [line for path in paths for line in findings(path)]
    for line in lines:
        print(line)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
