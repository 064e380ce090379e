"""What an air promises, and the arithmetic every simulated air shares."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rig.plan import Condition

FULL_SCALE = 32768
Pcm = NDArray[np.int16]
Signal = NDArray[np.float64]


@dataclass(frozen=True)
class Rendering:
    """What one trial puts on the microphone's wire.

    ``pcm`` int16 (samples,) mono; the device's window begins at ``window_start``. Within the window,
    ``snr_db`` is the power of the talker over the power of the attacker (infinite without an attacker) and
    ``linf`` the largest sample the attacker adds, full scale = 1. ``reason`` says why the trial can never be
    valid (None when it can).
    """

    pcm: Pcm
    window_start: int
    snr_db: float
    linf: float
    reason: str | None = None


class Air(Protocol):
    """A medium between loudspeakers and microphone."""

    @property
    def name(self) -> str:
        """The word for it in plans, tables and folders."""

    @property
    def is_random(self) -> bool:
        """Whether a clip sounds different each time it is played in the same condition."""

    def facts(self) -> dict[str, object]:
        """What was measured of this air, for the record."""

    def render(self, trial_id: str, clip: Pcm, perturbation: Pcm | None, condition: Condition) -> Rendering:
        """Let the talker speak ``clip`` and the attacker play ``perturbation`` ``condition.delay_ms`` later.

        Args:
            trial_id: seeds whatever is random in the air, so that a trial sounds the same each time.
            clip: int16 (window,), what the talker's loudspeaker plays.
            perturbation: int16 (window,), what the attacker's plays, or None.
            condition: positions and delay; the delay is between the loudspeakers and may be negative.
        """


def shift(signal: NDArray[np.generic], samples: int, length: int) -> NDArray[np.generic]:
    """Move ``signal`` later by ``samples`` (earlier if negative) into ``length`` samples; zeros come in."""
    moved = np.zeros(length, dtype=signal.dtype)
    start, stop = max(samples, 0), min(samples + len(signal), length)
    if stop > start:
        moved[start:stop] = signal[start - samples : stop - samples]
    return moved


def ratio_db(signal: Signal, noise: Signal) -> float:
    """Power of ``signal`` over power of ``noise`` in dB; infinite where there is no noise."""
    noise_power = float(np.square(noise, dtype=np.float64).mean())
    signal_power = float(np.square(signal, dtype=np.float64).mean())
    if noise_power == 0:
        return math.inf
    return 10 * math.log10(signal_power / noise_power) if signal_power > 0 else -math.inf
