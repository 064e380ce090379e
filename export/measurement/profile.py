"""What bundles cost to run on this machine, on one thread: bytes, multiply-adds, latency, cold start, memory.

Machines are noisy, so windows are given to all bundles in turn, in another order each round, and bundles are compared
by the ratios of processor time inside the rounds: what slows the machine down slows all of them alike.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

import edge
from edge.bundle.classifier import Classifier
from edge.bundle.manifest import Manifest
from edge.bundle.reading import Bundle
from edge.errors import UnavailableError
from export.measurement.graph_cost import GraphCost, graph_cost
from export.measurement.kernels import Kernels, kernels
from firmware_models.data import Clips
from firmware_models.evaluation import check_labels, evaluate
from firmware_models.progress import Progress, silent
from firmware_models.statistics import wilson

ROUNDS = 300
STARTS = 3
_WARM_UP = 10
_BUSY = 1.2
_SEED = 20_250_103
_SCRIPT = Path(__file__).with_name("starting_process.py")


@dataclass(frozen=True, slots=True)
class Latency:
    """One window on one thread, over ``rounds`` windows.

    ``median_ms`` and ``p99_ms`` are by the clock, ``processor_ms`` is the median of the thread's processor time, which
    does not count what other programs took. ``ratio`` is the median over the rounds of this bundle's processor time to
    the first one's.
    """

    median_ms: float
    p99_ms: float
    processor_ms: float
    ratio: float
    rounds: int

    @property
    def busy(self) -> bool:
        """Whether other programs held windows up so often that the times by the clock say little of the bundle."""
        return self.median_ms > _BUSY * self.processor_ms


@dataclass(frozen=True, slots=True)
class Start:
    """A fresh process of the device's code, the median of several: milliseconds per step, memory after one window."""

    steps_ms: dict[str, float]
    resident_bytes: int
    peak_bytes: int

    @property
    def total_ms(self) -> float:
        """From the start of the process to the scores of the first window; files come from the page cache."""
        return self.steps_ms["total"]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Top-1 with its Wilson 95 % interval; ``source`` is the manifest or the data it was measured on."""

    top1: float
    low: float
    high: float
    n: int
    source: str


@dataclass(frozen=True, slots=True)
class Profile:
    """Everything that was found about one bundle."""

    path: Path
    manifest: Manifest
    sha256: str
    file_bytes: int
    graph_bytes: int
    cost: GraphCost
    kernels: Kernels
    latency: Latency
    start: Start
    accuracy: Accuracy | None

    @property
    def real_time_factor(self) -> float:
        """Median latency over the length of a window: 0.01 means that one core hears a hundred windows at once."""
        return self.latency.median_ms / 1e3 / (self.manifest.window_samples / self.manifest.rate_hz)

    def to_json(self) -> dict[str, Any]:
        """Plain values; sizes in bytes, times in milliseconds."""
        quantisation = self.manifest.quantisation.model_dump(mode="json")
        return {
            "path": str(self.path),
            "name": self.manifest.name,
            "version": self.manifest.version,
            "architecture": self.manifest.architecture,
            "sha256": self.sha256,
            "quantisation": quantisation,
            "computes_in": self.kernels.computes_in,
            "kernels": asdict(self.kernels),
            "file_bytes": self.file_bytes,
            "graph_bytes": self.graph_bytes,
            "cost": self.cost.to_json(),
            "latency": {**asdict(self.latency), "busy": self.latency.busy},
            "real_time_factor": self.real_time_factor,
            "start": {**asdict(self.start), "total_ms": self.start.total_ms},
            "accuracy": None if self.accuracy is None else asdict(self.accuracy),
        }


def profile(
    bundles: Sequence[Bundle],
    *,
    keys: Sequence[Path],
    clips: Mapping[int, Clips] | None = None,
    rounds: int = ROUNDS,
    starts: int = STARTS,
    progress: Progress = silent,
) -> list[Profile]:
    """Measure all ``bundles``; the first one is what the others are compared with.

    Args:
        bundles: verified; they may differ in everything.
        keys: the files of the public keys, for the fresh processes that verify the bundles again.
        clips: by length in samples: measure the accuracy on these instead of taking it from the manifest.
        rounds: windows per bundle; p99 means little below 100.
        starts: fresh processes per bundle.
        progress: told per bundle, start, round and batch.

    Raises:
        DataError: the labels of ``clips`` are not those of a bundle.
        UnavailableError: a fresh process ended without an answer.
        UsageError: a graph whose multiply-adds cannot be counted.
    """
    if clips is not None:
        for bundle in bundles:
            check_labels(bundle.manifest.labels, clips[bundle.manifest.window_samples])
    costs = [(_cost(bundle), kernels(bundle)) for bundle in bundles]
    begun = _starts(bundles, keys, starts, progress)
    classifiers = [Classifier(bundle) for bundle in bundles]
    windows = [bundle.golden_pcm[:1] for bundle in bundles]
    clock_ms, processor_ms = _interleaved_ms(classifiers, windows, rounds, progress)
    found = []
    for number, (bundle, classifier, (cost, chosen)) in enumerate(zip(bundles, classifiers, costs, strict=True)):
        if clips is None:
            accuracy = stated_accuracy(bundle.manifest)
        else:
            accuracy = _measured(classifier, clips[bundle.manifest.window_samples], progress)
        latency = Latency(
            median_ms=float(np.median(clock_ms[number])),
            p99_ms=float(np.percentile(clock_ms[number], 99)),
            processor_ms=float(np.median(processor_ms[number])),
            ratio=float(np.median(processor_ms[number] / processor_ms[0])),
            rounds=rounds,
        )
        size_bytes = bundle.path.stat().st_size
        found.append(
            Profile(
                path=bundle.path,
                manifest=bundle.manifest,
                sha256=bundle.sha256,
                file_bytes=size_bytes,
                graph_bytes=len(bundle.model),
                cost=cost,
                kernels=chosen,
                latency=latency,
                start=begun[number],
                accuracy=accuracy,
            )
        )
    return found


def _cost(bundle: Bundle) -> GraphCost:
    ensemble = bundle.manifest.ensemble
    rows = {} if ensemble is None else {ensemble.noise_name: ensemble.members}
    return graph_cost(onnx.load_from_string(bundle.model), rows=rows)


def _interleaved_ms(
    classifiers: Sequence[Classifier], windows: Sequence[npt.NDArray[np.float32]], rounds: int, progress: Progress
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Milliseconds per window by the clock and of processor time, each (bundles, rounds)."""
    rng = np.random.default_rng(_SEED)
    clock_ms, processor_ms = np.zeros((2, len(classifiers), rounds))
    for classifier, window in zip(classifiers, windows, strict=True):
        for _ in range(_WARM_UP):
            classifier.scores(window)
    for number in range(rounds):
        for index in rng.permutation(len(classifiers)).tolist():
            # onnxruntime computes in the calling thread when it has one thread only.
            began_ns, began_processor_ns = time.perf_counter_ns(), time.thread_time_ns()
            classifiers[index].scores(windows[index])
            processor_ms[index, number] = (time.thread_time_ns() - began_processor_ns) / 1e6
            clock_ms[index, number] = (time.perf_counter_ns() - began_ns) / 1e6
        progress(number + 1, rounds, "rounds")
    return clock_ms, processor_ms


