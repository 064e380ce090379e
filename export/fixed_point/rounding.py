"""Rounding a layer's weights so that the layer, not each weight, comes out right.

A layer is given the inputs that it has in the quantised graph, rounded by everything before it, and the outputs that
it has in FP32. Weights and bias are fitted to turn the one into the other (ridge regression towards the trained
weights), then rounded one input at a time; what each rounding spoils, the inputs not rounded yet make good. Both are
the same quadratic problem, solved in closed form: no learning rate, no random number. The bias is set last, so that
every output channel keeps its mean.

Sources: optimal brain surgeon as in GPTQ (Frantar et al. 2022, arXiv:2210.17323); mean correction as in data-free
quantization (Nagel et al. 2019, arXiv:1906.04721).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from onnx import ModelProto, NodeProto
from torch.nn import functional

from export.fixed_point.histogram import values
from export.fixed_point.layers import Layer, attribute
from export.fixed_point.weights import nearest
from firmware_models.progress import Progress, silent

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

# How many rows a layer's problem is made of: enough to determine it.
_MIN_ROWS, _ROWS_PER_INPUT = 16_384, 3
# The weight of the trained weights against what calibration saw, relative to an average input.
_DAMPING = 0.3
# Inputs that are solved for at a time; memory and time grow with its square.
_BLOCK = 2048
_STRIP = 128
_SILENCE = 1e-12
_GOLDEN = 0.618034


@dataclass(frozen=True, eq=False)
class Seen:
    """Inputs and FP32 outputs of a layer, per group of channels, each row weighed so that every clip counts the same.

    ``x`` float32 (groups, rows, inputs) and ``y`` float32 (groups, rows, outputs) are without their means ``x_mean``
    (groups, inputs) and ``y_mean`` (groups, outputs).
    """

    x: Floats
    y: Floats
    x_mean: Doubles
    y_mean: Doubles


def look(layer: Layer, exact: ModelProto, rounded: ModelProto, pcm: Floats, *, progress: Progress = silent) -> Seen:
    """Inputs of a layer in the quantised graph ``rounded`` with its outputs in the FP32 graph ``exact``.

    Of a layer with many output positions, some are taken of every clip.
    """
    node = next(node for node in rounded.graph.node if node.name == layer.name)
    source = node.input[0]
    groups, size, out = attribute(node, "group", 1), layer.inputs, layer.shape[layer.axis]
    wanted = max(_MIN_ROWS, _ROWS_PER_INPUT * size) / len(pcm)
    x_parts, y_parts, roots = [], [], []
    batches = zip(
        values(rounded, [source], pcm, progress=progress, note=f"rounding {layer.weight}"),
        values(exact, [layer.output], pcm),
        strict=True,
    )
    for number, (inputs, outputs) in enumerate(batches):
        y = outputs[layer.output]
        y = y.reshape(*y.shape[:2], -1) if layer.kind == "Conv" else y.reshape(-1, out, 1)
        places = _places(y.shape[2], wanted, number)
        power = np.maximum(np.square(y, dtype=np.float64).mean(axis=(1, 2)), _SILENCE)
        roots.append(np.repeat(np.sqrt(1.0 / power), len(places)).astype(np.float32))
        x = _unfolded(inputs[source], node, layer.shape, places, groups)
        x_parts.append(x.reshape(-1, groups, size))
        y_parts.append(np.moveaxis(y[:, :, places], 1, 2).reshape(-1, groups, out // groups))
    root = np.concatenate(roots)
    weight = np.square(root, dtype=np.float64) / np.square(root, dtype=np.float64).sum()
    (x, x_mean), (y, y_mean) = (_centred(np.concatenate(parts), root, weight) for parts in (x_parts, y_parts))
    return Seen(x, y, x_mean, y_mean)


def _centred(rows: Floats, root: Floats, weight: Doubles) -> tuple[Floats, Doubles]:
    """Rows (rows, groups, n) as (groups, rows, n) without their weighted means, and the means."""
    grouped = np.ascontiguousarray(np.moveaxis(rows, 1, 0))
    mean: Doubles = np.stack([weight.astype(np.float32) @ part for part in grouped]).astype(np.float64)
    grouped -= mean[:, None].astype(np.float32)
    grouped *= root[None, :, None]
    return grouped, mean


def fitted(rows: Doubles, seen: Seen, scale_of: Callable[[Doubles], Doubles], last: int) -> tuple[Doubles, Doubles]:
    """Whole numbers (outputs, inputs) up to ``last`` and their scales (outputs,) for weights (outputs, inputs).

    ``scale_of`` chooses the scales for the weights as they are when they have been fitted.
    """
    members = np.split(np.arange(len(rows)), len(seen.x))
    problems = [_Problem(x, y) for x, y in zip(seen.x, seen.y, strict=True)]
    scales = scale_of(np.concatenate([each.solve(rows[part]) for each, part in zip(problems, members, strict=True)]))
    numbers = [
        np.rint(each.solve(rows[part], scales[part], last) / scales[part, None])
        for each, part in zip(problems, members, strict=True)
    ]
    return np.concatenate(numbers), scales


def corrected_bias(weights: Doubles, seen: Seen) -> Doubles:
    """The bias (outputs,) with which rounded weights (outputs, inputs) give every output its mean in FP32."""
    grouped = weights.reshape(len(seen.x), -1, weights.shape[1])
    bias: Doubles = (seen.y_mean - np.einsum("goi,gi->go", grouped, seen.x_mean)).ravel()
    return bias


class _Problem:
    """Least squares ``|y - x w.T|**2 + ridge |w - trained|**2`` for one group, block by block of the inputs."""

    def __init__(self, x: Floats, y: Floats) -> None:
        self._x, self._y = x, y
        spread = np.einsum("ri,ri->i", x, x)
        order = np.argsort(-spread, kind="stable")
        self._blocks = np.array_split(order, math.ceil(len(order) / _BLOCK))
        self._ridge = _DAMPING * max(float(spread.mean()), _SILENCE)
        self._factors: list[Doubles] = []
        for block in self._blocks:
            part = x[:, block]
            hessian = (part.T @ part).astype(np.float64)
            hessian[np.diag_indices_from(hessian)] += self._ridge
            self._factors.append(_inverse_factor(hessian))

    def solve(self, trained: Doubles, scales: Doubles | None = None, last: int = 0) -> Doubles:
        """The best weights, or the best of those on the grid of ``scales``: what one block spoils, the next mends."""
        weights = trained.copy()
        left = self._y - self._x @ weights.T.astype(np.float32)
        for block, upper in zip(self._blocks, self._factors, strict=True):
            part, before = self._x[:, block], weights[:, block]
            missing = (left.T @ part).astype(np.float64) - self._ridge * (before - trained[:, block])
            target = before + (missing @ upper.T) @ upper
            after = target if scales is None else _one_by_one(target, upper, scales, last)
            left -= part @ (after - before).T.astype(np.float32)
            weights[:, block] = after
        return weights


def _inverse_factor(hessian: Doubles) -> Doubles:
    """The upper triangular U with ``inverse(hessian) = U.T @ U``."""
    from scipy import linalg  # noqa: PLC0415 - a quarter of a second

    lower = linalg.cholesky(hessian[::-1, ::-1], lower=True, check_finite=False)
    inverse, _ = linalg.lapack.dtrtri(lower, lower=1)
    return np.ascontiguousarray(np.tril(inverse)[::-1, ::-1])


def _one_by_one(rows: Doubles, upper: Doubles, scale: Doubles, last: int) -> Doubles:
    """Round column after column, and let those that are left make up for it."""
    left, done = rows.copy(), np.empty_like(rows)
    for start in range(0, left.shape[1], _STRIP):
        stop = min(start + _STRIP, left.shape[1])
        errors = np.empty((len(left), stop - start))
        for column in range(start, stop):
            done[:, column] = nearest(left[:, column : column + 1], scale, last)[:, 0] * scale
            error = (left[:, column] - done[:, column]) / upper[column, column]
            left[:, column:stop] -= np.outer(error, upper[column, column:stop])
            errors[:, column - start] = error
        left[:, stop:] -= errors @ upper[start:stop, stop:]
    return done


def _places(count: int, wanted: float, batch: int) -> npt.NDArray[np.intp]:
    """Evenly spread output positions, about ``wanted`` of ``count``, others in every batch."""
    number = min(count, max(1, math.ceil(wanted)))
    spread = np.arange(number) * (count / number) + (batch * _GOLDEN % 1.0) * (count / number)
    places: npt.NDArray[np.intp] = np.unique(spread.astype(np.intp) % count)
    return places


def _unfolded(
    inputs: Floats, node: NodeProto, shape: tuple[int, ...], places: npt.NDArray[np.intp], groups: int
) -> Floats:
    """What a layer multiplies its weights with at some output positions: (clips, positions, groups, inputs)."""
    if node.op_type != "Conv":
        return inputs.reshape(-1, 1, 1, inputs.shape[-1])
    kernel = tuple(shape[2:])
    ones = (1,) * len(kernel)
    pads, strides = tuple(attribute(node, "pads", (0,) * 2 * len(kernel))), tuple(attribute(node, "strides", ones))
    dilations = tuple(attribute(node, "dilations", ones))
    x = torch.from_numpy(inputs)
    if len(kernel) == 1:
        # torch unfolds images only: a line is an image of height 1.
        x, pads = x.unsqueeze(2), (0, pads[0], 0, pads[1])
        kernel, strides, dilations = (1, *kernel), (1, *strides), (1, *dilations)
    x = functional.pad(x, (pads[1], pads[3], pads[0], pads[2]))
    columns = functional.unfold(x, kernel, dilation=dilations, stride=strides)[:, :, torch.from_numpy(places)]
    rows: Floats = columns.reshape(len(inputs), groups, -1, len(places)).permute(0, 3, 1, 2).numpy()
    return rows
