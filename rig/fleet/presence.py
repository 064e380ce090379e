"""All devices of a broker, as they say themselves how they are."""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from edge.errors import UnavailableError
from edge.messages import Health, Info, Level, Message, Prediction, State, UpdateStatus
from edge.mqtt.broker_url import BrokerUrl
from rig.devices.events import BrokerChanged, Events, Received
from rig.devices.link import REPORTS, Link
from rig.devices.operator import Operator

CONNECT_TIMEOUT_S = 5.0
# What is retained arrives at once after the subscription; a broker far away takes a moment.
QUIET_S = 0.4
LONGEST_S = 5.0

ANYBODY = "+"
# All but predictions, of which there may be thousands a second.
QUIET_REPORTS = tuple(kind for kind in REPORTS if kind != "prediction")

_KINDS: dict[type[Message], str] = {
    State: "state",
    Info: "info",
    UpdateStatus: "update",
    Health: "health",
    Level: "level",
    Prediction: "prediction",
}
# What a device said of these before we came, the broker repeats: the first of each is no sign of life.
_RETAINED = frozenset({"state", "info", "update"})


@dataclass(frozen=True)
class Member:
    """What one device said last, of each kind; ``heard_s`` is when it spoke live, on the monotonic clock."""

    name: str
    state: State | None = None
    info: Info | None = None
    update: UpdateStatus | None = None
    health: Health | None = None
    level: Level | None = None
    prediction: Prediction | None = None
    heard_s: float | None = None

    @property
    def status(self) -> str:
        """``online``, ``stopped``, ``lost``, or ``unknown`` where nothing is retained."""
        return "unknown" if self.state is None else self.state.status

    def silent_for_s(self) -> float | None:
        """For how long it said nothing; None where all that is known is what the broker retained."""
        return None if self.heard_s is None else time.monotonic() - self.heard_s

    def told(self, report: Message) -> Member:
        """The same device after it said ``report``."""
        kind = _KINDS.get(type(report))
        retained = kind is not None and kind in _RETAINED and getattr(self, kind) is None
        by_broker = isinstance(report, State) and report.status == "lost"
        heard_s = self.heard_s if retained or by_broker else time.monotonic()
        changes: dict[str, Any] = {} if kind is None else {kind: report}
        return replace(self, **changes, heard_s=heard_s)


class Fleet:
    """Hears every device of a broker, or those named.

    Args:
        url: the broker.
        devices: names; ``+`` is every device.
        operator: signs what is sent through :attr:`link`; None only listens.
        reports: which messages to hear, keys of :data:`rig.devices.link.REPORTS`.

    Raises:
        UnavailableError: when entered, the broker cannot be reached or refuses.
    """

    def __init__(
        self,
        url: BrokerUrl,
        devices: tuple[str, ...] = (ANYBODY,),
        *,
        operator: Operator | None = None,
        reports: Sequence[str] = QUIET_REPORTS,
    ) -> None:
        self.members: dict[str, Member] = {}
        self._url = url
        self._events: Events = queue.SimpleQueue()
        self.link = Link(url, devices, self._events, operator=operator, reports=reports)

    def __enter__(self) -> Self:
        self.link.__enter__()
        try:
            self._wait_for_connection()
        except BaseException:
            self.link.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.link.__exit__()

    def _wait_for_connection(self) -> None:
        deadline_s = time.monotonic() + CONNECT_TIMEOUT_S
        while (left_s := deadline_s - time.monotonic()) > 0:
            try:
                event = self._events.get(timeout=left_s)
            except queue.Empty:
                break
            if isinstance(event, BrokerChanged) and event.connected:
                return
            if self.link.problem:
                break
        silence = f"no answer within {CONNECT_TIMEOUT_S:.0f} s: is it an MQTT broker, or does its port want mqtts://?"
        problem = self.link.problem or silence
        raise UnavailableError(f"broker {self._url}: {problem}")

    def take(self, timeout_s: float) -> Message | None:
        """The next thing that a device says, noted in :attr:`members`; None after ``timeout_s`` of silence."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                event = self._events.get(timeout=max(0.0, deadline_s - time.monotonic()))
            except queue.Empty:
                return None
            if isinstance(event, Received):
                report: Message = event.report
                member = self.members.get(report.device) or Member(report.device)
                self.members[report.device] = member.told(report)
                return report

    def settle(self, quiet_s: float = QUIET_S, longest_s: float = LONGEST_S) -> None:
        """Take what the broker retained: until nothing new of it came for ``quiet_s``."""
        now_s = time.monotonic()
        deadline_s, quiet_at_s = now_s + longest_s, now_s + quiet_s
        while (left_s := min(deadline_s, quiet_at_s) - time.monotonic()) > 0:
            said = self.take(left_s)
            if said is not None and _KINDS.get(type(said)) in _RETAINED:
                quiet_at_s = time.monotonic() + quiet_s

    def listen(self, seconds: float) -> None:
        """Take whatever is said for so long."""
        deadline_s = time.monotonic() + seconds
        while (left_s := deadline_s - time.monotonic()) > 0:
            self.take(left_s)
