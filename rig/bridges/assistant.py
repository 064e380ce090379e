"""A foreign assistant as the agent sees it: who it is, whether it is there, what it heard."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from edge.bundle.reading import Floats
from edge.errors import UnavailableError, UsageError
from edge.sound.microphones.protocol import Microphone
from edge.sound.ring import Pcm16
from rig.plan import BACKGROUND

RATE_HZ = 16_000
MAX_WORDS = 64
_MAX_NAME_LETTERS = 63
# A microphone looks up at least twice a second.
_CLOSE_TIMEOUT_S = 2.0
# A session looks five times a second whether its sound is still wanted.
_NOTICE_S = 0.3


@dataclass(frozen=True)
class Description:
    """Who recognises: everything that decides what it hears, in ``facts`` that JSON can hold."""

    protocol: str
    words: tuple[str, ...]
    facts: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What stands for a bundle's name, e.g. ``wyoming-okay_nabu``."""
        words = "-".join(re.sub(r"[^a-z0-9._-]+", "-", word.lower()).strip("-") for word in self.words)
        return f"{self.protocol}-{words}"[:_MAX_NAME_LETTERS]

    @property
    def sha256(self) -> str:
        """The hash of the canonical form: JSON with sorted keys and no spaces."""
        document = {"protocol": self.protocol, "words": self.words, "facts": self.facts}
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


class Assistant(Protocol):
    """Whoever recognises; used by the agent's one thread, but for :meth:`check`."""

    @property
    def description(self) -> Description:
        """Who it is; the same as long as it lives."""

    def check(self) -> None:
        """Make sure that it can be asked.

        Raises:
            UnavailableError: it is not there now.
            DataError: another one is there instead.
        """

    def hear(self, pcm: Pcm16) -> str | None:
        """The word that it recognises in samples (window,), or None.

        Raises:
            DataError: its answer is none.
            UnavailableError: it went away or did not answer.
        """


@dataclass(frozen=True)
class _Facts:
    name: str
    labels: tuple[str, ...]
    window_samples: int
    version: int = 0
    rate_hz: int = RATE_HZ
    score_kind: Literal["probabilities"] = "probabilities"


@dataclass(frozen=True)
class ForeignModel:
    """What stands where a device has its bundle."""

    manifest: _Facts
    sha256: str

    @classmethod
    def of(cls, description: Description, window_samples: int) -> ForeignModel:
        """The model that an assistant is."""
        facts = _Facts(description.name, (BACKGROUND, *description.words), window_samples)
        return cls(facts, description.sha256)


class Presence:
    """Whether the assistant is there; shared by the thread that asks it and the one that records."""

    def __init__(self) -> None:
        self.lost = threading.Event()
        self._closed = threading.Event()

    def wait_until_closed(self) -> None:
        """Wait until the session has seen its sound end, so that what it asked is taken back and not refused."""
        self._closed.wait(_CLOSE_TIMEOUT_S)
        time.sleep(_NOTICE_S)

    def opened(self) -> None:
        """It is there, and sound comes."""
        self.lost.clear()
        self._closed.clear()

    def closed(self) -> None:
        """No sound comes."""
        self._closed.set()


class Bridged:
    """An assistant where a device has its classifier: 1 for what it heard, 0 for the rest; it tells no scores."""

    members = None

    def __init__(self, assistant: Assistant, model: ForeignModel) -> None:
        self.providers = (f"bridge:{assistant.description.protocol}",)
        self.presence = Presence()
        self._assistant = assistant
        self._labels = model.manifest.labels

    def noise(self, seed: bytes) -> Floats:
        """Never asked for: a stranger is no stochastic ensemble of ours."""
        raise UsageError(f"noise: {self.providers[0]} takes none ({len(seed)} bytes of seed)")

    def scores(self, pcm: Floats, *, noise: Floats | None = None) -> Floats:
        """Ask the assistant about clips (batch, window); see :class:`edge.agent.recogniser.Recogniser`."""
        del noise
        if self.presence.lost.is_set():
            self.presence.wait_until_closed()
            raise UnavailableError("the assistant went away")
        scores = np.zeros((len(pcm), len(self._labels)), np.float32)
        for row, clip in enumerate(pcm):
            try:
                heard = self._assistant.hear(np.rint(clip * np.float32(32768)).astype(np.int16))
            except UnavailableError:
                self.presence.lost.set()
                raise
            scores[row, self._labels.index(heard or BACKGROUND)] = 1.0
        return scores


class GuardedMicrophone:
    """A microphone that is only there while the assistant is: without it the device is not ready for a trial."""

    def __init__(self, microphone: Microphone, assistant: Assistant, presence: Presence) -> None:
        self._microphone = microphone
        self._assistant = assistant
        self._presence = presence
        self._follow()

    def _follow(self) -> None:
        microphone = self._microphone
        self.name, self.can_wait, self.reopens = microphone.name, microphone.can_wait, microphone.reopens
        self.xruns, self.overruns, self.stream_id = microphone.xruns, microphone.overruns, microphone.stream_id

    def open(self) -> str:
        """Begin a stream if the assistant is there."""
        self._assistant.check()
        stream_id = self._microphone.open()
        self._presence.opened()
        self._follow()
        return stream_id

    def read(self) -> Pcm16 | None:
        """The next samples."""
        if self._presence.lost.is_set():
            raise UnavailableError("the assistant went away")
        pcm = self._microphone.read()
        self._follow()
        return pcm

    def close(self) -> None:
        """Let it go."""
        self._microphone.close()
        self._presence.closed()


def check_words(words: Sequence[str]) -> tuple[str, ...]:
    """Wake words in the order in which they were first named.

    Raises:
        UsageError: none, too many, or one that cannot be a label.
    """
    distinct = tuple(dict.fromkeys(words))
    if not 0 < len(distinct) <= MAX_WORDS:
        raise UsageError(f"--wake-word: {len(distinct)} are named, use 1 to {MAX_WORDS}")
    for word in distinct:
        if not 0 < len(word) <= 128 or not word.isprintable() or word == BACKGROUND:
            raise UsageError(f"--wake-word {word[:40]!r}: use 1 to 128 printable characters other than {BACKGROUND}")
    return distinct
