"""Split the layers of a trained model by their singular values, and say what that saves and costs."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict, model_validator
from torch import nn

from edge.errors import UsageError
from firmware_models.architectures import FirmwareModel
from firmware_models.cost import Cost, cost
from firmware_models.low_rank.factors import (
    Decomposition,
    Factored,
    FactoredConv,
    FactoredLinear,
    Layer,
    Reshape,
    decompose,
    matrix,
    replace,
)

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Ranks(BaseModel):
    """The rank of fully connected layers and of convolutions; ``layers`` names those that get another.

    None leaves layers whole. The paper's choice is ``fc`` 16 and ``conv`` 64. ``reshape``: see
    :mod:`firmware_models.low_rank.factors`. ``larger_too`` splits layers that get no smaller by it as well.

    Raises:
        UsageError: a rank below 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fc: int | None = None
    conv: int | None = None
    layers: dict[str, int | None] = {}
    reshape: Reshape = "channels"
    larger_too: bool = False

    @model_validator(mode="after")
    def _ranks_are_positive(self) -> Self:
        named = {"fully connected layers": self.fc, "convolutions": self.conv} | self.layers
        for where, rank in named.items():
            if rank is not None and rank < 1:
                raise UsageError(f"rank {rank} for {where}: use 1 or more, for example 16 for fc and 64 for conv")
        return self

    def of(self, name: str, layer: nn.Module) -> int | None:
        """The rank asked for a layer."""
        if name in self.layers:
            return self.layers[name]
        return self.fc if isinstance(layer, nn.Linear) else self.conv


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What became of one layer; ``rank`` is None where it was left whole, and ``note`` says why or what was capped."""

    name: str
    kind: str
    shape: tuple[int, ...]
    rank_asked: int | None
    rank: int | None
    parameters_before: int
    parameters_after: int
    multiply_adds_before: int
    multiply_adds_after: int
    relative_error: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What :func:`factorise` did; parameters and multiply-adds are those of the whole model, front end included."""

    layers: tuple[LayerReport, ...]
    parameters_before: int
    parameters_after: int
    multiply_adds_before: int
    multiply_adds_after: int

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)


def factorise(model: FirmwareModel, ranks: Ranks) -> tuple[FirmwareModel, Report]:
    """A copy of ``model`` with factored layers, and what became of each layer.

    Left whole, and said so in the report: grouped convolutions, layers that the ranks do not name, and layers that
    would not get smaller. A rank above that of the weights is capped.

    Raises:
        UsageError: a weight is not finite, ``ranks`` names a layer that is not there, the model is low rank already,
            or no layer would be split.
    """
    candidates, left = split_candidates(model)
    _check_names(ranks, candidates, left)
    before = cost(model)
    chosen: dict[str, tuple[int, Decomposition]] = {}
    notes: dict[str, str] = {}
    for name, layer in candidates.items():
        asked = ranks.of(name, layer)
        if asked is None:
            notes[name] = "no rank asked"
            continue
        found = decompose(layer, ranks.reshape)
        rank = min(asked, found.rank)
        capped = f"rank {asked} capped at {rank}, the rank of its weights" if rank < asked else ""
        if rank == 0:
            notes[name] = "left whole: all its weights are 0"
        elif rank > largest_rank(layer, ranks.reshape) and not ranks.larger_too:
            notes[name] = "; ".join(filter(None, (capped, f"left whole: rank {rank} would not make it smaller")))
        else:
            chosen[name] = rank, found
            notes[name] = capped
    if not chosen:
        reasons = "; ".join(f"{name}: {note}" for name, note in (notes | left).items())
        raise UsageError(f"no layer of {model.name} would be split ({reasons or 'it has none'}); use smaller ranks")
    factored = assemble(model, chosen, ranks.reshape)
    after = _cost_after(factored, chosen)
    rows = []
    for name, module in _layers_with_matrices(model).items():
        split = chosen.get(name)
        (own, own_operations), (new, new_operations) = before.inside(name), after.inside(name)
        rows.append(
            LayerReport(
                name=name,
                kind=type(module).__name__,
                shape=tuple(_matrix_of(module).shape),
                rank_asked=ranks.of(name, module) if name in candidates else None,
                rank=split[0] if split else None,
                parameters_before=own,
                parameters_after=new,
                multiply_adds_before=own_operations,
                multiply_adds_after=new_operations,
                relative_error=split[1].relative_error(split[0]) if split else 0.0,
                note=(notes | left)[name],
            )
        )
    return factored, Report(tuple(rows), before.parameters, after.parameters, before.multiply_adds, after.multiply_adds)


