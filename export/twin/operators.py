"""The ONNX operators that our graphs use, in torch: forward as onnxruntime computes them, gradients by autograd.

Each function takes the node's attributes and its inputs (None where an optional one is absent). Whatever is not in
:data:`OPERATORS` is refused by name: a twin that guesses is worth nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edge.errors import UsageError

Attributes = Mapping[str, Any]
Operator = Callable[..., Tensor]

_CAST = {1: torch.float32, 6: torch.int32, 7: torch.int64, 11: torch.float64}


def refuse(what: str) -> UsageError:
    """The error for something that a twin cannot compute."""
    return UsageError(f"the twin does not know {what}: it computes {', '.join(sorted(OPERATORS))} and Q/DQ pairs")


def _conv(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise refuse("Conv with auto_pad")
    spatial = weight.ndim - 2
    pads = _symmetric("Conv", attributes.get("pads", [0] * 2 * spatial))
    convolve = {1: functional.conv1d, 2: functional.conv2d}.get(spatial)
    if convolve is None:
        raise refuse(f"Conv over {spatial} dimensions")
    return convolve(
        x,
        weight,
        bias,
        stride=attributes.get("strides", [1] * spatial),
        padding=pads,
        dilation=attributes.get("dilations", [1] * spatial),
        groups=attributes.get("group", 1),
    )


def _max_pool(attributes: Attributes, x: Tensor) -> Tensor:
    kernel = attributes["kernel_shape"]
    pads = _symmetric("MaxPool", attributes.get("pads", [0] * 2 * len(kernel)))
    if attributes.get("auto_pad", b"NOTSET") != b"NOTSET" or attributes.get("storage_order", 0):
        raise refuse("MaxPool with auto_pad or storage_order")
    pool: Any = {1: functional.max_pool1d, 2: functional.max_pool2d}.get(len(kernel))
    if pool is None:
        raise refuse(f"MaxPool over {len(kernel)} dimensions")
    result: Tensor = pool(
        x,
        kernel,
        stride=attributes.get("strides", [1] * len(kernel)),
        padding=pads,
        dilation=attributes.get("dilations", [1] * len(kernel)),
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
    )
    return result


def _symmetric(operator: str, pads: list[int]) -> list[int]:
    half = len(pads) // 2
    if pads[:half] != pads[half:]:
        raise refuse(f"{operator} with different padding at both ends ({pads})")
    return pads[:half]


def _gemm(attributes: Attributes, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    if attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0 or attributes.get("transA", 0):
        raise refuse("Gemm with alpha, beta or transA")
    return functional.linear(a, b if attributes.get("transB", 0) else b.t(), c)


def _slice(
    _: Attributes, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
    dimensions = range(len(starts)) if axes is None else axes.tolist()
    strides = [1] * len(starts) if steps is None else steps.tolist()
    index = [slice(None)] * x.ndim
    for axis, start, end, step in zip(dimensions, starts.tolist(), ends.tolist(), strides, strict=True):
        if step < 1:
            raise refuse(f"Slice with step {step}")
        index[axis] = slice(start, end, step)
    return x[tuple(index)]


def _reshape(attributes: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    sizes = shape.tolist()
    if not attributes.get("allowzero", 0):
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def _flatten(attributes: Attributes, x: Tensor) -> Tensor:
    if attributes.get("axis", 1) != 1:
        raise refuse("Flatten with another axis than 1")
    return x.flatten(1)


def _unsqueeze(_: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    final = x.ndim + len(axes)
    for axis in sorted(axis % final for axis in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def _cast(attributes: Attributes, x: Tensor) -> Tensor:
    if attributes["to"] not in _CAST:
        raise refuse(f"Cast to ONNX type {attributes['to']}")
    return x.to(_CAST[attributes["to"]])


def _mod(attributes: Attributes, a: Tensor, b: Tensor) -> Tensor:
    if attributes.get("fmod", 0) or a.is_floating_point():
        raise refuse("Mod of floating point numbers")
    return torch.remainder(a, b)


def _power(_: Attributes, x: Tensor, exponent: Tensor) -> Tensor:
    if exponent.numel() == 1 and float(exponent) == 2.0:
        return x.square()
    return torch.pow(x, exponent)


def _range(_: Attributes, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


OPERATORS: dict[str, Operator] = {
    "Add": lambda _, a, b: a + b,
    "Cast": _cast,
    "Concat": lambda attributes, *parts: torch.cat(parts, dim=attributes["axis"]),
    "Conv": _conv,
    "Cos": lambda _, x: torch.cos(x),
    "Flatten": _flatten,
    "Gemm": _gemm,
    "Identity": lambda _, x: x,
    "Log": lambda _, x: torch.log(x),
    "MatMul": lambda _, a, b: a @ b,
    "MaxPool": _max_pool,
    "Mod": _mod,
    "Mul": lambda _, a, b: a * b,
    "Pow": _power,
    "Range": _range,
    "Relu": lambda _, x: functional.relu(x),
    "Reshape": _reshape,
    "Sin": lambda _, x: torch.sin(x),
    "Slice": _slice,
    "Transpose": lambda attributes, x: x.permute(attributes["perm"]),
    "Unsqueeze": _unsqueeze,
}

# They move values but make no new ones: what was on a quantisation grid stays on it.
MOVING = frozenset({"Flatten", "Identity", "MaxPool", "Reshape", "Slice", "Transpose", "Unsqueeze"})
