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
    return score_interval(successes / n, n)


def score_interval(rate: float, n: int) -> Rate:
    """Wilson's interval at 95 % around a rate that was not counted over ``n`` whole trials; NaN without trials."""
    if not n or math.isnan(rate):
        return Rate(math.nan, math.nan, math.nan)
    denominator = 1 + Z_95**2 / n
    centre = (rate + Z_95**2 / (2 * n)) / denominator
    half = Z_95 * math.sqrt(rate * (1 - rate) / n + Z_95**2 / (4 * n * n)) / denominator
    return Rate(rate, max(0.0, centre - half), min(1.0, centre + half))


def newcombe(first: Rate, second: Rate) -> Rate:
    """The difference ``first`` - ``second`` of two independent rates with its interval at 95 %; NaN if one is.

    Source: R. G. Newcombe, "Interval estimation for the difference between independent proportions: comparison of
    eleven methods", Statistics in Medicine 17 (1998), method 10, from the Wilson intervals of both.
    """
    difference = first.rate - second.rate
    if math.isnan(difference):
        return Rate(math.nan, math.nan, math.nan)
    below = math.hypot(first.rate - first.low, second.high - second.rate)
    above = math.hypot(first.high - first.rate, second.rate - second.low)
    return Rate(difference, max(-1.0, difference - below), min(1.0, difference + above))
