"""Scales of weights: signed, symmetric, one per output channel or one per tensor."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

WeightMethod = Literal["minmax", "mse"]
Doubles = npt.NDArray[np.float64]

_SHARES = np.linspace(1.0, 0.3, 71)
_SMALLEST = 1e-12


def levels(bits: int, *, reduce_range: bool) -> int:
    """The largest whole number that stands for a weight: 127 for 8 bits, 64 with ``reduce_range``."""
    return (1 << (bits - 2)) if reduce_range else (1 << (bits - 1)) - 1


def scales(rows: Doubles, last: int, *, per_channel: bool, power_of_two: bool, search: bool) -> Doubles:
    """Scales (channels,) for weights (channels, inputs), all the same unless ``per_channel``.

    The largest weight gets the number ``last``; with ``search`` larger ones may be cut off, so that the mean squared
    rounding error is least. A channel of zeros gets the scale 1.
    """
    table = rows if per_channel else rows.reshape(1, -1)
    largest = np.abs(table).max(axis=1)
    exact = np.maximum(largest / last, _SMALLEST)
    candidates = [_stored(exact, power_of_two=power_of_two)]
    if search and power_of_two:
        candidates += [candidates[0] / 2**step for step in (1, 2, 3)]
    elif search:
        candidates = [_stored(exact * share, power_of_two=False) for share in _SHARES]
    best, least = candidates[0], np.full(len(table), np.inf)
    for candidate in candidates:
        error = np.square(nearest(table, candidate, last) * candidate[:, None] - table).sum(axis=1)
        best, least = np.where(error < least, candidate, best), np.minimum(error, least)
    best = np.where(largest > 0, best, 1.0)
    return best if per_channel else np.repeat(best, len(rows))


def nearest(rows: Doubles, scale: Doubles, last: int) -> Doubles:
    """The whole numbers nearest to weights (channels, inputs) over their scales (channels,)."""
    rounded: Doubles = np.clip(np.rint(rows / scale[:, None]), -last, last)
    return rounded


def _stored(scale: Doubles, *, power_of_two: bool) -> Doubles:
    if power_of_two:
        powers: Doubles = 2.0 ** np.ceil(np.log2(scale) - 1e-9)
        return powers
    return scale.astype(np.float32).astype(np.float64)
