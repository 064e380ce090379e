"""Spectra of sounds and responses, worked out when first needed and kept while there is room."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from rig.render.material import Floats
from rig.render.rows import FEW, Integers, RowStore, distinct, grown

Spectrum = NDArray[np.complex64]

# Rows are transformed in fixed groups, as many as fit the narrowest vector: quicker than one by one, and a row goes
# the same way through the transform whatever else is needed with it.
LANES = 4
# A fractional delay is a sinc under a Hann window of this many taps, on a grid of 1 / FRACTIONS of a sample.
TAPS = 81
FRACTIONS = 1024


class Spectra:
    """Spectra of numbered rows.

    Args:
        row: gives the sound of a number, float32 (samples,), at most ``fft_size`` of them.
        count: how many rows there are.
        fft_size: length of the transform, even.
        capacity: rows to keep.
    """

    def __init__(self, row: Callable[[int], Floats], *, count: int, fft_size: int, capacity: int) -> None:
        self._row, self._count, self._fft_size = row, count, fft_size
        groups = min(-(-capacity // LANES), -(-count // LANES))
        self._store = RowStore(groups, FEW // LANES)
        self.table = np.empty((0, fft_size // 2 + 1), np.complex64)

    def find(self, rows: Integers) -> Integers:
        """Where in ``table`` the spectra of these rows stand until the next call."""
        keys, where = distinct(rows // LANES)
        groups, missing = self._store.claim(keys.tolist())
        self.table = grown(self.table, self._store.in_use * LANES)
        padded = np.empty((LANES, self._fft_size if missing else 0), np.float32)
        try:
            for number in missing:
                padded[:] = 0
                first = int(keys[number]) * LANES
                for lane, row in enumerate(range(first, min(first + LANES, self._count))):
                    sound = self._row(row)
                    padded[lane, : len(sound)] = sound
                at = int(groups[number]) * LANES
                self.table[at : at + LANES] = fft.rfft(padded)
        except BaseException:
            self._store.forget()  # claimed and never filled
            raise
        slots: Integers = groups[where] * LANES + rows % LANES
        return slots


def fraction_spectrum(step: int, fft_size: int) -> Spectrum:
    """Spectrum of the delay by ``TAPS // 2 + step / FRACTIONS`` samples, complex64 (fft_size // 2 + 1,)."""
    at = np.arange(TAPS) - TAPS // 2 - step / FRACTIONS
    taps = np.sinc(at) * np.where(np.abs(at) < TAPS / 2, 0.5 + 0.5 * np.cos(2 * np.pi * at / TAPS), 0)
    spectrum: Spectrum = fft.rfft(taps, fft_size).astype(np.complex64)
    return spectrum
