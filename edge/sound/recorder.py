"""The recording thread: opens the microphone, copies what it hears into the current stream, opens it again."""

from __future__ import annotations

import logging
import math
import random
import threading
import time

from edge.errors import DataError, UnavailableError
from edge.sound.microphones.protocol import Microphone
from edge.sound.streams import Streams

log = logging.getLogger(__name__)

# A rig opens its socket a moment after its device starts; a microphone that was unplugged takes longer.
_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 5.0
# One that breaks down sooner after it came back is no better than one that did not come back.
_HEALTHY_S = 10.0
_LOG_S = 10.0


class Recorder(threading.Thread):
    """Runs until ``stop`` is set, or until the end of a microphone that does not reopen."""

    def __init__(self, microphone: Microphone, streams: Streams, stop: threading.Event) -> None:
        super().__init__(name="recorder", daemon=True)
        self._microphone = microphone
        self._streams = streams
        self._stop_event = stop
        self._last_problem = ""
        self._was_lost = False
        self._logged_s = -math.inf

    def run(self) -> None:
        """Record; the thread's body."""
        failures = 0
        try:
            while not self._stop_event.is_set():
                start_s = time.monotonic()
                problem, heard = self._record_one_stream()
                if self._stop_event.is_set():
                    return
                self._streams.end(problem)
                self._was_lost = self._was_lost or (heard and bool(problem))
                if not self._microphone.reopens and not problem:
                    log.info("%s: at its end", self._microphone.name)
                    return
                if problem and problem != self._last_problem:
                    log.warning("%s; trying again", problem)
                self._last_problem = problem
                well = heard and (not problem or time.monotonic() - start_s >= _HEALTHY_S)
                failures = 0 if well else failures + 1
                longest_s = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2 ** min(failures, 10))
                self._stop_event.wait(longest_s * random.uniform(0.5, 1.0))
        finally:
            self._microphone.close()

    def _record_one_stream(self) -> tuple[str, bool]:
        """Record until the stream's end; returns what went wrong, if anything, and whether sound came."""
        heard = False
        try:
            stream_id = self._microphone.open()
            self._streams.begin(stream_id)
            log.info("%s: stream %s began", self._microphone.name, stream_id)
            self._count()
            while not self._stop_event.is_set():
                pcm = self._microphone.read()
                self._count()
                if pcm is None:
                    log.info("%s: stream %s ended", self._microphone.name, stream_id)
                    return "", heard
                if not len(pcm):
                    continue
                if self._microphone.stream_id != stream_id:
                    stream_id = self._follow(stream_id)
                if self._was_lost:
                    self._was_lost, self._streams.reopened = False, self._streams.reopened + 1
                heard, self._last_problem = True, ""
                self._streams.write(pcm, can_wait=self._microphone.can_wait, stop=self._stop_event)
        except (UnavailableError, DataError) as error:
            return str(error), heard
        finally:
            self._microphone.close()
        return "", heard

    def _count(self) -> None:
        self._streams.xruns, self._streams.overruns = self._microphone.xruns, self._microphone.overruns

    def _follow(self, stream_id: str) -> str:
        """Sound was lost in the middle: what comes now is another stream."""
        stream = self._streams.current
        at = 0 if stream is None else stream.ring.end
        self._streams.begin(self._microphone.stream_id)
        now_s = time.monotonic()
        level = logging.WARNING if now_s - self._logged_s >= _LOG_S else logging.DEBUG
        self._logged_s = now_s if level == logging.WARNING else self._logged_s
        log.log(
            level,
            "%s: sound was lost after sample %d of stream %s, stream %s begins (%d losses so far)",
            *(self._microphone.name, at, stream_id, self._microphone.stream_id, self._microphone.xruns),
        )
        return self._microphone.stream_id
