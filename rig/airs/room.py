"""The room air: loudspeakers and a device in a room, simulated or measured, with what the device does to the sound."""

from __future__ import annotations

from functools import cached_property, lru_cache

import numpy as np
from scipy.signal import oaconvolve

from rig.airs.protocol import FULL_SCALE, Pcm, Rendering, Signal, ratio_db, shift
from rig.plan import Condition
from rig.render import Stage
from rig.scenes import Scene, attacker_key, device_key, expand
from rig.scenes.capture import clipped_share
from rig.scenes.noise import Integers, trial_index
from rig.scenes.respond import Heard, capture_chain, describe, respond

# Share of samples at full scale above which the capture counts as clipped: single peaks do not change a
# decision, a flattened vowel does.
MAX_CLIPPED_SHARE = 0.001


class RoomAir:
    """Every loudspeaker reaches the microphone through its own response, then the device takes what arrives.

    Levels: all loudspeakers have the same sensitivity, set so that the talker's direct sound arrives at the
    first device position with the level of the clip (then ``gain_db`` applies). The device's window begins
    when the talker's direct sound arrives. The delay is between the loudspeakers, so an attacker who stands
    further away than the talker arrives later by the difference in distance.
    """

    name = "room"
    is_random = True  # the device's noise

    def __init__(self, room: Scene, *, rate_hz: int, window_samples: int, seed: int) -> None:
        self._scene = room
        self._rate_hz = rate_hz
        self._window = window_samples
        self._seed = seed
        self._talker_rms = 0.0
        (self._talker_key,) = (key for key in expand(room).sources if key.startswith("talker_m"))
        self._talker = lru_cache(maxsize=512)(self._render_talker)

    def facts(self) -> dict[str, object]:
        """Reverberation wanted and measured, clarity, direct-to-reverberant ratio per device, critical distance."""
        return describe(self._scene, self._heard)

    def render(self, trial_id: str, clip: Pcm, perturbation: Pcm | None, condition: Condition) -> Rendering:
        """Convolve both with their responses, add noise, capture; see :class:`rig.airs.protocol.Air`."""
        device = str(condition.device_position)
        onset = self._onset(device)
        length = onset + self._window
        window = slice(onset, length)
        talker = self._talker(clip.tobytes(), device)
        attacker = np.zeros(length)
        if perturbation is not None:
            response = self._heard.wire.of(device_key(device), attacker_key(str(condition.attacker_position)))
            delay = round(condition.delay_ms / 1000 * self._rate_hz)
            played = shift(perturbation, delay, max(length, delay + len(perturbation)))
            attacker = oaconvolve(played.astype(np.float64), response.astype(np.float64))[:length]
        block = ((talker + attacker) / FULL_SCALE).astype(np.float32)[None]
        self._talker_rms = float(np.sqrt(np.mean(talker[window] ** 2))) / FULL_SCALE
        indices = np.array([trial_index(self._seed, trial_id)], dtype=np.int64)
        clipped = float(clipped_share(self._capture, block, indices)[0])
        return Rendering(
            pcm=np.rint(block[0] * FULL_SCALE).astype(np.int16),
            window_start=onset,
            snr_db=ratio_db(talker[window], attacker[window]),
            linf=float(np.abs(attacker[window]).max()) / FULL_SCALE,
            reason=f"microphone clipped ({clipped:.1%} of samples)" if clipped > MAX_CLIPPED_SHARE else None,
        )

    def _onset(self, device: str) -> int:
        return round(self._heard.wire.onset(device_key(device), self._talker_key))

    def _render_talker(self, clip: bytes, device: str) -> Signal:
        length = self._onset(device) + self._window
        response = self._heard.wire.of(device_key(device), self._talker_key).astype(np.float64)
        wet: Signal = oaconvolve(np.frombuffer(clip, dtype=np.int16).astype(np.float64), response)[:length]
        return shift(wet, 0, length).astype(np.float64)

    @cached_property
    def _heard(self) -> Heard:
        return respond(self._scene, self._rate_hz)

    @cached_property
    def _capture(self) -> tuple[Stage, ...]:
        return capture_chain(self._scene, self._rate_hz, seed=self._seed, talker_rms=self._rms_of_talker)

    def _rms_of_talker(self, indices: Integers) -> Signal:
        """Of the trial that is being rendered."""
        return np.full(len(indices), self._talker_rms)
