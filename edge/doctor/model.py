"""What is run: the bundle and its signature, the slots, the keys, the providers, and whether it is quick enough."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edge.bundle.classifier import Classifier
from edge.bundle.reading import Bundle, Floats, read_bundle
from edge.bundle.signing import fingerprint, load_public_key
from edge.doctor.finding import Finding, well, wrong

TIMED_RUNS = 100
# Half of the time between two windows is for the rest of the agent, and for what else the machine has to do.
_SHARE_OF_HOP = 0.5


def given_bundle(path: Path, key_paths: Sequence[Path]) -> tuple[Bundle, Finding]:
    """A bundle named on the command line.

    Raises:
        UsageError: it or a key cannot be read, or its signature does not count.
    """
    bundle = read_bundle(path, trusted=[load_public_key(key_path) for key_path in key_paths])
    return bundle, well("bundle", describe(bundle))


def describe(bundle: Bundle) -> str:
    """Name, version, who signed it and its hash."""
    manifest = bundle.manifest
    return f"{manifest.name} version {manifest.version}, signed by {bundle.key}, sha256 {bundle.sha256}"


def operators(key_paths: Sequence[Path]) -> Finding:
    """Whose commands the device obeys.

    Raises:
        UsageError: a key cannot be read.
    """
    return obeyed([fingerprint_of(path) for path in key_paths])


def fingerprint_of(key_path: Path) -> str:
    """The fingerprint of a public key file.

    Raises:
        UsageError: it cannot be read.
    """
    return fingerprint(load_public_key(key_path))


def obeyed(fingerprints: Sequence[str]) -> Finding:
    """The same from fingerprints."""
    if not fingerprints:
        return well("operators", "none: this device listens, and obeys no command")
    return well("operators", ", ".join(fingerprints), {"keys": float(len(fingerprints))})


def model(classifier: Classifier, difference: float, clip: Floats, threads: int, hop_ms: float) -> Finding:
    """The time of one window against the hop.

    Args:
        classifier: computes the golden vectors within the bundle's tolerance.
        difference: how far from them it lies.
        clip: float32 (1, window_samples).
        threads: of the classifier.
        hop_ms: time from one window to the next.
    """
    times_ms = []
    for _ in range(TIMED_RUNS):
        start_ns = time.perf_counter_ns()
        classifier.scores(clip)
        times_ms.append((time.perf_counter_ns() - start_ns) / 1e6)
    p50, p95, p99 = (float(value) for value in np.percentile(times_ms, (50, 95, 99)))
    values = {"golden_difference": difference, "latency_p50_ms": p50, "latency_p95_ms": p95, "latency_p99_ms": p99}
    detail = f"golden vectors within {difference:.2g}; latency p50 {p50:.2f} ms, p95 {p95:.2f} ms, p99 {p99:.2f} ms"
    detail += f" ({threads} thread(s)), hop {hop_ms:g} ms"
    if classifier.members is not None:
        detail += f", ensemble of {classifier.members}"
        values["members"] = float(classifier.members)
    return verdict(detail, p95, hop_ms, values)


def verdict(detail: str, p95_ms: float, hop_ms: float, values: dict[str, float]) -> Finding:
    """Whether 95 of 100 windows leave half of the hop to the rest of the machine."""
    if p95_ms <= _SHARE_OF_HOP * hop_ms:
        return well("model", detail, values)
    enough_ms = -(-p95_ms / _SHARE_OF_HOP // 10) * 10
    fix = f"--hop {enough_ms:g}, a smaller or INT8 bundle, or more --threads"
    return wrong("model", f"{detail}: too slow for it", fix, values)


def providers(classifier: Classifier) -> Finding:
    """What computes, and what else could."""
    import onnxruntime as ort  # noqa: PLC0415 - the classifier has imported it long ago

    used = [name.removesuffix("ExecutionProvider") for name in classifier.providers]
    others = [name.removesuffix("ExecutionProvider") for name in ort.get_available_providers()]
    idle = [name for name in others if name not in used]
    also = f"; also here: {', '.join(idle)}" if idle else ""
    return well("providers", f"{', '.join(used)} (onnxruntime {ort.__version__}){also}")
