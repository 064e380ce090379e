"""The layers of a graph that have weights, and the small rewrites that come before quantising."""

from __future__ import annotations

import copy
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edge.errors import DataError
from export.graphs.from_torch import FRONT_END, INPUT

Array = npt.NDArray[Any]

_MOVING = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


@dataclass(frozen=True, slots=True)
class Layer:
    """A Conv, Gemm or MatMul with constant weights: names of its node and tensors, ``axis`` of its output channels."""

    name: str
    kind: str
    source: str
    weight: str
    bias: str | None
    output: str
    shape: tuple[int, ...]
    axis: int

    @property
    def inputs(self) -> int:
        """How many weights an output channel has."""
        return math.prod(self.shape) // self.shape[self.axis]

    def rows(self, weights: Array) -> npt.NDArray[np.float64]:
        """Weights as float64 (output channels, inputs)."""
        return np.moveaxis(weights, self.axis, 0).reshape(self.shape[self.axis], -1).astype(np.float64)

    def from_rows(self, rows: Array) -> Array:
        """What :meth:`rows` was made from."""
        moved = [self.shape[self.axis], *(size for axis, size in enumerate(self.shape) if axis != self.axis)]
        return np.moveaxis(rows.reshape(moved), 0, self.axis)


def layers_of(model: ModelProto) -> tuple[Layer, ...]:
    """The layers behind the front end whose weights belong to them alone, in the order in which they run."""
    arrays = {each.name: each for each in model.graph.initializer if each.data_type == TensorProto.FLOAT}
    uses = Counter(name for node in model.graph.node for name in node.input)
    found = []
    for node in model.graph.node:
        if node.op_type not in {"Conv", "Gemm", "MatMul"} or node.name.startswith(FRONT_END):
            continue
        weight = node.input[1]
        if weight not in arrays or uses[weight] > 1 or (node.op_type == "MatMul" and len(arrays[weight].dims) != 2):
            continue
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
        if node.op_type != "Conv" and (attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1.0):
            continue
        axis = 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1
        shape = tuple(arrays[weight].dims)
        found.append(Layer(node.name, node.op_type, node.input[0], weight, bias, node.output[0], shape, axis))
    return tuple(found)


def left_in_float(model: ModelProto) -> tuple[float, tuple[str, ...]]:
    """The share of the weights behind the front end that a quantised graph holds as floats, and whose they are."""
    stored = {each.name: each for each in model.graph.initializer if len(each.dims) > 1}
    readers = {
        name: node.op_type
        for node in model.graph.node
        for name in node.input
        if name in stored and not node.name.startswith(FRONT_END)
    }
    sizes = {name: math.prod(stored[name].dims) for name in readers}
    floats = [name for name in readers if stored[name].data_type == TensorProto.FLOAT]
    share = sum(sizes[name] for name in floats) / max(1, sum(sizes.values()))
    return share, tuple(sorted({readers[name] for name in floats}))


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """An attribute of a node."""
    return next((helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)


def reads_sound(model: ModelProto, name: str) -> bool:
    """Whether a tensor holds the graph's input as it is, in whatever shape."""
    makers = {output: node for node in model.graph.node for output in node.output}
    while name in makers and makers[name].op_type in _MOVING:
        name = makers[name].input[0]
    return name == INPUT


def arrays_of(model: ModelProto) -> dict[str, Array]:
    """All initializers by name."""
    return {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}


def store(model: ModelProto, name: str, array: Array) -> None:
    """Replace an initializer; its name, type and shape stay."""
    for each in model.graph.initializer:
        if each.name == name:
            dtype = helper.tensor_dtype_to_np_dtype(each.data_type)
            each.CopyFrom(numpy_helper.from_array(array.astype(dtype).reshape(tuple(each.dims)), name))
            return
    raise KeyError(name)


def prepared(model: ModelProto) -> ModelProto:
    """A copy with Relu before MaxPool instead of behind it, and a bias in every Conv and Gemm.

    The order of Relu and MaxPool changes nothing but the grid: no step is spent on what Relu would cut off.

    Raises:
        DataError: a weight is NaN or infinite.
    """
    model = copy.deepcopy(model)
    for each in model.graph.initializer:
        if each.data_type == TensorProto.FLOAT and not np.isfinite(numpy_helper.to_array(each)).all():
            raise DataError(f"{each.name}: a weight is NaN or infinite; use a checkpoint of a run that did not diverge")
    _name_nodes(model)
    _relu_first(model)
    for layer in layers_of(model):
        if layer.bias is None and layer.kind in {"Conv", "Gemm"}:
            node = next(node for node in model.graph.node if node.name == layer.name)
            name = f"{layer.weight}_bias"
            zeros = np.zeros(layer.shape[layer.axis], np.float32)
            model.graph.initializer.append(numpy_helper.from_array(zeros, name))
            node.input.append(name)
    return model


def _name_nodes(model: ModelProto) -> None:
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.name or node.op_type}_{index}"
        seen.add(node.name)


def _relu_first(model: ModelProto) -> None:
    nodes = list(model.graph.node)
    uses = Counter(name for node in nodes for name in node.input)
    outputs = {each.name for each in model.graph.output}
    makers = {name: node for node in nodes for name in node.output}
    for relu in [node for node in nodes if node.op_type == "Relu"]:
        pool = makers.get(relu.input[0])
        if pool is None or pool.op_type != "MaxPool" or uses[pool.output[0]] > 1 or pool.output[0] in outputs:
            continue
        source, between, target = pool.input[0], pool.output[0], relu.output[0]
        relu.input[0], relu.output[0] = source, between
        pool.input[0], pool.output[0] = between, target
        first, second = sorted((nodes.index(pool), nodes.index(relu)))
        nodes.insert(first, nodes.pop(second))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
