"""Whose bundles a device runs and whose commands it obeys: ``trust/{bundle,operator}/FINGERPRINT.pub``.

A key that was replaced goes to ``trust/retired/ROLE-FINGERPRINT.json`` with the SHA-256 of the bundles that lay in the
slots then: those, and no others, it still vouches for, so that a rotation takes nothing away from a device.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Literal

from nacl.signing import VerifyKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge import files
from edge.bundle.signing import fingerprint, load_public_key, public_pem, verify
from edge.errors import UsageError
from edge.messages import PublicKeyHex, Role, Rotate, Sha256

# More keys than any fleet has; a folder full of files must not hold up a start.
MAX_KEYS = 32
_MAX_RETIRED_BYTES = 4096


class Retired(BaseModel):
    """A key that was replaced and the bundles that it still vouches for."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)

    schema_version: Annotated[Literal[1], Field(alias="schema")] = 1
    role: Role
    key: PublicKeyHex
    bundles: Annotated[tuple[Sha256, ...], Field(max_length=8)] = ()

    @property
    def verify_key(self) -> VerifyKey:
        """The key itself."""
        return VerifyKey(bytes.fromhex(self.key))


class TrustStore:
    """The public keys in ``folder``; what is no key there is passed over, for it gives nobody a right."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keys(self, role: Role) -> list[VerifyKey]:
        """The trusted keys of a role, without those that were retired."""
        retired = {each.key for each in self._retired() if each.role == role}
        return [key for _, key in self._files(role) if bytes(key).hex() not in retired]

    def is_retired(self, role: Role, key: VerifyKey) -> bool:
        """Whether a key was replaced here: it must not come back by another way either."""
        return any(each.key == bytes(key).hex() and each.role == role for each in self._retired())

    def retired_for(self, sha256: str) -> list[VerifyKey]:
        """The retired keys that vouch for one bundle only: that with this SHA-256."""
        return [each.verify_key for each in self._retired() if each.role == "bundle" and sha256 in each.bundles]

    def add(self, role: Role, key: VerifyKey) -> None:
        """Trust a key, durably.

        Raises:
            UsageError: it was retired, or there are too many.
        """
        name = fingerprint(key)
        if self.is_retired(role, key):
            raise UsageError(f"{role} key {name} was retired on this device and does not come back: make a new one")
        known = [bytes(each) for _, each in self._files(role)]
        if bytes(key) in known:
            return
        if len(known) >= MAX_KEYS:
            raise UsageError(f"{role} key {name}: {MAX_KEYS} are trusted already, remove one in {self._folder / role}")
        files.write(self._folder / role / f"{name}.pub", public_pem(key))

    def rotate(self, rotate: Rotate, *, keep: Collection[str]) -> None:
        """Trust the new key instead of the old one, durably; a power cut leaves both, never neither.

        Saying the same again changes nothing. ``keep`` has the SHA-256 of the bundles in the slots.

        Raises:
            UsageError: the old key is not trusted or did not sign, or the new one is the old one or was retired.
        """
        old, new = VerifyKey(bytes.fromhex(rotate.old_key)), VerifyKey(bytes.fromhex(rotate.new_key))
        what = f"rotation of the {rotate.role} key {fingerprint(old)} to {fingerprint(new)}"
        if bytes(old) == bytes(new):
            raise UsageError(f"{what}: both are the same key, give a new one")
        if verify(rotate.signed_bytes(), bytes.fromhex(rotate.signature), [old]) is None:
            raise UsageError(f"{what}: the old key did not sign it; sign it with the old private key")
        trusted = {bytes(key) for key in self.keys(rotate.role)}
        if bytes(old) not in trusted:
            if bytes(new) in trusted and any(each.key == rotate.old_key for each in self._retired()):
                self._forget(rotate.role, old)
                return
            raise UsageError(f"{what}: the old key is not trusted here, so it cannot name another")
        self.add(rotate.role, new)
        bundles = tuple(sorted(keep)) if rotate.role == "bundle" else ()
        retired = Retired(role=rotate.role, key=rotate.old_key, bundles=bundles)
        name = f"{rotate.role}-{fingerprint(old)}.json"
        files.write(self._folder / "retired" / name, retired.model_dump_json(by_alias=True).encode())
        self._forget(rotate.role, old)

    def _forget(self, role: Role, key: VerifyKey) -> None:
        for path, each in self._files(role):
            if bytes(each) == bytes(key):
                files.remove(path)

    def _files(self, role: Role) -> Iterator[tuple[Path, VerifyKey]]:
        for path in _listed(self._folder / role, "*.pub"):
            try:
                yield path, load_public_key(path)
            except UsageError:
                continue

    def _retired(self) -> list[Retired]:
        found = []
        for path in _listed(self._folder / "retired", "*.json"):
            try:
                with path.open("rb") as file:
                    found.append(Retired.model_validate_json(file.read(_MAX_RETIRED_BYTES)))
            except (OSError, ValidationError):
                continue
        return found


def _listed(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(path for path in folder.glob(pattern) if path.is_file())[: 2 * MAX_KEYS]
    except OSError:
        return []
