"""Run a foreign model as it came and as it will ship, on the same sounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

import edge  # noqa: F401 - switches onnxruntime's telemetry off before its first import
from edge.errors import ThresholdError, UsageError
from export.golden import golden_pcm
from export.graphs.foreign.joining import PCM_STEPS
from export.graphs.foreign.reading import one_line
from export.graphs.from_torch import INPUT, OUTPUT

# As between an FP32 graph and its checkpoint; relative to the largest score where that exceeds 1.
MAX_DIFFERENCE = 1e-4

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


def sounds(samples: int, rate_hz: int) -> Floats:
    """What models are tried on: the golden sounds, the same backwards and faint, and silence; float32 (n, samples)."""
    golden = golden_pcm(samples, rate_hz).astype(np.float32) / np.float32(PCM_STEPS)
    return np.concatenate((golden, golden[:, ::-1] * np.float32(0.03), np.zeros((1, samples), np.float32)))


class Reference:
    """A foreign model in onnxruntime, fed with features.

    Raises:
        UsageError: onnxruntime cannot load it; the message holds what onnxruntime says, operator and node included.
    """

    def __init__(self, model: ModelProto) -> None:
        self._session = _session(model)
        self._input = self._session.get_inputs()[0].name

    def outputs(self, features: Array, *, batch: int | None) -> list[Array]:
        """The raw output for each row of ``features``, computed one by one or in batches of ``batch`` equal rows.

        Raises:
            UsageError: onnxruntime fails on them.
        """
        rows = [row[np.newaxis] if batch is not None else row for row in features]
        if batch is not None:
            rows = [np.repeat(row, batch, axis=0) for row in rows]
        try:
            return [np.asarray(self._session.run(None, {self._input: row})[0]) for row in rows]
        except Exception as error:  # noqa: BLE001 - onnxruntime has a dozen exception classes without a public base
            raise UsageError(f"onnxruntime cannot run it: {one_line(error)}") from None


def features_of(front: ModelProto, pcm: Floats, *, batched: bool) -> Array:
    """What the front end gives for each clip, (n, ...); without an axis for the batch in a row unless ``batched``."""
    session = _session(front)
    rows = [np.asarray(session.run(None, {INPUT: clip[np.newaxis]})[0]) for clip in pcm]
    return np.concatenate(rows) if batched else np.stack(rows)


def difference(joined: ModelProto, pcm: Floats, expected: Floats, *, batch: int | None) -> float:
    """How far the scores of a joined graph lie from ``expected``, relative where these exceed 1; inf if it fails.

    A graph that takes any batch is run on all clips at once: none may see another.
    """
    try:
        scores = scores_of(joined, pcm, batch=batch)
    except Exception:  # noqa: BLE001 - onnxruntime has a dozen exception classes without a public base
        return float("inf")
    if scores.shape != expected.shape or not np.isfinite(scores).all():
        return float("inf")
    return float(np.max(np.abs(scores - expected)) / max(1.0, float(np.max(np.abs(expected)))))


def scores_of(joined: ModelProto, pcm: Floats, *, batch: int | None) -> Floats:
    """Scores (n, classes) of clips (n, samples)."""
    session = _session(joined)
    if batch is None:
        return np.asarray(session.run([OUTPUT], {INPUT: pcm})[0], np.float32)
    runs = (session.run([OUTPUT], {INPUT: np.repeat(clip[np.newaxis], batch, axis=0)})[0] for clip in pcm)
    return np.stack([np.asarray(run, np.float32)[0] for run in runs])


def refuse_difference(worst: float) -> ThresholdError:
    """The error for a model that does not survive its preparation."""
    told = (
        "it fails, or gives another shape or numbers that are not finite" if worst == float("inf") else f"{worst:.3g}"
    )
    return ThresholdError(
        f"its scores behind our front end differ from its own on the golden sounds ({told}, the limit is "
        f"{MAX_DIFFERENCE:g}): nothing was made"
    )


def _session(model: ModelProto) -> Any:
    import onnxruntime as ort  # noqa: PLC0415 - half a second

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:  # noqa: BLE001 - onnxruntime has a dozen exception classes without a public base
        raise UsageError(f"onnxruntime cannot load it: {one_line(error)}") from None
