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
# Conditions that differ in gain alone are written side by side in steps of this many samples, which the nearest cache
# holds for all of them.
CHUNK = 1024


def compiled(function: Function) -> Function:
    """Compile when first called; products may be contracted with sums, the order of sums stays.

    The machine code is kept on disk where there is a place for it.
    """
    return _compiled(function, {"contract"})


def compiled_in_any_order(function: Function) -> Function:
    """The same where sums may be taken in the order that is quickest."""
    return _compiled(function, {"contract", "reassoc", "nsz"})


def _compiled(function: Function, fastmath: set[str]) -> Function:
    settings: dict[str, Any] = {"nogil": True, "fastmath": fastmath}
    try:
        result: Function = numba.njit(cache=True, **settings)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        result = numba.njit(**settings)(function)
    return result


@compiled
def _overlap(length: int, start: int, window: int) -> tuple[int, int]:
    """Where in a window that begins at ``start`` the ``length`` samples of a sound are heard."""
    begin = min(max(0, -start), window)
    return begin, max(begin, min(window, length - start))


@compiled
def _write(into: Floats, gain: float, a: Floats, gain_2: float, b: Floats) -> None:
    """Scale and add two pieces of sound as long as ``into``; an empty piece is silence."""
    # Arrays without strides, of which none wraps: only then the loops become vector instructions.
    if len(a) and len(b):
        for i in range(into.shape[0]):
            into[i] = gain * a[i] + gain_2 * b[i]
    elif len(a):
        for i in range(into.shape[0]):
            into[i] = gain * a[i]
    elif len(b):
        for i in range(into.shape[0]):
            into[i] = gain_2 * b[i]
    else:
        into[:] = 0


@compiled
def mix(  # noqa: PLR0917 - called from Python, where numba is quicker without keywords
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
    rows, window = out.shape
    cuts = np.empty(6, np.int64)
    first = 0
    while first < rows:
        slot, start, slot_2, start_2 = talker[first], talker_start[first], attacker[first], attacker_start[first]
        stop = first + 1
        while stop < rows and talker[stop] == slot and attacker[stop] == slot_2:
            if talker_start[stop] != start or attacker_start[stop] != start_2:
                break
            stop += 1
        begin, end = _overlap(length, start, window)
        begin_2, end_2 = _overlap(length if slot_2 >= 0 else 0, start_2, window)
        cuts[:] = (0, begin, end, begin_2, end_2, window)
        cuts.sort()
        for part in range(5):
            is_talker = begin <= cuts[part] and cuts[part + 1] <= end
            is_attacker = begin_2 <= cuts[part] and cuts[part + 1] <= end_2
            for low in range(cuts[part], cuts[part + 1], CHUNK):
                high = min(low + CHUNK, cuts[part + 1])
                a = wet[slot, start + low : start + high] if is_talker else wet[0, :0]
                b = wet[slot_2, start_2 + low : start_2 + high] if is_attacker else wet[0, :0]
                for row in range(first, stop):
                    _write(out[row, low:high], talker_gain[row], a, attacker_gain[row], b)
        first = stop


@compiled_in_any_order
def store(  # noqa: PLR0917 - as above
    fresh: Floats, length: int, slots: Integers, wet: Floats, peaks: Floats, energies: Floats
) -> None:
    """Put ``fresh`` (rows, samples) into their slots, with peak and energy of each cell of 64 samples."""
    for row in range(fresh.shape[0]):
        into, source = wet[slots[row]], fresh[row]
        for cell in range(peaks.shape[1]):
            low, high = cell * CELL, min((cell + 1) * CELL, length)
            peak, energy = np.float32(0), np.float32(0)
            here, there = into[low:high], source[low:high]
            for i in range(here.shape[0]):
                value = there[i]
                here[i] = value
                energy += value * value
            for i in range(here.shape[0]):
                peak = max(peak, abs(there[i]))
            peaks[slots[row], cell], energies[slots[row], cell] = peak, energy


@compiled_in_any_order
def measure(  # noqa: PLR0917 - as above
    wet: Floats,
    length: int,
    peaks: Floats,
    energies: Floats,
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
                energy += np.float64(energies[slot, cell])
            for i in range(low, min(high, first * CELL)):
                peak = max(peak, abs(wet[slot, i]))
                energy += np.float64(wet[slot, i] * wet[slot, i])
            for i in range(max(low, first * CELL, last * CELL), high):
                peak = max(peak, abs(wet[slot, i]))
                energy += np.float64(wet[slot, i] * wet[slot, i])
        peak_out[row], energy_out[row] = peak, energy
