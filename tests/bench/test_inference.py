"""INT8 against FP32 in onnxruntime on one thread: what compression buys on this machine."""

from collections.abc import Callable
from time import perf_counter_ns

import numpy as np

from edge.bundle.classifier import Classifier
from edge.bundle.reading import read_bundle
from edge.bundle.signing import load_public_key
from firmware_models import zoo

ROUNDS = 300


def test_int8_against_fp32(noise_pcm: Callable[..., np.ndarray]) -> None:
    keys = [load_public_key(zoo.PUBLIC_KEY)]
    classifiers = {bits: Classifier(read_bundle(zoo.bundle(f"lms-{bits}"), trusted=keys)) for bits in ("fp32", "int8")}
    pcm = noise_pcm(ROUNDS)
    times: dict[str, list[int]] = {name: [] for name in classifiers}
    for clip in pcm:
        for name, classifier in classifiers.items():
            start = perf_counter_ns()
            classifier.scores(clip[None])
            times[name].append(perf_counter_ns() - start)
    medians = {name: float(np.median(values)) / 1e6 for name, values in times.items()}
    ratios = np.array(times["int8"]) / np.array(times["fp32"])
    print(
        f"\nLMS, one window, one thread, {ROUNDS} interleaved pairs: FP32 {medians['fp32']:.2f} ms,"
        f" INT8 {medians['int8']:.2f} ms, INT8 / FP32 median {np.median(ratios):.2f}"
    )
    assert all(value > 0 for value in medians.values())
