"""The noise of an ensemble: normal, from nothing but its seed, the same bits everywhere."""

from __future__ import annotations

import hashlib
import math
from statistics import NormalDist

import numpy as np
import pytest

from edge.bundle import noise
from edge.bundle.noise import SEED_BYTES, fresh_seed, golden_noise, standard_normal
from edge.errors import UsageError

SEED = bytes(range(16))


def test_it_is_normal():
    drawn = standard_normal(SEED, 500, 400).astype(float).ravel()
    n = drawn.size
    assert abs(drawn.mean()) < 4 / math.sqrt(n)
    assert abs(drawn.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs(np.mean(drawn**4) - 3) < 4 * math.sqrt(96 / n)
    # Kolmogorov-Smirnov, one in a thousand.
    expected = np.array([NormalDist().cdf(x) for x in np.sort(drawn)[::50]])
    assert np.abs(expected - np.arange(0, n, 50) / n).max() < 1.95 / math.sqrt(n)
    rows = standard_normal(SEED, 500, 400)
    assert abs(np.corrcoef(rows[:-1].ravel(), rows[1:].ravel())[0, 1]) < 4 / math.sqrt(n)


def test_it_follows_the_quantile_function():
    bits = np.frombuffer(hashlib.shake_256(b"earshot noise 1:" + SEED).digest(4 * 5000), "<u4")
    expected = [NormalDist().inv_cdf((int(each) + 0.5) / 2**32) for each in bits]
    assert np.allclose(standard_normal(SEED, 5, 1000).ravel(), expected, rtol=5e-7, atol=0)


def test_it_is_finite_at_the_ends(monkeypatch):
    class Ends:
        def __init__(self, _):
            pass

        def digest(self, _):
            return np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1], "<u4").tobytes()

    monkeypatch.setattr(noise.hashlib, "shake_256", Ends)
    ends = standard_normal(SEED, 1, 6)[0].astype(float)
    assert np.allclose(ends, -ends[::-1])
    assert ends[0] == pytest.approx(NormalDist().inv_cdf(2**-33), rel=1e-6)
    assert 0 < ends[3] < 1e-9


def test_the_same_bits_on_every_machine():
    # What golden vectors of ensembles rest on: these digests may never change.
    digest = hashlib.sha256(golden_noise(8, 200).astype("<f4").tobytes()).hexdigest()
    assert digest == "6af6b47f47394e993131f96397b6d3678e14e52d847239570a9b3099f83e7d96"
    assert np.array_equal(golden_noise(8, 200), standard_normal(b"earshot golden 1", 8, 200))


def test_more_members_keep_the_first_ones():
    assert np.array_equal(standard_normal(SEED, 3, 50), standard_normal(SEED, 9, 50)[:3])
    assert standard_normal(SEED, 3, 50).dtype == np.float32


def test_seeds_do_not_repeat():
    seeds = {fresh_seed() for _ in range(1000)}
    assert len(seeds) == 1000
    assert {len(seed) for seed in seeds} == {SEED_BYTES}
    first, second = (standard_normal(fresh_seed(), 8, 200).ravel() for _ in range(2))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.15


@pytest.mark.parametrize("seed", [b"", b"short", bytes(17)])
def test_a_seed_has_16_bytes(seed):
    with pytest.raises(UsageError, match="use 16"):
        standard_normal(seed, 1, 1)
