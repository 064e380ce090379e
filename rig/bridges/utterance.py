"""How a window of sound is put to an assistant: silence before, the window, silence after, in pieces."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from edge.sound.ring import Pcm16

# A wake-word engine's own step, 80 ms: no piece waits in it for the next one.
PIECE_MS = 80
MAX_SILENCE_MS = 10_000


@dataclass(frozen=True)
class Piece:
    """Samples (n,) that begin ``at_sample`` samples after the window began (negative before it)."""

    at_sample: int
    pcm: Pcm16


class Utterance(BaseModel):
    """What stands around the window.

    The silence before it lets the engine forget what it heard last; the one after it lets an engine answer that is
    sure only when the word is over. ``fast`` gives the pieces as fast as they are taken.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lead_ms: Annotated[int, Field(ge=0, le=MAX_SILENCE_MS)] = 2000
    tail_ms: Annotated[int, Field(ge=0, le=MAX_SILENCE_MS)] = 1000
    pace: Literal["fast", "real-time"] = "fast"
    rate_hz: Annotated[int, Field(gt=0)] = 16_000

    @property
    def lead_samples(self) -> int:
        """Samples of silence before the window."""
        return self.lead_ms * self.rate_hz // 1000

    def pieces(self, window: Pcm16) -> Iterator[Piece]:
        """Cut silence, window and silence into pieces of 80 ms; the last one is filled with silence."""
        step = PIECE_MS * self.rate_hz // 1000
        length = self.lead_samples + len(window) + self.tail_ms * self.rate_hz // 1000
        sound = np.zeros(-(-length // step) * step, np.int16)
        sound[self.lead_samples : self.lead_samples + len(window)] = window
        for start in range(0, len(sound), step):
            yield Piece(start - self.lead_samples, sound[start : start + step])

    def clock(self) -> Clock:
        """Tells when each piece is due."""
        return Clock(self)


class Clock:
    """Begins to run when it is made."""

    def __init__(self, utterance: Utterance) -> None:
        self._utterance = utterance
        self._start_s = time.monotonic()

    def due_s(self, piece: Piece) -> float:
        """When the piece after ``piece`` is due, on the monotonic clock; in the past where nobody waits."""
        if self._utterance.pace == "fast":
            return self._start_s
        return (
            self._start_s + (piece.at_sample + len(piece.pcm) + self._utterance.lead_samples) / self._utterance.rate_hz
        )
