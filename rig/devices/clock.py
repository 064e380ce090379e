"""How far a device's clocks are from the rig's, measured by round trips over the broker.

The estimate is that of NTP (RFC 5905, section 8), of the round trip that took the least time: a message is at most half
of it older than assumed, whatever the way there and the way back took each.
"""

from __future__ import annotations

import queue
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from edge.errors import UnavailableError, UsageError
from edge.messages import Clock

ROUND_TRIPS = 16
ANSWER_TIMEOUT_S = 1.0
MAX_ROUND_TRIPS = 1000


@dataclass(frozen=True)
class Instant:
    """One moment on the rig's two clocks, in nanoseconds."""

    monotonic_ns: int
    utc_ns: int

    @classmethod
    def now(cls) -> Instant:
        """This moment."""
        return cls(time.monotonic_ns(), time.time_ns())


@dataclass(frozen=True)
class ClockOffset:
    """The device's clocks minus the rig's, in nanoseconds, each known within ``uncertainty_ns``.

    Attributes:
        device, boot_id: whose clocks; the monotonic clock begins anew with the machine.
        monotonic_ns: offset of the monotonic clocks.
        utc_ns: offset of the UTC clocks.
        uncertainty_ns: half of the shortest round trip.
        round_trips: how many were answered.
    """

    device: str
    boot_id: str
    monotonic_ns: int
    utc_ns: int
    uncertainty_ns: int
    round_trips: int

    def as_document(self) -> dict[str, Any]:
        """For ``--json``, journal and summary."""
        return asdict(self)


@dataclass(frozen=True)
class RoundTrip:
    """One echo: the rig's clocks when it was sent and when it came back, the device's in between."""

    sent: Instant
    clock: Clock
    received: Instant

    @property
    def duration_ns(self) -> int:
        """Time on the way, without what the device took to answer; never negative."""
        away_ns = self.received.monotonic_ns - self.sent.monotonic_ns
        return max(0, away_ns - (self.clock.sent_monotonic_ns - self.clock.received_monotonic_ns))


def estimate(trips: list[RoundTrip]) -> ClockOffset:
    """The offset by the shortest of the round trips with one boot of one device (at least one)."""
    best = min(trips, key=lambda trip: trip.duration_ns)
    clock = best.clock
    there_ns = clock.received_monotonic_ns - best.sent.monotonic_ns
    back_ns = clock.sent_monotonic_ns - best.received.monotonic_ns
    there_utc_ns, back_utc_ns = clock.received_utc_ns - best.sent.utc_ns, clock.sent_utc_ns - best.received.utc_ns
    return ClockOffset(
        device=clock.device,
        boot_id=clock.boot_id,
        monotonic_ns=(there_ns + back_ns) // 2,
        utc_ns=(there_utc_ns + back_utc_ns) // 2,
        # Rounded up, and never zero: no clock is exact.
        uncertainty_ns=best.duration_ns // 2 + 1,
        round_trips=len(trips),
    )


class Clocks:
    """Answers to ``echo``, as they come in the network thread; who measures takes them from here."""

    def __init__(self) -> None:
        self._answers: queue.SimpleQueue[tuple[Clock, Instant]] = queue.SimpleQueue()
        self._waiting: str | None = None

    def take(self, clock: Clock, received: Instant) -> None:
        """An answer has come."""
        if clock.nonce == self._waiting:
            self._answers.put((clock, received))

    def measure(
        self,
        device: str,
        echo: Callable[[str], Instant],
        *,
        round_trips: int = ROUND_TRIPS,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> ClockOffset:
        """Make round trips with a device, one after the other, and estimate its offset.

        Args:
            device: its name.
            echo: sends ``echo`` with this nonce and tells when.
            round_trips: how many to try, 1 to 1000.
            timeout_s: so long each answer is waited for.

        Raises:
            UsageError: ``round_trips`` is out of range.
            UnavailableError: no round trip was answered.
        """
        if not 1 <= round_trips <= MAX_ROUND_TRIPS:
            raise UsageError(f"round trips {round_trips}: use 1 to {MAX_ROUND_TRIPS}")
        trips: list[RoundTrip] = []
        lost = 0
        for _ in range(round_trips):
            trip = self._round_trip(device, echo, timeout_s)
            if trip is None:
                lost += 1
                # A device that answers nothing at all is not waited for sixteen times.
                if lost >= 3 and not trips:
                    break
                continue
            if trips and trip.clock.boot_id != trips[0].clock.boot_id:
                trips.clear()
            trips.append(trip)
        self._waiting = None
        if not trips:
            raise UnavailableError(
                f"device {device}: {lost} echoes and no answer: is it online, and obeys this operator?"
            )
        return estimate(trips)

    def _round_trip(self, device: str, echo: Callable[[str], Instant], timeout_s: float) -> RoundTrip | None:
        nonce = self._waiting = secrets.token_hex(8)
        sent = echo(nonce)
        deadline_s = time.monotonic() + timeout_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            try:
                clock, received = self._answers.get(timeout=left_s)
            except queue.Empty:
                return None
            if clock.nonce == nonce and clock.device == device:
                return RoundTrip(sent, clock, received)
        return None
