"""Which layers of a model are factored and how: enough to build it again before its weights are loaded."""

from __future__ import annotations

from typing import Any, get_args

from torch import nn

from edge.errors import UsageError
from firmware_models.low_rank.factors import Factored, FactoredConv, FactoredLinear, Model, Reshape, replace


def layout(model: nn.Module) -> dict[str, Any] | None:
    """Rank and reshape of every factored layer by its name, as plain values; None where there is none."""
    found = {
        name: {"rank": module.rank} | ({"reshape": module.reshape} if isinstance(module, FactoredConv) else {})
        for name, module in model.named_modules()
        if isinstance(module, Factored)
    }
    return found or None


def lay_out(model: Model, wanted: dict[str, Any] | None) -> Model:
    """Put empty factored layers where :func:`layout` found some; ``model`` is changed and its weights must be loaded.

    Raises:
        UsageError: a layer is not there, or its rank or reshape is none.
    """
    modules = dict(model.named_modules())
    return replace(model, {name: _empty(name, modules.get(name), split) for name, split in (wanted or {}).items()})


def _empty(name: str, layer: nn.Module | None, split: Any) -> Factored:
    rank = split.get("rank") if isinstance(split, dict) else None
    if not isinstance(rank, int) or rank < 1:
        raise UsageError(f"low-rank layer {name!r}: {split!r} names no rank of 1 or more")
    if isinstance(layer, nn.Linear):
        return FactoredLinear(layer, rank)
    if not isinstance(layer, nn.Conv1d | nn.Conv2d):
        raise UsageError(f"low-rank layer {name!r}: the architecture has no such layer")
    reshape = split.get("reshape", "channels")
    if reshape not in get_args(Reshape):
        raise UsageError(f"low-rank layer {name!r}: reshape {reshape!r}: use one of {', '.join(get_args(Reshape))}")
    return FactoredConv(layer, rank, reshape)
