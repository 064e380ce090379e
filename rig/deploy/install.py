"""Install a device, or take it away, as one call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath

from pydantic import BaseModel, ConfigDict

from edge.errors import UnavailableError, UsageError
from edge.messages import check_name
from firmware_models.progress import Progress, silent
from rig.deploy.carry_out import Outcome, carry_out
from rig.deploy.facts import Facts, look, require_device
from rig.deploy.settings import Installation
from rig.deploy.ssh import Remote, connected
from rig.deploy.steps import Step, describe, findings, install_steps, uninstall_steps
from rig.deploy.target import Target
from rig.deploy.wheels import Platform, gather

# Asked for the password of sudo; None where nobody can be asked.
AskPassword = Callable[[str], str] | None


class Report(BaseModel):
    """What was found and done on a machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str
    facts: Facts
    dry_run: bool
    steps: tuple[Outcome, ...]
    scripts: tuple[dict[str, object], ...]
    doctor: tuple[dict[str, object], ...] | None = None

    @property
    def changed(self) -> bool:
        """Whether anything was or would be done."""
        return any(step.status != "already" for step in self.steps)

    @property
    def healthy(self) -> bool:
        """Whether the doctor, where it was asked, found nothing."""
        return self.doctor is None or all(finding.get("ok") is True for finding in self.doctor)


def install(
    target: Target,
    wanted: Installation,
    *,
    root: str = "",
    start: bool = True,
    offline: bool = False,
    dry_run: bool = False,
    ask_password: AskPassword = None,
    progress: Progress = silent,
) -> Report:
    """Make the machine run ``wanted``; what is done already is left alone.

    Args:
        target: the machine.
        wanted: the device.
        root: install into the system in this folder of the machine instead (the card of another machine); implies
            that nothing is started.
        start: start the device now; otherwise it starts with the system.
        offline: send all wheels instead of letting the machine download them.
        dry_run: look only.
        ask_password: asks a person for the password of sudo.
        progress: told what goes on.

    Raises:
        UsageError: ``root`` is no absolute path or no system.
        UnavailableError: the machine cannot be reached, cannot be a device, or a step failed.
    """
    root = _root(root)
    with connected(target) as remote:
        facts = look(remote, root)
        python = require_device(facts, start=start and not root, root=root)
        _become_root(remote, facts, ask_password)
        platform = Platform(python=python.minor, machine=facts.machine, glibc_minor=facts.glibc_minor)
        program = gather(platform, offline=offline, progress=progress)
        steps = install_steps(wanted, program, facts, python, root=root, start=start and not root, offline=offline)
        outcomes = carry_out(remote, steps, name=wanted.name, root=root, dry_run=dry_run, progress=progress)
    return _report(target, facts, steps, outcomes, dry_run=dry_run)


def uninstall(
    target: Target,
    *,
    name: str = "",
    purge: bool = False,
    root: str = "",
    dry_run: bool = False,
    ask_password: AskPassword = None,
    progress: Progress = silent,
) -> Report:
    """Take the device ``name`` away, or all of them; with the last one goes the program.

    What the device knows (bundles, trusted keys, predictions not fetched yet) stays, but with ``purge``.

    Raises:
        UsageError: the name or ``root`` is malformed.
        UnavailableError: the machine cannot be reached, or a step failed.
    """
    root = _root(root)
    if name:
        check_name(name)
    with connected(target) as remote:
        facts = look(remote, root)
        _become_root(remote, facts, ask_password)
        steps = uninstall_steps(name=name, purge=purge, root=root)
        outcomes = carry_out(remote, steps, name=name, root=root, dry_run=dry_run, progress=progress)
    return _report(target, facts, steps, outcomes, dry_run=dry_run)


def _report(target: Target, facts: Facts, steps: list[Step], outcomes: list[Outcome], *, dry_run: bool) -> Report:
    doctor = next((findings(each.output) for each in outcomes if each.title == "doctor" and each.output), None)
    return Report(
        target=str(target),
        facts=facts,
        dry_run=dry_run,
        steps=tuple(outcomes),
        scripts=tuple(describe(steps)) if dry_run else (),
        doctor=None if doctor is None else tuple(doctor),
    )


def _root(root: str) -> str:
    if not root or root == "/":
        return ""
    path = PurePosixPath(root)
    if not path.is_absolute() or ".." in path.parts or not root.isprintable():
        raise UsageError(f"--root {root!r}: name the folder by its absolute path on the machine, without '..'")
    return str(path)


def _become_root(remote: Remote, facts: Facts, ask_password: AskPassword) -> None:
    if facts.sudo == "root":
        return
    if facts.sudo == "free":
        remote.become_root()
    elif facts.sudo == "password" and ask_password is not None:
        remote.become_root(ask_password(f"password of {remote.target} for sudo: "))
    else:
        lacks = (
            "sudo is not there" if facts.sudo == "absent" else "sudo asks for a password, and nobody is here to type it"
        )
        raise UnavailableError(
            f"{remote.target}: installing needs root, and {lacks}: name a root login "
            f"(root@{remote.target.host}), or let the user use sudo without a password"
        )
