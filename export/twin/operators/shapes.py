"""Operators that move, cut, join and count values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from export.twin.refusal import refuse

Attributes = Mapping[str, Any]
Operator = Callable[..., Any]

_CAST = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 11: torch.float64}


def axes_of(attributes: Attributes, axes: Tensor | None) -> list[int] | None:
    """The axes of a node: an input in newer opsets, an attribute in older ones."""
    if axes is not None:
        return [int(axis) for axis in axes.reshape(-1).tolist()]
    found = attributes.get("axes")
    return None if found is None else [int(axis) for axis in found]


def _cast(attributes: Attributes, x: Tensor) -> Tensor:
    if attributes["to"] not in _CAST:
        raise refuse(f"Cast to ONNX type {attributes['to']}")
    wanted = _CAST[attributes["to"]]
    # A twin in double precision stays in it.
    return x if wanted == torch.float32 and x.dtype == torch.float64 else x.to(wanted)


def _constant_of_shape(attributes: Attributes, shape: Tensor) -> Tensor:
    value = attributes.get("value")
    filling = torch.zeros(1) if value is None else torch.from_numpy(value)
    return filling.expand(shape.tolist()).clone()


def _expand(attributes: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    sizes = _free_batch(attributes, x, shape.tolist())
    shared: torch.Size = torch.broadcast_shapes(tuple(x.shape), tuple(sizes))  # type: ignore[no-untyped-call]
    return x.expand(shared)


def _flatten(attributes: Attributes, x: Tensor) -> Tensor:
    axis = attributes.get("axis", 1) % (x.ndim + 1)
    if axis == 0:
        return x.reshape(1, -1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _free_batch(attributes: Attributes, x: Tensor, sizes: list[int]) -> list[int]:
    """Sizes in which the one batch size that the graph was made for is replaced by the batch at hand."""
    if sizes and x.ndim and sizes[0] == attributes.get("batch"):
        return [x.shape[0], *sizes[1:]]
    return sizes


def _gather(attributes: Attributes, x: Tensor, index: Tensor) -> Tensor:
    axis = attributes.get("axis", 0) % x.ndim
    index = index.to(x.device)
    places = torch.where(index < 0, index + x.shape[axis], index)
    sizes = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    return x.index_select(axis, places.reshape(-1)).reshape(sizes)


def _pad(attributes: Attributes, x: Tensor, *inputs: Tensor | None) -> Tensor:
    pads, value, axes = (*inputs, None, None, None)[:3]
    mode = attributes.get("mode", b"constant").decode()
    amounts = attributes["pads"] if pads is None else pads.tolist()
    dimensions = axes_of(attributes, axes) or list(range(x.ndim))
    before, after = [0] * x.ndim, [0] * x.ndim
    for place, axis in enumerate(dimensions):
        before[axis], after[axis] = amounts[place], amounts[place + len(dimensions)]
    last_first = [amount for axis in reversed(range(x.ndim)) for amount in (before[axis], after[axis])]
    while len(last_first) > 2 and last_first[-2:] == [0, 0]:
        last_first = last_first[:-2]
    if mode == "constant":
        filling = attributes.get("value", 0.0) if value is None else float(value)
        return functional.pad(x, last_first, value=filling)
    kinds = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    if mode not in kinds:
        raise refuse(f"Pad with mode {mode}")
    # torch pads the trailing axes of what has one or two axes more than that.
    missing = len(last_first) // 2 + 1 - x.ndim
    result = functional.pad(x.unsqueeze(0) if missing > 0 else x, last_first, mode=kinds[mode])
    return result.squeeze(0) if missing > 0 else result


def _range(_: Attributes, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def _reshape(attributes: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    sizes = _free_batch(attributes, x, shape.tolist())
    if not attributes.get("allowzero", 0):
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def _shape(attributes: Attributes, x: Tensor) -> Tensor:
    sizes = list(x.shape)[attributes.get("start", 0) : attributes.get("end", None)]
    return torch.tensor(sizes, dtype=torch.int64)


def _slice(attributes: Attributes, x: Tensor, *inputs: Tensor | None) -> Tensor:
    starts, ends, axes, steps = (*inputs, None, None, None, None)[:4]
    first = attributes["starts"] if starts is None else starts.tolist()
    last = attributes["ends"] if ends is None else ends.tolist()
    dimensions = axes_of(attributes, axes) or list(range(len(first)))
    strides = [1] * len(first) if steps is None else steps.tolist()
    index = [slice(None)] * x.ndim
    for axis, start, end, step in zip(dimensions, first, last, strides, strict=True):
        if step < 1:
            raise refuse(f"Slice with step {step}")
        index[axis] = slice(start, end, step)
    return x[tuple(index)]


def _split(attributes: Attributes, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = attributes.get("axis", 0)
    lengths = attributes.get("split") if sizes is None else sizes.tolist()
    if lengths is None:
        # The last part is the shorter one where it does not come out even.
        return torch.split(x, -(-x.shape[axis] // attributes["outputs"]), dim=axis)
    return torch.split(x, lengths, dim=axis)


def _squeeze(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = axes_of(attributes, axes)
    return x.squeeze() if chosen is None else x.squeeze(tuple(chosen))


def _transpose(attributes: Attributes, x: Tensor) -> Tensor:
    return x.permute(attributes.get("perm", list(reversed(range(x.ndim)))))


def _unsqueeze(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = axes_of(attributes, axes) or []
    final = x.ndim + len(chosen)
    for axis in sorted(axis % final for axis in chosen):
        x = x.unsqueeze(axis)
    return x


def _concat(attributes: Attributes, *parts: Tensor) -> Tensor:
    return torch.cat(parts, dim=attributes["axis"])


SHAPES: dict[str, Operator] = {
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    # Dropout is for training: a graph in a bundle passes everything.
    "Dropout": lambda _, x, *__: x,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": lambda _, x: x,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": lambda _, x: torch.tensor(x.numel()),
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": lambda _, x, repeats: x.repeat(repeats.tolist()),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
