"""What lies in the state folder of a device: two slots, the pointer, the keys."""

from __future__ import annotations

import fcntl
import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge import files
from edge.bundle.container import MAX_BYTES
from edge.bundle.reading import Bundle, read_bundle
from edge.errors import BundleError, UsageError
from edge.messages import Slot
from edge.update import pointer as pointers
from edge.update.pointer import Content, Pointer
from edge.update.trust import TrustStore

log = logging.getLogger(__name__)

SLOTS: tuple[Slot, Slot] = ("a", "b")
FILE = "bundle.earshot"


class Store:
    """Reads and writes slots and pointer in ``folder``; decides nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trust = TrustStore(folder / "trust")
        self.pointer_path = folder / "slots/pointer.json"

    def path(self, slot: Slot) -> Path:
        """Where the bundle of a slot lies."""
        return self.folder / "slots" / slot / FILE

    def pointer(self) -> Pointer | None:
        """The pointer, None where it is missing or unreadable."""
        return pointers.read(self.pointer_path)

    def needed_pointer(self) -> Pointer:
        """The pointer.

        Raises:
            UsageError: it is missing or unreadable.
        """
        pointer = self.pointer()
        if pointer is None:
            raise UsageError(f"{self.pointer_path} is missing or unreadable: restart the device, which makes it again")
        return pointer

    def write(self, pointer: Pointer) -> None:
        """Replace the pointer durably."""
        pointers.write(self.pointer_path, pointer)

    def try_to_write(self, pointer: Pointer) -> None:
        """Replace the pointer; a full or read-only disk must not keep a device with a good bundle from starting."""
        try:
            self.write(pointer)
        except OSError as error:
            log.error("%s: cannot write it: %s", self.pointer_path, error)  # noqa: TRY400 - one line

    def read(self, slot: Slot) -> Bundle:
        """Read and verify the bundle of a slot.

        Raises:
            BundleError: missing, altered, or signed by no key that is trusted for it.
        """
        return self.verify(self.path(slot))

    def verify(self, path: Path) -> Bundle:
        """Read a bundle with the trusted keys, and with a retired one if that vouched for these very bytes.

        Raises:
            BundleError: missing, altered, or signed by no key that is trusted for it.
        """
        sha256 = _sha256(path)
        retired = self.trust.retired_for(sha256)
        trusted = self.trust.keys("bundle")
        bundle = read_bundle(path, trusted=[*trusted, *retired])
        if retired and bundle.sha256 != sha256:
            raise BundleError(f"{path}: changed while it was read")
        return bundle

    def clear_away(self) -> None:
        """Take away what interrupted writes have left; only for a moment when nobody writes."""
        slots, trust = self.pointer_path.parent, self.folder / "trust"
        for folder, pattern in ((slots, ".*.*"), (slots, "*/.*.*"), (trust, "*/.*.*")):
            try:
                for unfinished in folder.glob(pattern):
                    unfinished.unlink(missing_ok=True)
            except OSError as error:
                log.warning("%s: cannot clear away what an interrupted write left: %s", folder, error)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone with the pointer: agent and updating process both change it."""
        try:
            files.make_folder(self.pointer_path.parent)
            lock = (self.pointer_path.parent / "lock").open("a", encoding="ascii")
        except OSError as error:
            log.warning("%s: no lock: %s", self.pointer_path.parent, error)
            yield
            return
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def other(slot: Slot) -> Slot:
    """The other slot."""
    return SLOTS[1] if slot == SLOTS[0] else SLOTS[0]


def content(bundle: Bundle) -> Content:
    """What the pointer says of a bundle."""
    manifest = bundle.manifest
    return Content(sha256=bundle.sha256, name=manifest.name, version=manifest.version, key=bundle.key)


def _sha256(path: Path) -> str:
    """Of a regular file that is not too large; anything else is for the reader to refuse."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            return ""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
