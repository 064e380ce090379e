"""Clock offsets: from round trips whose truth is known."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from edge.errors import UnavailableError, UsageError
from edge.messages import Clock
from rig.devices.clock import Clocks, Instant, RoundTrip, estimate

MS = 1_000_000


def trip(there_ms: float, back_ms: float, *, offset_ns: int, utc_ns: int, start_ns: int = 10**12) -> RoundTrip:
    """An echo that was answered 0.2 ms after it came; clocks of the device are ahead by the offsets."""
    arrived = start_ns + int(there_ms * MS)
    answered = arrived + MS // 5
    back = answered + int(back_ms * MS)
    clock = Clock(
        device="d",
        boot_id="b",
        nonce="n",
        received_monotonic_ns=arrived + offset_ns,
        received_utc_ns=arrived + utc_ns,
        sent_monotonic_ns=answered + offset_ns,
        sent_utc_ns=answered + utc_ns,
    )
    return RoundTrip(Instant(start_ns, start_ns), clock, Instant(back, back))


def test_an_even_way_gives_the_offset_itself() -> None:
    found = estimate([trip(2, 2, offset_ns=7 * 10**11, utc_ns=-3_000)])
    assert (found.monotonic_ns, found.utc_ns, found.round_trips) == (7 * 10**11, -3_000, 1)
    assert found.uncertainty_ns == 2 * MS + 1


def test_the_shortest_round_trip_counts() -> None:
    trips = [
        trip(20, 1, offset_ns=500, utc_ns=0),
        trip(1, 1, offset_ns=500, utc_ns=0),
        trip(1, 40, offset_ns=500, utc_ns=0),
    ]
    assert estimate(trips).monotonic_ns == 500
    assert estimate(trips).uncertainty_ns == MS + 1
    assert abs(estimate(trips[:1]).monotonic_ns - 500) <= estimate(trips[:1]).uncertainty_ns


def test_the_truth_lies_within_the_uncertainty() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        trips = [trip(*random.exponential(5, 2), offset_ns=123_456_789, utc_ns=-987) for _ in range(16)]
        found = estimate(trips)
        assert abs(found.monotonic_ns - 123_456_789) <= found.uncertainty_ns
        assert abs(found.utc_ns + 987) <= found.uncertainty_ns


class Answering:
    """A device in another thread, which loses some echoes, answers some twice and some too late."""

    def __init__(self, clocks: Clocks, *, answers: str) -> None:
        self.clocks, self.answers, self.asked = clocks, answers, 0

    def echo(self, nonce: str) -> Instant:
        how = self.answers[self.asked % len(self.answers)]
        self.asked += 1
        sent = Instant.now()
        if how != "-":
            threading.Thread(target=self._answer, args=(nonce, how)).start()
        return sent

    def _answer(self, nonce: str, how: str) -> None:
        if how == "L":
            time.sleep(0.1)
        now = Instant.now()
        clock = Clock(
            device="e" if how == "o" else "d",
            boot_id="b2" if how == "2" else "b1",
            nonce="stale" if how == "s" else nonce,
            received_monotonic_ns=now.monotonic_ns,
            received_utc_ns=now.utc_ns,
            sent_monotonic_ns=now.monotonic_ns,
            sent_utc_ns=now.utc_ns,
        )
        for _ in range(2 if how == "d" else 1):
            self.clocks.take(clock, Instant.now())


def test_lost_late_doubled_and_foreign_answers_do_no_harm() -> None:
    clocks = Clocks()
    device = Answering(clocks, answers="1-Lsod1")
    found = clocks.measure("d", device.echo, round_trips=14, timeout_s=0.05)
    assert device.asked == 14
    assert found.round_trips == 6
    assert abs(found.monotonic_ns) <= found.uncertainty_ns < 50 * MS


def test_a_restart_in_between_begins_anew() -> None:
    clocks = Clocks()
    found = clocks.measure("d", Answering(clocks, answers="1112").echo, round_trips=4, timeout_s=1)
    assert (found.boot_id, found.round_trips) == ("b2", 1)


def test_silence_is_told_after_three_echoes() -> None:
    clocks = Clocks()
    device = Answering(clocks, answers="-")
    with pytest.raises(UnavailableError, match="device d: 3 echoes and no answer"):
        clocks.measure("d", device.echo, round_trips=16, timeout_s=0.01)
    assert device.asked == 3


@pytest.mark.parametrize("round_trips", [0, 1001])
def test_how_many_round_trips(round_trips: int) -> None:
    with pytest.raises(UsageError, match=f"round trips {round_trips}: use 1 to 1000"):
        Clocks().measure("d", lambda _: Instant.now(), round_trips=round_trips)
