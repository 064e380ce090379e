"""Balanced bottlenecks: turn what flows between two layers so that rounding it costs the least.

Where one layer reads another's output directly, as the second factor of a low-rank layer reads the first, any
invertible matrix A may stand between them: A in the first, its inverse in the second. The network stays the same, the
channels that are rounded do not. One grid rounds them all with the same error per channel, however little a channel
carries or however much the next layer makes of it: singular values fall by decades from the first channel to the last.

With the covariance C of the channels and the squared gains G of the next layer, what rounding adds to its output grows
with the sum of C[i, i] times the sum of G[i, i] where all channels share a grid. It is least when C and G are the same
matrix, and every channel carries the same when that one is turned to a constant diagonal, which also makes the values
nearly normal, without tails. Without a bias to take them up the means belong to C.

Sources: coding gain of transforms (Goyal 2001, "Theoretical foundations of transform coding"); turning channels before
rounding as in QuIP (Chee et al. 2023, arXiv:2307.13304).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from export.fixed_point.histogram import values
from export.fixed_point.layers import Layer, arrays_of, attribute, layers_of, store
from firmware_models.progress import Progress, silent

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

# Of the largest eigenvalue: channels that carry less are noise of 32-bit arithmetic.
_SMALLEST = 1e-9


@dataclass(frozen=True)
class _Bottleneck:
    """Two layers, one the only reader of the other; ``movable`` where biases can take the channels' means."""

    first: Layer
    second: Layer
    movable: bool

    @property
    def channels(self) -> int:
        return self.first.shape[self.first.axis]


def balanced(model: ModelProto, pcm: Floats, *, progress: Progress = silent) -> ModelProto:
    """A copy of a prepared graph whose bottlenecks are balanced for clips float32 (n, samples)."""
    found = _bottlenecks(model)
    if not found:
        return model
    result = ModelProto()
    result.CopyFrom(model)
    arrays = arrays_of(model)
    moments = _moments(model, found, pcm, progress)
    for each in found:
        first, second = each.first, each.second
        mean, square = moments[first.output]
        mean = mean if each.movable else np.zeros_like(mean)
        before = first.rows(arrays[first.weight])
        after = second.rows(arrays[second.weight]).reshape(second.shape[second.axis], each.channels, -1)
        gains = np.einsum("oik,ojk->ij", after, after)
        there, back = turn(square - np.outer(mean, mean), gains)
        store(result, first.weight, first.from_rows(there @ before))
        turned = np.einsum("oik,ij->ojk", after, back)
        store(result, second.weight, second.from_rows(turned.reshape(len(after), -1)))
        arrays = arrays_of(result)
        if first.bias is not None:
            store(result, first.bias, there @ (arrays[first.bias].astype(np.float64) - mean))
        if each.movable and second.bias is not None:
            store(result, second.bias, arrays[second.bias].astype(np.float64) + after.sum(2) @ mean)
        arrays = arrays_of(result)
    return result


def turn(covariance: Doubles, gains: Doubles) -> tuple[Doubles, Doubles]:
    """A and its inverse, (channels, channels), for channels with that covariance that are read with those gains."""
    root, inverse_root = _roots(covariance)
    spread, axes = np.linalg.eigh(root @ gains @ root)
    spread = np.maximum(spread, _SMALLEST * max(float(spread[-1]), np.finfo(np.float64).tiny)) ** 0.25
    even = _hartley(len(spread))
    there: Doubles = (even * spread) @ axes.T @ inverse_root
    back: Doubles = root @ (axes / spread) @ even.T
    return there, back


def _roots(covariance: Doubles) -> tuple[Doubles, Doubles]:
    """The square root of a covariance, and the inverse of the root."""
    power, axes = np.linalg.eigh((covariance + covariance.T) / 2)
    root = np.sqrt(np.maximum(power, _SMALLEST * max(float(power[-1]), np.finfo(np.float64).tiny)))
    return (axes * root) @ axes.T, (axes / root) @ axes.T


def _hartley(size: int) -> Doubles:
    """An orthogonal matrix of any size whose rows weigh all columns about the same."""
    angle = 2 * np.pi * (np.outer(np.arange(size), np.arange(size)) % size) / size
    matrix: Doubles = (np.cos(angle) + np.sin(angle)) / np.sqrt(size)
    return matrix


def _moments(
    model: ModelProto, found: list[_Bottleneck], pcm: Floats, progress: Progress
) -> dict[str, tuple[Doubles, Doubles]]:
    """Means (channels,) and mean products (channels, channels) of what flows through each bottleneck."""
    sums: dict[str, Doubles] = {}
    convolutions = {each.first.output for each in found if each.first.kind == "Conv"}
    for batch in values(model, [each.first.output for each in found], pcm, progress=progress, note="balancing"):
        for name, array in batch.items():
            moved = np.moveaxis(array, 1, -1) if name in convolutions else array
            rows = moved.reshape(-1, moved.shape[-1])
            # A column of ones makes the sums a part of the products.
            more = np.concatenate([rows, np.ones((len(rows), 1), np.float32)], axis=1)
            products = (more.T @ more).astype(np.float64)
            sums[name] = sums[name] + products if name in sums else products
    return {name: (each[-1, :-1] / each[-1, -1], each[:-1, :-1] / each[-1, -1]) for name, each in sums.items()}


def _bottlenecks(model: ModelProto) -> list[_Bottleneck]:
    uses = Counter(name for node in model.graph.node for name in node.input)
    outputs = {each.name for each in model.graph.output}
    nodes = {node.name: node for node in model.graph.node}
    layers = layers_of(model)
    makers = {layer.output: layer for layer in layers}
    found = []
    for second in layers:
        first = makers.get(second.source)
        if first is None or uses[first.output] != 1 or first.output in outputs:
            continue
        channels = first.shape[first.axis]
        conv = second.kind == "Conv"
        grouped = any(attribute(nodes[each.name], "group", 1) != 1 for each in (first, second))
        if grouped or conv != (first.kind == "Conv") or channels != (second.shape[1] if conv else second.inputs):
            continue
        # Padding is zeros, not the mean: there the means stay where they are.
        node = nodes[second.name]
        padded = any(attribute(node, "pads", ())) or attribute(node, "auto_pad", b"NOTSET") not in {b"NOTSET", b"VALID"}
        movable = first.bias is not None and second.bias is not None and not padded
        found.append(_Bottleneck(first, second, movable))
    return found
