"""Try a bundle on this machine before it may run: does it compute what it should, and fast enough?"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge.bundle.opening import open_classifier
from edge.bundle.providers import CPU
from edge.bundle.reading import Bundle
from edge.errors import ThresholdError

_WARM_UP_RUNS = 3


@dataclass(frozen=True)
class Tried:
    """``difference`` of the scores on the golden vectors, and latencies of one window on ``provider``."""

    provider: str
    difference: float
    p50_ms: float
    p99_ms: float


def try_out(
    bundle: Bundle,
    *,
    runs: int,
    latency_budget_ms: float | None,
    threads: int = 1,
    members: int | None = None,
    provider: str | None = None,
    cache: Path | None = None,
) -> Tried:
    """Open a bundle as the agent will, run its golden vectors, then ``runs`` windows one by one.

    With one thread on the processor its own time counts, not that in which others had the processor: the updating
    process has the lowest priority beside an agent that listens.

    Raises:
        ThresholdError: other scores than when the bundle was packed, or too slow.
        BundleError: onnxruntime cannot load the graph.
        UnavailableError: the provider is missing here.
    """
    classifier, difference = open_classifier(bundle, threads=threads, members=members, provider=provider, cache=cache)
    alone = threads == 1 and classifier.providers == (CPU,)
    clock_ns = time.thread_time_ns if alone else time.perf_counter_ns
    windows = bundle.golden_pcm
    took_ms: list[float] = []
    late = 0
    for run in range(_WARM_UP_RUNS + runs):
        pcm = windows[run % len(windows)][np.newaxis]
        before_ns = clock_ns()
        classifier.scores(pcm)
        took_ms.append((clock_ns() - before_ns) / 1e6)
        late += latency_budget_ms is not None and run >= _WARM_UP_RUNS and took_ms[-1] > latency_budget_ms
        # So many lie above the 99th percentile whatever comes after; a very slow model would take hours.
        if late > runs // 100 + 1:
            break
    p50_ms, p99_ms = (float(value) for value in np.percentile(took_ms[_WARM_UP_RUNS:], (50, 99)))
    if latency_budget_ms is not None and p99_ms > latency_budget_ms:
        raise ThresholdError(
            f"{bundle.manifest.name} version {bundle.manifest.version}: one window in a hundred takes {p99_ms:.1f} ms,"
            f" more than the {latency_budget_ms:.1f} ms that this device has: listen with a longer hop, or send a"
            " smaller model"
        )
    return Tried(classifier.providers[0], difference, p50_ms, p99_ms)
