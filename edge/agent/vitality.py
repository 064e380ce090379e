"""Whether the agent does what it is there for: the microphone is open, and its sound is made into scores."""

from __future__ import annotations

import logging
import math
import time

import numpy as np

from edge.agent.prediction import Predictor
from edge.errors import DataError, UnavailableError
from edge.sound.streams import Stream, Streams

log = logging.getLogger(__name__)

# A window is this fresh, or two hops where they are longer, or there is none.
FRESH_S = 3.0
PROBE_S = 1.0
# So long may sound wait for its window before the agent is held for stuck.
STUCK_S = 10.0


class Vitality:
    """Judges the agent by its work; used by the thread that does it.

    Args:
        streams: what is heard.
        predictor: counts the windows that were classified.
        hop_samples: how far apart the windows of continuous listening are; None where the device listens on command.
    """

    def __init__(self, streams: Streams, predictor: Predictor, *, hop_samples: int | None) -> None:
        self._streams = streams
        self._predictor = predictor
        self._hop = hop_samples
        self._fresh_s = max(FRESH_S, 2 * (hop_samples or 0) / streams.rate_hz)
        self._windows = predictor.windows
        self._window_s = self._probe_s = -math.inf
        self._worked_s = time.monotonic()
        self._worked_at = ("", 0)

    @property
    def is_alive(self) -> bool:
        """False when sound keeps coming and has not been made into scores for a while."""
        self._note_work()
        return time.monotonic() - self._worked_s < STUCK_S

    def is_healthy(self) -> bool:
        """Whether the microphone is open and windows are computed; where nobody asks for any, one is tried."""
        self._note_work()
        stream = self._streams.current
        if stream is None or stream.ended or self._streams.problem:
            return False
        if self._hop is None:
            self._probe(stream)
        return time.monotonic() - self._window_s < self._fresh_s

    def _note_work(self) -> None:
        now_s, stream = time.monotonic(), self._streams.current
        position = ("", 0) if stream is None else (stream.stream_id, stream.ring.end)
        if self._predictor.windows != self._windows:
            self._windows, self._window_s = self._predictor.windows, now_s
            self._worked_s, self._worked_at = now_s, position
            return
        if self._hop is None or position[0] != self._worked_at[0] or stream is None or stream.ended:
            self._worked_s, self._worked_at = now_s, position
            return
        enough = self._streams.window_samples + 2 * self._hop
        if position[1] - self._worked_at[1] < enough:
            self._worked_s = now_s

    def _probe(self, stream: Stream) -> None:
        """Classify the last window, or silence before there is one, for nobody."""
        now_s = time.monotonic()
        if min(now_s - self._window_s, now_s - self._probe_s) < PROBE_S:
            return
        self._probe_s = now_s
        window, end = self._streams.window_samples, stream.ring.end
        try:
            enough = end - window >= stream.ring.begin
            pcm = stream.ring.read(end - window, window) if enough else np.zeros(window, np.int16)
            self._predictor.try_out(pcm)
        except (DataError, UnavailableError) as error:
            log.warning("the model gives no scores: %s", error)
        self._note_work()
