"""Which slot runs and what is known of both: ``slots/pointer.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge import files
from edge.errors import UsageError
from edge.messages import Counter, Fingerprint, Name, Sha256, Slot

SCHEMA: Literal[1] = 1
MAX_BYTES = 64 << 10
# Names of bundles that are remembered for their highest version; each came from an operator.
MAX_NAMES = 128
_MAX_DETAIL = 300


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)


class Content(_Frozen):
    """The bundle in a slot. ``key`` is the fingerprint of the key that signed it."""

    sha256: Sha256
    name: Name
    version: Counter
    key: Fingerprint


class Known(_Frozen):
    """The highest version that ever ran under a name, and its bytes."""

    version: Counter
    sha256: Sha256


class Outcome(_Frozen):
    """How the last update, or rollback, ended so far."""

    stage: Literal["running", "confirmed", "reverted", "failed"]
    bundle_name: Name
    bundle_version: Counter
    bundle_sha256: Sha256
    slot: Slot | None = None
    detail: Annotated[str, Field(max_length=_MAX_DETAIL)] = ""

    @classmethod
    def of(cls, stage: Literal["running", "confirmed", "reverted"], content: Content, slot: Slot, why: str) -> Outcome:
        """The outcome of an update to ``content``."""
        return cls(
            stage=stage,
            bundle_name=content.name,
            bundle_version=content.version,
            bundle_sha256=content.sha256,
            slot=slot,
            detail=one_line(why),
        )


class Pointer(_Frozen):
    """What a device runs.

    ``starts`` counts those of the active slot since it became active, as long as it is not ``confirmed``. ``slots``
    tells what was put where; the bundles themselves have the last word. ``highest`` is what an update must not go
    below without saying so.
    """

    schema_version: Annotated[Literal[1], Field(alias="schema")] = SCHEMA
    active: Slot
    confirmed: bool
    starts: Counter = 0
    slots: dict[Slot, Content] = {}
    highest: Annotated[dict[Name, Known], Field(max_length=MAX_NAMES)] = {}
    last_update: Outcome | None = None

    def with_run(self, content: Content) -> Pointer:
        """The same after ``content`` has run; the name that was remembered longest makes room where there is none."""
        known = self.highest.get(content.name)
        if known is not None and known.version >= content.version:
            return self
        highest = {name: each for name, each in self.highest.items() if name != content.name}
        while len(highest) >= MAX_NAMES:
            del highest[next(iter(highest))]
        highest[content.name] = Known(version=content.version, sha256=content.sha256)
        return self.model_copy(update={"highest": highest})

    def check_version(self, name: str, version: int, sha256: str, *, downgrade: bool) -> None:
        """See whether a bundle may be installed.

        Raises:
            UsageError: it goes below the highest version that ran, or is another bundle under a version that is taken.
        """
        known = self.highest.get(name)
        taken = [(each.version, each.sha256) for each in self.slots.values() if each.name == name]
        if known is not None:
            taken.append((known.version, known.sha256))
        for taken_version, taken_sha256 in taken:
            if taken_version == version and taken_sha256 != sha256:
                raise UsageError(
                    f"{name} version {version} is known here with other bytes ({taken_sha256[:12]}, not {sha256[:12]}):"
                    " pack it with a higher version"
                )
        if known is not None and version < known.version and not downgrade:
            raise UsageError(
                f"{name} version {version} is below {known.version}, the highest that ran here: send a higher one, or"
                " say that the downgrade is wanted"
            )


def read(path: Path) -> Pointer | None:
    """The pointer; None where it is missing, unreadable or no pointer."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        return None if len(data) > MAX_BYTES else Pointer.model_validate_json(data)
    except (OSError, ValidationError):
        return None


def write(path: Path, pointer: Pointer) -> None:
    """Replace the pointer durably and atomically."""
    files.write(path, pointer.model_dump_json(by_alias=True, exclude_none=True, indent=1).encode())


def one_line(text: str) -> str:
    """``text`` as it may stand in the pointer and in a message."""
    return " ".join(text.split())[:_MAX_DETAIL]
