"""One run of a stochastic ensemble of eight against eight runs of one member, in onnxruntime on one thread.

Processor time is compared: beside other work a longer run is interrupted more often than a shorter one.
"""

from collections.abc import Callable
from time import thread_time_ns
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from edge.bundle.noise import standard_normal
from export.graphs.ensemble import ensemble_graph, ensemble_of
from export.graphs.from_torch import to_onnx
from firmware_models.architectures import build
from firmware_models.low_rank.factorise import Ranks, factorise

ROUNDS, MEMBERS = 60, 8
LABELS = tuple(f"word{index}" for index in range(12))


def session(graph: Any) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("everywhere", [False, True], ids=["layers it makes smaller", "every layer"])
@pytest.mark.parametrize("architecture", ["lms", "lm", "ete"])
def test_one_run_of_eight_members(architecture: str, everywhere: bool, noise_pcm: Callable[..., np.ndarray]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # Random weights: they do not change the time.
    model, _ = factorise(build(architecture, labels=LABELS).eval(), Ranks(fc=16, conv=64, larger_too=everywhere))
    graph = ensemble_graph(model, sigma=0.1)
    ensemble, plain = session(graph), session(to_onnx(model))
    noise = standard_normal(bytes(16), MEMBERS, ensemble_of(graph, members=MEMBERS).noise_values)
    clip = noise_pcm(1)
    rows = [noise[member : member + 1] for member in range(MEMBERS)]

    def together() -> np.ndarray:
        return np.asarray(ensemble.run(None, {"pcm": clip, "noise": noise})[0])

    def one_by_one() -> np.ndarray:
        return np.mean([ensemble.run(None, {"pcm": clip, "noise": row})[0] for row in rows], axis=0)

    def without_noise() -> None:
        for _ in range(MEMBERS):
            plain.run(None, {"pcm": clip})

    assert np.abs(together() - one_by_one()).max() <= 1e-6
    times: dict[str, list[int]] = {}
    for _ in range(ROUNDS):
        for work in (together, one_by_one, without_noise):
            start = thread_time_ns()
            work()
            times.setdefault(work.__name__, []).append(thread_time_ns() - start)
    one = np.array(times["together"])
    ratios = [float(np.median(one / np.array(times[name]))) for name in ("one_by_one", "without_noise")]
    where = "every layer" if everywhere else "the layers it makes smaller"
    print(
        f"\n{architecture} low rank in {where}, {MEMBERS} members, one thread, {ROUNDS} interleaved rounds:"
        f" processor time {np.median(one) / 1e6:.2f} ms, ratio to {MEMBERS} runs of one member {ratios[0]:.2f},"
        f" to {MEMBERS} of the plain network {ratios[1]:.2f}"
    )
    assert min(ratios) > 0
