"""The door for commands: everything that comes from the network is judged here, in the network thread."""

from __future__ import annotations

import logging
import queue
import re
from collections.abc import Callable

from edge.agent.limiter import Limiter
from edge.errors import UsageError
from edge.messages import NAME_PATTERN, Acknowledge, Listen, parse

log = logging.getLogger(__name__)

MAX_WAITING = 1024
VERBS: dict[str, type[Listen | Acknowledge]] = {"listen": Listen, "acknowledge": Acknowledge}

Complaint = Callable[[str, str], None]


class Commands:
    """A bounded queue of valid commands; what is not one is counted and, a few times a second, logged and answered.

    ``complain(verb, detail)`` sends the answer; ``on_command()`` wakes who empties the queue.
    """

    def __init__(self, device: str, *, complain: Complaint, on_command: Callable[[], None]) -> None:
        self.rejected = 0
        self.overflowed = 0
        self._device = device
        self._complain = complain
        self._on_command = on_command
        self._limiter = Limiter(per_second=2, burst=10)
        self._queue: queue.Queue[Listen | Acknowledge] = queue.Queue(MAX_WAITING)

    def receive(self, verb: str, payload: bytes) -> None:
        """Take what came on ``command/<verb>``."""
        try:
            command = self._judge(verb, payload)
        except UsageError as error:
            self.rejected += 1
            self._note(verb, str(error))
            return
        try:
            self._queue.put_nowait(command)
        except queue.Full:
            self.overflowed += 1
            self._note(verb, f"{MAX_WAITING} commands are waiting already")
        self._on_command()

    def _judge(self, verb: str, payload: bytes) -> Listen | Acknowledge:
        kind = VERBS.get(verb)
        if kind is None:
            raise UsageError(f"unknown command {_shown(verb)}: this device knows {', '.join(VERBS)}")
        command = parse(kind, payload)
        if command.device != self._device:
            raise UsageError(f"{kind.__name__}: it is for device {command.device!r}, this is {self._device!r}")
        return command

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

    def take(self) -> Listen | Acknowledge | None:
        """The next command, or None."""
        try:
            return self._queue.get_nowait()
        except queue.Empty:
            return None


def _shown(verb: str) -> str:
    return ascii(verb[:40])
