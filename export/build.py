"""From a trained model to a bundle: export, quantise, hold against torch and the twin, measure, pack."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from nacl.signing import SigningKey
from onnx import ModelProto
from torch import Tensor

from edge.bundle.reading import Bundle
from edge.errors import UsageError
from export import parity
from export.card import Facts
from export.fixed_point.layers import left_in_float
from export.fixed_point.number_format import NumberFormat
from export.fixed_point.quantise import CalibrationSettings, quantise
from export.graphs.tensorrt import check_portable
from export.measurement.graph_cost import graph_cost
from export.pack import pack
from export.parity import Agreement, Floats
from export.source import Source
from export.twin import Twin
from firmware_models.data import Clips
from firmware_models.evaluation import check_labels, evaluate
from firmware_models.progress import Progress, silent

CALIBRATION_CLIPS = 1024
# The share of weights left in FP32 from which a card says so.
_WORTH_TELLING = 0.2
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
    """A packed bundle and what was measured on the way.

    ``fp32`` holds onnxruntime against the network in torch (None for a foreign graph), ``twin`` against the twin
    (None where the twin does not know an operator); ``drop`` is the top-1 that quantisation cost.
    """

    bundle: Bundle
    fp32: Agreement | None
    twin: Agreement | None
    drop: float | None


def calibration_pcm(train: Clips, count: int = CALIBRATION_CLIPS) -> npt.NDArray[np.float32]:
    """A reproducible choice of training clips, float32 (count, samples); all of them where there are fewer."""
    order = np.random.default_rng(_CALIBRATION_SEED).permutation(len(train))[:count]
    return train.float_pcm(np.sort(order))


def build(
    source: Source,
    out: Path,
    *,
    name: str,
    version: int,
    key: SigningKey,
    material: Material,
    facts: Facts,
    form: NumberFormat | None = None,
    calibration: CalibrationSettings | None = None,
    accept_drop: float | None = None,
    progress: Progress = silent,
) -> Built:
    """Export ``source`` to the bundle ``out``; nothing is written unless every gate is passed.

    ``accept_drop`` is the share of top-1 that quantisation may cost, by default what is usual for the width.

    Raises:
        ThresholdError: onnxruntime disagrees with torch or the twin, or quantisation costs too much.
        UsageError, DataError: something of the input cannot be used.
    """
    form = form or NumberFormat()
    for clips in material.measured.values():
        check_labels(source.labels, clips)
    graph = source.graph(form)
    trial = _Trial(material, source.noise, progress)
    scores = trial.by_onnxruntime(graph, "FP32, onnxruntime")
    metrics = {"parameters": float(source.parameters), **_multiply_adds(source, graph)}
    fp32 = twin = drop = None
    if source.reference is not None:
        fp32 = parity.check_logits(scores, trial.by_torch(source.reference, "FP32, torch"))
        metrics["parity_max_abs"] = fp32.max_abs
    if form.quantised:
        fp32_scores = scores
        graph = quantise(graph, material.calibration, form, calibration, progress=progress)
        scores = trial.by_onnxruntime(graph, f"{form.scheme}, onnxruntime", storage=form.profile == "storage")
        metrics["calibration_clips"] = float(len(material.calibration))
        if calibration is not None and calibration.finish_steps:
            metrics["finish_steps"] = float(calibration.finish_steps)
        metrics |= {f"fp32_{key}": value for key, value in trial.accuracy(fp32_scores).items()}
        if trial.labelled:
            limit = parity.MAX_DROP[form.bits] if accept_drop is None else accept_drop
            drop = parity.check_drop(trial.top1(fp32_scores), trial.top1(scores), n=len(trial.pcm), limit=limit)
    if form.profile == "portable":
        check_portable(graph)
    notes = [*facts.notes, *source.notes, *unrounded(graph, form)]
    if source.twin_lacks is not None:
        notes.append(f"Attacks that follow a gradient cannot be crafted on this bundle: {source.twin_lacks}.")
    else:
        members = None if source.ensemble is None else source.ensemble.members
        whole = Twin(graph, simulated=form.profile == "storage", members=members)
        limit = parity.MIN_LABELS_EQUAL[min(form.bits, form.activation_bits)]
        twin = parity.check_labels(scores, trial.by_twin(whole), limit=limit)
        metrics["twin_labels_equal"] = twin.labels_equal
    metrics |= trial.accuracy(scores)
    facts = dataclasses.replace(facts, metrics={**facts.metrics, **metrics}, notes=notes)
    identity = source.identity(name=name, version=version, form=form)
    return Built(bundle=pack(out, graph, identity, key=key, facts=facts), fp32=fp32, twin=twin, drop=drop)


def unrounded(graph: ModelProto, form: NumberFormat) -> list[str]:
    """What to say where much of a network could not be rounded, such as the weights of an LSTM."""
    share, operators = left_in_float(graph)
    if not form.quantised or share < _WORTH_TELLING:
        return []
    whole = f"{share:.0%} of the weights stay in 32-bit floating point ({', '.join(operators)})"
    return [f"{whole}: only those of Conv, Gemm and MatMul are rounded, so the bundle shrinks that much less."]


def _multiply_adds(source: Source, graph: ModelProto) -> dict[str, float]:
    """Those of one window; left out for a foreign graph in which they cannot be counted."""
    ensemble = source.ensemble
    batch = graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1
    try:
        cost = graph_cost(graph, rows={} if ensemble is None else {ensemble.noise_name: ensemble.members})
    except UsageError:
        if source.reference is not None:
            raise
        return {}
    return {"multiply_adds": cost.multiply_adds / batch}


class _Trial:
    """The clips on which all the ways to compute scores are compared."""

    def __init__(self, material: Material, noise: Floats | None, progress: Progress) -> None:
        self._splits = material.measured
        self._noise = noise
        self._progress = progress
        parts = [clips.float_pcm(slice(None)) for clips in material.measured.values()]
        self.labelled = bool(parts)
        self.pcm = np.concatenate(parts) if parts else material.calibration

    def by_onnxruntime(self, graph: ModelProto, note: str, *, storage: bool = False) -> Floats:
        return parity.graph_scores(
            graph, self.pcm, storage=storage, noise=self._noise, progress=self._progress, note=note
        )

    def by_torch(self, model: Callable[[Tensor], Tensor], note: str) -> Floats:
        return parity.torch_scores(model, self.pcm, progress=self._progress, note=note)

    def by_twin(self, twin: Twin) -> Floats:
        if self._noise is None:
            return self.by_torch(twin, "twin")
        noise = torch.from_numpy(self._noise)
        return self.by_torch(lambda pcm: twin(pcm, noise=noise), "twin")

    def top1(self, scores: Floats) -> float:
        truth = np.concatenate([clips.label_index for clips in self._splits.values()])
        return float(np.mean(scores.argmax(1) == truth))

    def accuracy(self, scores: Floats) -> dict[str, float]:
        """Top-1, the same with every label weighed equally, and n, for every measured split."""
        found: dict[str, float] = {}
        first = 0
        for split, clips in self._splits.items():
            rows = iter(np.split(scores[first : first + len(clips)], range(64, len(clips), 64)))
            first += len(clips)
            result = evaluate(lambda _, rows=rows: next(rows), clips, batch=64)  # type: ignore[misc]
            found |= {f"{split}_top1": result.top1, f"{split}_balanced": result.balanced, f"{split}_n": float(result.n)}
        return found
