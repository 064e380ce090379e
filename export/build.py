"""From a trained model to a bundle: export, quantise, hold against torch and the twin, measure, pack."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from onnx import ModelProto
from torch import nn

from edge.bundle.reading import Bundle
from edge.errors import UsageError
from export import parity
from export.card import Facts
from export.graphs.from_torch import to_onnx
from export.fixed_point.number_format import NumberFormat
from export.pack import identity_of, pack
from export.parity import Agreement
from export.fixed_point.quantise import QuantisationSettings, quantise_int8
from export.twin import Twin
from firmware_models.architectures import FirmwareModel
from firmware_models.data import Clips
from firmware_models.evaluation import check_labels, evaluate
from firmware_models.progress import Progress, silent

AVAILABLE: dict[tuple[int, str], str] = {
    (32, "cpu"): "FP32",
    (8, "cpu"): "INT8, computed in 8 bits by onnxruntime's CPU provider",
}
CALIBRATION_CLIPS = 1024
_CALIBRATION_SEED = 20_250_102


@dataclass(frozen=True, eq=False)
class Material:
    """Sound for an export: ``calibration`` float32 (n, samples) of training speakers, ``measured`` splits by name.

    Parity and the accuracy drop are checked on all of ``measured``, or on ``calibration`` where there is none.
    """

    calibration: npt.NDArray[np.float32]
    measured: Mapping[str, Clips] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Built:
    """A packed bundle and what was measured on the way; ``drop`` is the top-1 that quantisation cost."""

    bundle: Bundle
    fp32: Agreement
    twin: Agreement
    drop: float | None


def calibration_pcm(train: Clips, count: int = CALIBRATION_CLIPS) -> npt.NDArray[np.float32]:
    """A reproducible choice of training clips, float32 (count, samples); all of them where there are fewer."""
    order = np.random.default_rng(_CALIBRATION_SEED).permutation(len(train))[:count]
    return train.float_pcm(np.sort(order))


def build(
    model: FirmwareModel,
    out: Path,
    *,
    form: NumberFormat,
    name: str,
    version: int,
    key: Ed25519PrivateKey,
    material: Material,
    facts: Facts,
    settings: QuantisationSettings | None = None,
    progress: Progress = silent,
) -> Built:
    """Export ``model`` to the bundle ``out``; nothing is written unless every gate is passed.

    Raises:
        ThresholdError: onnxruntime disagrees with torch or the twin, or quantisation costs too much.
        UsageError, DataError: something of the input cannot be used.
    """
    model.eval()
    for clips in material.measured.values():
        check_labels(model.labels, clips)
    fp32_graph = to_onnx(model)
    trial = _Trial(material, progress)
    fp32_scores = trial.by_onnxruntime(fp32_graph, "FP32, onnxruntime")
    fp32 = parity.check_logits(
        fp32_scores, parity.torch_scores(model, trial.pcm, progress=progress, note="FP32, torch")
    )
    metrics = {"parity_max_abs": fp32.max_abs}
    graph, scores, drop = fp32_graph, fp32_scores, None
    if form.bits == 8:
        graph = quantise_int8(fp32_graph, material.calibration, settings, progress=progress)
        scores = trial.by_onnxruntime(graph, "INT8, onnxruntime")
        metrics["calibration_clips"] = float(len(material.calibration))
        metrics |= {f"fp32_{key}": value for key, value in trial.accuracy(fp32_scores).items()}
        if trial.labelled:
            drop = parity.check_drop(trial.top1(fp32_scores), trial.top1(scores), n=len(trial.pcm), limit=parity.MAX_DROP[8])
    twin = parity.check_labels(scores, trial.by_torch(Twin(graph), "twin"), limit=0.995)
    metrics |= {"twin_labels_equal": twin.labels_equal, **trial.accuracy(scores)}
    facts = dataclasses.replace(facts, metrics={**facts.metrics, **metrics})
    identity = identity_of(model, name=name, version=version, form=form)
    return Built(bundle=pack(out, graph, identity, key=key, facts=facts), fp32=fp32, twin=twin, drop=drop)


class _Trial:
    """The clips on which all the ways to compute scores are compared."""

    def __init__(self, material: Material, progress: Progress) -> None:
        self._splits = material.measured
        self._progress = progress
        parts = [clips.float_pcm(slice(None)) for clips in material.measured.values()]
        self.labelled = bool(parts)
        self.pcm = np.concatenate(parts) if parts else material.calibration

    def by_onnxruntime(self, graph: ModelProto, note: str) -> npt.NDArray[np.float32]:
        return parity.graph_scores(graph, self.pcm, progress=self._progress, note=note)

    def by_torch(self, model: nn.Module, note: str) -> npt.NDArray[np.float32]:
        return parity.torch_scores(model, self.pcm, progress=self._progress, note=note)

    def top1(self, scores: npt.NDArray[np.float32]) -> float:
        truth = np.concatenate([clips.label_index for clips in self._splits.values()])
        return float(np.mean(scores.argmax(1) == truth))

    def accuracy(self, scores: npt.NDArray[np.float32]) -> dict[str, float]:
        """Top-1, the same with every label weighed equally, and n, for every measured split."""
        found: dict[str, float] = {}
        first = 0
        for split, clips in self._splits.items():
            rows = iter(np.split(scores[first : first + len(clips)], range(64, len(clips), 64)))
            first += len(clips)
            result = evaluate(lambda _, rows=rows: next(rows), clips, batch=64)  # type: ignore[misc]
            found |= {f"{split}_top1": result.top1, f"{split}_balanced": result.balanced, f"{split}_n": float(result.n)}
        return found
