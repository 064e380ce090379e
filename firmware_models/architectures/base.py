"""What every firmware model has in common: PCM in, logits out, and a description of itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import BaseModel
from torch import Tensor, nn


class FirmwareModel(nn.Module):
    """A network with its front end inside.

    Input: PCM float32 (batch, window_samples) in [-1, 1]. Output: logits float32 (batch, len(labels)).

    ``features`` and ``classify`` are the two halves of ``forward``, so that training can mask features and can
    compute the second half in a narrower number format.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[BaseModel]]

    def __init__(self, settings: BaseModel, *, labels: Sequence[str], window_samples: int, rate_hz: int) -> None:
        super().__init__()
        self.settings = settings
        self.labels = tuple(labels)
        self.window_samples = window_samples
        self.rate_hz = rate_hz

    def forward(self, pcm: Tensor) -> Tensor:
        """Logits, float32 (batch, classes), of PCM (batch, window_samples)."""
        return self.classify(self.features(pcm))

    def features(self, pcm: Tensor) -> Tensor:
        """What the front end makes of the sound: float32 (batch, frames, bands)."""
        raise NotImplementedError

    def classify(self, features: Tensor) -> Tensor:
        """Logits (batch, classes) of features."""
        raise NotImplementedError

    @property
    def log_floor(self) -> float | None:
        """The floor of the log-mel front end (mean square per band), or None where there is no such front end."""
        return getattr(self.settings, "log_floor", None)

    def parameter_count(self) -> int:
        """The number of trained parameters."""
        return sum(parameter.numel() for parameter in self.parameters())
