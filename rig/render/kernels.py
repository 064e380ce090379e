"""The loops over samples, compiled by numba: shift, scale and add in one pass over memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]
Function = TypeVar("Function", bound=Callable[..., Any])

# Peaks and energies are known per cell of this many samples, so that those of a window cost a few hundred steps.
CELL = 64


def compiled(function: Function) -> Function:
    """Compile when first called; the machine code is kept on disk where there is a place for it.

    Products may be contracted with sums, nothing may be reordered: a condition has the same samples in every block.
    """
    settings = {"nogil": True, "fastmath": {"contract"}}
    try:
        result: Function = numba.njit(cache=True, **settings)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        result = numba.njit(**settings)(function)
    return result


@compiled
def mix(
    wet: Floats,
    length: int,
    talker: Integers,
    talker_start: Integers,
    talker_gain: Floats,
    attacker: Integers,
    attacker_start: Integers,
    attacker_gain: Floats,
    out: Floats,
) -> None:
    """Write ``gain * wet[talker] + gain * wet[attacker]``, each from its start on, into every row of ``out``.

    ``wet`` (slots, samples) is zero before its first sample and from ``length`` on; a slot below 0 is silence.
    """
    window = out.shape[1]
    cuts = np.empty(6, np.int64)
    for row in range(out.shape[0]):
        begin = min(max(0, -talker_start[row]), window)
        end = max(begin, min(window, length - talker_start[row]))
        begin_2 = min(max(0, -attacker_start[row]), window)
        end_2 = max(begin_2, min(window, length - attacker_start[row]))
        if attacker[row] < 0:
            begin_2 = end_2 = 0
        cuts[:] = (0, begin, end, begin_2, end_2, window)
        cuts.sort()
        gain, gain_2 = talker_gain[row], attacker_gain[row]
        for part in range(5):
            low, high = cuts[part], cuts[part + 1]
            if low == high:
                continue
            # Slices of one length and no wrapping of indices: only then the loops become vector instructions.
            into = out[row, low:high]
            is_talker = begin <= low and high <= end
            is_attacker = begin_2 <= low and high <= end_2
            if is_talker and is_attacker:
                a = wet[talker[row], talker_start[row] + low : talker_start[row] + high]
                b = wet[attacker[row], attacker_start[row] + low : attacker_start[row] + high]
                for i in range(into.shape[0]):
                    into[i] = gain * a[i] + gain_2 * b[i]
            elif is_talker:
                a = wet[talker[row], talker_start[row] + low : talker_start[row] + high]
                for i in range(into.shape[0]):
                    into[i] = gain * a[i]
            elif is_attacker:
                b = wet[attacker[row], attacker_start[row] + low : attacker_start[row] + high]
                for i in range(into.shape[0]):
                    into[i] = gain_2 * b[i]
            else:
                into[:] = 0


@compiled
def store(fresh: Floats, length: int, slots: Integers, wet: Floats, peaks: Floats, energies: Doubles) -> None:
    """Put ``fresh`` (rows, samples) into their slots, with peak and energy of each cell of 64 samples."""
    for row in range(fresh.shape[0]):
        into, source = wet[slots[row]], fresh[row]
        for cell in range(peaks.shape[1]):
            low, high = cell * CELL, min((cell + 1) * CELL, length)
            peak, energy = np.float32(0), 0.0
            for i in range(low, high):
                value = source[i]
                into[i] = value
                peak = max(peak, abs(value))
                energy += value * value
            peaks[slots[row], cell], energies[slots[row], cell] = peak, energy


@compiled
def measure(
    wet: Floats,
    length: int,
    peaks: Floats,
    energies: Doubles,
    slots: Integers,
    starts: Integers,
    window: int,
    peak_out: Doubles,
    energy_out: Doubles,
) -> None:
    """Peak and energy of every ``wet[slot]`` within ``window`` samples from its start on."""
    for row in range(slots.shape[0]):
        slot, start = slots[row], starts[row]
        if row and slot == slots[row - 1] and start == starts[row - 1]:
            peak_out[row], energy_out[row] = peak_out[row - 1], energy_out[row - 1]
            continue
        low, high = max(0, start), min(length, start + window)
        peak, energy = np.float32(0), 0.0
        if slot >= 0 and low < high:
            first, last = -(-low // CELL), high // CELL
            for cell in range(first, last):
                peak = max(peak, peaks[slot, cell])
                energy += energies[slot, cell]
            for i in range(low, min(high, first * CELL)):
                peak = max(peak, abs(wet[slot, i]))
                energy += wet[slot, i] * wet[slot, i]
            for i in range(max(low, first * CELL, last * CELL), high):
                peak = max(peak, abs(wet[slot, i]))
                energy += wet[slot, i] * wet[slot, i]
        peak_out[row], energy_out[row] = peak, energy
