"""Residual: a teacher for small models. It fits no paper and no device; it is more accurate than what it teaches.

============  ================================================  ==================
layer         what it does                                      shape after it
============  ================================================  ==================
front end     log-mel, 25 ms frames every 10 ms                 1 x 98 x 40
stem          64 filters of 5 x 5, every 2nd; largest of 2 x 2  64 x 24 x 10
4 blocks      two 3 x 3 convolutions around a short cut;        64 x 24 x 10
              every other block looks at every 2nd place
mean          over time, and over pairs of bands                64 x 5
fc            dropout before it while training                  labels
============  ================================================  ==================
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from firmware_models.architectures.base import FirmwareModel
from firmware_models.frontend import LogMel, LogMelSettings


class ResidualSettings(BaseModel):
    """Settings of :class:`Residual`; see :class:`firmware_models.frontend.LogMelSettings` for ``log_floor``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    log_floor: float = Field(default=1e-6, gt=0, lt=1)
    dropout: float = Field(default=0.2, ge=0, lt=1)
    channels: int = Field(default=64, ge=8, le=512)


class Residual(FirmwareModel):
    """A small residual network on log-mel features."""

    name = "residual"
    Settings = ResidualSettings

    def __init__(self, settings: ResidualSettings, *, labels: Sequence[str], window_samples: int, rate_hz: int) -> None:
        super().__init__(settings, labels=labels, window_samples=window_samples, rate_hz=rate_hz)
        channels = settings.channels
        self.frontend = LogMel(LogMelSettings(log_floor=settings.log_floor), rate_hz=rate_hz)
        self.stem = nn.Conv2d(1, channels, kernel_size=5, stride=2, padding=2, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.pool = nn.MaxPool2d(2)
        self.blocks = nn.Sequential(*(Block(channels, dilation) for dilation in (1, 2, 1, 2)))
        self.pairs = nn.AvgPool2d((1, 2))
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(settings.dropout)
        bands = (self.frontend.settings.bands + 1) // 2 // 2 // 2
        self.fc = nn.Linear(channels * bands, len(labels))

    def features(self, pcm: Tensor) -> Tensor:
        """Log-mel features, float32 (batch, frames, 40)."""
        features: Tensor = self.frontend(pcm)
        return features

    def classify(self, features: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        x = self.relu(self.pool(self.bn(self.stem(features.unsqueeze(1)))))
        x = self.pairs(self.blocks(x)).mean(2).flatten(1)
        logits: Tensor = self.fc(self.dropout(x))
        return logits


class Block(nn.Module):
    """Two convolutions and a short cut around them: (batch, channels, frames, bands) in and out."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, kernel_size=3, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The sum of ``x`` and what the convolutions make of it, rectified."""
        y: Tensor = self.relu(x + self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        return y
