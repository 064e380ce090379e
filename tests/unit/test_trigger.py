from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import UsageError
from edge.listening.trigger import ListeningSettings, Trigger

RATE_HZ = 1000
LABELS = ("go", "stop", "_silence_")


def _trigger(score_kind: str = "probabilities", labels: tuple[str, ...] = LABELS, **changes: object) -> Trigger:
    values = {"hop_ms": 100, "smoothing_ms": 300, "threshold": 0.8, "release": 0.5, "refractory_ms": 1000, **changes}
    return Trigger(labels, score_kind, RATE_HZ, ListeningSettings.checked(**values))


def _row(go: float, stop: float = 0.0) -> list[float]:
    return [go, stop, 1 - go - stop]


def _fires(trigger: Trigger, curve: list[float], hop: int = 100) -> list[tuple[int, str]]:
    said = [(number, trigger.feed(_row(value), number * hop)) for number, value in enumerate(curve)]
    return [(number, label) for number, label in said if label is not None]


def test_a_word_fires_once_while_it_stands() -> None:
    assert _fires(_trigger(), [0.0] * 5 + [1.0] * 30 + [0.0] * 5) == [(7, "go")]


def test_a_word_fires_again_after_it_fell() -> None:
    curve = [0.0] * 3 + [1.0] * 5 + [0.0] * 10 + [1.0] * 5
    assert _fires(_trigger(), curve) == [(5, "go"), (20, "go")]


def test_a_dip_above_the_lower_threshold_does_not_arm() -> None:
    curve = [1.0] * 5 + [0.55] * 20 + [1.0] * 5
    assert _fires(_trigger(), curve) == [(1, "go")]


def test_the_average_of_one_window_alone_does_not_fire() -> None:
    assert _fires(_trigger(), [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]) == []
    assert _fires(_trigger(smoothing_ms=0), [0.0, 0.0, 1.0, 0.0]) == [(2, "go")]


def test_within_the_refractory_time_nothing_fires_and_then_another_word_may() -> None:
    trigger = _trigger(smoothing_ms=0, refractory_ms=500)
    said = [trigger.feed(_row(1.0) if number < 2 else _row(0.0, 1.0), number * 100) for number in range(8)]
    assert said == ["go", None, None, None, None, "stop", None, None]


def test_background_never_fires() -> None:
    trigger = _trigger(smoothing_ms=0)
    assert [trigger.feed(_row(0.0), number * 100) for number in range(20)] == [None] * 20
    silent = _trigger(labels=("silence", "unknown", "_unknown_"), smoothing_ms=0)
    assert [silent.feed(np.eye(3)[number % 3].tolist(), number * 2000) for number in range(9)] == [None] * 9
    asked = _trigger(smoothing_ms=0, background=("go",))
    assert [asked.feed(row, number * 2000) for number, row in enumerate((_row(1.0), _row(0.0)))] == [None, "_silence_"]


def test_a_new_stream_forgets_windows_but_not_what_has_fired() -> None:
    trigger = _trigger()
    assert _fires(trigger, [1.0] * 4) == [(1, "go")]
    trigger.reset()
    assert _fires(trigger, [1.0] * 30) == []
    trigger.reset()
    assert _fires(trigger, [0.0] * 3 + [1.0] * 3) == [(5, "go")]


def test_windows_that_were_left_out_do_not_count() -> None:
    trigger = _trigger()
    assert [trigger.feed(_row(1.0), index) for index in (0, 5000, 10_000)] == [None, None, None]
    assert trigger.feed(_row(1.0), 10_100) == "go"


def test_logits_are_made_probabilities() -> None:
    trigger = _trigger("logits", smoothing_ms=0)
    logits = [1000.0, 998.0, -1000.0]
    assert trigger.feed(logits, 0) == "go"
    assert trigger.smoothed == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2)), 0.0], abs=1e-12)


