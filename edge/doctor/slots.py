"""The slots of an installed device, and whose bundles and commands count there."""

from __future__ import annotations

import os
from pathlib import Path

from edge.bundle.reading import Bundle
from edge.bundle.signing import fingerprint
from edge.doctor.finding import Finding, well, wrong
from edge.doctor.model import describe, obeyed
from edge.errors import BundleError
from edge.update.pointer import Pointer
from edge.update.slots import Slots
from edge.update.store import SLOTS, other


def installed(folder: Path, added_operators: list[str]) -> tuple[Bundle | None, list[Finding]]:
    """Bundle, slots and keys of the device whose state lies in ``folder``.

    ``added_operators`` are the fingerprints of keys that are obeyed besides those in the trust store.
    """
    provision = f"earshot-device provision BUNDLE --trust KEY.pub --operator OPERATOR.pub --name {folder.name}"
    provision += f" --state-dir {folder.parent}"
    if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
        return None, [wrong("slots", f"{folder}: not readable for this user", "run the doctor with sudo")]
    slots = Slots(folder)
    pointer = slots.pointer()
    if pointer is None:
        return None, [wrong("slots", f"{folder}: no bundle was ever put there, or its pointer is damaged", provision)]
    findings = []
    bundle = None
    try:
        bundle = slots.read(pointer.active)
    except BundleError as error:
        fix = "restart the device, which goes to the other slot, or: " + provision
        findings.append(wrong("bundle", _line(error), fix, exit_code=error.exit_code))
    else:
        findings.append(well("bundle", describe(bundle)))
    findings.append(_slots(slots, pointer))
    operators = [fingerprint(key) for key in slots.trust.keys("operator")]
    findings.append(obeyed(sorted({*operators, *added_operators})))
    return bundle, findings


def _slots(slots: Slots, pointer: Pointer) -> Finding:
    words = []
    for slot in SLOTS:
        holds = pointer.slots.get(slot)
        what = "empty" if holds is None else f"{holds.name} version {holds.version}"
        state = f"active, {'confirmed' if pointer.confirmed else f'not confirmed after {pointer.starts} starts'}"
        words.append(f"{slot}: {what}" + (f" ({state})" if slot == pointer.active else ""))
    detail = ", ".join(words)
    spare = other(pointer.active)
    if spare in pointer.slots:
        try:
            slots.read(spare)
        except BundleError as error:
            fix = f"earshot device update {slots.folder.name} BUNDLE writes it anew"
            return wrong("slots", f"{detail}; nothing to go back to: {_line(error)}", fix)
    return well("slots", detail)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
