"""What a model costs: parameters and multiply-adds of one window, per layer."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
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
    with _in_plain_steps(), FlopCounterMode(display=False) as counter:
        inside = [0]
        meters = {name: _Meter(module, counter, inside) for name, module in model.named_modules()}
        model(torch.zeros(1, model.window_samples))
    layers = []
    seen: set[int] = set()
    for name, module in model.named_modules():
        new = [each for each in module.parameters(recurse=False) if id(each) not in seen]
        seen |= {id(each) for each in new}
        parameters = sum(each.numel() for each in new)
        if parameters or meters[name].multiply_adds:
            layers.append(LayerCost(name, type(module).__name__, parameters, meters[name].multiply_adds))
    return Cost(tuple(layers))


@contextmanager
def _in_plain_steps() -> Iterator[None]:
    """Let torch compute LSTMs and attention by matrix products; its fused kernels would be counted as nothing."""
    with warnings.catch_warnings():
        # Where there is no Intel GPU, torch warns about TF32 when these flags are set.
        warnings.simplefilter("ignore")
        with torch.enable_grad(), torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH):
            yield


class _Meter:
    """Counts what a module does itself, wherever and however often it is called.

    ``inside`` is shared by all: for each module being called, what the modules that it called have done.
    """

    def __init__(self, module: nn.Module, counter: FlopCounterMode, inside: list[int]) -> None:
        self.multiply_adds = 0
        self._counter, self._inside = counter, inside
        self._before: list[int] = []
        module.register_forward_pre_hook(self._enter)
        module.register_forward_hook(self._leave)
        if isinstance(module, Factored):
            # The products with s are no convolution and no matrix product.
            module.v.register_forward_hook(self._scale)

    def _enter(self, _module: nn.Module, _inputs: tuple[Any, ...]) -> None:
        self._before.append(self._done())
        self._inside.append(0)

    def _leave(self, _module: nn.Module, _inputs: tuple[Any, ...], _output: Any) -> None:
        whole = self._done() - self._before.pop()
        self.multiply_adds += whole - self._inside.pop()
        self._inside[-1] += whole

    def _scale(self, _module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> None:
        self.multiply_adds += output.numel()

    def _done(self) -> int:
        # A multiply-add is two operations.
        return int(self._counter.get_total_flops()) // 2
