"""The gate between a model and its bundle: what onnxruntime computes must be what was trained and what is attacked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from onnx import ModelProto
from torch import Tensor

import edge  # noqa: F401 - switches onnxruntime's telemetry off before its first import
from edge.bundle.session import open_session
from edge.errors import ThresholdError
from export.graphs.ensemble import NOISE
from export.graphs.from_torch import INPUT, OUTPUT
from firmware_models.progress import Progress, silent

FP32_MAX_ABS = 1e-4
# By the width of the narrower of weights and activations: one step of 4 bits is a sixteenth of the range.
MIN_LABELS_EQUAL = {32: 0.999, 16: 0.999, 8: 0.999, 4: 0.995}
MAX_DROP = {16: 0.005, 8: 0.01, 4: 0.05}
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


def graph_scores(
    model: ModelProto,
    pcm: Floats,
    *,
    storage: bool = False,
    noise: Floats | None = None,
    progress: Progress = silent,
    note: str = "",
) -> Floats:
    """What onnxruntime gives on one thread for clips (n, samples): float32 (n, classes).

    ``storage`` loads the graph as a device loads one of that profile. ``noise`` (members, noise_values) is the second
    input of an ensemble, here the same for all clips.
    """
    session = open_session(model.SerializeToString(), profile="storage" if storage else "cpu")
    fixed = session.get_inputs()[0].shape[0]
    # An ensemble holds every activation once per member.
    step = fixed if isinstance(fixed, int) else _BATCH if noise is None else max(1, _BATCH // len(noise))
    parts: list[Floats] = []
    for start in range(0, len(pcm), step):
        batch = np.ascontiguousarray(pcm[start : start + step])
        missing = step - len(batch) if isinstance(fixed, int) else 0
        feed = {INPUT: np.pad(batch, ((0, missing), (0, 0)))}
        if noise is not None:
            feed[NOISE] = np.tile(noise, (len(feed[INPUT]), 1))
        parts.append(session.run([OUTPUT], feed)[0][: len(batch)])
        progress(min(start + step, len(pcm)), len(pcm), note)
    return np.concatenate(parts)


def torch_scores(
    model: Callable[[Tensor], Tensor], pcm: Floats, *, progress: Progress = silent, note: str = ""
) -> Floats:
    """What torch gives for clips (n, samples): float32 (n, classes)."""
    parts: list[Floats] = []
    with torch.inference_mode():
        for start in range(0, len(pcm), _BATCH):
            parts.append(model(torch.from_numpy(pcm[start : start + _BATCH])).float().numpy())
            progress(min(start + _BATCH, len(pcm)), len(pcm), note)
    return np.concatenate(parts)


def agreement(a: Floats, b: Floats) -> Agreement:
    """Compare scores (n, classes) of the same clips; a score that is not finite counts as infinitely different."""
    difference = np.abs(a - b)
    worst = float(difference.max()) if np.isfinite(difference).all() else float("inf")
    return Agreement(clips=len(a), max_abs=worst, labels_equal=float(np.mean(a.argmax(1) == b.argmax(1))))


def check_logits(by_onnxruntime: Floats, by_torch: Floats, *, limit: float = FP32_MAX_ABS) -> Agreement:
    """Hold the scores of the FP32 graph against those of the checkpoint it was exported from.

    Raises:
        ThresholdError: a score differs by more than ``limit``.
    """
    found = agreement(by_onnxruntime, by_torch)
    if found.max_abs > limit:
        raise ThresholdError(
            f"FP32 scores of onnxruntime and torch differ by {found.max_abs:.3g} over {found.clips} clips, "
            f"the limit is {limit:g}: nothing was packed"
        )
    return found


def check_labels(by_onnxruntime: Floats, by_twin: Floats, *, limit: float) -> Agreement:
    """Hold the scores of a graph, quantised or not, against those of its twin.

    Raises:
        ThresholdError: labels are equal on a smaller share of the clips than ``limit``.
    """
    found = agreement(by_onnxruntime, by_twin)
    if found.labels_equal < limit:
        raise ThresholdError(
            f"onnxruntime and the twin give the same label for {found.labels_equal:.2%} of {found.clips} clips, "
            f"the limit is {limit:.1%}: nothing was packed"
        )
    return found


def check_drop(fp32_top1: float, quantised_top1: float, *, n: int, limit: float) -> float:
    """The accuracy lost by quantisation, as a share (0.01 is one point).

    Raises:
        ThresholdError: more than ``limit`` is lost.
    """
    drop = fp32_top1 - quantised_top1
    if drop > limit:
        raise ThresholdError(
            f"quantisation costs {100 * drop:.2f} points of top-1 ({fp32_top1:.2%} to {quantised_top1:.2%}, n = {n}), "
            f"the limit is {100 * limit:g}: try another --method or more --clips, or accept it with --accept-drop; "
            f"nothing was packed"
        )
    return drop
