"""Whether sound was lost between two blocks of a sound card."""

from __future__ import annotations

import math

# Under 16 samples at 16 kHz: what a card loses is a period of its buffer, never less than this.
_SAME_S = 0.5e-3
# A card that delivers late and catches up is late once; one that has lost sound stays behind by it.
_SILENT_LOSS_S = 20e-3
_PATIENCE_S = 1.0


class Continuity:
    """Compares the samples of a stream with the times that the card gives for them; used by one thread.

    PortAudio says with a flag that sound was lost, but not how much, and some back ends say so when nothing was
    (JACK in synchronous mode) or lose without a word (PipeWire). The first sample of a block lies at its ADC time; how
    far that runs ahead of the samples counted is what was lost, but for jitter, of which the least of a second is
    taken. Cards without ADC times are judged by the flag alone.
    """

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self.restart()

    def restart(self) -> None:
        """A new stream begins with the next block."""
        self._samples = 0
        self._before: float | None = None
        self._least: float | None = None
        self._newest = math.inf
        self._since_s: float | None = None

    def lost(self, frames: int, adc_s: float, *, flagged: bool) -> bool:
        """Take a block of ``frames`` samples that begins at ``adc_s``; true when sound before it is missing."""
        if adc_s <= 0:
            self._samples += frames
            return flagged
        ahead_s = adc_s - self._samples / self._rate_hz
        before, self._before = self._before, ahead_s
        self._samples += frames
        if flagged:
            return before is None or abs(ahead_s - before) > _SAME_S
        return self._stays_behind(ahead_s, adc_s)

    def _stays_behind(self, ahead_s: float, adc_s: float) -> bool:
        if self._since_s is None:
            self._since_s = adc_s
        self._newest = min(self._newest, ahead_s)
        if adc_s - self._since_s < _PATIENCE_S:
            return False
        least, before = self._newest, self._least
        self._least, self._newest, self._since_s = least, math.inf, adc_s
        # The clocks of card and computer part by far less than this in a second.
        return before is not None and least - before > _SILENT_LOSS_S
