"""Commands to listen that wait for their window of sound."""

from __future__ import annotations

from dataclasses import dataclass

from edge.errors import DataError
from edge.messages import Listen
from edge.sound.ring import Pcm16
from edge.sound.streams import Streams

MAX_PENDING = 256
# A command may overtake the connection that carries its sound.
UNKNOWN_STREAM_S = 10.0
# A window this far in the future is a mistake; one that has waited this long will not come.
FURTHEST_S = 600.0

TrialKey = tuple[str, str, int]


@dataclass
class _Pending:
    command: Listen
    arrived_s: float


@dataclass(frozen=True)
class Heard:
    """A command whose window (samples,) is complete."""

    command: Listen
    pcm: Pcm16


@dataclass(frozen=True)
class Refused:
    """A command that cannot be carried out, and why."""

    command: Listen
    reason: str


def key(command: Listen) -> TrialKey:
    """What a command is about: a trial's attempt."""
    return command.session_id, command.trial_id, command.attempt


class Trials:
    """At most 256 commands that wait; used by one thread. Times are seconds of the monotonic clock."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._pending: dict[TrialKey, _Pending] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, command: Listen, now_s: float) -> Refused | None:
        """Let a command wait; the same attempt asked again replaces the older command."""
        if key(command) not in self._pending and len(self._pending) >= MAX_PENDING:
            return Refused(command, f"{MAX_PENDING} commands are waiting already")
        self._pending[key(command)] = _Pending(command, now_s)
        return None

    def take(self, now_s: float, limit: int) -> tuple[list[Heard], list[Refused]]:
        """Remove and return what is decided now: at most ``limit`` heard windows, and all refusals."""
        heard: list[Heard] = []
        refused: list[Refused] = []
        for pending in list(self._pending.values()):
            if len(heard) >= limit:
                break
            outcome = self._decide(pending, now_s)
            if outcome is None:
                continue
            del self._pending[key(pending.command)]
            if isinstance(outcome, Heard):
                heard.append(outcome)
            else:
                refused.append(outcome)
        return heard, refused

    def _decide(self, pending: _Pending, now_s: float) -> Heard | Refused | None:
        command, waited_s = pending.command, now_s - pending.arrived_s
        stream = self._streams.find(command.stream_id)
        if stream is None:
            if waited_s < UNKNOWN_STREAM_S:
                return None
            return Refused(command, f"no stream {command.stream_id!r} appeared within {UNKNOWN_STREAM_S:.0f} s")
        # Read before `end`: once a stream has ended, its end no longer moves.
        ended, end = stream.ended, stream.ring.end
        missing = command.sample_index + self._streams.window_samples - end
        if missing > 0:
            return self._refuse_late(command, missing, waited_s, ended_at=end if ended else None)
        try:
            return Heard(command, stream.ring.read(command.sample_index, self._streams.window_samples))
        except DataError as error:
            return Refused(command, str(error))

    def _refuse_late(self, command: Listen, missing: int, waited_s: float, *, ended_at: int | None) -> Refused | None:
        if ended_at is not None:
            return Refused(command, f"stream {command.stream_id!r} ended at sample {ended_at}, {missing} too early")
        if missing > FURTHEST_S * self._streams.rate_hz:
            return Refused(command, f"sample {command.sample_index} is over {FURTHEST_S:.0f} s away")
        if waited_s > FURTHEST_S:
            return Refused(command, f"{missing} samples are still missing after {FURTHEST_S:.0f} s")
        return None

    def due_at(self, stream_id: str) -> int | None:
        """How far a stream must have come for the first waiting command to be heard."""
        first = self.needed_from(stream_id)
        return None if first is None else first + self._streams.window_samples

    def needed_from(self, stream_id: str) -> int | None:
        """The lowest sample of a stream that a waiting command asks for."""
        if not self._pending:
            return None
        indices = [p.command.sample_index for p in self._pending.values() if p.command.stream_id == stream_id]
        return min(indices, default=None)
