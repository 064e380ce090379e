"""Bring somebody else's ONNX classifier into the form of a bundle: PCM in, scores out, nothing but standard ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from edge.bundle.onnx_wire import check_self_contained
from edge.errors import EarshotError, UsageError
from export.graphs.foreign import reading, trial
from export.graphs.foreign.front_end import visible_floor
from export.graphs.foreign.joining import front_only, join, simplify, with_input_shape
from export.graphs.foreign.layouts import Dimension, shown, target_shape
from export.graphs.foreign.settings import FrontEndSettings, front_end, front_end_from_ms, load_front_end
from export.graphs.foreign.verdict import missing_in_twin, parameter_count, read_labels, score_kind_of
from export.graphs.foreign.wiring import ForeignSettings, InputKind, Wiring, only_input, wire

__all__ = [
    "ForeignModel",
    "ForeignSettings",
    "FrontEndSettings",
    "front_end",
    "front_end_from_ms",
    "import_foreign",
    "load_front_end",
    "read_labels",
]


@dataclass(frozen=True, eq=False)
class ForeignModel:
    """A foreign model, ready to be quantised and packed.

    Attributes:
        graph: ``pcm`` float32 (batch, window_samples) in [-1, 1] to ``scores`` float32 (batch, classes); the nodes
            before the model's own input have names that begin with ``frontend/``.
        labels: the classes.
        window_samples: the length of a window.
        rate_hz: its rate.
        score_kind: probabilities where the model ends in a softmax or sigmoid.
        parameters: numbers that the model stores, shapes and the like apart.
        log_floor: the front end's floor as the mean square per mel band; None where there is none.
        notes: one line each, for the card and for whoever exports.
        batch: the only batch size that the graph takes, None for any.
        twin_lacks: why there is no twin, and so no gradient attack (no part of ``notes``: the format that ships
            decides); None where there is one.
    """

    graph: ModelProto
    labels: tuple[str, ...]
    window_samples: int
    rate_hz: int
    score_kind: Literal["logits", "probabilities"]
    parameters: int
    log_floor: float | None
    notes: tuple[str, ...]
    batch: int | None
    twin_lacks: str | None


def import_foreign(
    path: Path, labels: Sequence[str], input_kind: InputKind, settings: ForeignSettings | None = None
) -> ForeignModel:
    """Read, check and wire a model, and hold the result against the model as it came, on the golden sounds.

    Raises:
        UsageError: the file is no ONNX model, or one that a bundle must not hold, or its input, output or number of
            classes is not what was said; one line that begins with the path.
        ThresholdError: what was made gives other scores than the file.
    """
    try:
        return _import(path, tuple(labels), input_kind, settings or ForeignSettings())
    except EarshotError as error:
        # Names in the file may hold what steers a terminal.
        said = "".join(character if character.isprintable() else "?" for character in str(error))
        raise type(error)(f"{path}: {said}") from None


def _import(path: Path, labels: tuple[str, ...], input_kind: InputKind, settings: ForeignSettings) -> ForeignModel:
    source = reading.select(reading.read_model(path), settings.output)
    reading.check(source)
    given = only_input(source, input_kind)
    wiring, batch, notes = wire(given, input_kind, settings)
    model, note = reading.upgrade(source)
    pcm = trial.sounds(wiring.window_samples, wiring.rate_hz)
    raw = _reference(source, model, wiring, batch, pcm)
    expected = _scores(raw, labels, source.graph.output[0].name)
    graph, free = _best(model, wiring, batch=batch, pcm=pcm, expected=expected, raw_shape=raw[0].shape)
    check_self_contained(graph.SerializeToString())
    kind, why = score_kind_of(graph, expected)
    lacks = missing_in_twin(graph, pcm, expected, batch=free)
    notes += [each for each in (note, why) if each]
    if batch is not None and free is None:
        notes.append(f"The file insists on a batch of {batch}; the bundle takes any.")
    return ForeignModel(
        graph=graph,
        labels=labels,
        window_samples=wiring.window_samples,
        rate_hz=wiring.rate_hz,
        score_kind=kind,
        parameters=parameter_count(source),
        log_floor=visible_floor(settings.front_end) if input_kind == "logmel" else None,
        notes=tuple(notes),
        batch=free,
        twin_lacks=lacks,
    )


def _reference(
    source: ModelProto, model: ModelProto, wiring: Wiring, batch: Dimension, pcm: npt.NDArray[np.float32]
) -> list[trial.Array]:
    """The raw output of the model as it came for each clip."""
    reference = trial.Reference(source)
    batched = wiring.layout.startswith("batch")
    features = trial.features_of(front_only(wiring, model), pcm, batched=batched)
    if not np.isfinite(features.astype(np.float64)).all():
        raise UsageError("the front end gives numbers that are not finite: check log_floor, mean and deviation")
    return reference.outputs(features, batch=(batch or 1) if batched else None)


def _scores(raw: list[trial.Array], labels: tuple[str, ...], output: str) -> npt.NDArray[np.float32]:
    """The scores (n, classes) in raw outputs."""
    first = raw[0]
    if first.dtype.kind != "f":
        raise UsageError(
            f"its output {output!r} is {first.dtype}: scores are floating point numbers, see --output NAME"
        )
    rows = [each if each.ndim == 1 else each[0] for each in raw]
    if first.ndim == 0 or rows[0].size != max(rows[0].shape, default=0):
        raise UsageError(f"its output {output!r} is {shown(first.shape)}: one row of scores per clip is needed")
    if rows[0].size != len(labels):
        raise UsageError(
            f"its output {output!r} has {rows[0].size} scores per clip, --labels names {len(labels)} "
            f"({', '.join(labels[:3])}{', ...' if len(labels) > 3 else ''})"
        )
    scores = np.stack([row.reshape(-1) for row in rows]).astype(np.float32)
    if not np.isfinite(scores).all():
        raise UsageError(
            f"its output {output!r} is NaN or infinite for noise, clicks or silence: check --input and the front end"
        )
    return scores


def _best(
    model: ModelProto,
    wiring: Wiring,
    *,
    batch: Dimension,
    pcm: npt.NDArray[np.float32],
    expected: npt.NDArray[np.float32],
    raw_shape: tuple[int, ...],
) -> tuple[ModelProto, Dimension]:
    """The joined graph, with any batch and simplified if it keeps its scores so; and the batch it insists on."""
    worst = float("inf")
    free_tried = wiring.layout.startswith("batch") and batch in {None, 1}
    for size in (None, batch or 1) if free_tried else (batch or 1,):
        shape = target_shape(wiring.layout, wiring.sizes)
        shaped = with_input_shape(model, [("batch" if size is None else size) if each == 0 else each for each in shape])
        for candidate in (simplify(shaped), shaped):
            if candidate is None:
                continue
            joined = join(candidate, wiring, batch=size, given_shape=raw_shape, width=expected.shape[1])
            found = trial.difference(joined, pcm, expected, batch=size)
            if found <= trial.MAX_DIFFERENCE:
                return joined, size
            worst = min(worst, found)
    raise trial.refuse_difference(worst)
