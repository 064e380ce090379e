"""Asking devices to change: send the signed command, hear the answer, follow the change to its end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from edge.errors import UnavailableError
from edge.messages import Message, Reply, Rollback, Rotate, Update, UpdateStatus
from firmware_models.progress import Progress, silent
from rig.fleet.presence import Fleet

# The answer waits for nothing but the broker, twice.
ANSWER_S = 10.0
# A device says something every second, and is away for a few while it starts again.
PATIENCE_S = 120.0
# It proves itself for a minute, and its first minute may begin with a lost microphone.
CONFIRM_S = 60.0
CONFIRM_PATIENCE_S = 300.0
# Its minute begins with its first window.
_GRACE_S = 10.0
_POLL_S = 0.25

Change = Update | Rollback
Result = Literal["confirmed", "running", "current", "done", "refused", "failed", "reverted", "silent"]
GOOD: frozenset[Result] = frozenset({"confirmed", "running", "current", "done"})
_AT_WORK = frozenset({"downloading", "verifying", "testing"})
_END_OF_STAGE: dict[str, Result] = {"confirmed": "confirmed", "failed": "failed", "reverted": "reverted"}


@dataclass(frozen=True)
class Outcome:
    """How a request to one device ended; ``detail`` is the device's own word where it did not do it."""

    device: str
    result: Result
    detail: str = ""
    slot: str | None = None

    @property
    def good(self) -> bool:
        """Whether the device did what was asked."""
        return self.result in GOOD

    def as_document(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def need_online(fleet: Fleet, names: Sequence[str]) -> None:
    """See that all devices are there.

    Raises:
        UnavailableError: one is not; the message names all that are not.
    """
    away = []
    for name in names:
        member = fleet.members.get(name)
        if member is None or member.status != "online":
            away.append(f"{name} ({'never seen here' if member is None else member.status})")
    if away:
        raise UnavailableError(f"not online: {', '.join(away)}: start it, or see earshot device list")


def rotate(fleet: Fleet, statements: Mapping[str, Rotate], *, answer_s: float = ANSWER_S) -> list[Outcome]:
    """Have devices exchange a key, and hear what each says to it."""
    pending = {name: _Course(name) for name in statements}
    for statement in statements.values():
        fleet.link.send("rotate", statement)
    deadline_s = time.monotonic() + answer_s
    while any(course.outcome is None for course in pending.values()) and time.monotonic() < deadline_s:
        said = fleet.take(_POLL_S)
        if isinstance(said, Reply) and said.verb == "rotate" and said.device in pending:
            pending[said.device].end("done" if said.ok else "refused", said.detail)
    for course in pending.values():
        course.end("silent", f"no answer within {answer_s:.0f} s: does it obey this operator?")
    return [course.outcome for course in pending.values() if course.outcome is not None]


def change(
    fleet: Fleet,
    wanted: Mapping[str, tuple[Change, str]],
    *,
    until: Literal["running", "confirmed"] = "confirmed",
    progress: Progress = silent,
    answer_s: float = ANSWER_S,
    patience_s: float = PATIENCE_S,
) -> list[Outcome]:
    """Have devices run another bundle, all at once, and follow each until it runs or has proved itself.

    Args:
        fleet: entered and settled, with an operator.
        wanted: for each device the command, and the SHA-256 of the bundle that it shall run.
        until: ``running`` is content when the bundle runs, ``confirmed`` waits the minute in which it proves itself.
        progress: bytes while devices download, then seconds until they are confirmed.
        answer_s: so long the answer to the command is waited for.
        patience_s: so long a device may say nothing at all.

    Returns:
        one outcome for each device, in their order.
    """
    courses = {name: _Course(name, goal=sha256) for name, (_, sha256) in wanted.items()}
    for name, (command, _) in wanted.items():
        member = fleet.members.get(name)
        if member is not None and member.info is not None and member.info.bundle_sha256 == courses[name].goal:
            courses[name].end("current", "it runs this bundle already", member.info.slot)
            continue
        fleet.link.send("update" if isinstance(command, Update) else "rollback", command)
    while any(course.outcome is None for course in courses.values()):
        said = fleet.take(_POLL_S)
        if said is not None and said.device in courses:
            courses[said.device].hear(said, until)
        for course in courses.values():
            course.watch(answer_s=answer_s, patience_s=patience_s)
        _report(list(courses.values()), progress)
    return [course.outcome for course in courses.values() if course.outcome is not None]


@dataclass
class _Course:
    """One device's way from the command to its end."""

    device: str
    goal: str = ""
    accepted: bool = False
    status: UpdateStatus | None = None
    outcome: Outcome | None = None
    began_s: float = field(default_factory=time.monotonic)
    heard_s: float = field(default_factory=time.monotonic)
    running_s: float | None = None
    done_bytes: int = 0
    total_bytes: int = 0

    def end(self, result: Result, detail: str = "", slot: str | None = None) -> None:
        """The first end is the one that counts."""
        if self.outcome is None:
            self.outcome = Outcome(self.device, result, detail, slot)

    def hear(self, said: Message, until: Literal["running", "confirmed"]) -> None:
        self.heard_s = time.monotonic()
        if isinstance(said, Reply) and said.verb in {"update", "rollback"} and not self.accepted:
            self.accepted = said.ok
            if not said.ok:
                self.end("refused", said.detail)
        if not isinstance(said, UpdateStatus) or said.bundle_sha256 != self.goal:
            return
        # An answer may be lost; who works on it has taken it. How it ended, said before, is about an earlier time.
        self.accepted = self.accepted or said.stage in _AT_WORK
        if not self.accepted:
            return
        self.status = said
        if said.total_bytes:
            self.done_bytes, self.total_bytes = said.done_bytes, said.total_bytes
        elif said.stage != "downloading":
            self.done_bytes = self.total_bytes
        if said.stage == "running" and self.running_s is None:
            self.running_s = self.heard_s
        if said.stage in _END_OF_STAGE:
            self.end(_END_OF_STAGE[said.stage], said.detail, said.slot)
        elif said.stage == "running" and until == "running":
            self.end("running", said.detail, said.slot)

    def watch(self, *, answer_s: float, patience_s: float) -> None:
        """Give up on a device that says nothing, or never proves itself."""
        now_s = time.monotonic()
        stage = "the command" if self.status is None else f"it said {self.status.stage!r}"
        if not self.accepted and now_s - self.began_s > answer_s:
            self.end("silent", f"no answer within {answer_s:.0f} s: does it obey this operator?")
        elif now_s - self.heard_s > patience_s:
            self.end("silent", f"nothing heard for {patience_s:.0f} s after {stage}")
        elif self.running_s is not None and now_s - self.running_s > CONFIRM_PATIENCE_S:
            self.end("failed", f"runs, but did not prove itself within {CONFIRM_PATIENCE_S:.0f} s: see its microphone")


def _report(courses: Sequence[_Course], progress: Progress) -> None:
    """Bytes as long as one device still downloads or tries the bundle, then the seconds of the last one to start."""
    open_courses = [course for course in courses if course.outcome is None]
    if not open_courses:
        return
    note = ", ".join(f"{each.device}: {'asked' if each.status is None else each.status.stage}" for each in open_courses)
    note = note if len(note) <= 60 else f"{len(open_courses)} of {len(courses)} devices at work"
    began = [each.running_s for each in open_courses if each.running_s is not None]
    if len(began) == len(open_courses):
        elapsed_s = time.monotonic() - max(began)
        if elapsed_s < CONFIRM_S + _GRACE_S:
            progress(int(min(elapsed_s, CONFIRM_S - 1)), int(CONFIRM_S), note)
        else:
            progress(int(elapsed_s), int(CONFIRM_PATIENCE_S) + 1, f"{note}, not healthy for a minute yet: microphone?")
        return
    if total_bytes := sum(course.total_bytes for course in courses):
        progress(sum(course.done_bytes for course in courses), total_bytes, note)
