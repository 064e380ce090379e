"""``earshot-device status``: what this device has, running or not."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edge
from edge.cli.arguments import Verbs, add_place
from edge.errors import EXIT_OK, BundleError, UsageError

if TYPE_CHECKING:
    from edge.update.slots import Slots


def add(verbs: Verbs) -> None:
    """Register the command."""
    about = "slots, versions and keys of this device"
    parser = verbs.add_parser("status", help=about, description=f"{about.capitalize()}, running or not.")
    add_place(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Look into the state folder; nothing is changed."""
    # --help and wrong arguments need not wait for numpy.
    from edge.agent.state_folder import default_state_dir  # noqa: PLC0415
    from edge.cli.settings import from_options  # noqa: PLC0415
    from edge.update.slots import Slots  # noqa: PLC0415

    settings = from_options(options)
    folder = (settings.state_dir or default_state_dir()) / settings.need("name", settings.name)
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such state folder: check --name and --state-dir")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise UsageError(f"{folder}: not readable for this user: run it with sudo")
    document = _document(Slots(folder))
    if options.json:
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
        return EXIT_OK
    for line in _lines(document):
        sys.stdout.write(line + "\n")
    return EXIT_OK


def _document(slots: Slots) -> dict[str, Any]:
    from edge.bundle.signing import fingerprint  # noqa: PLC0415 - as above
    from edge.update.store import SLOTS  # noqa: PLC0415

    pointer = slots.pointer()
    contents: dict[str, Any] = {}
    for slot in SLOTS:
        held = None if pointer is None else pointer.slots.get(slot)
        there = slots.path(slot).is_file()
        contents[slot] = {
            "present": there,
            "name": None if held is None else held.name,
            "version": None if held is None else held.version,
            "sha256": None if held is None else held.sha256,
            "signed_by": None if held is None else held.key,
            "problem": _problem(slots, slots.path(slot)) if there else ("missing" if held else None),
        }
    outcome = None if pointer is None else pointer.last_update
    return {
        "earshot_version": edge.__version__,
        "folder": str(slots.folder),
        "running": _runs(slots.folder / "lock"),
        "active": None if pointer is None else pointer.active,
        "confirmed": None if pointer is None else pointer.confirmed,
        "starts": None if pointer is None else pointer.starts,
        "slots": contents,
        "last_update": None if outcome is None else outcome.model_dump(),
        "bundle_keys": [fingerprint(key) for key in slots.trust.keys("bundle")],
        "operator_keys": [fingerprint(key) for key in slots.trust.keys("operator")],
    }


def _problem(slots: Slots, path: Path) -> str | None:
    try:
        slots.verify(path)
    except BundleError as error:
        return " ".join(str(error).split())
    return None


def _runs(lock: Path) -> bool | None:
    """Whether a process has claimed the folder; None where that cannot be seen."""
    import fcntl  # noqa: PLC0415 - as above

    try:
        with lock.open("r", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError:
        return None
    return False


def _lines(document: dict[str, Any]) -> list[str]:
    running = {True: "running", False: "not running", None: "running or not: not told"}[document["running"]]
    lines = [f"{document['folder']}: {running}, earshot {document['earshot_version']}"]
    present = any(holds["present"] for holds in document["slots"].values())
    if document["active"] is None and present:
        lines.append("slots/pointer.json is missing or unreadable: the next start makes it again from what verifies")
    elif document["active"] is None:
        lines.append("no slots: give the bundle with --bundle, or put one there with earshot-device provision")
    for slot, holds in document["slots"].items():
        if not holds["present"] and holds["name"] is None:
            lines.append(f"slot {slot}: empty")
            continue
        name = (
            f"{holds['name']} version {holds['version']}, signed by {holds['signed_by']}"
            if holds["name"]
            else "a bundle"
        )
        state = ""
        if slot == document["active"]:
            state = ", active, " + ("confirmed" if document["confirmed"] else f"started {document['starts']} times")
        lines.append(f"slot {slot}: {name}{state}" + (f": {holds['problem']}" if holds["problem"] else ""))
    if (last := document["last_update"]) is not None:
        detail = f": {last['detail']}" if last["detail"] else ""
        lines.append(f"last update: {last['bundle_name']} version {last['bundle_version']} {last['stage']}{detail}")
    lines.append(f"bundles signed by: {', '.join(document['bundle_keys']) or 'nobody'}")
    lines.append(f"commands signed by: {', '.join(document['operator_keys']) or 'nobody'}")
    return lines
