"""Runs one piece of an update at a time, each in a fork of its own that waits to be traced; not a test.

It reads a line of JSON on its input and answers ``pid N``; the fork begins when it reads one byte more. What the fork
says, it says with one ``write`` per line, so that a trace shows between which operations it was said.
"""

import json
import logging
import os
import sys
from pathlib import Path

import onnxruntime as ort

import edge.update.trial  # noqa: F401 - a fork must not begin by opening the files of modules
from edge import files
from edge.bundle.signing import load_public_key
from edge.messages import Rotate
from edge.update import worker
from edge.update.job import Job
from edge.update.provisioning import provision
from edge.update.slots import Slots


def say(what: str) -> None:
    os.write(1, f"said {what}\n".encode())


def update(folder: Path, task: dict) -> None:
    job = Job.model_validate({"folder": folder, "parent_pid": os.getppid(), "runs": 3, **task})
    worker.work(job, lambda stage: say(stage.stage))


def unsynchronised(folder: Path, task: dict) -> None:
    """The same without one fsync: the renames alone."""
    files.synchronise = lambda path: None
    os.fsync = lambda descriptor: None
    update(folder, task)


def naive(folder: Path, task: dict) -> None:
    """What one would write first: the new bundle over the old one, then the pointer."""
    slots = Slots(folder)
    pointer, content = slots.needed_pointer(), Path(task["bundle"]).read_bytes()
    with slots.path(pointer.active).open("wb", buffering=0) as file:
        for at in range(0, len(content), 4096):
            file.write(content[at : at + 4096])
    bundle = slots.read(pointer.active)
    runs = pointer.slots[pointer.active].model_copy(update={"sha256": bundle.sha256, "version": 2})
    changes = {"confirmed": False, "starts": 0, "slots": {**pointer.slots, pointer.active: runs}}
    slots.pointer_path.write_bytes(pointer.model_copy(update=changes).model_dump_json(by_alias=True).encode())
    say("installed")


def start(folder: Path, _: dict) -> None:
    choice = Slots(folder).choose()
    say(f"started {choice.slot} {choice.pointer.starts}")


def confirm(folder: Path, _: dict) -> None:
    Slots(folder).confirm()
    say("confirmed")


def rotate(folder: Path, task: dict) -> None:
    Slots(folder).rotate(Rotate.model_validate(task["rotate"]))
    say("rotated")


def provide(folder: Path, task: dict) -> None:
    keys = [Path(key) for key in task["keys"]]
    provision(folder, Path(task["bundle"]), bundle_keys=keys, operator_keys=keys)
    say("provisioned")


DEEDS = {each.__name__: each for each in (update, unsynchronised, naive, start, confirm, rotate, provide)}


def main() -> None:
    logging.disable()
    load_public_key(Path(sys.argv[1]))
    ort.get_available_providers()
    with open(0, "rb", buffering=0, closefd=False) as orders:
        while line := orders.readline():
            order = json.loads(line)
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    os.write(1, f"pid {os.getpid()}\n".encode())
                    os.read(0, 1)
                    DEEDS[order["deed"]](Path(order["folder"]), order.get("task", {}))
                    code = 0
                finally:
                    os._exit(code)
            _, status = os.waitpid(child, 0)
            os.write(1, f"exit {os.waitstatus_to_exitcode(status)}\n".encode())


main()
