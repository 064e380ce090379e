"""Put the first bundle and keys into the state folder of a device, or mend one that has no bundle left."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.bundle.container import MAX_BYTES
from edge.bundle.reading import read_bundle
from edge.bundle.signing import fingerprint, load_public_key
from edge.errors import BundleError, UsageError
from edge.messages import Slot
from edge.update.slots import Slots
from edge.update.store import SLOTS


@dataclass(frozen=True)
class Provisioned:
    """What a device has now. ``changed`` is false where it had this bundle already."""

    slot: Slot
    bundle_name: str
    bundle_version: int
    bundle_sha256: str
    bundle_keys: tuple[str, ...]
    operator_keys: tuple[str, ...]
    changed: bool


def provision(
    folder: Path,
    bundle_path: Path,
    *,
    bundle_keys: Sequence[Path] = (),
    operator_keys: Sequence[Path] = (),
    force: bool = False,
) -> Provisioned:
    """Install a bundle and trust keys; the device must not be running (see :func:`claimed`).

    Doing it again with the same files changes nothing. Keys are added to those there; without ``bundle_keys`` the
    bundle must be signed by one of those.

    Args:
        folder: the device's state folder, made if absent, claimed by the caller.
        bundle_path: the bundle.
        bundle_keys: public key files whose bundles the device shall run.
        operator_keys: public key files whose commands it shall obey.
        force: install beside a bundle that runs, as an update would, but without its test.

    Raises:
        BundleError: the bundle is missing, altered, or signed by none of the keys.
        UsageError: a key file is unusable, or the device has another bundle that runs.
    """
    slots = Slots(folder)
    new_keys = [load_public_key(path) for path in bundle_keys]
    operators = [load_public_key(path) for path in operator_keys]
    trusted = [*new_keys, *slots.trust.keys("bundle")]
    if not trusted:
        raise UsageError(f"{folder} trusts no key yet: name the one that signed the bundle with --trust KEY.pub")
    bundle = read_bundle(bundle_path, trusted=trusted)
    slot = _runs(slots, bundle.sha256)
    if slot is None and not force:
        _check_free(slots, bundle.sha256)
    for key in new_keys:
        slots.trust.add("bundle", key)
    for key in operators:
        slots.trust.add("operator", key)
    changed = slot is None
    if slot is None:
        with bundle_path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if hashlib.sha256(content).hexdigest() != bundle.sha256:
            raise BundleError(f"{bundle_path}: changed while it was read")
        slot = slots.provision(bundle, content)
    return Provisioned(
        slot=slot,
        bundle_name=bundle.manifest.name,
        bundle_version=bundle.manifest.version,
        bundle_sha256=bundle.sha256,
        bundle_keys=tuple(fingerprint(key) for key in slots.trust.keys("bundle")),
        operator_keys=tuple(fingerprint(key) for key in slots.trust.keys("operator")),
        changed=changed,
    )


def _runs(slots: Slots, sha256: str) -> Slot | None:
    """The active slot if it holds this very bundle."""
    pointer = slots.pointer()
    if pointer is None:
        return None
    try:
        return pointer.active if slots.read(pointer.active).sha256 == sha256 else None
    except BundleError:
        return None


def _check_free(slots: Slots, sha256: str) -> None:
    """That no other bundle runs here; this one may have been put there by a provisioning that was interrupted."""
    for slot in SLOTS:
        try:
            bundle = slots.read(slot)
        except BundleError:
            continue
        if bundle.sha256 == sha256:
            continue
        manifest = bundle.manifest
        raise UsageError(
            f"{slots.folder}: slot {slot} holds {manifest.name} version {manifest.version}, which verifies: send an"
            " update with earshot device update, or give --force"
        )
