"""Cross-layer equalisation: shift scale from channel to channel until one scale per tensor suits them all.

A positive factor on an output channel passes through Relu, MaxPool and reshaping, and is undone in the next layer's
weights: the FP32 function stays, the ranges of the channels come closer (Nagel et al. 2019, arXiv:1906.04721, eq. 11).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from export.fixed_point.layers import Layer, arrays_of, attribute, layers_of, store

_ROUNDS = 20
_PASSES = frozenset({"Flatten", "Identity", "MaxPool", "Relu", "Reshape"})
_LIMIT = 64.0

Doubles = npt.NDArray[np.float64]


def equalised(model: ModelProto) -> ModelProto:
    """A copy of a prepared graph whose layers that follow one another share their ranges."""
    result = ModelProto()
    result.CopyFrom(model)
    pairs = _pairs(model)
    arrays = arrays_of(model)
    weights = {layer: layer.rows(arrays[layer.weight]) for pair in pairs for layer in pair}
    biases = {layer: arrays[layer.bias].astype(np.float64) for layer in weights if layer.bias is not None}
    for _ in range(_ROUNDS):
        for first, second in pairs:
            factor = _factor(weights[first], weights[second])
            weights[first] = weights[first] / factor[:, None]
            biases[first] = biases[first] / factor
            weights[second] = (_by_channel(weights[second], len(factor)) * factor[:, None]).reshape(
                weights[second].shape
            )
    for layer, rows in weights.items():
        store(result, layer.weight, layer.from_rows(rows))
        if layer.bias is not None:
            store(result, layer.bias, biases[layer])
    return result


def _by_channel(rows: Doubles, channels: int) -> Doubles:
    """Weights (outputs, inputs) as (outputs, channels, inputs per channel)."""
    return rows.reshape(len(rows), channels, -1)


def _factor(first: Doubles, second: Doubles) -> Doubles:
    out_range = np.abs(first).max(axis=1)
    in_range = np.abs(_by_channel(second, len(first))).max(axis=(0, 2))
    usable = (out_range > 0) & (in_range > 0)
    factor: Doubles = np.ones(len(first))
    factor[usable] = np.sqrt(out_range[usable] / in_range[usable])
    return np.clip(factor, 1 / _LIMIT, _LIMIT)


def _pairs(model: ModelProto) -> list[tuple[Layer, Layer]]:
    """Layers with a bias, each with the only layer that reads what it gives."""
    layers = {layer.name: layer for layer in layers_of(model)}
    readers: dict[str, list[int]] = {}
    nodes = list(model.graph.node)
    for index, node in enumerate(nodes):
        for name in node.input:
            readers.setdefault(name, []).append(index)
    found = []
    for first in layers.values():
        name, node = first.output, None
        while len(readers.get(name, [])) == 1:
            node = nodes[readers[name][0]]
            if node.op_type not in _PASSES:
                break
            name = node.output[0]
        second = layers.get(node.name) if node is not None else None
        channels = first.shape[first.axis]
        fits = (
            second is not None
            and second.source == name
            and first.bias is not None
            and second.inputs % channels == 0
            and attribute(node, "group", 1) == 1
        )
        if fits and second is not None and (second.kind != "Conv" or second.shape[1] == channels):
            found.append((first, second))
    return found
