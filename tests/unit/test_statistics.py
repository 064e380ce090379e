import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from firmware_models.statistics import wilson


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_agrees_with_scipy(counts):
    successes, n = counts
    interval = binomtest(successes, n).proportion_ci(confidence_level=0.95, method="wilson")
    rate = wilson(successes, n)
    assert rate.rate == successes / n
    assert rate.low == pytest.approx(interval.low, abs=1e-9)
    assert rate.high == pytest.approx(interval.high, abs=1e-9)


def test_nothing_counted_is_not_a_number():
    assert all(math.isnan(value) for value in wilson(0, 0))


@pytest.mark.parametrize(("successes", "n"), [(-1, 3), (4, 3)])
def test_impossible_counts_are_refused(successes, n):
    with pytest.raises(ValueError, match="between 0 and n"):
        wilson(successes, n)
