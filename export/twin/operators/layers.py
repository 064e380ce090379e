"""Convolutions, poolings and matrix products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from export.twin.operators.shapes import Attributes, Operator
from export.twin.refusal import refuse

_CONV: dict[int, Any] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_MAX: dict[int, Any] = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE: dict[int, Any] = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def conv(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Conv of any group, stride, dilation and padding."""
    spatial = weight.ndim - 2
    if spatial not in _CONV:
        raise refuse(f"Conv over {spatial} dimensions")
    x, pads = _padded("Conv", attributes, x, list(weight.shape[2:]), 0.0)
    result: Tensor = _CONV[spatial](
        x,
        weight,
        bias,
        stride=attributes.get("strides", [1] * spatial),
        padding=pads,
        dilation=attributes.get("dilations", [1] * spatial),
        groups=attributes.get("group", 1),
    )
    return result


def gemm(attributes: Attributes, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """Gemm in every form."""
    a = a.t() if attributes.get("transA", 0) else a
    b = b if attributes.get("transB", 0) else b.t()
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    if alpha == 1.0 and (c is None or (beta == 1.0 and c.ndim == 1)):
        return functional.linear(a, b, c)
    product = functional.linear(a, b) * alpha
    result: Tensor = product if c is None else product + beta * c
    return result


def matmul(_: Attributes, a: Tensor, b: Tensor) -> Tensor:
    """MatMul of any number of axes."""
    return a @ b


def _max_pool(attributes: Attributes, x: Tensor) -> Tensor:
    kernel = attributes["kernel_shape"]
    if attributes.get("storage_order", 0) or len(kernel) not in _MAX or attributes["outputs"] > 1:
        raise refuse(f"MaxPool over {len(kernel)} dimensions, with storage_order or with indices")
    x, pads = _padded("MaxPool", attributes, x, kernel, float("-inf"))
    result: Tensor = _MAX[len(kernel)](
        x,
        kernel,
        stride=attributes.get("strides", [1] * len(kernel)),
        padding=pads,
        dilation=attributes.get("dilations", [1] * len(kernel)),
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
    )
    return result


def _average_pool(attributes: Attributes, x: Tensor) -> Tensor:
    kernel = attributes["kernel_shape"]
    if len(kernel) not in _AVERAGE or set(attributes.get("dilations", [1])) != {1}:
        raise refuse(f"AveragePool over {len(kernel)} dimensions or dilated")
    settings = {
        "stride": attributes.get("strides", [1] * len(kernel)),
        "ceil_mode": bool(attributes.get("ceil_mode", 0)),
    }
    pool, count_padding = _AVERAGE[len(kernel)], bool(attributes.get("count_include_pad", 0))
    padded, pads = _padded("AveragePool", attributes, x, kernel, 0.0)
    if padded is x:
        result: Tensor = pool(x, kernel, padding=pads, count_include_pad=count_padding, **settings)
        return result
    if settings["ceil_mode"]:
        raise refuse("AveragePool with ceil_mode and different padding at both ends")
    result = pool(padded, kernel, **settings)
    if count_padding:
        return result
    present, _ = _padded("AveragePool", attributes, torch.ones_like(x), kernel, 0.0)
    share: Tensor = pool(present, kernel, **settings)
    return result / share


def _global_pool(attributes: Attributes, x: Tensor) -> Tensor:
    del attributes
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


def _global_max(attributes: Attributes, x: Tensor) -> Tensor:
    del attributes
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


def _padded(
    operator: str, attributes: Attributes, x: Tensor, kernel: list[int], value: float
) -> tuple[Tensor, list[int]]:
    """What torch has to be given: its own padding where both ends are padded alike, else sound padded before."""
    spatial = len(kernel)
    if x.ndim != spatial + 2:
        raise refuse(f"{operator} over {spatial} dimensions of a tensor that has {x.ndim}")
    pads = _pads(operator, attributes, x, kernel)
    before, after = pads[:spatial], pads[spatial:]
    dilation = attributes.get("dilations", [1] * spatial)
    fits = operator == "Conv" or all(2 * pad <= size for pad, size in zip(before, kernel, strict=True))
    if before == after and fits and (operator == "Conv" or set(dilation) == {1}):
        return x, before
    last_first = [amount for pair in reversed(list(zip(before, after, strict=True))) for amount in pair]
    return functional.pad(x, last_first, value=value), [0] * spatial


def _pads(operator: str, attributes: Attributes, x: Tensor, kernel: list[int]) -> list[int]:
    spatial = len(kernel)
    mode = attributes.get("auto_pad", b"NOTSET").decode()
    if mode == "NOTSET":
        return list(attributes.get("pads", [0] * 2 * spatial))
    if mode == "VALID":
        return [0] * 2 * spatial
    if mode not in {"SAME_UPPER", "SAME_LOWER"} or set(attributes.get("dilations", [1])) != {1}:
        raise refuse(f"{operator} with auto_pad {mode}, or with auto_pad and dilations")
    strides = attributes.get("strides", [1] * spatial)
    before, after = [], []
    for size, length, stride in zip(x.shape[2:], kernel, strides, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + length - size)
        small, large = total // 2, total - total // 2
        before.append(small if mode == "SAME_UPPER" else large)
        after.append(large if mode == "SAME_UPPER" else small)
    return before + after


LAYERS: dict[str, Operator] = {
    "AveragePool": _average_pool,
    "Conv": conv,
    "Gemm": gemm,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_max,
    "MatMul": matmul,
    "MaxPool": _max_pool,
}
