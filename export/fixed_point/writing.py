"""Writing Q/DQ graphs: onnxruntime's quantiser places the nodes, the scales are ours."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto

import edge  # noqa: F401 - switches onnxruntime's telemetry off before its first import
from export.fixed_point.grid import Grid
from export.fixed_point.layers import Layer, arrays_of, store
from export.fixed_point.number_format import NumberFormat
from export.graphs.from_torch import INPUT, front_end_nodes

Doubles = npt.NDArray[np.float64]


def rounded_tensors(model: ModelProto, form: NumberFormat, clip: npt.NDArray[np.float32]) -> tuple[str, ...]:
    """The float tensors that onnxruntime's quantiser rounds on a grid of their own; the others share one of these."""
    draft = _quantised(model, form, {}, clip)
    _unite(draft)
    weights = {each.name for each in draft.graph.initializer}
    names = [
        node.input[1].removesuffix("_scale")
        for node in draft.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in weights
    ]
    return tuple(dict.fromkeys(names))


def write(
    model: ModelProto,
    form: NumberFormat,
    grids: Mapping[str, Grid],
    weight_scales: Mapping[Layer, Doubles],
    clip: npt.NDArray[np.float32],
) -> ModelProto:
    """The quantised graph of a prepared one: ``grids`` of activations by tensor, scales (channels,) of weights.

    ``clip`` float32 (1, samples) is only for the quantiser's own bookkeeping.
    """
    overrides: dict[str, list[dict[str, Any]]] = {}
    _, whole = _types(form)
    for name, grid in grids.items():
        integer = _type_of(grid)
        zero = np.array(grid.zero, onnx.helper.tensor_dtype_to_np_dtype(integer.tensor_type))
        overrides[name] = [{"scale": np.array(grid.scale, np.float32), "zero_point": zero, "quant_type": integer}]
    zero = np.array(0, onnx.helper.tensor_dtype_to_np_dtype(whole.tensor_type))
    for layer, scales in weight_scales.items():
        used = scales if form.per_channel else scales[:1]
        entries = [{"scale": np.array(each, np.float32), "zero_point": zero, "quant_type": whole} for each in used]
        if form.per_channel:
            entries = [{**entry, "axis": layer.axis} for entry in entries]
        overrides[layer.weight] = entries
    quantised = _quantised(model, form, overrides, clip)
    _unite(quantised)
    _tidy(quantised, model)
    return quantised


def without_activations(model: ModelProto, names: Collection[str] | None = None) -> None:
    """Take the Q/DQ pairs on activations out again, those that share the grid of one of ``names`` or all of them."""
    for quantise, dequantise in _pairs(model):
        if names is None or quantise.input[1].removesuffix("_scale") in names:
            _bypass(model, quantise, dequantise)
    drop_unused(model)


def symmetric(form: NumberFormat) -> bool:
    """Whether activations are signed with zero point 0."""
    return form.profile == "portable" or form.power_of_two


def store_weights(model: ModelProto, layer: Layer, numbers: Doubles, scales: Doubles) -> None:
    """Replace a layer's stored weights by whole numbers (channels, inputs) with scales (channels,)."""
    arrays = arrays_of(model)
    store(model, f"{layer.weight}_quantized", layer.from_rows(numbers))
    store(model, f"{layer.weight}_scale", scales[: arrays[f"{layer.weight}_scale"].size])


def store_bias(model: ModelProto, layer: Layer, bias: Doubles) -> None:
    """Replace a layer's bias (channels,); a stored one of whole numbers has the scale of input times weights."""
    arrays = arrays_of(model)
    whole = f"{layer.bias}_quantized"
    if whole not in arrays:
        store(model, str(layer.bias), bias)
        return
    node = next(node for node in model.graph.node if node.name == layer.name)
    maker = next(each for each in model.graph.node if node.input[0] in each.output)
    scale = (arrays[maker.input[1]] * arrays[f"{layer.weight}_scale"]).astype(np.float32)
    store(model, f"{whole}_scale", scale)
    store(model, whole, np.rint(bias / scale.astype(np.float64)))


def _types(form: NumberFormat) -> tuple[Any, Any]:
    from onnxruntime.quantization import QuantType  # noqa: PLC0415 - the import takes a second

    signed = {4: QuantType.QInt4, 8: QuantType.QInt8, 16: QuantType.QInt16}
    unsigned = {4: QuantType.QUInt4, 8: QuantType.QUInt8, 16: QuantType.QUInt16}
    activations = 16 if form.activation_bits == 32 else form.activation_bits
    return (signed if symmetric(form) else unsigned)[activations], signed[form.bits]


