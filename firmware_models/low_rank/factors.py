"""Layers in three factors: W ~ U diag(s) V, the halves ordinary layers, s a vector of its own between them.

How the weights of a convolution, (out, in, kh, kw), become a matrix is a choice (``Reshape``):

========  ==========================  =====================================  ==============================
reshape   matrix                      V, the first half                      U, the second half
========  ==========================  =====================================  ==============================
channels  out x (in * kh * kw)        kh x kw, with the layer's stride and   1 x 1, with the layer's bias
                                      padding
spatial   (out * kh) x (in * kw)      1 x kw, stride and padding across      kh x 1, stride and padding down
========  ==========================  =====================================  ==============================

A one-dimensional kernel stands upright in ``spatial``: (out * k) x in, a 1-convolution before one of k. Lying down,
the matrix would be that of ``channels``.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

Reshape = Literal["channels", "spatial"]
Layer = nn.Linear | nn.Conv1d | nn.Conv2d
Model = TypeVar("Model", bound=nn.Module)


class Decomposition(NamedTuple):
    """A matrix as U diag(s) V: float64, ``u`` (rows, k), ``s`` (k,) from large to small, ``v`` (k, columns)."""

    u: Tensor
    s: Tensor
    v: Tensor

    @property
    def rank(self) -> int:
        """The rank of a matrix that was stored in float32: singular values above its rounding errors."""
        rows, columns = len(self.u), self.v.shape[1]
        floor = self.s.amax() * max(rows, columns) * torch.finfo(torch.float32).eps
        return int((self.s > floor).sum())

    def relative_error(self, rank: int) -> float:
        """The Frobenius norm of what the first ``rank`` values leave out, relative to that of the whole."""
        total = self.s.square().sum()
        return float((self.s[rank:].square().sum() / total).sqrt()) if total > 0 else 0.0


class Factored(nn.Module):
    """A layer y = U diag(s) V x + bias.

    ``v`` and ``u`` are ordinary layers (``u`` holds the bias), ``s`` is a parameter (rank,). What stands between them
    has the rank as its channels. ``noise``, where it is set, is added to s: (rank,), or (batch, rank) for another s
    per row of the batch; it belongs to no state_dict.
    """

    def __init__(self, v: Layer, s: Tensor, u: Layer, *, like: Layer) -> None:
        super().__init__()
        self.v, self.u = v, u
        self.s = nn.Parameter(s)
        self.noise: Tensor | None = None
        # Weights come from the layer split or from a checkpoint; until then nothing random is drawn for them.
        self.to_empty(device=like.weight.device).to(like.weight.dtype)

    @property
    def rank(self) -> int:
        """The number of singular values kept."""
        return self.s.numel()

    def first(self, x: Tensor) -> Tensor:
        """V x: (batch, rank, ...)."""
        y: Tensor = self.v(x)
        return y

    def second(self, scaled: Tensor) -> Tensor:
        """U and the bias, of what :meth:`first` gave times s."""
        y: Tensor = self.u(scaled)
        return y

    def scale(self, x: Tensor, s: Tensor) -> Tensor:
        """What :meth:`first` gave, times ``s``: (rank,) or (batch, rank)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """What the layer in one piece would give, up to the singular values left out."""
        s = self.s if self.noise is None else self.s + self.noise
        return self.second(self.scale(self.first(x), s))

    def folded(self) -> nn.Sequential:
        """Two ordinary layers ``v`` and ``u``, diag(s) in the weights of ``u``: equal up to rounding, less to do."""
        v, u = copy.deepcopy(self.v), copy.deepcopy(self.u)
        with torch.no_grad():
            u.weight.mul_(self.s.view(1, -1, *[1] * (u.weight.ndim - 2)))
        return nn.Sequential(OrderedDict(v=v, u=u)).train(self.training)

    @torch.no_grad()
    def _fill(self, layer: Layer, found: Decomposition, u_weight: Tensor, v_weight: Tensor) -> Self:
        self.s.copy_(found.s[: self.rank])
        self.u.weight.copy_(u_weight)
        self.v.weight.copy_(v_weight)
        if layer.bias is not None and self.u.bias is not None:
            self.u.bias.copy_(layer.bias)
        self.train(layer.training)
        for parameter in self.parameters():
            parameter.requires_grad_(layer.weight.requires_grad)
        return self


