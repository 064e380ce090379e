"""What a model costs: parameters and multiply-adds of one window, per layer."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from firmware_models.architectures import FirmwareModel
from firmware_models.frontend import LogMel
from firmware_models.low_rank.factors import Factored


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What one module has and does itself, without the modules inside it; ``name`` is empty for the model's own."""

    name: str
    kind: str
    parameters: int
    multiply_adds: int


@dataclass(frozen=True, slots=True)
class Cost:
    """What a model costs per window of sound; layers that cost nothing are left out."""

    layers: tuple[LayerCost, ...]

    @property
    def parameters(self) -> int:
        """The number of trained parameters."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        """The number of multiplications followed by an addition."""
        return sum(layer.multiply_adds for layer in self.layers)

    def inside(self, name: str) -> tuple[int, int]:
        """Parameters and multiply-adds of a module and everything in it."""
        mine = [layer for layer in self.layers if layer.name == name or layer.name.startswith(f"{name}.")]
        return sum(layer.parameters for layer in mine), sum(layer.multiply_adds for layer in mine)

    def to_json(self) -> dict[str, Any]:
        """The costs as plain values."""
        return {
            "parameters": self.parameters,
            "multiply_adds": self.multiply_adds,
            "layers": [asdict(layer) for layer in self.layers],
        }


def cost(model: FirmwareModel) -> Cost:
    """Count what a model does with one window, by letting it do it.

    Counted are convolutions, matrix products (also those of a module of one's own) and the scaling of factored
    layers; the front end as the graph computes it, a DFT as a convolution and the mel filters. Batch norm, which
    export folds into the layer before it, activations, pooling and additions of biases count as nothing.
    """
    model = copy.deepcopy(model).cpu().eval()
    for module in model.modules():
        if isinstance(module, LogMel):
            module.method = "convolution"
    scaling = {name: _Scaling(module) for name, module in model.named_modules() if isinstance(module, Factored)}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, model.window_samples))
    # Names begin with the class of the model; a multiply-add is two operations.
    counts = counter.get_flop_counts()
    root = type(model).__name__
    total = {name: sum(counts.get(f"{root}.{name}" if name else root, {}).values()) // 2 for name in _names(model)}
    layers = []
    seen: set[int] = set()
    for name, module in model.named_modules():
        of_children = sum(total[f"{name}.{child}" if name else child] for child, _ in module.named_children())
        own = total[name] - of_children + (scaling[name].multiply_adds if name in scaling else 0)
        mine = [each for each in module.parameters(recurse=False) if id(each) not in seen]
        seen |= {id(each) for each in mine}
        parameters = sum(each.numel() for each in mine)
        if parameters or own:
            layers.append(LayerCost(name, type(module).__name__, parameters, own))
    return Cost(tuple(layers))


class _Scaling:
    """Counts the products with s of a factored layer, which are no convolution and no matrix product."""

    def __init__(self, module: Factored) -> None:
        self.multiply_adds = 0
        module.v.register_forward_hook(self)

    def __call__(self, _module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.multiply_adds += output.numel()


def _names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules()]
