"""A Wyoming wake-word service (openWakeWord, microWakeWord, ...) that is given the sound of each trial."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence

from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.event import Event
from wyoming.info import Describe, Info, SelectProgram
from wyoming.wake import Detect, Detection, NotDetected

from edge.errors import DataError, UnavailableError
from edge.sound.ring import Pcm16
from rig.bridges.assistant import Description, check_words
from rig.bridges.utterance import Utterance
from rig.bridges.wyoming_info import ServiceInfo, WakeProgram, read_detection, read_info
from rig.bridges.wyoming_wire import Address, Wire

log = logging.getLogger(__name__)

INFO_TIMEOUT_S = 5.0
# A service answers a second of sound with one event, perhaps a few.
MAX_EVENTS = 1000
_POLL_S = 0.2
_WIDTH_BYTES = 2


class WyomingService:
    """Each window is an utterance on a connection of its own, so that no trial is heard with what came before it.

    Args:
        address: of the service.
        words: wake words to listen for; empty for all that it has installed.
        utterance: what stands around a window, and how fast it is given.
        answer_timeout_s: how long the service may take for an answer after the sound.
        stop: set when the bridge shall end.

    Raises:
        UnavailableError: nobody answers.
        UsageError: it does not know these wake words.
        DataError: what it says of itself is malformed.
    """

    def __init__(
        self,
        address: Address,
        words: Sequence[str],
        *,
        utterance: Utterance,
        answer_timeout_s: float,
        stop: threading.Event,
    ) -> None:
        self._address = address
        self._utterance = utterance
        self._answer_timeout_s = answer_timeout_s
        self._stop = stop
        self._wanted = tuple(words)
        info = self._ask()
        self._program, self.description = self._describe(info)
        self._several = len(info.wake) > 1
        self._others = frozenset(info.words)

    def check(self) -> None:
        """Ask the service who it is; see :class:`rig.bridges.assistant.Assistant`."""
        _, now = self._describe(self._ask())
        if now.sha256 != self.description.sha256:
            raise DataError(f"{self._address.uri}: offers other wake words than when the bridge began, start it anew")

    def hear(self, pcm: Pcm16) -> str | None:
        """Play a window to the service and wait for its answer."""
        rate_hz = self._utterance.rate_hz
        with self._open() as wire:
            if self._several:
                wire.send(SelectProgram(self._program.name).event())
            wire.send(Detect(names=list(self.description.words)).event())
            wire.send(AudioStart(rate_hz, _WIDTH_BYTES, 1, timestamp=0).event())
            clock = self._utterance.clock()
            at_ms = 0
            for piece in self._utterance.pieces(pcm):
                at_ms = self._ms(piece.at_sample)
                sound = piece.pcm.astype("<i2").tobytes()
                wire.send(AudioChunk(rate_hz, _WIDTH_BYTES, 1, sound, timestamp=at_ms).event())
                for event in self._events(wire, clock.due_s(piece)):
                    if (word := self._detected(event, at_ms)) is not None:
                        wire.send(AudioStop(timestamp=at_ms).event())
                        return word
            wire.send(AudioStop(timestamp=at_ms).event())
            for event in self._events(wire, time.monotonic() + self._answer_timeout_s):
                if NotDetected.is_type(event.type):
                    return None
                if (word := self._detected(event, at_ms)) is not None:
                    return word
        raise UnavailableError(f"{self._address.uri}: no answer within {self._answer_timeout_s:g} s of the sound's end")

    def _open(self) -> Wire:
        return Wire(self._address.connect(), self._address.uri)

    def _ask(self) -> ServiceInfo:
        with self._open() as wire:
            wire.send(Describe().event())
            for event in self._events(wire, time.monotonic() + INFO_TIMEOUT_S):
                if Info.is_type(event.type):
                    return read_info(self._address.uri, event)
        raise UnavailableError(f"{self._address.uri}: does not say what it is within {INFO_TIMEOUT_S:g} s")

    def _describe(self, info: ServiceInfo) -> tuple[WakeProgram, Description]:
        program, models = info.choose(self._address.uri, self._wanted)
        facts = {
            "program": program.model_dump(exclude={"models"}),
            "models": [model.model_dump(exclude={"installed"}) for model in models],
            "utterance": self._utterance.model_dump(),
        }
        return program, Description("wyoming", check_words([model.name for model in models]), facts)

    def _events(self, wire: Wire, deadline_s: float) -> Iterator[Event]:
        """What has come, and what comes until ``deadline_s`` on the monotonic clock."""
        for _ in range(MAX_EVENTS):
            event = None
            while event is None:
                left_s = deadline_s - time.monotonic()
                event = wire.receive(max(0.0, min(left_s, _POLL_S)))
                if event is None and left_s <= 0:
                    return
                if self._stop.is_set():
                    raise UnavailableError("the bridge was told to end")
            yield event
        raise DataError(f"{self._address.uri}: sent over {MAX_EVENTS} events for one utterance")

    def _detected(self, event: Event, at_ms: int) -> str | None:
        """The word of a detection that counts; ``at_ms`` is where the sound was that was given last."""
        if not Detection.is_type(event.type):
            return None
        detected = read_detection(self._address.uri, event, self.description.words, self._others)
        if detected.name not in self.description.words:
            log.info("ignored the detection of %s: nobody asked for it", ascii(detected.name))
            return None
        heard_ms = at_ms if detected.timestamp is None else detected.timestamp
        if not 0 <= heard_ms <= at_ms:
            raise DataError(f"{self._address.uri}: a detection at a time that was not played ({heard_ms} ms)")
        sample = heard_ms * self._utterance.rate_hz // 1000 - self._utterance.lead_samples
        if sample < 0:
            raise DataError(f"{self._address.uri}: a detection in the silence before the window ({-sample} samples)")
        log.debug("detected %s at sample %d of the window", detected.name, sample)
        return detected.name

    def _ms(self, sample: int) -> int:
        """Milliseconds since the utterance began at a sample counted from the window."""
        return (sample + self._utterance.lead_samples) * 1000 // self._utterance.rate_hz
