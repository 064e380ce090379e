"""Continuous listening: one window every hop, without being asked."""

from __future__ import annotations

import logging
from collections.abc import Callable

from edge.agent.prediction import Predictor
from edge.agent.recogniser import Facts
from edge.commands.limiter import Limiter
from edge.errors import DataError, UnavailableError
from edge.listening.trigger import ListeningSettings, Trigger
from edge.messages import Prediction
from edge.sound.streams import Stream, Streams

log = logging.getLogger(__name__)

Deliver = Callable[[Prediction], None]


class Listening:
    """Classifies the windows of the current stream in their order; used by one thread.

    ``left_out`` counts the windows that were not classified because the machine was late: a microphone that cannot
    wait goes on meanwhile, and what it said a while ago is of no use. A microphone that can wait is made to, so that a
    file is heard in full on every machine.

    Args:
        settings: hop, trigger, and what is kept.
        manifest: labels, rate and kind of scores.
        predictor: makes the predictions.
        streams: what is heard.
        can_wait: whether the microphone can.
        keep: is given a prediction that must not be lost, and publishes it.
        say: publishes a prediction once.
    """

    def __init__(
        self,
        settings: ListeningSettings,
        *,
        manifest: Facts,
        predictor: Predictor,
        streams: Streams,
        can_wait: bool,
        keep: Deliver,
        say: Deliver,
    ) -> None:
        self.windows = 0
        self.left_out = 0
        self.fired = 0
        self._predictor = predictor
        self._streams = streams
        self._can_wait = can_wait
        self._keep = keep
        self._say = keep if settings.keep == "all" else say
        self._hop = settings.hop_samples(manifest.rate_hz)
        self._trigger = Trigger(manifest.labels, manifest.score_kind, manifest.rate_hz, settings)
        self._stream_id = ""
        self._next = 0
        self._limiter = Limiter(per_second=0.2, burst=5)

    def step(self) -> bool:
        """Classify the next window if it is complete; true when the one after it is complete too."""
        stream = self._streams.current
        if stream is None:
            return False
        if stream.stream_id != self._stream_id:
            self._stream_id, self._next = stream.stream_id, 0
            self._trigger.reset()
        # A live stream that has ended is over; one that waited for us is heard to its end.
        if stream.ended and not self._can_wait:
            return False
        late = stream.ring.end - self._streams.window_samples - self._next
        if late < 0:
            return False
        index = self._skip(stream, late)
        self._next = index + self._hop
        try:
            pcm = stream.ring.read(index, self._streams.window_samples)
            prediction = self._predictor.predict(
                pcm,
                stream_id=stream.stream_id,
                sample_index=index,
                xruns=self._streams.xruns,
                trigger=lambda scores: self._trigger.feed(scores, index),
            )
        except (DataError, UnavailableError) as error:
            if self._limiter.allow():
                log.warning("no prediction at sample %d: %s", index, error)
            return self._is_complete(stream)
        self.windows += 1
        if prediction.trigger is None:
            self._say(prediction)
        else:
            self.fired += 1
            self._keep(prediction)
        return self._is_complete(stream)

    def _is_complete(self, stream: Stream) -> bool:
        return stream.ring.end >= self._next + self._streams.window_samples

    def _skip(self, stream: Stream, late: int) -> int:
        """The position to listen at: the newest that is complete, or the oldest that is still remembered."""
        behind = stream.ring.begin - self._next if self._can_wait else late
        hops = max(0, -(-behind // self._hop) if self._can_wait else behind // self._hop)
        self.left_out += hops
        return self._next + hops * self._hop

    def due_at(self, stream_id: str) -> int | None:
        """How far a stream must have come for the next window to be complete."""
        return self._next + self._streams.window_samples if stream_id == self._stream_id else None

    def needed_from(self, stream_id: str) -> int | None:
        """The first sample of a stream that is still to be heard; None where the microphone is not made to wait."""
        return self._next if self._can_wait and stream_id == self._stream_id else None
