"""What a start runs: a bundle that verifies, whatever was interrupted or broke before.

Every start of a bundle that has not proved itself is counted durably before the bundle is loaded; after
:data:`MAX_STARTS` of them the device goes back to the other slot.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from edge.bundle.reading import Bundle
from edge.errors import BundleError
from edge.messages import Slot
from edge.update.pointer import Outcome, Pointer
from edge.update.store import SLOTS, Store, content, other

log = logging.getLogger(__name__)

MAX_STARTS = 3
FIX = "put one there with: earshot-device provision FILE"


@dataclass(frozen=True, eq=False)
class Choice:
    """What this start runs: the slot, its verified bundle, and the pointer as it stands now."""

    slot: Slot
    bundle: Bundle
    pointer: Pointer


def choose(store: Store, *, max_starts: int) -> Choice:
    """Decide what this start runs; the caller holds the lock.

    Raises:
        BundleError: neither slot holds a bundle that verifies.
    """
    store.clear_away()
    pointer = store.pointer()
    if pointer is None:
        return _rebuild(store)
    if not pointer.confirmed and pointer.starts >= max_starts:
        reverted = _revert(store, pointer, max_starts)
        if reverted is not None:
            return reverted
    if not pointer.confirmed:
        pointer = pointer.model_copy(update={"starts": pointer.starts + 1})
        store.try_to_write(pointer)
    return _verified(store, pointer)


def _rebuild(store: Store) -> Choice:
    """A pointer from what verifies: the higher version of one name, else what was written last."""
    problems: list[str] = []
    found = {slot: bundle for slot in SLOTS if (bundle := _try_to_read(store, slot, problems)) is not None}
    if not found:
        raise BundleError(f"neither slot holds a bundle that verifies ({'; '.join(problems)}): {FIX}")
    names = {bundle.manifest.name for bundle in found.values()}

    def age(slot: Slot) -> tuple[float, bool]:
        newest = found[slot].manifest.version if len(names) == 1 else _written_s(store.path(slot))
        return newest, slot == SLOTS[0]

    active = max(found, key=age)
    pointer = Pointer(active=active, confirmed=False, starts=1, slots={s: content(b) for s, b in found.items()})
    for bundle in found.values():
        pointer = pointer.with_run(content(bundle))
    log.warning("%s was missing or unreadable: made again, slot %s is active", store.pointer_path, active)
    store.try_to_write(pointer)
    return Choice(active, found[active], pointer)


def _revert(store: Store, pointer: Pointer, max_starts: int) -> Choice | None:
    slot = other(pointer.active)
    bundle = _try_to_read(store, slot, [])
    if bundle is None:
        log.warning("slot %s was not confirmed in %d starts, but there is no other", pointer.active, max_starts)
        return None
    why = f"not confirmed in {max_starts} starts: went back to slot {slot}"
    log.warning("slot %s: %s", pointer.active, why)
    return _fall_back(store, pointer, bundle, why, confirmed=True)


def _verified(store: Store, pointer: Pointer) -> Choice:
    """The active slot's bundle if it is what was put there, else the other's, else whatever verifies."""
    problems: list[str] = []
    active = _try_to_read(store, pointer.active, problems)
    expected = pointer.slots.get(pointer.active)
    if active is not None:
        if expected is not None and expected.sha256 == active.sha256:
            return _started(store, pointer, active)
        problems.append(f"slot {pointer.active} holds {active.sha256[:12]}, which was not installed there")
    bundle = _try_to_read(store, other(pointer.active), problems)
    if bundle is not None:
        why = f"{problems[0]}: went to slot {other(pointer.active)}"
        log.error("%s", why)
        return _fall_back(store, pointer, bundle, why, confirmed=False)
    if active is not None:
        log.error("%s: it verifies and runs", problems[0])
        return _started(store, pointer, active)
    raise BundleError(f"neither slot holds a bundle that verifies ({'; '.join(problems)}): {FIX}")


def _started(store: Store, pointer: Pointer, bundle: Bundle) -> Choice:
    runs = content(bundle)
    now = pointer.with_run(runs).model_copy(update={"slots": {**pointer.slots, pointer.active: runs}})
    if now != pointer:
        store.try_to_write(now)
    return Choice(now.active, bundle, now)


def _fall_back(store: Store, pointer: Pointer, bundle: Bundle, why: str, *, confirmed: bool) -> Choice:
    slot, runs = other(pointer.active), content(bundle)
    left = pointer.slots.get(pointer.active, runs)
    now = pointer.with_run(runs).model_copy(
        update={
            "active": slot,
            "confirmed": confirmed,
            "starts": 0 if confirmed else 1,
            "slots": {**pointer.slots, slot: runs},
            "last_update": Outcome.of("reverted", left, pointer.active, why),
        }
    )
    store.try_to_write(now)
    return Choice(slot, bundle, now)


def _try_to_read(store: Store, slot: Slot, problems: list[str]) -> Bundle | None:
    try:
        return store.read(slot)
    except BundleError as error:
        problems.append(f"slot {slot}: {error}")
        return None


def _written_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
