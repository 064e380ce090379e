"""A stochastic ensemble: one low-rank network whose singular values are drawn anew for every member.

Member i of layer l computes with ``s_l + mu_l + sigma_l * noise_i``, noise standard normal, and the ensemble answers
with the mean of its members' softmax (algorithm 1 of the paper; it gives neither mu nor sigma). Layers that are not
factored are the same for all members.

A model of this kind must be attacked with the expectation over its randomness: gradients of the mean of many fresh
members. And what sigma = 0 resists, the noise did not bring about: that control belongs beside every result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edge.errors import UsageError
from firmware_models.architectures import FirmwareModel
from firmware_models.low_rank.factors import Factored

PerLayer = float | Mapping[str, float]


def relative_sigma(model: nn.Module, share: float) -> dict[str, float]:
    """A sigma for each factored layer: ``share`` of the root mean square of its singular values.

    Layers differ: those of an LMS have 0.9, 4.8 and 2.5, so one number for all is little here and much there.
    """
    layers = {name: each for name, each in model.named_modules() if isinstance(each, Factored)}
    return {name: share * float(layer.s.detach().square().mean().sqrt()) for name, layer in layers.items()}


class StochasticEnsemble(nn.Module):
    """The members of a factored model on the batch axis; it shares the model's parameters.

    ``mean`` and ``deviation`` are float32 (noise_values,): mu and sigma for each singular value of all factored layers,
    in the order of the network; ``places`` says where each layer's stand. A mapping gives mu or sigma by the layer's
    name, 0 for those that it leaves out.

    Raises:
        UsageError: no layer is factored, a name is not that of a factored layer, or a number that cannot be meant.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, model: FirmwareModel, *, sigma: PerLayer, mu: PerLayer = 0.0) -> None:
        super().__init__()
        self.model = model
        self.places: dict[str, slice] = {}
        start = 0
        for name, layer in self._layers().items():
            self.places[name] = slice(start, start + layer.rank)
            start += layer.rank
        if not self.places:
            raise UsageError(
                f"{model.name}: no layer is factored, an ensemble needs low rank: --rank-fc and --rank-conv"
            )
        self.register_buffer("mean", self._spread("mu", mu), persistent=False)
        self.register_buffer("deviation", self._spread("sigma", sigma, least=0.0), persistent=False)

    @property
    def noise_values(self) -> int:
        """The random numbers of one member: the sum of all ranks."""
        return len(self.deviation)

    def forward(self, pcm: Tensor, noise: Tensor) -> Tensor:
        """Probabilities (batch, classes): the mean over the members of :meth:`member_probabilities`."""
        return self.member_probabilities(pcm, noise).mean(1)

    def member_probabilities(self, pcm: Tensor, noise: Tensor) -> Tensor:
        """Softmax of each member.

        Args:
            pcm: float32 (batch, window_samples) in [-1, 1].
            noise: standard normal, float32 (batch * members, noise_values), clip by clip: the rows of the first clip's
                members come first.

        Returns:
            float32 (batch, members, classes).

        Raises:
            UsageError: noise of another shape.
        """
        members, rest = divmod(len(noise), max(1, len(pcm)))
        if noise.shape != (len(noise), self.noise_values) or rest or not members:
            raise UsageError(
                f"noise of shape {tuple(noise.shape)} for {len(pcm)} clips: use (clips * members, {self.noise_values})"
            )
        added = self.mean + self.deviation * noise
        layers = self._layers()
        try:
            for name, place in self.places.items():
                layers[name].noise = added[:, place]
            logits = self.model(pcm.repeat_interleave(members, 0))
        finally:
            for layer in layers.values():
                layer.noise = None
        probabilities: Tensor = logits.softmax(-1)
        return probabilities.reshape(len(pcm), members, -1)

    def draw(self, rows: int, generator: torch.Generator | None = None) -> Tensor:
        """Standard normal noise, float32 (rows, noise_values), for training and attacks."""
        return torch.randn(rows, self.noise_values, generator=generator, device=self.deviation.device)

    def _layers(self) -> dict[str, Factored]:
        return {name: each for name, each in self.model.named_modules() if isinstance(each, Factored)}

    def _spread(self, what: str, given: PerLayer, *, least: float = -math.inf) -> Tensor:
        by_name = dict(given) if isinstance(given, Mapping) else dict.fromkeys(self.places, float(given))
        for name, value in by_name.items():
            if name not in self.places:
                raise UsageError(f"{what} of layer {name!r}: the factored layers are {', '.join(self.places)}")
            if not math.isfinite(value) or value < least:
                raise UsageError(
                    f"{what} {value} of layer {name}: use a {'number from 0 on' if least == 0 else 'number'}"
                )
        spread = torch.zeros(max(place.stop for place in self.places.values()))
        for name, value in by_name.items():
            spread[self.places[name]] = value
        return spread