def _starts(bundles: Sequence[Bundle], keys: Sequence[Path], count: int, progress: Progress) -> list[Start]:
    found: list[list[Start]] = [[] for _ in bundles]
    for number in range(count):
        for index, bundle in enumerate(bundles):
            found[index].append(_start(bundle.path, keys))
            progress(number * len(bundles) + index + 1, count * len(bundles), "cold starts")
    return [sorted(mine, key=lambda start: start.total_ms)[count // 2] for mine in found]


def _start(bundle: Path, keys: Sequence[Path]) -> Start:
    code = os.pathsep.join(filter(None, (str(Path(edge.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": code, "OMP_NUM_THREADS": "1"}
    began_ns = time.monotonic_ns()
    arguments = [str(_SCRIPT), str(bundle.resolve()), str(began_ns), *(str(key.resolve()) for key in keys)]
    ended = subprocess.run(
        [sys.executable, "-P", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if ended.returncode != 0:
        lines = [line.strip() for line in ended.stderr.splitlines() if line.strip()]
        words = lines[-1] if lines else f"ended with code {ended.returncode}"
        raise UnavailableError(f"{bundle}: a fresh process gave no scores: {words[:300]}")
    answer = json.loads(ended.stdout)
    return Start(steps_ms=answer["ms"], resident_bytes=answer["bytes"]["VmRSS"], peak_bytes=answer["bytes"]["VmHWM"])


def stated_accuracy(manifest: Manifest) -> Accuracy | None:
    """What the manifest says of the test split, the interval computed from its n; None where it says nothing."""
    top1, n = manifest.metrics.get("test_top1"), manifest.metrics.get("test_n")
    if top1 is None or not n or not 0 <= top1 <= 1:
        return None
    interval = wilson(round(top1 * n), round(n))
    return Accuracy(top1=top1, low=interval.low, high=interval.high, n=round(n), source="manifest")


def _measured(classifier: Classifier, clips: Clips, progress: Progress) -> Accuracy:
    name = classifier.manifest.name

    def report(done: int, total: int, note: str = "") -> None:
        progress(done, total, note or f"accuracy of {name}")

    found = evaluate(classifier.scores, clips, progress=report)
    low, high = found.top1_interval
    return Accuracy(top1=found.top1, low=low, high=high, n=found.n, source=f"{clips.split} of {clips.root}")
