"""The streams a device remembers: the one that is being recorded and the one before it.

The recording thread writes, the inference thread reads. A microphone that can wait (a socket, whose
sender TCP holds back) is made to wait rather than overwrite what may still be asked for.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from edge.errors import DataError
from edge.messages import Identifier
from edge.sound.level import Silence
from edge.sound.ring import Pcm16, Ring

MEMORY_S = 30.0
# A command may arrive this much later than the sound it is about and still find it.
GRACE_S = 2.0
_PIECES_PER_MEMORY = 16
_POLL_S = 0.02


class Stream:
    """One opening of a microphone: its id, its last samples, and what the inference thread still needs of it."""

    def __init__(self, stream_id: Identifier, capacity_samples: int) -> None:
        self.stream_id = stream_id
        self.ring = Ring(capacity_samples)
        self.ended = False
        # Windows asked for begin at `needed_from` or later; below `released` everything is answered.
        self.needed_from: int | None = None
        self.released = 0
        # Whoever waits for sound is not woken before it has come this far.
        self.due_at = 0
        self.room = threading.Event()
        self._written_at: deque[tuple[int, float]] = deque()

    def write(self, pcm: Pcm16, now_s: float) -> None:
        """Append samples (n,) that arrived at ``now_s`` on the monotonic clock."""
        self.ring.write(pcm)
        self._written_at.append((self.ring.end, now_s))
        while self._written_at and self._written_at[0][0] <= self.ring.begin:
            self._written_at.popleft()

    def release(self, *, needed_from: int | None, released: int, due_at: int = 0) -> None:
        """Say from the inference thread what is still needed, and wake a recording thread that waits for room.

        ``due_at`` is how far the stream must have come for the inference thread to have work: a card delivers ten
        blocks a hop, and it need not look at each.
        """
        self.due_at = due_at
        self.needed_from = needed_from
        self.released = max(self.released, released)
        if not self.room.is_set():
            self.room.set()

    def may_forget(self, index: int, now_s: float, grace_s: float) -> bool:
        """Whether the samples below ``index`` can be overwritten without harm."""
        needed = self.needed_from
        if needed is not None and needed < index:
            return False
        if index <= self.released:
            return True
        for end, written_s in self._written_at:
            if end >= index:
                return now_s - written_s >= grace_s
        return True


class Streams:
    """What was heard lately. ``on_sound`` is called in the recording thread after each change; it must be quick.

    The recording thread counts in ``xruns`` how often sound was lost, in ``overruns`` the blocks that found no room,
    and in ``reopened`` how often the microphone was lost and came back.
    """

    def __init__(
        self, rate_hz: int, window_samples: int, on_sound: Callable[[], None], *, grace_s: float = GRACE_S
    ) -> None:
        self.rate_hz = rate_hz
        self.window_samples = window_samples
        self.capacity_samples = max(int(MEMORY_S * rate_hz), 2 * window_samples)
        self.xruns = self.overruns = self.reopened = 0
        self.problem = ""
        self._silence = Silence()
        self._grace_s = grace_s
        self._on_sound = on_sound
        self._current: Stream | None = None
        self._previous: Stream | None = None
        self._lock = threading.Lock()

    @property
    def current(self) -> Stream | None:
        """The newest stream, ended or not; None before the first."""
        return self._current

    @property
    def silent_s(self) -> float:
        """For how long nothing but one value has come, in whole milliseconds: a muted or broken microphone."""
        return round(self._silence.samples / self.rate_hz, 3)

    def find(self, stream_id: str) -> Stream | None:
        """The stream of that id, if it is one of the two that are remembered."""
        with self._lock:
            for stream in (self._current, self._previous):
                if stream is not None and stream.stream_id == stream_id:
                    return stream
        return None

    def begin(self, stream_id: str) -> None:
        """Start a stream; the one before the current one is forgotten.

        Raises:
            DataError: the id belongs to a stream that is still remembered.
        """
        if self.find(stream_id) is not None:
            raise DataError(f"stream id {stream_id!r} was used before: every connection needs a fresh one")
        with self._lock:
            if self._current is not None:
                self._current.ended = True
            self._previous, self._current = self._current, Stream(stream_id, self.capacity_samples)
            self.problem = ""
        self._on_sound()

    def write(self, pcm: Pcm16, *, can_wait: bool, stop: threading.Event) -> None:
        """Append samples (n,) to the current stream, waiting for room where ``can_wait``."""
        stream = self._current
        if stream is None or stream.ended:
            raise DataError("no stream is open")
        piece = max(1, self.capacity_samples // _PIECES_PER_MEMORY)
        for start in range(0, len(pcm), piece):
            part = pcm[start : start + piece]
            if can_wait:
                self._wait_for_room(stream, len(part), stop)
            stream.write(part, time.monotonic())
            self._silence.feed(part)
            if stream.ring.end >= stream.due_at:
                self._on_sound()

    def _wait_for_room(self, stream: Stream, count: int, stop: threading.Event) -> None:
        forgotten_below = stream.ring.end + count - stream.ring.capacity_samples
        if forgotten_below <= 0:
            return
        while not stream.may_forget(forgotten_below, time.monotonic(), self._grace_s):
            stream.room.wait(_POLL_S)
            stream.room.clear()
            if stop.is_set():
                return

    def end(self, problem: str = "") -> None:
        """The current stream is over; ``problem`` says in a few words why the microphone does not record."""
        with self._lock:
            self.problem = problem
            if self._current is not None:
                self._current.ended = True
        self._on_sound()
