from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from edge.errors import DataError
from edge.sound.streams import MEMORY_S, Streams

RATE_HZ = 1000


def _streams(grace_s: float = 0.0) -> Streams:
    return Streams(RATE_HZ, 100, lambda: None, grace_s=grace_s)


def _sound(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * RATE_HZ), np.int16)


def test_two_streams_are_remembered() -> None:
    streams = _streams()
    for stream_id in ("a", "b", "c"):
        streams.begin(stream_id)
    assert streams.find("a") is None
    previous = streams.find("b")
    assert previous is not None
    assert previous.ended
    assert streams.current is streams.find("c")


def test_a_stream_id_is_not_used_twice() -> None:
    streams = _streams()
    streams.begin("a")
    streams.end()
    with pytest.raises(DataError, match="fresh"):
        streams.begin("a")


def test_nothing_is_written_after_the_end() -> None:
    streams = _streams()
    streams.begin("a")
    streams.end("gone")
    assert streams.problem == "gone"
    with pytest.raises(DataError):
        streams.write(_sound(1), can_wait=False, stop=threading.Event())


def test_a_live_microphone_never_waits() -> None:
    streams = _streams(grace_s=1000)
    streams.begin("a")
    stream = streams.current
    assert stream is not None
    stream.release(needed_from=0, released=0)
    streams.write(_sound(3 * MEMORY_S), can_wait=False, stop=threading.Event())
    assert stream.ring.begin == 2 * MEMORY_S * RATE_HZ


def test_a_microphone_that_can_wait_does_not_overwrite_what_is_needed() -> None:
    streams = _streams()
    streams.begin("a")
    stream = streams.current
    assert stream is not None
    stream.release(needed_from=500, released=0)
    stop = threading.Event()
    writer = threading.Thread(
        target=streams.write, args=(_sound(2 * MEMORY_S),), kwargs={"can_wait": True, "stop": stop}
    )
    writer.start()
    time.sleep(0.2)
    assert writer.is_alive()
    assert stream.ring.begin <= 500
    assert stream.ring.end > 600
    stream.release(needed_from=None, released=500)
    writer.join(5)
    assert not writer.is_alive()
    assert stream.ring.end == 2 * MEMORY_S * RATE_HZ


def test_waiting_ends_with_the_device() -> None:
    streams = _streams()
    streams.begin("a")
    stream = streams.current
    assert stream is not None
    stream.release(needed_from=0, released=0)
    stop = threading.Event()
    writer = threading.Thread(
        target=streams.write, args=(_sound(2 * MEMORY_S),), kwargs={"can_wait": True, "stop": stop}
    )
    writer.start()
    stop.set()
    writer.join(5)
    assert not writer.is_alive()


def test_young_sound_waits_for_a_command_that_is_late() -> None:
    streams = _streams(grace_s=0.5)
    streams.begin("a")
    stop = threading.Event()
    start_s = time.monotonic()
    streams.write(_sound(MEMORY_S), can_wait=True, stop=stop)
    assert time.monotonic() - start_s < 0.4
    streams.write(_sound(1), can_wait=True, stop=stop)
    assert time.monotonic() - start_s >= 0.4
