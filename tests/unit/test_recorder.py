"""The recorder with microphones that lose sound, go away and come back, and what it counts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from edge.errors import UnavailableError
from edge.sound.level import Silence, level_dbfs, loudness
from edge.sound.recorder import Recorder
from edge.sound.ring import Pcm16
from edge.sound.streams import Stream, Streams

RATE_HZ = 1000


class Scripted:
    """A card that does what it is told: a list of blocks is read, None loses sound, an error takes the card away."""

    name, can_wait, reopens = "scripted", False, True

    def __init__(self, *openings: Sequence[Pcm16 | UnavailableError | None] | UnavailableError) -> None:
        self.xruns = self.overruns = 0
        self.stream_id = ""
        self.closed = 0
        self._openings = list(openings)
        self._blocks: list[Pcm16 | UnavailableError | None] = []
        self._count = 0

    def _begin(self) -> str:
        self._count += 1
        self.stream_id = f"s{self._count}"
        return self.stream_id

    def open(self) -> str:
        opening = self._openings.pop(0) if self._openings else []
        if isinstance(opening, UnavailableError):
            raise opening
        self._blocks = list(opening)
        return self._begin()

    def read(self) -> Pcm16 | None:
        if not self._blocks:
            threading.Event().wait(0.01)
            return np.zeros(0, np.int16)
        block = self._blocks.pop(0)
        if isinstance(block, UnavailableError):
            raise block
        if block is None:
            self.xruns, self.overruns = self.xruns + 2, self.overruns + 1
            self._begin()
            return self.read()
        return block

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def record(wait_until: Callable[..., None]) -> Callable[..., tuple[Streams, list[Stream]]]:
    def record(microphone: Scripted, streams_wanted: int, samples: int) -> tuple[Streams, list[Stream]]:
        seen: list[Stream] = []

        def look() -> None:
            if streams.current is not None and streams.current not in seen:
                seen.append(streams.current)

        streams = Streams(RATE_HZ, 100, look)
        stop = threading.Event()
        recorder = Recorder(microphone, streams, stop)
        recorder.start()
        wait_until(lambda: len(seen) == streams_wanted and seen[-1].ring.end >= samples, 10)
        stop.set()
        recorder.join(5)
        assert not recorder.is_alive()
        return streams, seen

    return record


def _sound(count: int, first: int = 1) -> Pcm16:
    return np.arange(first, first + count).astype(np.int16)


def test_sound_that_was_lost_ends_the_stream(record: Callable[..., tuple[Streams, list[Stream]]]) -> None:
    microphone = Scripted([_sound(100), None, _sound(50, 500), _sound(50, 550)])
    streams, (before, after) = record(microphone, 2, 100)
    assert (before.stream_id, before.ended, before.ring.end) == ("s1", True, 100)
    assert (after.stream_id, after.ring.read(0, 100).tolist()) == ("s2", _sound(100, 500).tolist())
    assert (streams.xruns, streams.overruns, streams.reopened) == (2, 1, 0)
    assert microphone.closed == 2


def test_a_lost_microphone_is_opened_again_and_counted(
    record: Callable[..., tuple[Streams, list[Stream]]], caplog: pytest.LogCaptureFixture
) -> None:
    gone = UnavailableError("unplugged")
    streams, seen = record(
        Scripted(UnavailableError("not there yet"), [_sound(10), gone], gone, [_sound(20), gone], [_sound(30)]), 3, 30
    )
    assert [stream.ring.end for stream in seen] == [10, 20, 30]
    assert streams.reopened == 2
    assert streams.problem == ""
    assert [record.message for record in caplog.records] == ["not there yet; trying again"] + [
        "unplugged; trying again"
    ] * 2


def test_a_microphone_that_sticks_is_silent_across_blocks_and_streams() -> None:
    silence = Silence()
    for pcm, samples in (
        ([0, 0, 0], 3),
        ([0, 0], 5),
        ([], 5),
        ([1, 0, 0], 2),
        ([0], 3),
        ([7], 1),
        ([7, 7], 3),
        ([7, 7, 8], 1),
        ([1, 2, 2, 2], 3),
    ):
        silence.feed(np.array(pcm, np.int16))
        assert silence.samples == samples, pcm


def test_silence_is_what_counting_by_hand_gives() -> None:
    rng = np.random.default_rng(0)
    silence, whole = Silence(), np.zeros(0, np.int16)
    for _ in range(300):
        pcm = rng.integers(0, 2, rng.integers(0, 6)).astype(np.int16) * int(rng.integers(0, 2))
        silence.feed(pcm)
        whole = np.concatenate((whole, pcm))
        if len(whole):
            others = np.flatnonzero(whole != whole[-1])
            assert silence.samples == len(whole) - (others[-1] + 1 if len(others) else 0)


def test_a_muted_microphone_is_told_in_seconds(record: Callable[..., tuple[Streams, list[Stream]]]) -> None:
    streams, _ = record(Scripted([_sound(10), np.zeros(1500, np.int16)]), 1, 1510)
    assert streams.silent_s == 1.5


def test_loudness_counts_both_ends_of_the_range() -> None:
    pcm = np.array([32767, -32768, -32767, 0, 32767], np.int16)
    seen = loudness(pcm)
    assert seen.clipped_samples == 3
    assert (seen.rms_dbfs, seen.peak_dbfs) == level_dbfs(pcm)
    assert loudness(np.zeros(0, np.int16)) == (-120.0, -120.0, 0)
