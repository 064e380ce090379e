"""From an ONNX graph to a list of steps in torch: constants folded, Q paired with DQ, the unknown refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from export.twin.operators import MOVING, OPERATORS
from export.twin.refusal import refuse
from export.twin.rounding import Array, Grid, centred, dequantised, grid_of, quantised, rounded

_KINDS = frozenset({"float32", "float64", "int64", "int32", "bool"})
_BYTES = frozenset({"int8", "uint8"})
_ONNX = frozenset({"", "ai.onnx"})


@dataclass(frozen=True)
class Step:
    """One computation: names in, names out, and the names that nobody needs after it."""

    compute: Callable[..., Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    last_uses: tuple[str, ...] = ()


class Compiler:
    """Walks the nodes of a graph once; ``steps`` and ``constants`` are the result.

    ``batch`` is the one batch size that the graph was made for, None where it takes any. ``simulated`` says that
    onnxruntime leaves Q and DQ alone (``session.disable_quant_qdq``); otherwise it rounds biases of 8-bit layers.
    """

    def __init__(self, model: ModelProto, inputs: set[str], *, batch: int | None, simulated: bool) -> None:
        graph = model.graph
        self.steps: list[Step] = []
        self.quantised = False
        self.constants: dict[str, Tensor] = {}
        self._arrays: dict[str, Array] = {}
        self._dynamic = set(inputs)
        self._grids: dict[str, Grid] = {}
        self._waiting: dict[str, tuple[str, Grid]] = {}
        self._weights: dict[str, Grid] = {}
        self._results = {each.name for each in graph.output}
        self._simulated = simulated
        opset = next((each.version for each in model.opset_import if each.domain in _ONNX), 1)
        self._own: dict[str, Any] = {"opset": opset, "batch": batch}
        for each in graph.initializer:
            self._store(each.name, numpy_helper.to_array(each))
        for node in graph.node:
            self._add(node)
        self._check_outputs(graph)

    def _store(self, name: str, array: Array) -> None:
        self._arrays[name] = array
        if array.dtype.name in _KINDS:
            self.constants[name] = torch.from_numpy(np.array(array))

    def _add(self, node: NodeProto) -> None:
        if node.domain not in _ONNX:
            raise refuse(f"the operator {node.domain} {node.op_type}")
        if node.op_type == "QuantizeLinear":
            self._quantise(node)
        elif node.op_type == "DequantizeLinear":
            self._dequantise(node)
        elif node.op_type == "Constant":
            self._store(node.output[0], _constant_value(node))
        elif node.op_type in OPERATORS:
            self._operator(node)
        else:
            raise refuse(f"the operator {node.op_type}")

    def _operator(self, node: NodeProto) -> None:
        attributes = {each.name: _attribute(each) for each in node.attribute}
        attributes |= self._own | {"outputs": sum(bool(name) for name in node.output)}
        operator = OPERATORS[node.op_type]
        inputs = self._inputs(node)
        if not any(name in self._dynamic for name in inputs):
            results = operator(attributes, *(self._constant(name) for name in inputs))
            for name, result in zip(node.output, results if isinstance(results, tuple) else (results,), strict=False):
                self._store(name, result.contiguous().numpy())
            return
        # Integers (axes, shapes, bounds) are bound now; floats stay inputs, so that the module can change its dtype.
        bound: list[Tensor | None] = []
        names: list[str] = []
        for name in inputs:
            constant = None if name in self._dynamic else self._constant(name)
            is_input = name in self._dynamic or (constant is not None and constant.is_floating_point())
            bound.append(None if is_input else constant)
            if is_input:
                names.append(name)
        places = tuple(place for place, name in enumerate(inputs) if name in names)

        def compute(*values: Tensor) -> Any:
            arguments = list(bound)
            for place, value in zip(places, values, strict=True):
                arguments[place] = value
            return operator(attributes, *arguments)

        self._emit(compute, tuple(inputs[place] for place in places), tuple(node.output))
        if node.op_type in MOVING and inputs[0] in self._grids:
            self._grids[node.output[0]] = self._grids[inputs[0]]

    def _inputs(self, node: NodeProto) -> list[str]:
        """The names of the inputs; a float bias of an 8-bit layer is rounded to steps of the layer's products."""
        names = list(node.input)
        if self._simulated or node.op_type not in {"Conv", "Gemm"} or len(names) < 3:
            return names
        sound, weight = self._grids.get(names[0]), self._weights.get(names[1])
        if sound is None or weight is None or names[2] not in self._arrays or names[2] in self._weights:
            return names
        narrow = sound.kind in _BYTES and weight.kind in _BYTES and not any(weight.zero)
        if narrow and node.output[0] not in self._results:
            steps = np.float32(sound.scale[0]) * np.array(weight.scale, np.float32)
            bias = (np.rint(self._arrays[names[2]] / steps) * steps).astype(np.float32)
            names[2] = f"{node.output[0]}:bias"
            self._store(names[2], bias)
        return names

    def _quantise(self, node: NodeProto) -> None:
        source, output = node.input[0], node.output[0]
        if source in self._dynamic:
            self._waiting[output] = (source, self._grid(node, rank=None, kind=None))
            return
        array = self._array(source)
        grid = self._grid(node, rank=array.ndim, kind=None)
        self._waiting[output] = (output, grid)
        self._arrays[output] = quantised(grid, array) + np.array(grid.zero, np.int64).reshape(grid.shape)

    def _dequantise(self, node: NodeProto) -> None:
        source, output = node.input[0], node.output[0]
        if source in self._arrays:
            array = self._arrays[source]
            grid = self._weights[output] = self._grid(node, rank=array.ndim, kind=array.dtype.name)
            self._store(output, dequantised(grid, centred(grid, array)))
            return
        if source not in self._waiting:
            raise refuse("DequantizeLinear of something that QuantizeLinear did not make")
        value, grid = self._waiting[source]
        if grid != self._grid(node, rank=None, kind=grid.kind):
            raise refuse("a DequantizeLinear that differs from its QuantizeLinear")
        self.quantised = True
        if self._grids.get(value) == grid:
            self._emit(_same, (value,), (output,))
        else:
            scales = self._own_constants(output, grid.scale_array, *grid.levels)
            self._emit(rounded, (value, *scales), (output,))
        self._grids[output] = grid

    def _own_constants(self, name: str, *arrays: Array) -> tuple[str, ...]:
        names = tuple(f"{name}:{index}" for index in range(len(arrays)))
        for each, array in zip(names, arrays, strict=True):
            self._store(each, array)
        return names

    def _grid(self, node: NodeProto, *, rank: int | None, kind: str | None) -> Grid:
        names = [name for name in node.input[1:] if name]
        if not names or any(name not in self._arrays for name in names):
            raise refuse(f"{node.op_type} without a constant scale and zero point")
        zero = self._arrays[names[1]] if len(names) > 1 else None
        return grid_of(node, self._arrays[names[0]], zero, rank=rank, kind=kind)

    def _array(self, name: str) -> Array:
        if name not in self._arrays:
            raise refuse(f"the value {name}: nothing in the graph makes it")
        return self._arrays[name]

    def _constant(self, name: str) -> Tensor | None:
        if not name:
            return None
        if name not in self.constants:
            raise refuse(f"the constant {name} of type {self._array(name).dtype}")
        return self.constants[name]

    def _emit(self, compute: Callable[..., Any], inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        self.steps.append(Step(compute, inputs, outputs))
        self._dynamic.update(name for name in outputs if name)

    def _check_outputs(self, graph: GraphProto) -> None:
        for each in graph.output:
            if each.name not in self._dynamic:
                raise refuse(f"how to make the output {each.name} from the sound")


def with_last_uses(steps: list[Step], *, keep: str) -> tuple[Step, ...]:
    """Let each step forget the values that no later step needs: an attack's memory is its batch size."""
    seen: set[str] = {keep}
    result = []
    for step in reversed(steps):
        fresh = tuple(name for name in dict.fromkeys((*step.outputs, *step.inputs)) if name and name not in seen)
        seen.update(fresh)
        result.append(Step(step.compute, step.inputs, step.outputs, fresh))
    return tuple(reversed(result))


def _attribute(attribute: Any) -> Any:
    value = helper.get_attribute_value(attribute)
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else value


def _constant_value(node: NodeProto) -> Array:
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    attribute = node.attribute[0]
    if attribute.name == "value":
        return np.array(_attribute(attribute))
    if attribute.name not in kinds:
        raise refuse(f"Constant with {attribute.name}")
    return np.array(helper.get_attribute_value(attribute), kinds[attribute.name])


def _same(x: Tensor) -> Tensor:
    return x
