"""Operators that compute every value from the values at its place."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

from export.twin.operators.shapes import Attributes, Operator
from export.twin.refusal import refuse


def _clip(attributes: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    bottom = attributes.get("min") if low is None else low
    top = attributes.get("max") if high is None else high
    if bottom is None and top is None:
        return x
    return torch.clamp(x, bottom, top)


def _divide(_: Attributes, a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _gelu(attributes: Attributes, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=attributes.get("approximate", b"none").decode())


def _hard_sigmoid(attributes: Attributes, x: Tensor) -> Tensor:
    return torch.clamp(attributes.get("alpha", 0.2) * x + attributes.get("beta", 0.5), 0.0, 1.0)


def _hard_swish(_: Attributes, x: Tensor) -> Tensor:
    return x * torch.clamp(x / 6.0 + 0.5, 0.0, 1.0)


def _leaky_relu(attributes: Attributes, x: Tensor) -> Tensor:
    return functional.leaky_relu(x, attributes.get("alpha", 0.01))


def _modulo(attributes: Attributes, a: Tensor, b: Tensor) -> Tensor:
    if attributes.get("fmod", 0) or a.is_floating_point():
        raise refuse("Mod of floating point numbers")
    return torch.remainder(a, b)


def _power(_: Attributes, x: Tensor, exponent: Tensor) -> Tensor:
    if exponent.numel() == 1 and float(exponent) == 2.0:
        return x.square()
    return torch.pow(x, exponent)


def _prelu(_: Attributes, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def _selu(attributes: Attributes, x: Tensor) -> Tensor:
    alpha = attributes.get("alpha", 1.67326319217681884765625)
    gamma = attributes.get("gamma", 1.05070102214813232421875)
    result: Tensor = gamma * functional.elu(x, alpha)
    return result


def _shrink(attributes: Attributes, x: Tensor) -> Tensor:
    bound, bias = attributes.get("lambd", 0.5), attributes.get("bias", 0.0)
    return torch.where(x > bound, x - bias, torch.where(x < -bound, x + bias, torch.zeros_like(x)))


def _softplus(_: Attributes, x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


def _swish(attributes: Attributes, x: Tensor) -> Tensor:
    return x * torch.sigmoid(attributes.get("alpha", 1.0) * x)


def _thresholded_relu(attributes: Attributes, x: Tensor) -> Tensor:
    return torch.where(x > attributes.get("alpha", 1.0), x, torch.zeros_like(x))


def _where(_: Attributes, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


ELEMENTWISE: dict[str, Operator] = {
    "Abs": lambda _, x: x.abs(),
    "Add": lambda _, a, b: a + b,
    "And": lambda _, a, b: a & b,
    "Ceil": lambda _, x: x.ceil(),
    "Celu": lambda attributes, x: functional.celu(x, attributes.get("alpha", 1.0)),
    "Clip": _clip,
    "Cos": lambda _, x: x.cos(),
    "Div": _divide,
    "Elu": lambda attributes, x: functional.elu(x, attributes.get("alpha", 1.0)),
    "Equal": lambda _, a, b: a == b,
    "Erf": lambda _, x: x.erf(),
    "Exp": lambda _, x: x.exp(),
    "Floor": lambda _, x: x.floor(),
    "Gelu": _gelu,
    "Greater": lambda _, a, b: a > b,
    "GreaterOrEqual": lambda _, a, b: a >= b,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "LeakyRelu": _leaky_relu,
    "Less": lambda _, a, b: a < b,
    "LessOrEqual": lambda _, a, b: a <= b,
    "Log": lambda _, x: x.log(),
    "Max": lambda _, *parts: functools.reduce(torch.maximum, parts),
    "Mean": lambda _, *parts: functools.reduce(torch.add, parts) / len(parts),
    "Min": lambda _, *parts: functools.reduce(torch.minimum, parts),
    "Mish": lambda _, x: functional.mish(x),
    "Mod": _modulo,
    "Mul": lambda _, a, b: a * b,
    "Neg": lambda _, x: -x,
    "Not": lambda _, x: ~x,
    "Or": lambda _, a, b: a | b,
    "PRelu": _prelu,
    "Pow": _power,
    "Reciprocal": lambda _, x: 1.0 / x,
    "Relu": lambda _, x: functional.relu(x),
    "Round": lambda _, x: x.round(),
    "Selu": _selu,
    "Shrink": _shrink,
    "Sigmoid": lambda _, x: x.sigmoid(),
    "Sign": lambda _, x: x.sign(),
    "Sin": lambda _, x: x.sin(),
    "Softplus": _softplus,
    "Softsign": lambda _, x: functional.softsign(x),
    "Sqrt": lambda _, x: x.sqrt(),
    "Sub": lambda _, a, b: a - b,
    "Sum": lambda _, *parts: functools.reduce(torch.add, parts),
    "Swish": _swish,
    "Tan": lambda _, x: x.tan(),
    "Tanh": lambda _, x: x.tanh(),
    "ThresholdedRelu": _thresholded_relu,
    "Where": _where,
}
