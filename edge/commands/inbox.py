"""The door for commands: everything that comes from the network is judged here, in the network thread."""

from __future__ import annotations

import logging
import queue
import re
import time
from collections.abc import Callable

from edge.commands.authority import Authority
from edge.commands.limiter import Limiter
from edge.errors import UsageError
from edge.messages import NAME_PATTERN, Acknowledge, Clock, Echo, Listen, Rollback, Rotate, Update, parse

log = logging.getLogger(__name__)

MAX_WAITING = 1024
Command = Listen | Acknowledge | Update | Rollback | Rotate
VERBS: dict[str, type[Command | Echo]] = {
    "listen": Listen,
    "acknowledge": Acknowledge,
    "echo": Echo,
    "update": Update,
    "rollback": Rollback,
    "rotate": Rotate,
}

Complaint = Callable[[str, str], None]


class Inbox:
    """A bounded queue of valid commands; what is not one is counted and, a few times a second, logged and answered.

    Args:
        device: this device's name.
        boot_id: this boot's.
        authority: says whose commands are obeyed.
        complain: ``complain(verb, detail)`` sends the answer.
        tell_time: sends the answer to ``echo``, which does not wait in the queue.
        on_command: wakes who empties the queue.
    """

    def __init__(
        self,
        device: str,
        boot_id: str,
        authority: Authority,
        *,
        complain: Complaint,
        tell_time: Callable[[Clock], None],
        on_command: Callable[[], None],
    ) -> None:
        self.rejected = 0
        self.overflowed = 0
        self._device = device
        self._boot_id = boot_id
        self._authority = authority
        self._complain = complain
        self._tell_time = tell_time
        self._on_command = on_command
        self._limiter = Limiter(per_second=2, burst=10)
        self._queue: queue.Queue[Command] = queue.Queue(MAX_WAITING)

    def receive(self, verb: str, payload: bytes) -> None:
        """Take what came on ``command/<verb>``."""
        monotonic_ns, utc_ns = time.monotonic_ns(), time.time_ns()
        try:
            command = self._judge(verb, payload)
        except UsageError as error:
            self.rejected += 1
            self._note(verb, str(error))
            return
        if isinstance(command, Echo):
            self._answer(command, monotonic_ns, utc_ns)
            return
        try:
            self._queue.put_nowait(command)
        except queue.Full:
            self.overflowed += 1
            self._note(verb, f"{MAX_WAITING} commands are waiting already")
        self._on_command()

    def _judge(self, verb: str, payload: bytes) -> Command | Echo:
        kind = VERBS.get(verb)
        if kind is None:
            raise UsageError(f"unknown command {_shown(verb)}: this device knows {', '.join(VERBS)}")
        command = parse(kind, self._authority.open(verb, payload))
        if command.device != self._device:
            raise UsageError(f"{kind.__name__}: it is for device {command.device!r}, this is {self._device!r}")
        return command

    def _answer(self, echo: Echo, monotonic_ns: int, utc_ns: int) -> None:
        clock = Clock(
            device=self._device,
            boot_id=self._boot_id,
            nonce=echo.nonce,
            received_monotonic_ns=monotonic_ns,
            received_utc_ns=utc_ns,
            sent_monotonic_ns=time.monotonic_ns(),
            sent_utc_ns=time.time_ns(),
        )
        self._tell_time(clock)

    def _note(self, verb: str, detail: str) -> None:
        if not self._limiter.allow():
            return
        detail = " ".join(detail.split())[:300]
        log.warning(
            "rejected a command: %s (%d so far, %d of them not logged)",
            detail,
            self.rejected + self.overflowed,
            self._limiter.suppressed,
        )
        if re.match(NAME_PATTERN, verb):
            self._complain(verb, detail)

    def take(self) -> Command | None:
        """The next command, or None; only one thread may take."""
        # Nearly always there is none, and an exception costs more than a look.
        return None if self._queue.empty() else self._queue.get_nowait()


def _shown(verb: str) -> str:
    return ascii(verb[:40])