class FactoredLinear(Factored):
    """A fully connected layer in three factors: x (..., in) to (..., rank) to (..., out)."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        with torch.device("meta"):
            v = nn.Linear(layer.in_features, rank, bias=False)
            u = nn.Linear(rank, layer.out_features, bias=layer.bias is not None)
        super().__init__(v, torch.ones(rank), u, like=layer)

    def scale(self, x: Tensor, s: Tensor) -> Tensor:
        """``x`` (batch, ..., rank) times ``s``."""
        return x * (s if s.ndim == 1 else s.view(s.shape[0], *[1] * (x.ndim - 2), s.shape[1]))

    @classmethod
    def split(cls, layer: nn.Linear, rank: int, found: Decomposition | None = None) -> FactoredLinear:
        """The best approximation of rank ``rank`` (at most the smaller side) by singular values."""
        found = found or decompose(layer)
        made = cls(layer, rank)
        return made._fill(layer, found, found.u[:, :rank], found.v[:rank])


class FactoredConv(Factored):
    """A convolution over time, or over time and bands, in three factors; groups are not supported."""

    def __init__(self, layer: nn.Conv1d | nn.Conv2d, rank: int, reshape: Reshape = "channels") -> None:
        # In `spatial` the last axis of two belongs to V and the one before it to U.
        across = [reshape == "channels" or axis == 1 for axis in range(len(layer.kernel_size))]
        down = [not one for one in across]
        make: type[nn.Conv1d | nn.Conv2d] = nn.Conv1d if len(across) == 1 else nn.Conv2d
        with torch.device("meta"):
            v = make(layer.in_channels, rank, **_geometry(layer, across), bias=False)
            u = make(rank, layer.out_channels, **_geometry(layer, down), bias=layer.bias is not None)
        super().__init__(v, torch.ones(rank), u, like=layer)
        self.reshape: Reshape = reshape

    def scale(self, x: Tensor, s: Tensor) -> Tensor:
        """``x`` (batch, rank, ...) times ``s``."""
        return x * s.view(*s.shape, *[1] * (x.ndim - 2))

    @classmethod
    def split(
        cls,
        layer: nn.Conv1d | nn.Conv2d,
        rank: int,
        reshape: Reshape = "channels",
        found: Decomposition | None = None,
    ) -> FactoredConv:
        """The best approximation of rank ``rank`` (at most the smaller side) by singular values."""
        found = found or decompose(layer, reshape)
        made = cls(layer, rank, reshape)
        u, v = found.u[:, :rank], found.v[:rank]
        if reshape == "spatial":
            out, down = layer.out_channels, layer.kernel_size[0]
            u = u.reshape(out, down, rank).transpose(1, 2)
        return made._fill(layer, found, u.reshape(made.u.weight.shape), v.reshape(made.v.weight.shape))


def matrix(layer: Layer, reshape: Reshape = "channels") -> Tensor:
    """The weights of a layer as the matrix that ``reshape`` says, (rows, columns)."""
    weight = layer.weight.detach()
    if isinstance(layer, nn.Linear) or reshape == "channels":
        return weight.flatten(1)
    out, inputs, down, *_ = weight.shape
    return weight.transpose(1, 2).reshape(out * down, inputs * (weight[0, 0, 0].numel()))


def decompose(layer: Layer, reshape: Reshape = "channels") -> Decomposition:
    """The singular values of a layer's :func:`matrix`, computed in float64 on the CPU."""
    u, s, v = torch.linalg.svd(matrix(layer, reshape).cpu().double(), full_matrices=False)
    return Decomposition(u, s, v)


def folded(model: Model) -> Model:
    """A copy in which every factored layer became two ordinary ones; what the plain graph is exported from."""
    model = copy.deepcopy(model)
    return replace(model, {name: each.folded() for name, each in model.named_modules() if isinstance(each, Factored)})


def replace(model: Model, layers: Mapping[str, nn.Module]) -> Model:
    """Put other layers in the places named, everywhere where the same layer is used; ``model`` is changed."""
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    at = {name: model.get_submodule(name) for name in names}
    new = {id(at[name]): layer for name, layer in layers.items()}
    for name in names:
        if name and id(at[name]) in new:
            parent, _, own = name.rpartition(".")
            setattr(at[parent], own, new[id(at[name])])
    return model


def _geometry(layer: nn.Conv1d | nn.Conv2d, mine: Sequence[bool]) -> dict[str, Any]:
    """What a half does along the axes that are its own; along the others it looks at one place."""

    def of(values: Sequence[int], otherwise: int) -> tuple[int, ...]:
        return tuple(value if own else otherwise for value, own in zip(values, mine, strict=True))

    return {
        "kernel_size": of(layer.kernel_size, 1),
        "stride": of(layer.stride, 1),
        "padding": layer.padding if isinstance(layer.padding, str) else of(layer.padding, 0),
        "dilation": of(layer.dilation, 1),
        "padding_mode": layer.padding_mode,
    }
