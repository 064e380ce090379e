"""The list of steps that makes a machine a device, or no device any more: data, so that it can be shown first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rig.deploy.facts import Facts, Python, lack_of_space
from rig.deploy.script import UPLOADED, Script, Secret
from rig.deploy.settings import ACCOUNT, STATE_DIR, Installation, Placed
from rig.deploy.wheels import Program

UNIT_FILE = Path(__file__).resolve().parent / "earshot-device@.service"
UNIT = "/etc/systemd/system/earshot-device@.service"
COMMAND = "/usr/local/bin/earshot-device"
_COMMAND_TEXT = '#!/bin/sh\nexec /opt/earshot/current/bin/python -I -m edge.cli "$@"\n'
# A Raspberry Pi 3 with a slow card needs a quarter of that.
_PIP_TIMEOUT_S = 1800.0
_APT_TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Step:
    """One step: done already if ``check`` succeeds, otherwise ``act`` is run with the files of ``upload``.

    ``refusal`` is why it cannot be done by this command. ``lines`` is about how many lines ``act`` prints that begin
    with ``Collecting`` or ``Processing``. ``reports`` are those whose output is the step's result.
    """

    title: str
    act: Script
    check: Script | None = None
    upload: Mapping[str, Path | bytes] = field(default_factory=dict)
    timeout_s: float = 120.0
    refusal: str | None = None
    lines: int = 0
    starts: bool = False
    switches: bool = False
    reports: bool = False


def install_steps(
    wanted: Installation, program: Program, facts: Facts, python: Python, *, root: str, start: bool, offline: bool
) -> list[Step]:
    """What has to be done for ``wanted`` on a machine of which ``facts`` are known.

    ``root`` is the folder of the system to install into, empty for the running one; without ``start`` nothing is
    started.
    """
    steps = []
    if wanted.needs_portaudio:
        steps.append(_portaudio(facts, root=root, offline=offline))
    steps += [
        _both("service account", "account.sh", root, ACCOUNT),
        _program(program, python, root=root, offline=offline, refusal=lack_of_space(facts, root)),
        _both(f"version {program.folder_name}", "switch.sh", root, program.folder_name, switches=True),
        _files("settings, keys and certificates", wanted.files, wanted.name, own=True, root=root),
        _files("service unit and command", _program_files(), wanted.name, own=False, root=root),
        _provision(wanted, root=root),
        _both("start with the system", "enable.sh", root, wanted.name),
    ]
    if start:
        running = Script("start.sh", "check", (wanted.name,))
        doctor = Script("doctor.sh", "act", (ACCOUNT, wanted.name))
        go = Script("start.sh", "act", (wanted.name,))
        steps.append(Step("doctor", act=doctor, check=running, reports=True))
        steps.append(Step(f"run earshot-device@{wanted.name}", act=go, check=running, timeout_s=240.0, starts=True))
    steps.append(_both("older versions", "tidy.sh", root))
    return steps


def uninstall_steps(*, name: str, purge: bool, root: str) -> list[Step]:
    """What takes a device away, or all with an empty name."""
    title = f"remove {name or 'all devices'}" + (f" and what is in {STATE_DIR}" if purge else "")
    return [_both(title, "remove.sh", root, ACCOUNT, name, "purge" if purge else "keep", reports=True)]


def _both(title: str, file: str, *arguments: str, switches: bool = False, reports: bool = False) -> Step:
    check, act = (Script(file, verb, arguments) for verb in ("check", "act"))
    return Step(title, act=act, check=check, switches=switches, reports=reports)


def _portaudio(facts: Facts, *, root: str, offline: bool) -> Step:
    line = "apt-get install libportaudio2"
    refusal = None
    if root or offline or not facts.apt:
        where = f"in {root}" if root else "on the machine"
        refusal = f"PortAudio is missing {where}, without which no sound card is heard: run there: {line}"
    check, act = (Script("portaudio.sh", verb, (root,)) for verb in ("check", "act"))
    return Step("PortAudio", act=act, check=check, refusal=refusal, timeout_s=_APT_TIMEOUT_S)


def _program(program: Program, python: Python, *, root: str, offline: bool, refusal: str | None) -> Step:
    mode = "offline" if offline else "online"
    arguments = (root, program.folder_name, python.path, UPLOADED, mode)
    check, act = (Script("program.sh", verb, arguments) for verb in ("check", "act"))
    files: dict[str, Path | bytes] = {f"wheels/{name}": content for name, content in program.files.items()}
    files["requirements.txt"] = program.requirements.encode()
    return Step(
        f"program in /opt/earshot/{program.folder_name}",
        act=act,
        check=check,
        upload=files,
        timeout_s=_PIP_TIMEOUT_S,
        refusal=refusal,
        lines=len(program.wheels),
    )


def _program_files() -> tuple[Placed, ...]:
    return (
        Placed(path=UNIT, mode="0644", owner="root", content=UNIT_FILE.read_bytes()),
        Placed(path=COMMAND, mode="0755", owner="root", content=_COMMAND_TEXT.encode()),
    )


def _files(title: str, placed: tuple[Placed, ...], device: str, *, own: bool, root: str) -> Step:
    arguments: list[str | Secret] = [root, device, UPLOADED, "own" if own else "shared"]
    upload: dict[str, Path | bytes] = {}
    for number, file in enumerate(placed):
        upload[str(number)] = file.content
        digest = hashlib.sha256(file.content).hexdigest()
        # stat prints no leading zero; the hash of a short password is nearly the password.
        arguments += [str(number), file.path, file.mode.lstrip("0"), file.owner]
        arguments.append(Secret(digest) if file.secret else digest)
    check, act = (Script("files.sh", verb, tuple(arguments)) for verb in ("check", "act"))
    return Step(title, act=act, check=check, upload=upload)


def _provision(wanted: Installation, *, root: str) -> Step:
    upload: dict[str, Path | bytes] = {"provision/bundle.earshot": wanted.bundle}
    more: list[str] = []
    for option, paths in (("--trust", wanted.trust), ("--operator", wanted.operators)):
        for number, path in enumerate(paths):
            name = f"{option.strip('-')}-{number}.pub"
            upload[f"provision/{name}"] = path
            more += [option, name]
    arguments = (root, ACCOUNT, wanted.name, UPLOADED, "bundle.earshot", *more)
    check, act = (Script("provision.sh", verb, arguments) for verb in ("check", "act"))
    return Step(f"first bundle {wanted.bundle_label}, trusted keys", act=act, check=check, upload=upload)


def describe(steps: list[Step]) -> list[dict[str, object]]:
    """For machines: each step with what would be sent and run."""
    return [{"title": step.title, "upload": sorted(step.upload), "script": step.act.text(shown=True)} for step in steps]


def findings(output: str) -> list[dict[str, object]] | None:
    """What ``earshot-device doctor --json`` said, or None if it said something else."""
    try:
        found = json.loads(output)["findings"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, list) and all(isinstance(each, dict) for each in found) else None
