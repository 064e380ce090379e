"""Files to be written: each one is compared with what is there, and only the difference is carried out."""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge import files

Action = Literal["create", "replace", "keep", "remove"]
SECRET = 0o600
PUBLIC = 0o644
SECRET_FOLDER = 0o700
PUBLIC_FOLDER = 0o755


@dataclass(frozen=True)
class Change:
    """What becomes of one file or folder; ``content`` is None for a folder and for what is removed."""

    path: Path
    action: Action
    mode: int
    content: bytes | None = None
    owner: str | None = None

    def as_dict(self) -> dict[str, str]:
        """For machines: never the content, which may be a secret."""
        return {"path": str(self.path), "action": self.action, "mode": f"{self.mode:04o}"}


def file(path: Path, content: bytes, *, mode: int = PUBLIC, owner: str | None = None) -> Change:
    """A file that shall have this content."""
    if not path.exists():
        return Change(path, "create", mode, content, owner)
    status = path.stat()
    same = path.read_bytes() == content and status.st_mode & 0o777 == mode and _owned(status.st_uid, owner)
    return Change(path, "keep" if same else "replace", mode, content, owner)


def folder(path: Path, *, mode: int = SECRET_FOLDER, owner: str | None = None) -> Change:
    """A folder that shall be there."""
    return Change(path, "keep" if path.is_dir() else "create", mode, None, owner)


def removal(path: Path) -> Change:
    """A folder that shall go, with all that is in it."""
    return Change(path, "remove", SECRET_FOLDER)


def carry_out(changes: Sequence[Change]) -> None:
    """Make, write and remove, in this order; a file is replaced at once or not at all.

    Raises:
        OSError: the disk or the rights do not allow it.
    """
    for change in changes:
        if change.action == "remove":
            shutil.rmtree(change.path)
        elif change.content is None:
            files.make_folder(change.path.parent)
            change.path.mkdir(mode=change.mode, exist_ok=True)
            change.path.chmod(change.mode)
            _give(change.path, change.owner)
        elif change.action != "keep":
            _write(change)


def _write(change: Change) -> None:
    unfinished = change.path.with_name(f".{change.path.name}.{os.getpid()}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, change.mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(change.content or b"")
        unfinished.chmod(change.mode)
        _give(unfinished, change.owner)
        files.replace(unfinished, change.path)
    finally:
        unfinished.unlink(missing_ok=True)


def _owned(user_id: int, owner: str | None) -> bool:
    return owner is None or os.geteuid() != 0 or pwd.getpwnam(owner).pw_uid == user_id


def _give(path: Path, owner: str | None) -> None:
    if owner is not None and os.geteuid() == 0:
        shutil.chown(path, owner)
