"""Whether sound was lost, judged from times as sound cards give them."""

from __future__ import annotations

import numpy as np
import pytest

from edge.sound.microphones.continuity import Continuity

RATE_HZ = 48_000
FRAMES = 480


def _losses(adc_s: np.ndarray, flagged: frozenset[int] = frozenset()) -> list[int]:
    judge = Continuity(RATE_HZ)
    return [
        number for number, time_s in enumerate(adc_s.tolist()) if judge.lost(FRAMES, time_s, flagged=number in flagged)
    ]


def _times(count: int, *, jitter_s: float = 0.0, drift_ppm: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(1)
    return 100 + np.arange(count) * (FRAMES / RATE_HZ) * (1 + drift_ppm * 1e-6) + rng.exponential(jitter_s, count)


@pytest.mark.parametrize("drift_ppm", [-200, 0, 200])
@pytest.mark.parametrize("jitter_s", [0.0, 0.005])
def test_jitter_and_drift_are_no_loss(jitter_s: float, drift_ppm: float) -> None:
    assert _losses(_times(20_000, jitter_s=jitter_s, drift_ppm=drift_ppm)) == []


def test_one_late_block_is_no_loss() -> None:
    times = _times(2000)
    times[700:730] += np.linspace(0.3, 0.0, 30)
    assert _losses(times) == []


def test_a_flag_with_a_jump_is_a_loss_and_without_one_is_none() -> None:
    times = _times(1000)
    assert _losses(times, frozenset({500})) == []
    times[500:] += 0.01
    assert _losses(times, frozenset({500})) == [500]


def test_a_flag_without_times_is_believed() -> None:
    assert _losses(np.zeros(1000), frozenset({0, 500})) == [0, 500]
    assert _losses(_times(1000), frozenset({0})) == [0]


@pytest.mark.parametrize("jitter_s", [0.0, 0.003])
def test_a_loss_that_nobody_says_is_noticed_within_two_seconds(jitter_s: float) -> None:
    times = _times(3000, jitter_s=jitter_s)
    times[1000:] += 0.03
    (noticed,) = _losses(times)
    assert 1000 < noticed <= 1200
    judge = Continuity(RATE_HZ)
    for number, time_s in enumerate(times.tolist()):
        if judge.lost(FRAMES, time_s, flagged=False):
            assert number == noticed
            judge.restart()


def test_a_card_that_is_faster_than_time_has_lost_nothing() -> None:
    assert _losses(100 + np.arange(100_000) * 1e-5) == []
