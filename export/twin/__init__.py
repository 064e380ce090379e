"""The twin of a bundle: the very graph that a device runs, as a torch module with a gradient.

Attacks are crafted on it. It is made from the ONNX graph, not from the checkpoint, so that it cannot drift from
what ships: weights and scales are those of the file, and a pair of QuantizeLinear and DequantizeLinear rounds as
onnxruntime does. Rounding has no useful gradient; the twin passes it straight through inside the representable range
and stops it outside (clipped straight-through estimator, Bengio et al. 2013, arXiv:1308.3432).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import ModelProto, NodeProto, helper, numpy_helper
from torch import Tensor, nn

from edge.bundle.reading import Bundle
from edge.errors import UsageError
from export.twin.operators import MOVING, OPERATORS, refuse

Array = npt.NDArray[Any]
Grid = tuple[float, int, int, int]


@dataclass(frozen=True)
class _Step:
    compute: Callable[..., Tensor]
    inputs: tuple[str, ...]
    output: str
    last_uses: tuple[str, ...] = ()


class Twin(nn.Module):
    """A frozen module: ``pcm`` float32 (batch, samples) in [-1, 1] to scores float32 (batch, classes).

    Everything that does not depend on ``pcm`` is computed once, when the twin is made. ``quantised`` is true when
    the graph rounds anything on the way.
    """

    def __init__(self, model: ModelProto, *, labels: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.labels = labels
        graph = model.graph
        if len(graph.input) != 1 or len(graph.output) != 1:
            raise UsageError("the twin needs a graph with one input and one output")
        self._input, self._output = graph.input[0].name, graph.output[0].name
        compiler = _Compiler(graph, self._input)
        self.quantised = compiler.quantised
        self._steps = _with_last_uses(compiler.steps, keep=self._output)
        used = {name for step in self._steps for name in step.inputs}
        self._constants = {}
        for index, name in enumerate(sorted(used & compiler.constants.keys())):
            self._constants[name] = f"constant_{index}"
            self.register_buffer(f"constant_{index}", compiler.constants[name])
        self.eval()

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> Twin:
        """The twin of a verified bundle.

        Raises:
            UsageError: the graph has an operator that the twin does not know; the message names it.
        """
        return cls(onnx.load_from_string(bundle.model), labels=bundle.manifest.labels)

    def forward(self, pcm: Tensor) -> Tensor:
        """Scores (batch, classes) of PCM (batch, samples)."""
        values: dict[str, Tensor] = {self._input: pcm}
        for name, buffer in self._constants.items():
            values[name] = getattr(self, buffer)
        for step in self._steps:
            values[step.output] = step.compute(*(values[name] for name in step.inputs))
            for name in step.last_uses:
                del values[name]
        return values[self._output]


class _Compiler:
    """Walks the nodes once: folds what is constant, pairs Q with DQ, refuses the rest."""

    def __init__(self, graph: onnx.GraphProto, input_name: str) -> None:
        self.arrays: dict[str, Array] = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
        self.constants: dict[str, Tensor] = {}
        for name, array in self.arrays.items():
            if array.dtype in (np.float32, np.float64, np.int64, np.int32):
                self.constants[name] = torch.from_numpy(np.array(array))
        self.steps: list[_Step] = []
        self.quantised = False
        self._dynamic = {input_name}
        self._grids: dict[str, Grid] = {}
        self._waiting: dict[str, tuple[str, Grid]] = {}
        for node in graph.node:
            self._add(node)

    def _add(self, node: NodeProto) -> None:
        if node.domain not in {"", "ai.onnx"} or len(node.output) != 1:
            raise refuse(f"{node.domain or 'ONNX'} {node.op_type} with {len(node.output)} outputs")
        if node.op_type == "QuantizeLinear":
            self._quantise(node)
        elif node.op_type == "DequantizeLinear":
            self._dequantise(node)
        elif node.op_type in OPERATORS:
            self._operator(node)
        else:
            raise refuse(f"the operator {node.op_type}")

    def _operator(self, node: NodeProto) -> None:
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        operator, output = OPERATORS[node.op_type], node.output[0]
        if not any(name in self._dynamic for name in node.input):
            self.constants[output] = operator(attributes, *(self._constant(name) for name in node.input)).contiguous()
            return
        # Integers (axes, shapes, bounds) are bound now; floats stay inputs, so that the module can change its dtype.
        bound: list[Tensor | None] = []
        names: list[str] = []
        for name in node.input:
            constant = None if name in self._dynamic else self._constant(name)
            is_input = name in self._dynamic or (constant is not None and constant.is_floating_point())
            bound.append(None if is_input else constant)
            if is_input:
                names.append(name)
        places = tuple(place for place, name in enumerate(node.input) if name in names)

        def compute(*values: Tensor) -> Tensor:
            arguments = list(bound)
            for place, value in zip(places, values, strict=True):
                arguments[place] = value
            return operator(attributes, *arguments)

        self._emit(compute, tuple(node.input[place] for place in places), output)
        if node.op_type in MOVING and node.input[0] in self._grids:
            self._grids[output] = self._grids[node.input[0]]

    def _quantise(self, node: NodeProto) -> None:
        self._waiting[node.output[0]] = (node.input[0], self._grid(node))

    def _dequantise(self, node: NodeProto) -> None:
        source, output = node.input[0], node.output[0]
        if source in self.arrays:
            self.constants[output] = _dequantised(self._parameters(node), self.arrays[source], node)
            return
        if source not in self._waiting:
            raise refuse("DequantizeLinear of something that QuantizeLinear did not make")
        value, grid = self._waiting[source]
        if grid != self._grid(node):
            raise refuse("a DequantizeLinear that differs from its QuantizeLinear")
        self.quantised = True
        if self._grids.get(value) == grid:
            self._emit(_same, (value,), output)
        else:
            self._emit(_rounding(grid), (value,), output)
        self._grids[output] = grid

    def _grid(self, node: NodeProto) -> Grid:
        scale, zero = self._parameters(node)
        if scale.size != 1 or zero.dtype.kind not in "iu":
            raise refuse(f"{node.op_type} of activations per channel or to {zero.dtype}")
        limits = np.iinfo(zero.dtype)
        return float(scale.item()), int(zero.item()), int(limits.min), int(limits.max)

    def _parameters(self, node: NodeProto) -> tuple[Array, Array]:
        if len(node.input) < 3 or any(name not in self.arrays for name in node.input[1:]):
            raise refuse(f"{node.op_type} without a constant scale and zero point")
        return self.arrays[node.input[1]], self.arrays[node.input[2]]

    def _constant(self, name: str) -> Tensor | None:
        if not name:
            return None
        if name not in self.constants:
            raise refuse(f"the constant {name} of type {self.arrays[name].dtype if name in self.arrays else 'unknown'}")
        return self.constants[name]

    def _emit(self, compute: Callable[..., Tensor], inputs: tuple[str, ...], output: str) -> None:
        self.steps.append(_Step(compute, inputs, output))
        self._dynamic.add(output)


def _dequantised(parameters: tuple[Array, Array], array: Array, node: NodeProto) -> Tensor:
    scale, zero = parameters
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    if attributes.get("block_size", 0):
        raise refuse("DequantizeLinear in blocks")
    shape = [1] * array.ndim
    if scale.size > 1:
        shape[attributes.get("axis", 1)] = scale.size
    centred = array.astype(np.int64) - zero.astype(np.int64).reshape(shape if zero.size > 1 else [])
    return torch.from_numpy((centred.astype(np.float32) * scale.reshape(shape)).astype(np.float32))


def _rounding(grid: Grid) -> Callable[[Tensor], Tensor]:
    scale, zero, low, high = grid

    def compute(x: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, low, high)

    return compute


def _same(x: Tensor) -> Tensor:
    return x


def _with_last_uses(steps: list[_Step], *, keep: str) -> tuple[_Step, ...]:
    """Let each step forget the values that no later step needs: an attack's memory is its batch size."""
    seen: set[str] = {keep}
    result = []
    for step in reversed(steps):
        fresh = tuple(name for name in dict.fromkeys(step.inputs) if name not in seen)
        seen.update(fresh)
        result.append(_Step(step.compute, step.inputs, step.output, fresh))
    return tuple(reversed(result))