@settings(max_examples=150, deadline=None)
@given(
    curve=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=120),
    seed=st.integers(0, 1 << 32),
    smoothing_ms=st.sampled_from([0, 100, 250, 300, 1000]),
    refractory_ms=st.sampled_from([0, 300, 1000]),
    cut=st.integers(0, 120),
)
def test_never_two_fires_without_a_fall_between(
    curve: list[float], seed: int, smoothing_ms: int, refractory_ms: int, cut: int
) -> None:
    gaps = np.random.default_rng(seed).integers(60, 351, len(curve)).tolist()
    trigger = _trigger(smoothing_ms=smoothing_ms, refractory_ms=refractory_ms, threshold=0.7, release=0.4)
    windows: list[tuple[int, list[float]]] = []
    index, clock, fallen, fired_at = 0, 0, {"go": True, "stop": True}, -math.inf
    for number, value in enumerate(curve):
        if number == cut:
            trigger.reset()
            windows, index = [], 0
        row = _row(value, (1 - value) * 0.9)
        windows.append((index, row))
        label = trigger.feed(row, index)
        # By the definition: the mean of the last windows that began within the time of smoothing.
        span = max(100, smoothing_ms)
        most = -(-span // 100)
        mean = np.mean([each for at, each in windows[-most:] if at > index - span], axis=0)
        assert np.allclose(trigger.smoothed, mean, rtol=0, atol=1e-12)
        enough = len([at for at, _ in windows[-most:] if at > index - span]) >= (most + 1) // 2
        for which, name in enumerate(("go", "stop")):
            fallen[name] = fallen[name] or (enough and mean[which] < 0.4 + 1e-9)
        if label is not None:
            assert enough
            assert mean[LABELS.index(label)] >= 0.7 - 1e-9
            assert fallen[label]
            assert clock - fired_at >= refractory_ms
            fallen[label], fired_at = False, clock
        index += gaps[number]
        clock += gaps[number] if number + 1 != cut else 0


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.tuples(st.integers(600, 900), st.integers(1500, 4000)), min_size=1, max_size=5),
    seed=st.integers(0, 1 << 32),
    start=st.integers(0, 99),
)
def test_fires_do_not_depend_on_when_the_windows_are_taken(words: list[tuple[int, int]], seed: int, start: int) -> None:
    """Words that stand for 0.6 to 0.9 s: each fires once, 0.2 to 0.45 s after it began, however the hops fall."""
    jitter = np.random.default_rng(seed).integers(-20, 21, 300).tolist()
    begins, spans, at = [], [], 1000
    for length, pause in words:
        begins.append(at)
        spans.append((at, at + length))
        at += length + pause

    def stands(index: int) -> float:
        return float(any(first <= index < end for first, end in spans))

    for moments in (range(start, at, 100), np.cumsum([start, *(100 + each for each in jitter)]).tolist()):
        trigger = _trigger()
        fired = [index for index in moments if index < at and trigger.feed(_row(stands(index)), index)]
        assert len(fired) == len(begins)
        assert all(160 <= index - first <= 450 for first, index in zip(begins, fired, strict=True))


def test_feeding_allocates_nothing_that_stays() -> None:
    import tracemalloc

    trigger = _trigger("logits")
    row = [0.1, 0.2, 0.3]
    for number in range(100):
        trigger.feed(row, number * 100)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(100, 5100):
        trigger.feed(row, number * 100)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 2000


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"hop_ms": 5}, "--hop 5: .*10"),
        ({"threshold": 1.5}, "--threshold 1.5: .*1"),
        ({"threshold": 0.4, "release": 0.5}, "--release: 0.5 is not below the threshold of 0.4"),
        ({"refractory_ms": -1}, "--refractory -1"),
        ({"smoothing_ms": float("nan")}, "--smoothing nan"),
        ({"keep": "none"}, "--keep none: .*'triggered' or 'all'"),
        ({"speed": 1}, "--speed 1"),
    ],
)
def test_wrong_settings_are_one_line_that_names_the_option(values: dict[str, object], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as caught:
        ListeningSettings.checked(**values)
    assert "\n" not in str(caught.value)


def test_what_is_not_given_has_its_default() -> None:
    assert ListeningSettings.checked(hop_ms=None, threshold=0.4).lower_threshold == pytest.approx(0.25)
