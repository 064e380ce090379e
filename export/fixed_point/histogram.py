"""What calibration sees: a histogram of every activation that will be rounded, in one pass over the clips."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto

import edge  # noqa: F401 - switches onnxruntime's telemetry off before its first import
from edge.errors import DataError
from export.graphs.from_torch import INPUT
from firmware_models.progress import Progress, silent

_BATCH = 32
_HALF = 8192
_SMALLEST = 2.0**-40
# Where a clip counts as silent, as a share of the median mean square.
_QUIETEST = 1 / 16

Floats = npt.NDArray[np.float32]


class Histogram:
    """Counts of values in ``2 * 8192`` equal bins over [-2**k, 2**k]; k grows with the data, by merging pairs of bins.

    The ends of the range are powers of two, so that merging is exact and the order of the batches does not matter.
    Quiet and loud clips are counted apart, by the octave of a clip's mean square: see :attr:`weighted`.
    ``low`` and ``high`` are the smallest and the largest value seen.
    """

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self._exponent: int | None = None
        self._counts: dict[int, npt.NDArray[np.int64]] = {}
        self._clips: Counter[int] = Counter()

    def add(self, values: npt.NDArray[Any]) -> None:
        """Count finite values, float32 (clips, ...)."""
        low, high = float(values.min()), float(values.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        needed = math.ceil(math.log2(max(abs(low), abs(high), _SMALLEST)))
        if self._exponent is None:
            self._exponent = needed
        for _ in range(needed - self._exponent):
            self._double()
        rows = values.reshape(len(values), -1)
        power = np.square(rows, dtype=np.float64).mean(axis=1)
        octaves = np.rint(np.log2(np.maximum(power, _SMALLEST**2))).astype(int)
        # Powers of two keep the product exact; to add the offset before rounding down would not.
        place = np.floor(rows * np.float32(_HALF * 2.0**-self._exponent)).astype(np.int32)
        index = np.minimum(place + _HALF, 2 * _HALF - 1)
        for octave, row in zip(octaves.tolist(), index, strict=True):
            counts = np.bincount(row, minlength=2 * _HALF)
            self._counts[octave] = self._counts[octave] + counts if octave in self._counts else counts
            self._clips[octave] += 1

    @property
    def centres(self) -> npt.NDArray[np.float64]:
        """The middle of every bin, float64 (bins,)."""
        width = math.ldexp(1.0, self._exponent or 0) / _HALF
        middles: npt.NDArray[np.float64] = (np.arange(2 * _HALF, dtype=np.float64) - _HALF + 0.5) * width
        return middles

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """How many values fell into every bin, int64 (bins,)."""
        total = np.zeros(2 * _HALF, np.int64)
        for counts in self._counts.values():
            total += counts
        return total

    @property
    def weighted(self) -> npt.NDArray[np.float64]:
        """The counts, each clip weighed by one over its mean square, float64 (bins,).

        What a network hears in a quiet clip must survive as well as what it hears in a loud one: an error counts
        relative to its clip. A clip far below the median hardly has anything to hear, and counts no more than others.
        """
        levels = sorted(self._clips.elements())
        floor = _QUIETEST * 2.0 ** levels[len(levels) // 2]
        total = np.zeros(2 * _HALF)
        for octave in sorted(self._counts):
            total += self._counts[octave] / (2.0**octave + floor)
        return total

    def quantile(self, share: float) -> float:
        """The value below which ``share`` of all values lie, to a bin, never beyond what was seen."""
        cumulative = np.cumsum(self.counts)
        place = int(np.searchsorted(cumulative, share * cumulative[-1]))
        return float(np.clip(self.centres[min(place, 2 * _HALF - 1)], self.low, self.high))

    def _double(self) -> None:
        for octave, counts in self._counts.items():
            merged = np.zeros_like(counts)
            merged[_HALF // 2 : _HALF // 2 + _HALF] = counts.reshape(-1, 2).sum(axis=1)
            self._counts[octave] = merged
        self._exponent = (self._exponent or 0) + 1


def observe(
    model: ModelProto,
    names: Sequence[str],
    pcm: Floats,
    *,
    progress: Progress = silent,
) -> dict[str, Histogram]:
    """Histograms of the float tensors ``names`` of a graph over clips (n, samples).

    Raises:
        DataError: a tensor holds NaN or infinity; the message names it.
    """
    found = {name: Histogram() for name in names}
    for batch in values(model, names, pcm, progress=progress, note="calibrating"):
        for name, array in batch.items():
            if not np.isfinite(array).all():
                raise DataError(
                    f"{name}: NaN or infinity on the calibration clips: the model overflows; use another checkpoint"
                )
            found[name].add(array)
    return found


def values(
    model: ModelProto,
    names: Sequence[str],
    pcm: Floats,
    *,
    progress: Progress = silent,
    note: str = "",
) -> Iterator[dict[str, Floats]]:
    """The tensors ``names`` of a graph, batch by batch; only the nodes that they need are run.

    Q/DQ pairs are computed as they stand. A graph of a fixed batch size is given whole batches, and a rest of the
    clips that does not fill one is left out.
    """
    import onnxruntime as ort  # noqa: PLC0415 - half a second

    computed = [name for name in dict.fromkeys(names) if name != INPUT]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    graph = _cut(model, computed or [model.graph.output[0].name]).SerializeToString()
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    fixed = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    step = fixed or _BATCH
    for start in range(0, len(pcm) - (fixed or 1) + 1, step):
        progress(start, len(pcm), note)
        clips = np.ascontiguousarray(pcm[start : start + step])
        found = dict(zip(computed, session.run(computed, {INPUT: clips}), strict=True)) if computed else {}
        yield {**found, **({INPUT: clips} if INPUT in names else {})}
    progress(len(pcm), len(pcm), note)


def _cut(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """The part of the graph that computes ``names``, which become its outputs."""
    needed, wanted = [], set(names)
    for node in reversed(model.graph.node):
        if wanted & set(node.output):
            needed.append(node)
            wanted |= set(node.input)
    part = ModelProto()
    part.ir_version = model.ir_version
    part.opset_import.extend(model.opset_import)
    part.graph.name = "part"
    part.graph.node.extend(reversed(needed))
    part.graph.input.extend(each for each in model.graph.input if each.name in wanted or each.name == INPUT)
    part.graph.initializer.extend(each for each in model.graph.initializer if each.name in wanted)
    part.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    return part