def split_candidates(model: FirmwareModel) -> tuple[dict[str, Layer], dict[str, str]]:
    """The layers that can be split, by name, and for the others why not.

    Raises:
        UsageError: a weight is not finite, or the model is low rank already.
    """
    if any(isinstance(module, Factored) for module in model.modules()):
        raise UsageError(f"{model.name}: is low rank already; start from the checkpoint of the full network")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            where, _, part = name.rpartition(".")
            raise UsageError(f"layer {where!r}: its {part} holds NaN or infinity; train the model again")
    candidates: dict[str, Layer] = {}
    left: dict[str, str] = {}
    for name, layer in _layers_with_matrices(model).items():
        kind, parent = type(layer), model.get_submodule(name.rpartition(".")[0])
        if kind not in {nn.Linear, nn.Conv1d, nn.Conv2d}:
            left[name] = f"left whole: a {kind.__name__} is not split"
        elif type(parent).__module__.startswith("torch.nn") and not isinstance(parent, _CONTAINERS):
            left[name] = f"left whole: {type(parent).__name__} reads its weights itself"
        elif isinstance(layer, nn.Conv1d | nn.Conv2d) and layer.groups != 1:
            left[name] = f"left whole: a convolution of {layer.groups} groups has a matrix per group"
        elif isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
            candidates[name] = layer
    return candidates, left


def largest_rank(layer: Layer, reshape: Reshape) -> int:
    """The largest rank at which the three factors hold fewer parameters than the layer; 0 if there is none."""
    rows, columns = matrix(layer, reshape).shape
    return max(0, (rows * columns - 1) // (rows + columns + 1))


def assemble(model: FirmwareModel, chosen: Mapping[str, tuple[int, Decomposition]], reshape: Reshape) -> FirmwareModel:
    """A copy of ``model`` with the layers in ``chosen`` split at the ranks given there."""
    factored = copy.deepcopy(model)
    layers: dict[str, nn.Module] = {}
    for name, (rank, found) in chosen.items():
        layer = factored.get_submodule(name)
        if isinstance(layer, nn.Linear):
            layers[name] = FactoredLinear.split(layer, rank, found)
        elif isinstance(layer, nn.Conv1d | nn.Conv2d):
            layers[name] = FactoredConv.split(layer, rank, reshape, found)
    return replace(factored, layers)


def _check_names(ranks: Ranks, candidates: Mapping[str, Layer], left: Mapping[str, str]) -> None:
    for name, rank in ranks.layers.items():
        if rank is not None and name in left:
            raise UsageError(f"rank {rank} for layer {name!r}: {left[name]}")
        if name not in candidates and name not in left:
            raise UsageError(f"rank for layer {name!r}: no such layer; use one of {', '.join(candidates) or 'none'}")


def _cost_after(factored: FirmwareModel, chosen: Iterable[str]) -> Cost:
    try:
        return cost(factored)
    except AttributeError as error:
        # Somebody's own architecture may use a layer's weights without calling the layer.
        raise UsageError(
            f"{factored.name}: does not work with factored layers ({' '.join(str(error).split())}); "
            f"its code must call the layers {', '.join(chosen)}, or leave them whole"
        ) from None


def _layers_with_matrices(model: nn.Module) -> dict[str, nn.Module]:
    modules = dict(model.named_modules())
    return {
        name: module
        for name, module in modules.items()
        if name and any(each.ndim > 1 for each in module.parameters(recurse=False))
    }


def _matrix_of(layer: nn.Module) -> torch.Tensor:
    return max((each for each in layer.parameters(recurse=False) if each.ndim > 1), key=torch.Tensor.numel)
