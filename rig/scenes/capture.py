"""What a device does to the sound at its microphone: noise, gain control, clipping, quantisation.

Every stage changes a block float32 (conditions, samples), full scale = 1, in place; what is random is counted by the
number of the condition. The order is that of the signal: background noise in the room, noise floor of the microphone,
clipping of the converter, automatic gain control, quantisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from rig.scenes import noise
from rig.scenes.background import Recordings
from rig.scenes.noise import Floats, Integers
from rig.scenes.settings import Agc

TalkerRms = Callable[[Integers], npt.NDArray[np.float64]]
# A stretch of a recording that is so much quieter than all of it is scaled as if it were not.
QUIETEST = 0.05


class Background:
    """A stretch of a recording under every condition, chosen by its number, at an SNR to the talker there.

    Args:
        recordings: as the microphone hears them.
        snr_db: RMS of the talker within the window over RMS of the noise.
        key: of the stream.
        talker_rms: RMS of the talker alone in the window, full scale = 1, by the numbers of the conditions.
    """

    def __init__(self, recordings: Recordings, *, snr_db: float, key: int, talker_rms: TalkerRms) -> None:
        self._recordings, self._talker_rms = recordings, talker_rms
        self._ratio = 10 ** (-snr_db / 20)
        self._key = key

    def apply(self, block: Floats, indices: Integers) -> None:
        """Add it; see :class:`rig.render.Stage`."""
        for sound, index, talker_rms in zip(block, indices.tolist(), self._talker_rms(indices).tolist(), strict=True):
            which, where = noise.draw(self._key, index, 2)
            stretch, whole_rms = self._recordings.stretch(which, where, len(sound))
            rms = max(float(np.sqrt(np.mean(stretch**2, dtype=np.float64))), QUIETEST * whole_rms)
            np.add(sound, stretch * np.float32(self._ratio * talker_rms / rms), out=sound)


class NoiseFloor:
    """White noise of the microphone and its amplifier at ``rms`` (full scale = 1)."""

    def __init__(self, *, rms: float, key: int) -> None:
        self._rms, self._key = rms, key

    def apply(self, block: Floats, indices: Integers) -> None:
        """Add it; see :class:`rig.render.Stage`."""
        noise.add_gaussian(block, indices, self._key, self._rms)


class Clipping:
    """The converter's limit: nothing is larger than ``limit`` (full scale = 1)."""

    def __init__(self, *, limit: float) -> None:
        self.limit = limit

    def apply(self, block: Floats, indices: Integers) -> None:
        """Cut what is beyond; see :class:`rig.render.Stage`."""
        del indices
        np.clip(block, -self.limit, self.limit, out=block)

    def share(self, block: Floats) -> npt.NDArray[np.float64]:
        """Share of each condition's samples that are beyond the limit, float64 (conditions,), before it is applied."""
        # The highest value of 16 bits is one step below full scale.
        beyond = np.abs(block) > min(self.limit, 1 - 2**-15)
        return np.asarray(beyond.mean(axis=1), dtype=np.float64)


class GainControl:
    """Automatic gain control by the level of frames of 10 ms, as devices do it in software.

    The level of a frame asks for a gain; the gain falls towards it with the attack time and rises with the release time
    (in dB, first order: Giannoulis, Massberg and Reiss, Digital dynamic range compressor design, JAES 60, 2012,
    decoupled, with the detector on frames). Frames below the gate leave it as it is. It begins at 0 dB and changes
    along a straight line within a frame, and never lifts a frame's peak over full scale.
    """

    FRAME_S = 0.01

    def __init__(self, agc: Agc, rate_hz: int) -> None:
        self._frame = round(self.FRAME_S * rate_hz)
        frame_ms = 1000 * self._frame / rate_hz
        self._settings = np.array(
            [
                agc.target_dbfs,
                agc.max_gain_db,
                -agc.max_cut_db,
                agc.gate_dbfs,
                1 - np.exp(-frame_ms / agc.attack_ms),
                1 - np.exp(-frame_ms / agc.release_ms),
            ]
        )

    def apply(self, block: Floats, indices: Integers) -> None:
        """Scale; see :class:`rig.render.Stage`."""
        del indices
        _control()(block, self._frame, self._settings)


class Quantisation:
    """Rounding to ``bits``, saturating as a converter does."""

    def __init__(self, *, bits: int) -> None:
        self._steps = np.float32(1 << (bits - 1))

    def apply(self, block: Floats, indices: Integers) -> None:
        """Round; see :class:`rig.render.Stage`."""
        del indices
        block *= self._steps
        np.rint(block, out=block)
        np.clip(block, -self._steps, self._steps - 1, out=block)
        block /= self._steps


def clipped_share(stages: Sequence[Any], block: Floats, indices: Integers) -> npt.NDArray[np.float64]:
    """Apply all stages to a block and tell the share of each condition's samples that the converter clipped."""
    share = np.zeros(len(block))
    for stage in stages:
        if isinstance(stage, Clipping):
            share = stage.share(block)
        stage.apply(block, indices)
    return share


@lru_cache(maxsize=1)
def _control() -> Any:
    from rig.render.kernels import compiled  # noqa: PLC0415 - numba takes a second to import

    return compiled(_control_gain)


def _control_gain(block, frame, settings):  # type: ignore[no-untyped-def]
    target, most, least, gate, attack, release = settings
    samples = block.shape[1]
    for row in range(block.shape[0]):
        gain_db, before = 0.0, 1.0
        for start in range(0, samples, frame):
            here = block[row, start : min(start + frame, samples)]
            energy, peak = 0.0, 0.0
            for i in range(here.shape[0]):
                energy += here[i] * here[i]
                peak = max(peak, abs(here[i]))
            level_db = 10 * np.log10(energy / here.shape[0] + 1e-20)
            if level_db > gate:
                wanted = min(max(target - level_db, least), most)
                gain_db += (attack if wanted < gain_db else release) * (wanted - gain_db)
            after = 10 ** (gain_db / 20)
            if peak * after > 1:
                after = 1 / peak
                gain_db = 20 * np.log10(after)
            before = min(before, 1 / peak) if peak * before > 1 else before
            for i in range(here.shape[0]):
                here[i] *= before + (after - before) * (i + 1) / here.shape[0]
            before = after
