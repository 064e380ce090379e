"""Rates with their uncertainty."""

from __future__ import annotations

import math
from typing import NamedTuple

Z_95 = 1.959963984540054


class Rate(NamedTuple):
    """A proportion with its 95 % interval; all three are NaN when nothing was counted."""

    rate: float
    low: float
    high: float


def wilson(successes: int, n: int) -> Rate:
    """The share of ``successes`` among ``n`` with its Wilson score interval at 95 %.

    Raises:
        ValueError: a count is negative or ``successes`` exceeds ``n``.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie between 0 and n, not {successes} of {n}")
    if n == 0:
        return Rate(math.nan, math.nan, math.nan)
    p = successes / n
    denominator = 1 + Z_95**2 / n
    centre = (p + Z_95**2 / (2 * n)) / denominator
    half = Z_95 * math.sqrt(p * (1 - p) / n + Z_95**2 / (4 * n * n)) / denominator
    return Rate(p, max(0.0, centre - half), min(1.0, centre + half))
