"""Post-training quantisation of an exported graph with onnxruntime: static, from calibration clips.

Profile ``cpu``, 8 bits: activations unsigned and asymmetric per tensor, weights signed and symmetric per output
channel (U8S8), Q/DQ form with standard operators only. The front end stays in FP32: its powers span ten decades.
"""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto
from pydantic import BaseModel, ConfigDict, Field

import edge  # noqa: F401 - switches onnxruntime's telemetry off before its first import
from edge.errors import DataError
from export.graphs.from_torch import INPUT, OUTPUT, front_end_nodes
from firmware_models.progress import Progress, silent

Method = Literal["minmax", "entropy", "percentile", "distribution"]
MIN_CLIPS = 16
_BATCH = 32


class QuantisationSettings(BaseModel):
    """How ranges are chosen.

    ``method`` turns what calibration saw into a range: ``minmax`` keeps every value, ``percentile`` cuts the rarest,
    ``entropy`` weighs both. ``reduce_range`` keeps weights within +-64: x86 processors without VNNI add two products
    in 16 saturating bits, and with weights up to 127 they compute other scores (0.5 apart, on an LMS) than all others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Method = "minmax"
    percentile: float = Field(default=99.999, gt=50, le=100)
    per_channel: bool = True
    reduce_range: bool = True


def quantise_int8(
    model: ModelProto,
    pcm: npt.NDArray[np.float32],
    settings: QuantisationSettings | None = None,
    *,
    progress: Progress = silent,
) -> ModelProto:
    """INT8 version of an exported graph, profile ``cpu``.

    Args:
        model: from :func:`export.graphs.from_torch.to_onnx`; it is not changed.
        pcm: calibration clips, float32 (n, samples); 1000 or more of the training split for a real model.
        settings: see :class:`QuantisationSettings`.
        progress: told once per batch.

    Raises:
        DataError: fewer than 16 clips.
    """
    from onnxruntime.quantization import (  # noqa: PLC0415 - the import takes a second
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    settings = settings or QuantisationSettings()
    if len(pcm) < MIN_CLIPS:
        raise DataError(f"{len(pcm)} calibration clips: at least {MIN_CLIPS} are needed, 1000 for a real model")
    methods = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
        "distribution": CalibrationMethod.Distribution,
    }
    options: dict[str, Any] = {"QDQKeepRemovableActivations": True}
    if settings.method == "percentile":
        options["CalibPercentile"] = settings.percentile
    with tempfile.TemporaryDirectory(prefix="earshot-quantise-") as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(_relu_first(model), source)
        with _quiet():
            quantize_static(
                source,
                target,
                _reader(pcm, progress),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=settings.per_channel,
                reduce_range=settings.reduce_range,
                nodes_to_exclude=front_end_nodes(model),
                calibrate_method=methods[settings.method],
                extra_options=options,
            )
        quantised = onnx.load(target)
    _strip(quantised, model)
    _keep_scores(quantised)
    onnx.checker.check_model(quantised, full_check=True)
    return quantised


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser advises a preprocessing that the export has done, and prints while it calibrates."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def _reader(pcm: npt.NDArray[np.float32], progress: Progress) -> Any:
    from onnxruntime.quantization import CalibrationDataReader  # noqa: PLC0415

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = self._iterate()

        def _iterate(self) -> Iterator[dict[str, npt.NDArray[np.float32]]]:
            for start in range(0, len(pcm), _BATCH):
                progress(start, len(pcm), "calibrating")
                yield {INPUT: np.ascontiguousarray(pcm[start : start + _BATCH])}
            progress(len(pcm), len(pcm), "calibrating")

        def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
            return next(self._batches, None)

    return Reader()


def _relu_first(model: ModelProto) -> ModelProto:
    """Move Relu before MaxPool, which changes nothing but the grid: no step is spent on what Relu would cut off."""
    model = copy.deepcopy(model)
    nodes = list(model.graph.node)
    for place, (pool, relu) in enumerate(itertools.pairwise(nodes)):
        if (pool.op_type, relu.op_type) != ("MaxPool", "Relu") or relu.input[0] != pool.output[0]:
            continue
        if sum(pool.output[0] in node.input for node in nodes) > 1:
            continue
        source, between, target = pool.input[0], pool.output[0], relu.output[0]
        relu.input[0], relu.output[0] = source, between
        pool.input[0], pool.output[0] = between, target
        nodes[place], nodes[place + 1] = relu, pool
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _keep_scores(model: ModelProto) -> None:
    """Give the scores as the last layer computes them: rounded to 256 values, labels would tie."""
    graph = model.graph
    makers = {output: node for node in graph.node for output in node.output}
    dequantise = makers[OUTPUT]
    quantise = makers.get(dequantise.input[0])
    if dequantise.op_type != "DequantizeLinear" or quantise is None or quantise.op_type != "QuantizeLinear":
        return
    layer = makers[quantise.input[0]]
    layer.output[:] = [OUTPUT]
    graph.node.remove(dequantise)
    graph.node.remove(quantise)
    used = {name for node in graph.node for name in node.input}
    for each in [each for each in graph.initializer if each.name not in used]:
        graph.initializer.remove(each)


def _strip(model: ModelProto, source: ModelProto) -> None:
    model.producer_name, model.producer_version = source.producer_name, ""
    del model.metadata_props[:]
    del model.graph.value_info[:]
    unused = [each for each in model.opset_import if each.domain not in {"", "ai.onnx"}]
    for each in unused:
        model.opset_import.remove(each)
