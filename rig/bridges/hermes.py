"""A Rhasspy Hermes assistant that is given the sound of each trial as the frames of a site's microphone."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Sequence
from typing import Literal

from paho.mqtt.client import topic_matches_sub

from edge.errors import DataError, UnavailableError
from edge.sound.ring import Pcm16
from rig.bridges import hermes_messages as hermes
from rig.bridges.assistant import Description
from rig.bridges.hermes_link import CONNECT_TIMEOUT_S, HermesLink
from rig.bridges.utterance import Utterance

EventKind = Literal["hotword", "text", "intent"]
TOPICS: dict[EventKind, tuple[str, ...]] = {
    "hotword": (hermes.HOTWORD, hermes.HOTWORDS),
    "text": (hermes.TEXT,),
    "intent": (hermes.INTENT, hermes.INTENT_NOT_RECOGNISED),
}

_KNOCK_TIMEOUT_S = 2.0


class HermesAssistant:
    """One site of an assistant.

    A wake word is waited for; for a text the speech recogniser is told to listen, for an intent a dialogue is begun.

    Args:
        link: connected with the topics of ``kind``.
        site: whose microphone this is.
        words: names of wake words, sentences, or intents that count.
        kind: which event counts.
        utterance: what stands around a window, and how fast it is given.
        answer_timeout_s: how long after the sound an event may still come.
        probe: ask the wake-word service after each trial whether it lives; Hermes has no word for "nothing heard".
    """

    def __init__(
        self,
        link: HermesLink,
        site: str,
        words: Sequence[str],
        *,
        kind: EventKind,
        utterance: Utterance,
        answer_timeout_s: float,
        probe: bool,
    ) -> None:
        self.description = Description("hermes", tuple(words), {"event": kind, "utterance": utterance.model_dump()})
        self._link = link
        self._site = site
        self._kind = kind
        self._utterance = utterance
        self._answer_timeout_s = answer_timeout_s
        self._probe = probe and kind == "hotword"
        self._turn = threading.Lock()

    def check(self) -> None:
        """Whether broker and wake-word service answer; see :class:`rig.bridges.assistant.Assistant`."""
        self._link.wait(CONNECT_TIMEOUT_S)
        with self._turn:
            self._link.begin()
            if self._probe:
                self._knock()

    def hear(self, pcm: Pcm16) -> str | None:
        """Play a window at the site's microphone and wait for the event that counts."""
        with self._turn:
            self._link.begin()
            session = self._begin()
            try:
                heard = self._play(pcm, session)
                if heard is None:
                    heard = self._wait(session)
            finally:
                if session in self._link.dialogues:
                    self._link.publish(hermes.END_SESSION, hermes.encode(sessionId=session))
        return heard or None

    def _begin(self) -> str:
        """Make the assistant listen; returns the id of the session that its answer names."""
        self._link.end_dialogues(self._answer_timeout_s)
        session = f"earshot-{secrets.token_hex(8)}"
        if self._kind == "text":
            listen = hermes.encode(siteId=self._site, sessionId=session, stopOnSilence=False, sendAudioCaptured=False)
            self._link.publish(hermes.START_LISTENING, listen)
        if self._kind != "intent":
            return session
        action = {"type": "action", "canBeEnqueued": False, "sendIntentNotRecognized": True}
        self._link.publish(hermes.START_SESSION, hermes.encode(siteId=self._site, customData=session, init=action))
        for topic, payload in self._link.until(time.monotonic() + self._answer_timeout_s):
            if topic == hermes.SESSION_STARTED:
                started = hermes.parse(hermes.SessionEvent, topic, payload)
                if started.custom_data == session and started.session:
                    return started.session
        raise UnavailableError(f"{self._link.url}: no dialogue began within {self._answer_timeout_s:g} s")

    def _play(self, pcm: Pcm16, session: str) -> str | None:
        """Send the frames; what was heard meanwhile, empty for none of the words, None for no event yet."""
        clock = self._utterance.clock()
        for piece in self._utterance.pieces(pcm):
            if self._kind == "hotword" and piece.at_sample >= 0:
                self._link.end_dialogues(self._answer_timeout_s)
            self._link.publish(hermes.frame_topic(self._site), hermes.frame(piece.pcm, self._utterance.rate_hz), qos=0)
            for topic, payload in self._link.until(clock.due_s(piece)):
                heard = self._event(topic, payload, session)
                if heard is not None and piece.at_sample + len(piece.pcm) <= 0:
                    raise DataError(f"{hermes.shown(topic)}: an event in the silence before the window")
                if heard is not None:
                    return heard
        return None

    def _wait(self, session: str) -> str | None:
        """Wait for the event after the sound's end."""
        if self._kind != "hotword":
            self._link.publish(hermes.STOP_LISTENING, hermes.encode(siteId=self._site, sessionId=session))
        for topic, payload in self._link.until(time.monotonic() + self._answer_timeout_s):
            heard = self._event(topic, payload, session)
            if heard is not None:
                return heard
        if self._kind != "hotword":
            raise UnavailableError(
                f"{self._link.url}: no {self._kind} within {self._answer_timeout_s:g} s of the sound"
            )
        if self._probe:
            self._knock()
        return None

    def _knock(self) -> None:
        """Insist that the wake-word service answers: silence of a dead one is no silence."""
        request = f"earshot-{secrets.token_hex(8)}"
        self._link.publish(hermes.GET_HOTWORDS, hermes.encode(siteId=self._site, id=request))
        for topic, payload in self._link.until(time.monotonic() + _KNOCK_TIMEOUT_S):
            if topic == hermes.HOTWORDS and hermes.parse(hermes.Hotwords, topic, payload).request == request:
                return
        raise UnavailableError(
            f"{self._link.url}: no wake-word service of site {self._site} answers {hermes.GET_HOTWORDS}, start it"
            " (or --no-probe if it never answers that)"
        )

    def _event(self, topic: str, payload: bytes, session: str) -> str | None:
        """The word that an event says, empty for none of the words, None if it is no event of this trial."""
        if self._kind == "hotword":
            return self._hotword(topic, payload) if topic_matches_sub(hermes.HOTWORD, topic) else None
        if self._kind == "text":
            return self._text(topic, payload, session) if topic == hermes.TEXT else None
        return self._intent(topic, payload, session)

    def _hotword(self, topic: str, payload: bytes) -> str | None:
        detected = hermes.parse(hermes.HotwordDetected, topic, payload)
        if detected.site != self._site:
            return None
        names = (topic.split("/")[2], detected.model)
        for word in self.description.words:
            if word in names:
                return word
        told = " or ".join(ascii(name[:60]) for name in names if name)
        raise DataError(f"detected {told}, which is none of {', '.join(self.description.words)}")

    def _text(self, topic: str, payload: bytes, session: str) -> str | None:
        captured = hermes.parse(hermes.TextCaptured, topic, payload)
        if captured.site != self._site or captured.session != session:
            return None
        said = _plain(captured.text)
        return next((word for word in self.description.words if _plain(word) == said), "")

    def _intent(self, topic: str, payload: bytes, session: str) -> str | None:
        if topic == hermes.INTENT_NOT_RECOGNISED:
            return "" if hermes.parse(hermes.SessionEvent, topic, payload).session == session else None
        if not topic_matches_sub(hermes.INTENT, topic):
            return None
        meant = hermes.parse(hermes.Intent, topic, payload)
        if meant.session != session:
            return None
        return meant.intent.name if meant.intent.name in self.description.words else ""


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
