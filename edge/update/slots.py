"""Two places for a bundle, one of which runs.

A bundle is written beside the slots, synchronised, renamed into the slot that does not run, and becomes active by one
replaced pointer; whoever is interrupted leaves the old bundle running or the new one.
"""

from __future__ import annotations

from pathlib import Path

from edge import files
from edge.bundle.reading import Bundle
from edge.errors import UsageError
from edge.messages import Rotate, Slot
from edge.update.choice import MAX_STARTS, Choice, choose
from edge.update.pointer import Outcome, Pointer
from edge.update.store import SLOTS, Store, content, other


class Slots(Store):
    """The slots and keys in ``folder``, the state folder of one device."""

    def choose(self, *, max_starts: int = MAX_STARTS) -> Choice:
        """Decide what this start runs, once per start; counts it durably where the bundle has not proved itself.

        Raises:
            BundleError: neither slot holds a bundle that verifies; the message names the fix.
        """
        with self.locked():
            return choose(self, max_starts=max_starts)

    def install(self, finished: Path, bundle: Bundle) -> Slot:
        """Move a verified bundle into the slot that does not run and make it the active one, to be confirmed.

        ``finished`` is a file in the same file system; it is gone afterwards.

        Raises:
            UsageError: the running bundle is not confirmed, so that the other slot is still needed.
        """
        with self.locked():
            pointer = self.confirmed_pointer()
            slot = other(pointer.active)
            files.make_folder(self.path(slot).parent)
            files.replace(finished, self.path(slot))
            self._activate(pointer, slot, bundle, "installed, to be confirmed")
            return slot

    def switch(self, bundle: Bundle) -> Slot:
        """Make the other slot, which holds ``bundle``, the active one, to be confirmed.

        Raises:
            UsageError: the running bundle is not confirmed.
        """
        with self.locked():
            pointer = self.confirmed_pointer()
            slot = other(pointer.active)
            self._activate(pointer, slot, bundle, "rolled back on command, to be confirmed")
            return slot

    def confirm(self) -> Pointer:
        """Note that the active bundle has proved itself.

        Raises:
            UsageError: the pointer is gone.
        """
        with self.locked():
            pointer = self.needed_pointer()
            if pointer.confirmed:
                return pointer
            outcome, runs = pointer.last_update, pointer.slots.get(pointer.active)
            if outcome and runs and outcome.stage == "running" and outcome.bundle_sha256 == runs.sha256:
                outcome = outcome.model_copy(update={"stage": "confirmed", "detail": ""})
            pointer = pointer.model_copy(update={"confirmed": True, "starts": 0, "last_update": outcome})
            self.write(pointer)
            return pointer

    def note(self, outcome: Outcome) -> Pointer:
        """Keep how an update ended.

        Raises:
            UsageError: the pointer is gone.
        """
        with self.locked():
            pointer = self.needed_pointer().model_copy(update={"last_update": outcome})
            self.write(pointer)
            return pointer

    def provision(self, bundle: Bundle, file: bytes) -> Slot:
        """Put a first bundle into place, or one beside what runs or does not verify any more.

        ``file`` are the bytes of ``bundle``.
        """
        with self.locked():
            pointer = self.pointer()
            slot = SLOTS[0] if pointer is None else other(pointer.active)
            files.write(self.path(slot), file)
            self._activate(pointer or Pointer(active=slot, confirmed=False), slot, bundle, "provisioned")
            return slot

    def rotate(self, rotate: Rotate) -> None:
        """Trust a new key instead of an old one; the bundles in the slots stay runnable.

        Raises:
            UsageError: see :meth:`edge.update.trust.TrustStore.rotate`.
        """
        with self.locked():
            self.trust.rotate(rotate, keep={each.sha256 for each in self.needed_pointer().slots.values()})

    def confirmed_pointer(self) -> Pointer:
        """The pointer of a device that can spare its other slot.

        Raises:
            UsageError: the running bundle is not confirmed, so that the other slot is still needed.
        """
        pointer = self.needed_pointer()
        if not pointer.confirmed:
            raise UsageError(
                f"slot {pointer.active} has not proved itself yet and the other one is the way back: try again when"
                " the device says it is confirmed (a minute)"
            )
        return pointer

    def _activate(self, pointer: Pointer, slot: Slot, bundle: Bundle, why: str) -> None:
        runs = content(bundle)
        changes = {
            "active": slot,
            "confirmed": False,
            "starts": 0,
            "slots": {**pointer.slots, slot: runs},
            "last_update": Outcome.of("running", runs, slot, why),
        }
        self.write(pointer.model_copy(update=changes))
