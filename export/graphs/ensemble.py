"""A stochastic ensemble in ONE graph: what no noise has touched runs once, the members stand on the batch axis.

Inputs are ``pcm`` float32 (batch, samples) and ``noise`` float32 (batch * members, noise_values), standard normal, clip
by clip; both first dimensions are free, so the number of members is chosen at run time: rows of noise over clips. The
output ``scores``, float32 (batch, classes), are probabilities: the mean of the members' softmax. mu and sigma of every
layer are constants in the graph.

It is made from the plain graph of the factored model. Where that multiplies by a layer's singular values, the new graph
multiplies by those of each member; at the first such place one row per clip becomes one per member. The front end and
the first factor before it are computed once for all members.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference
from torch import Tensor, nn

from edge.bundle.manifest import MAX_MEMBERS, Ensemble
from edge.errors import UsageError
from export.graphs.from_torch import INPUT, OUTPUT, to_onnx
from firmware_models.architectures import FirmwareModel
from firmware_models.low_rank import Factored
from firmware_models.low_rank.ensemble import PerLayer, StochasticEnsemble
from firmware_models.low_rank.factors import replace

NOISE = "noise"
Array = npt.NDArray[Any]
_PREFIX = "ensemble/"


def ensemble_graph(model: FirmwareModel, *, sigma: PerLayer, mu: PerLayer = 0.0) -> ModelProto:
    """The FP32 graph of :class:`firmware_models.low_rank.ensemble.StochasticEnsemble`; ``model`` is not changed.

    Where all of sigma is 0 the scores do not depend on the noise: the plain network's softmax.

    Raises:
        UsageError: no layer of the model is factored, or mu or sigma make no sense.
    """
    ensemble = StochasticEnsemble(model, sigma=sigma, mu=mu)
    graph = _Rewriting(ensemble).graph()
    onnx.checker.check_model(graph, full_check=True)
    return graph


def ensemble_of(graph: ModelProto, *, members: int) -> Ensemble:
    """What the manifest says of an ensemble graph that a device runs with ``members`` members unless told otherwise.

    Raises:
        UsageError: ``members`` is no number of members, or the graph takes no noise.
    """
    if not 1 <= members <= MAX_MEMBERS:
        raise UsageError(f"{members} members: use 1 to {MAX_MEMBERS}")
    noise = next((each for each in graph.graph.input if each.name == NOISE), None)
    if noise is None:
        raise UsageError("the graph takes no noise: it is no stochastic ensemble")
    return Ensemble(members=members, noise_values=noise.type.tensor_type.shape.dim[1].dim_value, noise_name=NOISE)


class _Scaled(nn.Module):
    """A factored layer that stays in three pieces in the exported graph; ``s`` is shaped for what it multiplies."""

    s: Tensor

    def __init__(self, layer: Factored) -> None:
        super().__init__()
        self.v, self.u = layer.v, layer.u
        self.register_buffer("s", layer.s.detach().reshape(-1, *[1] * (layer.v.weight.ndim - 2)))

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = self.u(self.v(x) * self.s)
        return scaled


def _split(ensemble: StochasticEnsemble) -> FirmwareModel:
    """A copy for the exporter: layers with noise in pieces, mu added to the others, which become two plain layers."""
    model = copy.deepcopy(ensemble.model)
    scaled: dict[str, nn.Module] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, Factored):
            place = ensemble.places[name]
            if ensemble.deviation[place].any():
                scaled[name] = _Scaled(layer)
            else:
                layer.s.data += ensemble.mean[place]
    return replace(model, scaled)


class _Rewriting:
    """Walks the plain graph once and writes the ensemble's."""

    def __init__(self, ensemble: StochasticEnsemble) -> None:
        self._ensemble = ensemble
        split = _split(ensemble)
        self._plain = plain = to_onnx(split)
        # The constant by which the plain graph multiplies: its layer's place in the noise, and its shape.
        self._layers = {
            f"{name}.s": (ensemble.places[name], tuple(layer.s.shape))
            for name, layer in split.named_modules()
            if isinstance(layer, _Scaled)
        }
        multiplied = {name for node in plain.graph.node if node.op_type == "Mul" for name in node.input}
        if missing := self._layers.keys() - multiplied:
            raise UsageError(f"the exported graph does not multiply by {', '.join(sorted(missing))}")
        inferred = shape_inference.infer_shapes(plain, strict_mode=True).graph
        self._sizes = {
            each.name: [dim.dim_value for dim in each.type.tensor_type.shape.dim[1:]]
            for each in (*inferred.value_info, *inferred.input, *inferred.output)
        }
        # What has a row per clip, and what has a row per member.
        self._by_clip, self._by_member = {INPUT}, set[str]()
        self._spread: dict[str, str] = {}
        self._nodes: list[NodeProto] = []
        self._made: dict[str, Array] = {}

    def graph(self) -> ModelProto:
        if self._layers:
            self._draw()
        for node in self._plain.graph.node:
            factor = next((name for name in node.input if name in self._layers), None)
            if factor is None:
                self._copy(node)
            else:
                self._scale(node, factor)
        self._mean_of_softmax()
        return self._finished()

    def _draw(self) -> None:
        """The singular values of every member of every clip, (batch * members, noise_values)."""
        deviation = self._constant("deviation", self._ensemble.deviation.cpu().numpy())
        drawn = self._add("Mul", [NOISE, deviation])
        s = torch.cat([self._ensemble.model.get_parameter(f"{name}.s") for name in self._ensemble.places])
        mean = (s.detach() + self._ensemble.mean).cpu().numpy()
        self._scales = self._add("Add", [drawn, self._constant("mean", mean)])
        self._batch = self._add("Shape", [INPUT], start=0, end=1)

    def _scale(self, node: NodeProto, factor: str) -> None:
        """Multiply by each member's singular values; where only clips have rows so far, give each member one."""
        place, shape = self._layers[factor]
        value = next(name for name in node.input if name != factor)
        bounds = [self._integers([place.start]), self._integers([place.stop])]
        scale = self._add("Slice", [self._scales, *bounds, self._integers([1])])
        # A convolution's values are (rank, 1, ...), a fully connected layer's (rank,): aligned with the last axes.
        trailing = [1] * (len(self._sizes_of(value)) - len(shape)) + [*shape]
        if value in self._by_member:
            scale = self._reshape(scale, [-1, *trailing])
            self._add("Mul", [value, scale], output=node.output[0])
        else:
            sizes = self._join(self._batch, self._integers([-1, *trailing]))
            spread = self._add("Mul", [self._per_clip(value), self._add("Reshape", [scale, sizes])])
            self._reshape(spread, [-1, *self._sizes_of(value)], output=node.output[0])
        self._by_member.add(node.output[0])

    def _copy(self, node: NodeProto) -> None:
        """A node as it is; what it takes per clip is spread to members where it takes something else per member."""
        copied = NodeProto()
        copied.CopyFrom(node)
        inputs = list(node.input)
        if self._by_member.intersection(inputs):
            inputs = [self._per_member(name) if name in self._by_clip else name for name in inputs]
            self._by_member.update(node.output)
        elif self._by_clip.intersection(inputs):
            self._by_clip.update(node.output)
        del copied.input[:]
        copied.input.extend(inputs)
        self._nodes.append(copied)

    def _per_member(self, name: str) -> str:
        """A value of each clip, repeated for every member."""
        if name not in self._spread:
            sizes = self._sizes_of(name)
            members = self._add("Div", [self._add("Shape", [NOISE], start=0, end=1), self._batch])
            shape = self._join(self._integers([1]), members, self._integers([1] * len(sizes)))
            wide = self._add("Expand", [self._per_clip(name), shape])
            self._spread[name] = self._reshape(wide, [-1, *sizes])
        return self._spread[name]

    def _per_clip(self, name: str) -> str:
        """A value of each clip with an axis for the members behind that of the clips."""
        return self._add("Unsqueeze", [name, self._integers([1])])

    def _mean_of_softmax(self) -> None:
        last = next(node for node in self._nodes if OUTPUT in node.output)
        logits = f"{_PREFIX}logits"
        last.output[list(last.output).index(OUTPUT)] = logits
        if OUTPUT not in self._by_member:
            self._add("Softmax", [logits], output=OUTPUT, axis=-1)
            return
        softmax = self._add("Softmax", [logits], axis=-1)
        shape = self._join(self._batch, self._integers([-1, *self._sizes_of(OUTPUT)]))
        apart = self._add("Reshape", [softmax, shape])
        self._add("ReduceMean", [apart, self._integers([1])], output=OUTPUT, keepdims=0)

    def _sizes_of(self, value: str) -> list[int]:
        """The sizes of a value behind that of the batch."""
        sizes = self._sizes.get(value, [0])
        if 0 in sizes:
            raise UsageError(
                f"the size of {value} in the exported graph depends on its input: an ensemble needs it fixed"
            )
        return sizes

    def _reshape(self, value: str, sizes: Sequence[int], output: str = "") -> str:
        return self._add("Reshape", [value, self._integers(sizes)], output=output)

    def _join(self, *parts: str) -> str:
        return self._add("Concat", list(parts), axis=0)

    def _integers(self, values: Sequence[int]) -> str:
        return self._constant("x".join(map(str, values)), np.array(values, np.int64))

    def _constant(self, name: str, value: Array) -> str:
        self._made[_PREFIX + name] = value
        return _PREFIX + name

    def _add(self, kind: str, inputs: Sequence[str], *, output: str = "", **attributes: Any) -> str:
        name = f"{_PREFIX}{kind}_{len(self._nodes)}"
        output = output or name
        self._nodes.append(helper.make_node(kind, list(inputs), [output], name=name, **attributes))
        return output

    def _finished(self) -> ModelProto:
        model = ModelProto()
        model.CopyFrom(self._plain)
        graph = model.graph
        used = {name for node in self._nodes for name in node.input}
        del graph.node[:], graph.initializer[:]
        graph.node.extend(self._nodes)
        graph.initializer.extend(each for each in self._plain.graph.initializer if each.name in used)
        graph.initializer.extend(
            numpy_helper.from_array(array, name) for name, array in self._made.items() if name in used
        )
        graph.input.append(
            helper.make_tensor_value_info(NOISE, TensorProto.FLOAT, ["rows", self._ensemble.noise_values])
        )
        return model
