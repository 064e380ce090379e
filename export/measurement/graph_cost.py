"""What a graph costs to run, read from the graph itself: parameters, and multiply-adds of one window.

Counted are Conv, ConvTranspose, Gemm and MatMul that depend on the sound; what depends on constants alone is computed
once, when the graph is loaded. Additions of biases, activations, pooling and elementwise products count as nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from edge.errors import UsageError
from export.graphs.from_torch import FRONT_END

COUNTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# These multiply as well, but how often does not follow from shapes alone, or nobody's model here has them.
_UNCOUNTED = frozenset({"LSTM", "GRU", "RNN", "Einsum", "STFT", "DFT", "Attention", "MatMulInteger", "ConvInteger"})
_QUANTISERS = ("QuantizeLinear", "DequantizeLinear")
_WEIGHT_TYPES = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GraphCost:
    """Cost of one window.

    ``parameters`` are the weights and biases outside the front end, as the graph has them (batch norm folded);
    ``multiply_adds`` includes the ``front_end`` ones. ``uncounted`` are operators that multiply and are in no count.
    """

    parameters: int
    multiply_adds: int
    front_end: int
    layers: int
    uncounted: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)


def graph_cost(model: ModelProto, *, rows: Mapping[str, int] | None = None) -> GraphCost:
    """Count parameters and multiply-adds.

    Args:
        model: a graph whose only free dimensions are the first ones of its inputs; it is not changed.
        rows: the first dimension of an input where it is not 1, by name: members of the noise of an ensemble.

    Raises:
        UsageError: a shape that does not follow from the inputs' shapes; the message names the node.
    """
    shapes = _shapes(model, rows or {})
    graph = model.graph
    dynamic = {each.name for each in graph.input}
    total, front_end, layers = 0, 0, 0
    uncounted: Counter[str] = Counter()
    for node in graph.node:
        if not dynamic.intersection(node.input):
            continue
        dynamic.update(node.output)
        if node.op_type in _UNCOUNTED:
            uncounted[node.op_type] += 1
        elif node.op_type in COUNTED:
            number = _multiply_adds(node, shapes)
            total += number
            if node.name.startswith(FRONT_END):
                front_end += number
            else:
                layers += 1
    return GraphCost(_parameters(model), total, front_end, layers, dict(uncounted))


def _shapes(model: ModelProto, rows: Mapping[str, int]) -> dict[str, Shape]:
    fixed = ModelProto()
    fixed.CopyFrom(model)
    for each in fixed.graph.input:
        first = each.type.tensor_type.shape.dim[0] if each.type.tensor_type.shape.dim else None
        if first is not None and not first.HasField("dim_value"):
            first.Clear()
            first.dim_value = rows.get(each.name, 1)
    shapes = {each.name: tuple(int(length) for length in each.dims) for each in model.graph.initializer}
    # With arithmetic on shapes followed, and without: following it, onnx takes some constants' shapes for others.
    for follow in (True, False):
        inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=follow).graph
        values: list[ValueInfoProto] = [*inferred.input, *inferred.value_info, *inferred.output]
        for value in values:
            dims = value.type.tensor_type.shape.dim
            if value.type.tensor_type.HasField("shape") and all(each.HasField("dim_value") for each in dims):
                shapes[value.name] = tuple(each.dim_value for each in dims)
    return shapes


def _multiply_adds(node: NodeProto, shapes: Mapping[str, Shape]) -> int:
    def shape(name: str) -> Shape:
        if name not in shapes:
            raise UsageError(f"multiply-adds cannot be counted: the shape of {name!r} ({node.op_type}) is not fixed")
        return shapes[name]

    first, second, output = shape(node.input[0]), shape(node.input[1]), shape(node.output[0])
    if node.op_type == "Conv":
        # The weight is (out, in / groups, *kernel): all of it but the first axis goes into every output.
        return math.prod(output) * math.prod(second[1:])
    if node.op_type == "ConvTranspose":
        # Here it is (in, out / groups, *kernel), and every input goes through it.
        return math.prod(first) * math.prod(second[1:])
    if node.op_type == "Gemm":
        transposed = any(each.name == "transA" and helper.get_attribute_value(each) for each in node.attribute)
        return math.prod(output) * first[0 if transposed else 1]
    return math.prod(output) * first[-1]


def _parameters(model: ModelProto) -> int:
    uses: dict[str, list[tuple[NodeProto, int]]] = {}
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            uses.setdefault(name, []).append((node, place))
    return sum(math.prod(each.dims) for each in model.graph.initializer if _is_parameter(each, uses))


def _is_parameter(tensor: TensorProto, uses: Mapping[str, list[tuple[NodeProto, int]]]) -> bool:
    """Whether a constant is a weight or bias of a layer, and no scale, shape, scalar or part of the front end."""
    if not tensor.dims:
        return False
    for node, place in uses.get(tensor.name, ()):
        if node.name.startswith(FRONT_END):
            continue
        if node.op_type == "DequantizeLinear" and place == 0:
            return True
        if node.op_type not in _QUANTISERS and tensor.data_type in _WEIGHT_TYPES:
            return True
    return False
