from __future__ import annotations

import threading

import numpy as np
import pytest

from edge.agent.trials import FURTHEST_S, MAX_PENDING, UNKNOWN_STREAM_S, Refused, Trials
from edge.messages import Listen
from edge.sound.streams import MEMORY_S, Streams

RATE_HZ, WINDOW = 1000, 100


@pytest.fixture
def streams() -> Streams:
    return Streams(RATE_HZ, WINDOW, lambda: None)


def _listen(index: int, stream_id: str = "a", trial_id: str = "t") -> Listen:
    return Listen(device="d", session_id="s", trial_id=trial_id, attempt=0, stream_id=stream_id, sample_index=index)


def _hear(streams: Streams, count: int) -> None:
    stream = streams.current
    assert stream is not None
    first = stream.ring.end
    sound = (np.arange(first, first + count) % 1000).astype(np.int16)
    streams.write(sound, can_wait=False, stop=threading.Event())


def test_a_future_window_is_heard_when_its_last_sample_is_there(streams: Streams) -> None:
    trials = Trials(streams)
    streams.begin("a")
    assert trials.add(_listen(50), 0.0) is None
    _hear(streams, 149)
    assert trials.take(0.0, 8) == ([], [])
    assert trials.needed_from("a") == 50
    _hear(streams, 1)
    heard, refused = trials.take(0.0, 8)
    assert [each.pcm.tolist() for each in heard] == [list(range(50, 150))]
    assert refused == []
    assert len(trials) == 0
    assert trials.needed_from("a") is None


def test_a_past_window_is_heard_from_memory_and_refused_once_overwritten(streams: Streams) -> None:
    trials = Trials(streams)
    streams.begin("a")
    _hear(streams, int(MEMORY_S * RATE_HZ) + 10)
    trials.add(_listen(10, trial_id="held"), 0.0)
    trials.add(_listen(9, trial_id="gone"), 0.0)
    heard, refused = trials.take(0.0, 8)
    assert [each.command.trial_id for each in heard] == ["held"]
    assert [(each.command.trial_id, each.reason) for each in refused] == [
        ("gone", "sample 9 is overwritten: the oldest one held is 10")
    ]


def test_a_command_may_overtake_its_stream(streams: Streams) -> None:
    trials = Trials(streams)
    trials.add(_listen(0), 100.0)
    assert trials.take(100.0 + UNKNOWN_STREAM_S - 0.1, 8) == ([], [])
    streams.begin("a")
    _hear(streams, WINDOW)
    assert len(trials.take(100.0 + UNKNOWN_STREAM_S + 1, 8)[0]) == 1


def test_a_stream_that_never_comes_is_refused(streams: Streams) -> None:
    trials = Trials(streams)
    trials.add(_listen(0, "nowhere"), 100.0)
    heard, refused = trials.take(100.0 + UNKNOWN_STREAM_S, 8)
    assert heard == []
    assert "nowhere" in refused[0].reason


def test_a_window_that_the_stream_did_not_reach_is_refused(streams: Streams) -> None:
    trials = Trials(streams)
    streams.begin("a")
    _hear(streams, 120)
    trials.add(_listen(30), 0.0)
    streams.end()
    _, refused = trials.take(0.0, 8)
    assert refused[0].reason == "stream 'a' ended at sample 120, 10 too early"


def test_a_stream_that_ended_is_still_heard(streams: Streams) -> None:
    trials = Trials(streams)
    streams.begin("a")
    _hear(streams, 120)
    streams.begin("b")
    trials.add(_listen(20), 0.0)
    assert len(trials.take(0.0, 8)[0]) == 1


def test_windows_beyond_reason_are_refused(streams: Streams) -> None:
    trials = Trials(streams)
    streams.begin("a")
    trials.add(_listen(1 << 62, trial_id="far"), 0.0)
    trials.add(_listen(0, trial_id="stalled"), 0.0)
    _, refused = trials.take(0.0, 8)
    assert [each.command.trial_id for each in refused] == ["far"]
    _, refused = trials.take(FURTHEST_S + 1, 8)
    assert [each.command.trial_id for each in refused] == ["stalled"]


def test_what_waits_is_bounded_and_the_same_attempt_waits_once(streams: Streams) -> None:
    trials = Trials(streams)
    streams.begin("a")
    for number in range(MAX_PENDING):
        assert trials.add(_listen(0, trial_id=f"t{number}"), 0.0) is None
    assert trials.add(_listen(0, trial_id="t0"), 0.0) is None
    assert isinstance(trials.add(_listen(0, trial_id="more"), 0.0), Refused)
    assert len(trials) == MAX_PENDING


def test_a_group_is_limited(streams: Streams) -> None:
    trials = Trials(streams)
    streams.begin("a")
    _hear(streams, WINDOW)
    for number in range(5):
        trials.add(_listen(0, trial_id=f"t{number}"), 0.0)
    assert [len(trials.take(0.0, 3)[0]) for _ in range(3)] == [3, 2, 0]