def _type_of(grid: Grid) -> Any:
    from onnxruntime.quantization import QuantType  # noqa: PLC0415 - the import takes a second

    bits = (grid.high - grid.low + 1).bit_length() - 1
    return QuantType[f"Q{'U' if grid.low == 0 else ''}Int{bits}"]


def _quantised(
    model: ModelProto, form: NumberFormat, overrides: dict[str, Any], clip: npt.NDArray[np.float32]
) -> ModelProto:
    from onnxruntime.quantization import QuantFormat, quantize_static  # noqa: PLC0415 - the import takes a second

    activations, weights = _types(form)
    with tempfile.TemporaryDirectory(prefix="earshot-quantise-") as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "quantised.onnx"
        onnx.save(model, source)
        with _quiet():
            quantize_static(
                source,
                target,
                _reader(clip),
                quant_format=QuantFormat.QDQ,
                activation_type=activations,
                weight_type=weights,
                per_channel=form.per_channel,
                nodes_to_exclude=front_end_nodes(model),
                extra_options={
                    "QDQKeepRemovableActivations": True,
                    "QuantizeBias": form.profile == "cpu",
                    "QDQDisableWeightAdjustForInt32Bias": form.profile != "cpu",
                    "ActivationSymmetric": symmetric(form),
                    "TensorQuantOverrides": overrides,
                },
            )
        return onnx.load(target)


def _unite(model: ModelProto) -> None:
    """Take out the pairs that cost accuracy and serve nothing.

    Between a layer and its Relu: one rounding behind both is enough. At the scores: rounded, labels would tie.
    """
    outputs = {each.name for each in model.graph.output}
    uses = Counter(name for node in model.graph.node for name in node.input)
    readers = {name: node for node in model.graph.node for name in node.input}
    for quantise, dequantise in _pairs(model):
        result = dequantise.output[0]
        if result in outputs:
            maker = next(node for node in model.graph.node if quantise.input[0] in node.output)
            maker.output[:] = [result if name == quantise.input[0] else name for name in maker.output]
            model.graph.node.remove(quantise)
            model.graph.node.remove(dequantise)
        elif uses[result] == 1 and readers[result].op_type == "Relu":
            _bypass(model, quantise, dequantise)
    drop_unused(model)


def _pairs(model: ModelProto) -> list[tuple[NodeProto, NodeProto]]:
    quantisers = {node.output[0]: node for node in model.graph.node if node.op_type == "QuantizeLinear"}
    return [
        (quantisers[node.input[0]], node)
        for node in list(model.graph.node)
        if node.op_type == "DequantizeLinear" and node.input[0] in quantisers
    ]


def _bypass(model: ModelProto, quantise: NodeProto, dequantise: NodeProto) -> None:
    for node in model.graph.node:
        node.input[:] = [quantise.input[0] if name == dequantise.output[0] else name for name in node.input]
    model.graph.node.remove(dequantise)
    if not any(quantise.output[0] in node.input for node in model.graph.node):
        model.graph.node.remove(quantise)


def drop_unused(model: ModelProto) -> None:
    """Take out constants that nobody reads, and Q/DQ nodes that round such constants."""
    outputs = {each.name for each in model.graph.output}
    used = {name for node in model.graph.node for name in node.input} | outputs
    for node in reversed(list(model.graph.node)):
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"} and node.output[0] not in used:
            model.graph.node.remove(node)
            used = {name for each in model.graph.node for name in each.input} | outputs
    for each in [each for each in model.graph.initializer if each.name not in used]:
        model.graph.initializer.remove(each)


def _tidy(model: ModelProto, source: ModelProto) -> None:
    model.producer_name, model.producer_version = source.producer_name, ""
    del model.metadata_props[:]
    del model.graph.value_info[:]
    for each in [each for each in model.opset_import if each.domain not in {"", "ai.onnx"}]:
        model.opset_import.remove(each)


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser advises a preprocessing that the export has done, and prints while it calibrates."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def _reader(clip: npt.NDArray[np.float32]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader  # noqa: PLC0415

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = iter([{INPUT: clip}])

        def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
            return next(self._batches, None)

    return Reader()
