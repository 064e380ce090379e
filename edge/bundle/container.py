"""The zip of a bundle, in exactly one form: the same members always give the same bytes, and no others are read.

Ordinary zip tools can open it. Reading is strict, because two readers of one lax zip can see two different files: the
members stand in one order, back to back from offset 0, stored, without extra fields, comments or
descriptors, and :func:`chunks` says what every byte around them must be.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader

from edge.bundle.manifest import CARD, GOLDEN, MANIFEST, MEMBER_LIMITS_BYTES, MODEL, SIGNATURE
from edge.errors import BundleError

# What is needed to judge the rest comes first.
ORDER = (MANIFEST, SIGNATURE, MODEL, GOLDEN, CARD)

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_LOCAL_MAGIC, _CENTRAL_MAGIC, _END_MAGIC = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_VERSION = 20
_MADE_BY_UNIX = 3 << 8 | _VERSION
_TIME, _DATE = 0, (1 << 5) | 1  # 1980-01-01: the zip carries no date, the manifest does
_MODE = 0o100644 << 16
_LONGEST_NAME = 64

OVERHEAD_BYTES = sum(_LOCAL.size + _CENTRAL.size + 2 * len(name) for name in ORDER) + _END.size
MAX_BYTES = sum(MEMBER_LIMITS_BYTES.values()) + OVERHEAD_BYTES


@dataclass(frozen=True)
class Entry:
    """Where a member's bytes lie in the file."""

    name: str
    offset: int
    size_bytes: int


def chunks(members: Mapping[str, bytes]) -> Iterator[bytes]:
    """The bytes of the zip that holds ``members``, piece by piece; there is no other valid form."""
    offset, directory = 0, []
    for name in ORDER:
        data, encoded = members[name], name.encode("ascii")
        common = (_TIME, _DATE, zlib.crc32(data), len(data), len(data), len(encoded), 0)
        head = _LOCAL.pack(_LOCAL_MAGIC, _VERSION, 0, 0, *common) + encoded
        directory.append(
            _CENTRAL.pack(_CENTRAL_MAGIC, _MADE_BY_UNIX, _VERSION, 0, 0, *common, 0, 0, 0, _MODE, offset) + encoded
        )
        yield head
        yield data
        offset += len(head) + len(data)
    central = b"".join(directory)
    yield central
    yield _END.pack(_END_MAGIC, 0, 0, len(ORDER), len(ORDER), len(central), offset, 0)


def scan(file: BufferedReader, size_bytes: int) -> dict[str, Entry]:
    """Walk the headers of a file of ``size_bytes`` without reading any member.

    Returns:
        the entries by name, exactly those of :data:`ORDER`, each within its limit.

    Raises:
        BundleError: not a zip, or one that holds other members, twice, compressed, out of order or too large.
    """
    entries: dict[str, Entry] = {}
    offset = 0
    while True:
        file.seek(offset)
        head = file.read(_LOCAL.size)
        if head[:4] != _LOCAL_MAGIC:
            break
        entry = _entry(file, head, offset)
        if entry.name in entries:
            raise BundleError(f"member {entry.name!r} is there twice")
        if entry.name not in MEMBER_LIMITS_BYTES:
            raise BundleError(f"unexpected member {entry.name!r}: a bundle holds exactly {', '.join(ORDER)}")
        limit = MEMBER_LIMITS_BYTES[entry.name]
        if entry.size_bytes > limit:
            raise BundleError(f"{entry.name} has {entry.size_bytes} bytes, more than the limit of {limit}")
        offset = entry.offset + entry.size_bytes
        if offset > size_bytes:
            raise BundleError(f"truncated: the file ends inside {entry.name}; copy it again")
        entries[entry.name] = entry
    _check_complete(entries, size_bytes, offset)
    return entries


def _entry(file: BufferedReader, head: bytes, offset: int) -> Entry:
    if len(head) < _LOCAL.size:
        raise BundleError("truncated: the file ends inside a zip header; copy it again")
    _, _, flags, method, _, _, _, packed, size, name_bytes, extra_bytes = _LOCAL.unpack(head)
    if name_bytes > _LONGEST_NAME:
        raise BundleError(f"a member's name has {name_bytes} bytes: not a bundle")
    encoded = file.read(name_bytes)
    if len(encoded) < name_bytes:
        raise BundleError("truncated: the file ends inside a zip header; copy it again")
    name = encoded.decode("ascii", "replace")
    if method or packed != size:
        raise BundleError(f"member {name!r} is compressed: a bundle stores its members as they are")
    if flags or extra_bytes:
        raise BundleError(f"member {name!r} has zip flags or extra fields: pack the bundle with earshot export")
    return Entry(name, offset + _LOCAL.size + name_bytes, size)


def _check_complete(entries: Mapping[str, Entry], size_bytes: int, end: int) -> None:
    if not entries:
        raise BundleError("not a bundle (no zip that begins with a member): make one with earshot export")
    missing = [name for name in ORDER if name not in entries]
    if size_bytes <= end and missing:
        raise BundleError(f"truncated: the file ends before {missing[0]}; copy it again")
    if MANIFEST not in missing and SIGNATURE in missing:
        raise BundleError("unsigned: it has no manifest.sig; sign it with earshot export --key KEY")
    if missing:
        raise BundleError(f"not a bundle: {', '.join(missing)} missing")
    if tuple(entries) != ORDER:
        raise BundleError(f"members are out of order: a bundle holds {', '.join(ORDER)}, in this order")
    rest = size_bytes - end
    expected = OVERHEAD_BYTES - sum(_LOCAL.size + len(name) for name in ORDER)
    if rest < expected:
        raise BundleError("truncated: the file ends inside the zip directory; copy it again")
    if rest > expected:
        raise BundleError(f"altered: {rest - expected} bytes too many around the zip directory")
