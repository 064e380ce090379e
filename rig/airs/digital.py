"""The digital air: the sum of the waveforms, the worst case for the defender."""

from __future__ import annotations

import numpy as np

from rig.airs.protocol import FULL_SCALE, Pcm, Rendering, ratio_db, shift
from rig.plan import Condition


class DigitalAir:
    """Clip plus perturbation, sample by sample; a sum beyond full scale saturates as a converter would."""

    name = "digital"
    is_random = False

    def __init__(self, *, rate_hz: int, window_samples: int) -> None:
        self._rate_hz = rate_hz
        self._window = window_samples

    def facts(self) -> dict[str, object]:
        """Nothing was measured: there is nothing between the waveforms."""
        return {}

    def render(self, trial_id: str, clip: Pcm, perturbation: Pcm | None, condition: Condition) -> Rendering:
        """Add the perturbation, shifted by the delay; see :class:`rig.airs.protocol.Air`."""
        del trial_id  # nothing is random here
        talker = shift(clip, 0, self._window).astype(np.int32)
        if perturbation is None:
            return Rendering(pcm=talker.astype(np.int16), window_start=0, snr_db=np.inf, linf=0.0)
        delay = round(condition.delay_ms / 1000 * self._rate_hz)
        attacker = shift(perturbation, delay, self._window).astype(np.int32)
        heard = np.clip(talker + attacker, -FULL_SCALE, FULL_SCALE - 1)
        delivered = (heard - talker).astype(np.float64)
        linf = float(np.abs(delivered).max()) / FULL_SCALE
        # One bound holds for every delay: saturation only takes away.
        reason = f"budget exceeded: {linf:.6f} > eps {condition.eps:g}" if linf > condition.eps else None
        return Rendering(
            pcm=heard.astype(np.int16),
            window_start=0,
            snr_db=ratio_db(talker.astype(np.float64), delivered),
            linf=linf,
            reason=reason,
        )
