"""Quantisation grids: rounding as onnxruntime rounds, with a gradient that passes straight through.

Q(x) = clamp(round_half_even(x / scale) + zero), DQ(q) = (q - zero) * scale, in float32, dividing (not multiplying by
the inverse) as onnxruntime does. The gradient is 1 inside the representable range and 0 outside (clipped
straight-through estimator, Bengio et al. 2013, arXiv:1308.3432).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from onnx import NodeProto, TensorProto, helper
from torch import Tensor

from export.twin.refusal import refuse

Array = npt.NDArray[Any]

LIMITS: dict[str, tuple[int, int]] = {
    "int4": (-8, 7),
    "uint4": (0, 15),
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-32768, 32767),
    "uint16": (0, 65535),
    "int32": (-(1 << 31), (1 << 31) - 1),
}


@dataclass(frozen=True)
class Grid:
    """A scale and a zero point, or one of each per channel: arrays of one shape that broadcasts over the tensor.

    ``kind`` is the integer type, a key of :data:`LIMITS`.
    """

    scale: tuple[float, ...]
    zero: tuple[int, ...]
    shape: tuple[int, ...]
    kind: str

    @property
    def scale_array(self) -> npt.NDArray[np.float32]:
        """Scales, float32, in a shape that broadcasts."""
        return np.array(self.scale, np.float32).reshape(self.shape)

    @property
    def levels(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """The smallest and the largest of q - zero, float32, in a shape that broadcasts."""
        zero = np.array(self.zero, np.int64).reshape(self.shape)
        low, high = LIMITS[self.kind]
        return (low - zero).astype(np.float32), (high - zero).astype(np.float32)


def grid_of(node: NodeProto, scale: Array, zero: Array | None, *, rank: int | None, kind: str | None) -> Grid:
    """The grid of a QuantizeLinear or DequantizeLinear node.

    Args:
        node: says on which axis a scale per channel lies.
        scale: float32, a scalar or (channels,).
        zero: the same shape, its type is that of the quantised numbers; None for 0.
        rank: the number of axes of the tensor, None where unknown: then only a scalar will do.
        kind: the integer type where there is no zero point.
    """
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    if attributes.get("block_size", 0):
        raise refuse(f"{node.op_type} in blocks")
    if zero is None:
        output_type = attributes.get("output_dtype", TensorProto.UNDEFINED)
        named = {value: key.lower() for key, value in TensorProto.DataType.items()}
        kind = named[output_type] if output_type and node.op_type == "QuantizeLinear" else (kind or "uint8")
    else:
        kind = zero.dtype.name
    if kind not in LIMITS or scale.dtype != np.float32:
        raise refuse(f"{node.op_type} to {kind} with scales of type {scale.dtype}")
    shape: tuple[int, ...] = ()
    if scale.size > 1:
        if rank is None:
            raise refuse(f"{node.op_type} of activations per channel")
        axis = attributes.get("axis", 1) % rank
        shape = tuple(scale.size if place == axis else 1 for place in range(rank))
    zeros = np.zeros(scale.size, np.int64) if zero is None else zero.astype(np.int64).reshape(-1)
    return Grid(tuple(map(float, scale.reshape(-1))), tuple(map(int, zeros)), shape, kind)


def quantised(grid: Grid, array: Array) -> npt.NDArray[np.int64]:
    """Levels q - zero of a constant."""
    low, high = grid.levels
    levels: npt.NDArray[np.int64] = np.clip(np.rint(array / grid.scale_array), low, high).astype(np.int64)
    return levels


def centred(grid: Grid, array: Array) -> npt.NDArray[np.int64]:
    """Levels q - zero of stored integers."""
    return array.astype(np.int64) - np.array(grid.zero, np.int64).reshape(grid.shape)


def dequantised(grid: Grid, levels: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """The numbers that levels stand for."""
    numbers: npt.NDArray[np.float32] = (levels.astype(np.float32) * grid.scale_array).astype(np.float32)
    return numbers


class _Rounding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
        levels = torch.round(x / scale)
        ctx.save_for_backward((levels >= low) & (levels <= high))
        return torch.clamp(levels, low, high) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None, None


def rounded(x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``x`` on its grid, in real units; ``low`` and ``high`` are :attr:`Grid.levels`."""
    result: Tensor = _Rounding.apply(x, scale, low, high)  # type: ignore[no-untyped-call]
    return result
