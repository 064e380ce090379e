"""Operators that compute one value from many: reductions, softmax and normalisations."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from export.twin.operators.shapes import Attributes, Operator, axes_of
from export.twin.refusal import refuse

Reduction = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _reduce(reduction: Reduction) -> Operator:
    def operator(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = axes_of(attributes, axes)
        if not chosen and attributes.get("noop_with_empty_axes", 0):
            return x
        dimensions = tuple(chosen) if chosen else tuple(range(x.ndim))
        return reduction(x, dimensions, bool(attributes.get("keepdims", 1)))

    return operator


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if len(axes) != 1:
        raise refuse("ReduceProd over several axes")
    return x.prod(axes[0], keepdim=keep)


def _arg_max(attributes: Attributes, x: Tensor) -> Tensor:
    return x.argmax(attributes.get("axis", 0), keepdim=bool(attributes.get("keepdims", 1)))


def _softmax(function: Callable[..., Tensor]) -> Operator:
    def operator(attributes: Attributes, x: Tensor) -> Tensor:
        if attributes["opset"] >= 13:
            return function(x, dim=attributes.get("axis", -1))
        # Older ones see a matrix: everything before the axis, everything from it on.
        axis = attributes.get("axis", 1) % max(x.ndim, 1)
        return function(x.flatten(axis), dim=-1).reshape(x.shape)

    return operator


def _batch_normalization(attributes: Attributes, x: Tensor, *parameters: Tensor) -> Tensor:
    scale, bias, mean, variance = parameters
    if attributes.get("training_mode", 0):
        raise refuse("BatchNormalization in training mode")
    return functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, attributes.get("epsilon", 1e-5))


def _instance_normalization(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return functional.instance_norm(x, weight=scale, bias=bias, eps=attributes.get("epsilon", 1e-5))


def _layer_normalization(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = attributes.get("axis", -1) % x.ndim
    normalised = functional.layer_norm(x, x.shape[axis:], eps=attributes.get("epsilon", 1e-5)) * scale
    return normalised if bias is None else normalised + bias


REDUCTIONS: dict[str, Operator] = {
    "ArgMax": _arg_max,
    "BatchNormalization": _batch_normalization,
    "InstanceNormalization": _instance_normalization,
    "LayerNormalization": _layer_normalization,
    "LogSoftmax": _softmax(functional.log_softmax),
    "ReduceL1": _reduce(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "ReduceL2": _reduce(lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt()),
    "ReduceLogSumExp": _reduce(lambda x, axes, keep: x.logsumexp(axes, keepdim=keep)),
    "ReduceMax": _reduce(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMean": _reduce(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceMin": _reduce(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "ReduceProd": _reduce(_product),
    "ReduceSum": _reduce(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "ReduceSumSquare": _reduce(lambda x, axes, keep: x.square().sum(axes, keepdim=keep)),
    "Softmax": _softmax(functional.softmax),
}
