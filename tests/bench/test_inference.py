"""What compression buys on this machine, in onnxruntime on one thread: 8 bits against 32, low rank against full."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

ROUNDS = 200
CALIBRATION_CLIPS = 64


def tell(what: str, times_ms: dict[str, np.ndarray], slow: str, fast: str, wanted: float | None) -> float:
    speed_up = float(np.median(times_ms[slow] / times_ms[fast]))
    medians = ", ".join(f"{name} {np.median(values):.2f} ms" for name, values in times_ms.items())
    goal = "" if wanted is None else f" (at least {wanted:g} wanted: {'met' if speed_up >= wanted else 'MISSED'})"
    print(
        f"\n{what}, one window, one thread, {ROUNDS} rounds in turn: {medians}; {fast} is {speed_up:.2f}x faster{goal}"
    )
    return speed_up


@pytest.mark.parametrize(("name", "wanted"), [("ete", 3.0), ("lm", 1.8), ("lms", None)])
def test_int8_against_fp32(
    name: str,
    wanted: float | None,
    random_model: Callable[[str], Any],
    session: Callable[[Any], Any],
    in_turn_ms: Callable[..., dict[str, np.ndarray]],
    noise_pcm: Callable[..., np.ndarray],
) -> None:
    from export.fixed_point.number_format import number_format
    from export.fixed_point.quantise import quantise
    from export.graphs.from_torch import to_onnx

    graph = to_onnx(random_model(name))
    int8 = quantise(graph, noise_pcm(CALIBRATION_CLIPS), number_format(8, profile="cpu"))
    ways = {"FP32": session(graph), "INT8": session(int8)}
    times_ms = in_turn_ms(ways, noise_pcm(ROUNDS), ROUNDS)
    assert tell(f"{name.upper()}, profile cpu", times_ms, "FP32", "INT8", wanted) >= (wanted or 1.0)


def test_low_rank_against_full(
    random_model: Callable[[str], Any],
    session: Callable[[Any], Any],
    in_turn_ms: Callable[..., dict[str, np.ndarray]],
    noise_pcm: Callable[..., np.ndarray],
) -> None:
    from export.graphs.from_torch import to_onnx
    from firmware_models.low_rank.factorise import Ranks, factorise

    model = random_model("lm")
    factored, report = factorise(model, Ranks(fc=16, conv=64))
    ways = {"full": session(to_onnx(model)), "low rank": session(to_onnx(factored))}
    times_ms = in_turn_ms(ways, noise_pcm(ROUNDS), ROUNDS)
    what = (
        f"LM, ranks 16 and 64, {report.parameters_before:,} to {report.parameters_after:,} parameters, "
        f"{report.multiply_adds_before / 1e6:.0f} to {report.multiply_adds_after / 1e6:.0f} M multiply-adds"
    )
    assert tell(what, times_ms, "full", "low rank", 2.0) >= 2.0
