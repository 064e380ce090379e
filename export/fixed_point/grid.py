"""Grids: the values that a fixed-point number can have, and which grid fits a histogram best.

A grid is ``(q - zero) * scale`` for whole numbers ``low <= q <= high``. Rounding is to the nearest, ties to even.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from export.fixed_point.histogram import Histogram

Method = Literal["mse", "minmax", "percentile", "entropy"]
_CANDIDATES = 96
_SMALLEST_SCALE = 1e-12


@dataclass(frozen=True, slots=True)
class Grid:
    """Scale and zero point of one tensor, and the whole numbers it may use; ``covers`` is the range in real numbers."""

    scale: float
    zero: int
    low: int
    high: int

    @property
    def covers(self) -> tuple[float, float]:
        """The smallest and the largest value that is on the grid."""
        return (self.low - self.zero) * self.scale, (self.high - self.zero) * self.scale

    def round(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The nearest values on the grid."""
        rounded: npt.NDArray[np.float64] = np.clip(np.rint(values / self.scale) + self.zero, self.low, self.high)
        return (rounded - self.zero) * self.scale


@dataclass(frozen=True, slots=True)
class Form:
    """How grids of activations are made: ``symmetric`` has zero point 0 and signed numbers, else they are unsigned."""

    bits: int
    symmetric: bool = False
    power_of_two: bool = False

    def over(self, low: float, high: float) -> Grid:
        """The grid that covers [low, high] and zero; a power of two is rounded up so that it still does."""
        low, high = min(low, 0.0), max(high, 0.0)
        if self.symmetric:
            first, last, zero = -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1, 0
            scale = self._scale(max(-low, high) / last)
            return Grid(scale, zero, first, last)
        first, last = 0, 2**self.bits - 1
        scale = self._scale((high - low) / last)
        zero = round(-low / scale)
        if self.power_of_two and (high - low) / last > 0 and max(high / scale + zero, zero) > last:
            scale *= 1.0 if round(high / scale) + zero <= last else 2.0
            zero = round(-low / scale)
        return Grid(scale, min(max(zero, first), last), first, last)

    def _scale(self, exact: float) -> float:
        scale = max(exact, _SMALLEST_SCALE)
        # Scales are stored in 32 bits: what is searched must be what is stored.
        return 2.0 ** math.ceil(math.log2(scale) - 1e-9) if self.power_of_two else float(np.float32(scale))


def best_grid(histogram: Histogram, form: Form, method: Method, *, percentile: float = 99.999) -> Grid:
    """The grid for what calibration saw.

    ``minmax`` covers every value, ``percentile`` all but the rarest at each end, ``entropy`` keeps the shape of the
    distribution (Kullback-Leibler, as TensorRT does), ``mse`` makes the mean squared rounding error smallest.
    """
    low, high = histogram.low, histogram.high
    if method == "percentile":
        low, high = histogram.quantile(1 - percentile / 100), histogram.quantile(percentile / 100)
    elif method == "entropy":
        low, high = _entropy_range(histogram)
    elif method == "mse":
        return _least_squares(histogram, form)
    return form.over(low, high)


def _least_squares(histogram: Histogram, form: Form) -> Grid:
    weights = histogram.weighted
    used = weights > 0
    centres, counts = histogram.centres[used], weights[used]

    def error(grid: Grid) -> float:
        return float(np.sum(counts * (grid.round(centres) - centres) ** 2))

    shares = np.linspace(1.0, 0.02, _CANDIDATES)
    low, high = histogram.low, histogram.high
    if form.symmetric or low >= 0 or high <= 0:
        return min((form.over(low * share, high * share) for share in shares), key=error)
    # Two ends: the best common factor first, then each end in turn.
    share = min(shares, key=lambda share: error(form.over(low * share, high * share)))
    ends = [low * share, high * share]
    for _ in range(3):
        for side, limit in ((0, low), (1, high)):
            trials = [[*ends] for _ in shares]
            for trial, factor in zip(trials, shares, strict=True):
                trial[side] = limit * factor
            ends = min([ends, *trials], key=lambda trial: error(form.over(*trial)))
    return form.over(*ends)


def _entropy_range(histogram: Histogram) -> tuple[float, float]:
    """The symmetric range [-t, t], cut to what was seen, whose 128 levels keep the distribution's entropy best."""
    largest = max(-histogram.low, histogram.high)
    edges = np.linspace(0.0, largest, 2049)
    magnitudes, _ = np.histogram(np.abs(histogram.centres), bins=edges, weights=histogram.counts)
    best, threshold = math.inf, largest
    for last in range(128, 2049, 8):
        kept = magnitudes[:last].copy()
        merged = np.array_split(kept, 128)
        kept[-1] += magnitudes[last:].sum()
        spread = np.concatenate([np.where(part > 0, part.sum() / max((part > 0).sum(), 1), 0.0) for part in merged])
        seen = kept > 0
        p, q = kept[seen] / kept.sum(), np.maximum(spread[seen], 1e-9)
        divergence = float(np.sum(p * np.log(p / (q / q.sum()))))
        if divergence < best:
            best, threshold = divergence, float(edges[last])
    return max(histogram.low, -threshold), min(histogram.high, threshold)
