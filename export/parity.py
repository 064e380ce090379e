"""The gate between a model and its bundle: what onnxruntime computes must be what was trained and what is attacked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from onnx import ModelProto
from torch import nn

import edge  # noqa: F401 - switches onnxruntime's telemetry off before its first import
from edge.errors import ThresholdError
from export.onnx_graph import INPUT, OUTPUT
from export.twin import Twin, scores_by_numpy

FP32_MAX_ABS = 1e-4
INT8_MIN_AGREEMENT = 0.995
MAX_DROP = 0.01
_BATCH = 64

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How close two ways to compute the same scores are, over ``clips`` clips.

    ``max_abs`` is the largest difference of any score, ``labels_equal`` the share of clips with the same label.
    """

    clips: int
    max_abs: float
    labels_equal: float

    def to_json(self) -> dict[str, Any]:
        """The fields as plain numbers."""
        return asdict(self)


def graph_scores(model: ModelProto, pcm: Floats, *, threads: int = 1) -> Floats:
    """What onnxruntime gives for clips (n, samples): float32 (n, classes)."""
    import onnxruntime as ort  # noqa: PLC0415 - half a second

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    parts = [
        session.run([OUTPUT], {INPUT: np.ascontiguousarray(pcm[start : start + _BATCH])})[0]
        for start in range(0, len(pcm), _BATCH)
    ]
    return np.concatenate(parts)


def torch_scores(model: nn.Module, pcm: Floats) -> Floats:
    """What a torch module in evaluation mode gives for clips (n, samples): float32 (n, classes)."""
    with torch.inference_mode():
        parts = [model(torch.from_numpy(pcm[start : start + _BATCH])).numpy() for start in range(0, len(pcm), _BATCH)]
    return np.concatenate(parts)


def agreement(a: Floats, b: Floats) -> Agreement:
    """Compare scores (n, classes) of the same clips; a score that is not finite counts as infinitely different."""
    difference = np.abs(a - b)
    worst = float(difference.max()) if np.isfinite(difference).all() else float("inf")
    return Agreement(clips=len(a), max_abs=worst, labels_equal=float(np.mean(a.argmax(1) == b.argmax(1))))


def check_fp32(model: nn.Module, graph: ModelProto, pcm: Floats) -> Agreement:
    """Hold the FP32 graph against the checkpoint it was exported from.

    Raises:
        ThresholdError: a score differs by more than 1e-4.
    """
    found = agreement(graph_scores(graph, pcm), torch_scores(model.eval(), pcm))
    if found.max_abs > FP32_MAX_ABS:
        raise ThresholdError(
            f"FP32 scores of onnxruntime and torch differ by {found.max_abs:.3g} over {found.clips} clips, the "
            f"limit is {FP32_MAX_ABS:g}: nothing was packed"
        )
    return found


def check_twin(graph: ModelProto, pcm: Floats, *, min_agreement: float = INT8_MIN_AGREEMENT) -> Agreement:
    """Hold a graph, quantised or not, against its twin.

    Raises:
        ThresholdError: labels are equal on fewer than 99.5 % of the clips.
    """
    found = agreement(graph_scores(graph, pcm), scores_by_numpy(Twin(graph), pcm))
    if found.labels_equal < min_agreement:
        raise ThresholdError(
            f"onnxruntime and the twin give the same label for {found.labels_equal:.2%} of {found.clips} clips, the "
            f"limit is {min_agreement:.1%}: nothing was packed"
        )
    return found


def check_drop(fp32_top1: float, quantised_top1: float, *, n: int, max_drop: float = MAX_DROP) -> float:
    """The accuracy lost by quantisation, as a share (0.01 is one point).

    Raises:
        ThresholdError: more than ``max_drop`` is lost.
    """
    drop = fp32_top1 - quantised_top1
    if drop > max_drop:
        raise ThresholdError(
            f"quantisation costs {100 * drop:.2f} points of top-1 ({fp32_top1:.2%} to {quantised_top1:.2%}, n = {n}), "
            f"the limit is {100 * max_drop:g}: try another --method, or more calibration clips; nothing was packed"
        )
    return drop
