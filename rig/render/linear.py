"""Rendering on a processor: transforms by scipy, sums by numba, one thread."""

from __future__ import annotations

import numpy as np

from rig.render import kernels
from rig.render.material import Floats, Material
from rig.render.renderer import DEFAULT_BLOCK, DEFAULT_CACHE_BYTES, Doubles, Part, Renderer
from rig.render.rows import Integers, grown
from rig.render.spectra import LANES, fraction_spectrum


class LinearRenderer(Renderer):
    """The renderer for a processor: transforms by scipy, sums by numba, one thread."""

    def __init__(
        self,
        material: Material,
        *,
        window: int,
        block: int = DEFAULT_BLOCK,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        fractional: bool = False,
    ) -> None:
        super().__init__(material, window=window, block=block, cache_bytes=cache_bytes, fractional=fractional)
        bins, cells = self._fft_size // 2 + 1, -(-self._length // kernels.CELL)
        self._wet = np.empty((0, self._length), np.float32)
        self._peaks, self._energies = np.empty((0, cells), np.float32), np.empty((0, cells), np.float32)
        self._products = np.empty((self.batch, bins), np.complex64)
        self._fresh = np.empty((self.batch, self._fft_size), np.float32)

    def _reserve(self, slots: int) -> None:
        self._wet, self._peaks = grown(self._wet, slots), grown(self._peaks, slots)
        self._energies = grown(self._energies, slots)

    def _convolve(self, sounds: Integers, responses: Integers, fractions: Integers, slots: Integers) -> None:
        x, h = self._sound_spectra, self._response_spectra
        pairs = zip(x.find(sounds), h.find(responses), fractions.tolist(), strict=True)
        for product, (sound, response, fraction) in zip(self._products, pairs, strict=False):
            np.multiply(x.table[sound], h.table[response], out=product)
            if fraction:
                np.multiply(product, fraction_spectrum(fraction, self._fft_size), out=product)
        # Whole groups, so that a row takes the same way through the transform whatever stands beside it.
        count = -(-len(sounds) // LANES) * LANES
        self._products[len(sounds) : count] = 0
        np.fft.irfft(self._products[:count], self._fft_size, out=self._fresh[:count])
        kernels.store(self._fresh[: len(sounds)], self._length, slots, self._wet, self._peaks, self._energies)

    def _mix(self, part: Part, rows: slice, out: Floats) -> None:
        kernels.mix(
            self._wet,
            self._length,
            part.talker[rows],
            part.talker_start[rows],
            part.talker_gain[rows],
            part.attacker[rows],
            part.attacker_start[rows],
            part.attacker_gain[rows],
            out,
        )

    def _within(self, slots: Integers, starts: Integers) -> tuple[Doubles, Doubles]:
        peak, energy = np.empty(len(slots)), np.empty(len(slots))
        kernels.measure(self._wet, self._length, self._peaks, self._energies, slots, starts, self.window, peak, energy)
        return peak, energy
