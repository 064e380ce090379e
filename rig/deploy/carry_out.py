"""Take the steps that are not done yet, and go back where a new version does not run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from edge.errors import UnavailableError
from firmware_models.progress import Progress, silent
from rig.deploy.script import Script
from rig.deploy.ssh import Remote, Result
from rig.deploy.steps import Step

_COUNTED = ("Collecting ", "Processing ")


class Outcome(BaseModel):
    """What became of a step; ``output`` is what it reports, where it does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    status: Literal["already", "done", "would"]
    detail: str = ""
    duration_s: float = 0.0
    output: str = ""


def carry_out(
    remote: Remote, steps: Sequence[Step], *, name: str, root: str = "", dry_run: bool, progress: Progress = silent
) -> list[Outcome]:
    """Take the steps in their order; with ``dry_run`` only look which are done.

    Where the device does not start with a new version, the one before is made to run again.

    Raises:
        UnavailableError: a step failed; the message has its title and the machine's last words.
    """
    for step in steps:
        # Before anything is changed.
        if step.refusal is not None and not _done(remote, step)[0]:
            raise UnavailableError(f"{remote.target}: {step.refusal}")
    outcomes: list[Outcome] = []
    switched = False
    for number, step in enumerate(steps):
        progress(number, len(steps), step.title)
        began_s = time.monotonic()
        done, detail = _done(remote, step)
        if done or dry_run:
            outcomes.append(Outcome(title=step.title, status="already" if done else "would", detail=detail))
            continue
        result = _act(remote, step, progress)
        if result.code:
            if step.starts and switched:
                _go_back(remote, step, name=name, root=root, reason=result.last_words)
            raise UnavailableError(f"{remote.target}: step '{step.title}' failed: {result.last_words}")
        switched |= step.switches
        outcomes.append(
            Outcome(
                title=step.title,
                status="done",
                detail=detail,
                duration_s=round(time.monotonic() - began_s, 2),
                output=result.output if step.reports else "",
            )
        )
    progress(len(steps), len(steps))
    return outcomes


def _done(remote: Remote, step: Step) -> tuple[bool, str]:
    """Whether the step is done, and what is not as it should be."""
    if step.check is None:
        return False, ""
    result = remote.run(step.check)
    return result.code == 0, "; ".join(result.output.split("\n")[:8]).strip("; ")


def _act(remote: Remote, step: Step, progress: Progress) -> Result:
    packages = 0

    def line(text: str) -> None:
        nonlocal packages
        if step.lines and text.startswith(_COUNTED):
            packages += 1
            progress(min(packages, step.lines), step.lines + 1, text.split()[1].rpartition("/")[2][:60])

    if not step.upload:
        return remote.run(step.act, timeout_s=step.timeout_s, line=line)
    folder = remote.upload(step.upload, progress)
    try:
        return remote.run(step.act, uploaded=folder, timeout_s=step.timeout_s, line=line)
    finally:
        remote.discard(folder)


def _go_back(remote: Remote, step: Step, *, name: str, root: str, reason: str) -> None:
    back = remote.run(Script("back.sh", "act", (root, name)))
    if back.code:
        return
    before = back.output.strip()
    again = remote.run(step.act, timeout_s=step.timeout_s)
    how = "which runs" if again.code == 0 else f"which does not run either ({again.last_words})"
    raise UnavailableError(
        f"{remote.target}: the new version does not run ({reason}): went back to {before}, {how}; look at "
        f"'journalctl -u earshot-device@{name}' there"
    )
