"""The room air: two loudspeakers and a microphone in a shoebox simulated by pyroomacoustics."""

from __future__ import annotations

import hashlib
import math
from functools import cached_property, lru_cache

import numpy as np
import pyroomacoustics
from scipy.signal import oaconvolve

from edge.errors import PlanError
from rig.airs.protocol import FULL_SCALE, Pcm, Rendering, Signal, ratio_db, shift
from rig.plan import Condition, Position, Room

# Share of samples at full scale above which the capture counts as clipped: single peaks do not change a
# decision, a flattened vowel does.
MAX_CLIPPED_SHARE = 0.001
MAX_IMAGE_ORDER = 60


class RoomAir:
    """Every loudspeaker reaches the microphone through its own simulated response.

    Levels: both loudspeakers have the same sensitivity, set so that the talker's direct sound arrives at the
    first device position with the level of the clip (then ``gain_db`` applies). The device's window begins
    when the talker's direct sound arrives. The delay is between the loudspeakers, so an attacker who stands
    further away than the talker arrives later by the difference in distance.
    """

    name = "room"
    is_random = True  # the device's noise

    def __init__(self, room: Room, *, rate_hz: int, window_samples: int, seed: int) -> None:
        self._room = room
        self._rate_hz = rate_hz
        self._window = window_samples
        self._seed = seed
        self._talker = lru_cache(maxsize=512)(self._render_talker)

    def facts(self) -> dict[str, object]:
        """Reverberation wanted and measured (T60 from the talker's response at each device), absorption."""
        measured = {
            device: round(float(pyroomacoustics.experimental.measure_rt60(response, fs=self._rate_hz, decay_db=30)), 4)
            for device, (response, _) in ((name, self._responses[None, name]) for name in self._room.devices_m)
        }
        return {
            "rt60_wanted_s": self._room.rt60_s,
            "rt60_measured_s": measured,
            "absorption": round(self._absorption, 4),
            "simulator": f"pyroomacoustics {pyroomacoustics.__version__}",
        }

    def render(self, trial_id: str, clip: Pcm, perturbation: Pcm | None, condition: Condition) -> Rendering:
        """Convolve both with their responses and add the device's noise; see :class:`rig.airs.protocol.Air`."""
        device = str(condition.device_position)
        _, onset = self._responses[None, device]
        length = onset + self._window
        talker = self._talker(clip.tobytes(), device)
        attacker = np.zeros(length)
        if perturbation is not None:
            response, _ = self._responses[condition.attacker_position, device]
            delay = round(condition.delay_ms / 1000 * self._rate_hz)
            played = shift(perturbation, delay, max(length, delay + len(perturbation)))
            attacker = oaconvolve(played.astype(np.float64), response)[:length]
        heard = talker + attacker + self._noise(trial_id, length)
        limit = FULL_SCALE - 1
        clipped = float(np.mean(np.abs(heard) > limit))
        window = slice(onset, length)
        return Rendering(
            pcm=np.clip(np.rint(heard), -FULL_SCALE, limit).astype(np.int16),
            window_start=onset,
            snr_db=ratio_db(talker[window], attacker[window]),
            linf=float(np.abs(attacker[window]).max()) / FULL_SCALE,
            reason=f"microphone clipped ({clipped:.1%} of samples)" if clipped > MAX_CLIPPED_SHARE else None,
        )

    def _render_talker(self, clip: bytes, device: str) -> Signal:
        response, onset = self._responses[None, device]
        dry = np.frombuffer(clip, dtype=np.int16).astype(np.float64)
        wet: Signal = oaconvolve(dry, response)[: onset + self._window]
        return shift(wet, 0, onset + self._window).astype(np.float64)

    def _noise(self, trial_id: str, length: int) -> Signal:
        seed = int.from_bytes(hashlib.sha256(f"{self._seed}/{trial_id}".encode()).digest()[:8], "little")
        rms = FULL_SCALE * 10 ** (self._room.noise_dbfs / 20)
        return np.random.default_rng(seed).standard_normal(length) * rms

    @cached_property
    def _absorption(self) -> float:
        """Energy absorption of the walls that gives the wanted RT60, solved because Sabine's inverse misses."""
        try:
            absorption = float(pyroomacoustics.inverse_sabine(self._room.rt60_s, list(self._room.size_m))[0])
        except ValueError:
            raise PlanError(
                f"room: rt60_s = {self._room.rt60_s} is too short for {self._room.size_m} m, even with walls that"
                " swallow all: choose a longer rt60_s or a smaller size_m"
            ) from None
        device = next(iter(self._room.devices_m.values()))
        # Decay time is close to proportional to 1 / -log(1 - a) (Eyring), so a fixed point takes few rounds.
        for _ in range(8):
            response = self._simulate(absorption, [self._room.talker_m], [device])[0][0]
            measured = float(pyroomacoustics.experimental.measure_rt60(response, fs=self._rate_hz, decay_db=30))
            if abs(measured / self._room.rt60_s - 1) < 0.02:
                return absorption
            absorption = 1 - (1 - absorption) ** (measured / self._room.rt60_s)
        raise PlanError(
            f"room: rt60_s = {self._room.rt60_s} cannot be reached in {self._room.size_m} m"
            f" (got {measured:.2f} s), choose another rt60_s or size"
        )

    @cached_property
    def _responses(self) -> dict[tuple[str | None, str], tuple[Signal, int]]:
        """Response and direct-path onset in samples per (attacker or None for the talker, device)."""
        sources: dict[str | None, Position] = {None: self._room.talker_m}
        sources.update(self._room.attackers_m)
        devices = self._room.devices_m
        simulated = self._simulate(self._absorption, list(sources.values()), list(devices.values()))
        reference_m = math.dist(self._room.talker_m, next(iter(devices.values())))
        # pyroomacoustics gives a direct path the amplitude 1 / distance.
        gain = reference_m * 10 ** (self._room.gain_db / 20)
        offset = pyroomacoustics.constants.get("frac_delay_length") // 2
        speed_mps = pyroomacoustics.constants.get("c")
        return {
            (source, device): (
                simulated[j][i] * gain,
                round(math.dist(sources[source], devices[device]) / speed_mps * self._rate_hz) + offset,
            )
            for i, source in enumerate(sources)
            for j, device in enumerate(devices)
        }

    def _simulate(self, absorption: float, sources: list[Position], devices: list[Position]) -> list[list[Signal]]:
        """Impulse responses ``[device][source]`` by image sources."""
        shortest = min(self._room.size_m)
        reflections = math.ceil(self._room.rt60_s * pyroomacoustics.constants.get("c") / shortest)
        room = pyroomacoustics.ShoeBox(
            list(self._room.size_m),
            fs=self._rate_hz,
            materials=pyroomacoustics.Material(absorption),
            max_order=min(reflections, MAX_IMAGE_ORDER),
        )
        for position in sources:
            room.add_source(list(position))
        room.add_microphone_array(np.array(devices).T)
        room.compute_rir()
        return [[np.asarray(response, dtype=np.float64) for response in per_device] for per_device in room.rir]
