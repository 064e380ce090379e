"""The recording thread: opens the microphone, copies what it hears into the current stream, opens it again."""

from __future__ import annotations

import logging
import random
import threading

from edge.errors import DataError, UnavailableError
from edge.sound.microphones.protocol import Microphone
from edge.sound.streams import Streams

log = logging.getLogger(__name__)

# A rig opens its socket a moment after its device starts; a microphone that was unplugged takes longer.
_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 5.0


class Recorder(threading.Thread):
    """Runs until ``stop`` is set, or until the end of a microphone that does not reopen."""

    def __init__(self, microphone: Microphone, streams: Streams, stop: threading.Event) -> None:
        super().__init__(name="recorder", daemon=True)
        self._microphone = microphone
        self._streams = streams
        self._stop_event = stop
        self._last_problem = ""

    def run(self) -> None:
        """Record; the thread's body."""
        failures = 0
        try:
            while not self._stop_event.is_set():
                problem, heard = self._record_one_stream()
                if self._stop_event.is_set():
                    return
                self._streams.end(problem)
                if not self._microphone.reopens and not problem:
                    log.info("%s: at its end", self._microphone.name)
                    return
                if problem and problem != self._last_problem:
                    log.warning("%s; trying again", problem)
                self._last_problem = problem
                failures = 0 if heard else failures + 1
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
            while not self._stop_event.is_set():
                pcm = self._microphone.read()
                self._streams.xruns = self._microphone.xruns
                if pcm is None:
                    log.info("%s: stream %s ended", self._microphone.name, stream_id)
                    return "", heard
                if len(pcm):
                    heard, self._last_problem = True, ""
                    self._streams.write(pcm, can_wait=self._microphone.can_wait, stop=self._stop_event)
        except (UnavailableError, DataError) as error:
            return str(error), heard
        finally:
            self._microphone.close()
        return "", heard
