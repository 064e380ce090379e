"""DS-CNN: depthwise separable convolutions for keyword spotting on microcontrollers, to compare with.

After Zhang et al. 2017, "Hello Edge: Keyword Spotting on Microcontrollers" (arXiv:1711.07128), the small DS-CNN:
64 filters of 10 x 4, four separable blocks of 64 filters of 3 x 3, the mean, one fully connected layer. Widths and
blocks are the paper's. Its features are 49 frames (every 20 ms) of 10 MFCCs and its first convolution takes every 2nd
of both; ours are 98 frames of 40 mel bands, so it takes every 4th, which leaves 25 x 10 places (the paper: 25 x 5).
23,180 parameters for 12 labels, 0.1 MB in FP32 (the paper: 38.6 kB of 8 bit weights and activations).

==================  ===========================================  ==================
layer               what it does                                 shape after it
==================  ===========================================  ==================
front end           log-mel, 25 ms frames every 10 ms            1 x 98 x 40
conv, bn, ReLU      64 filters of 10 frames x 4 bands, of 4 x 4  64 x 25 x 10
4 blocks            3 x 3 in every channel, then 1 x 1 over all  64 x 25 x 10
                    channels, each with batch norm and ReLU
mean                over frames and bands                        64
fc                  dropout before it while training             labels
==================  ===========================================  ==================

Batch norm stands directly behind its convolution so that the exporter can fold one into the other.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from firmware_models.architectures.base import FirmwareModel
from firmware_models.frontend import LogMel, LogMelSettings


class DsCnnSettings(BaseModel):
    """Settings of :class:`DsCnn`; the larger two of the paper have 172 ``channels`` in 4 ``blocks`` and 276 in 5."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    log_floor: float = Field(default=1e-6, gt=0, lt=1)
    dropout: float = Field(default=0.2, ge=0, lt=1)
    channels: int = Field(default=64, ge=8, le=512)
    blocks: int = Field(default=4, ge=1, le=16)


class DsCnn(FirmwareModel):
    """A depthwise separable network of keyword-spotting size."""

    name = "ds_cnn"
    Settings = DsCnnSettings

    def __init__(self, settings: DsCnnSettings, *, labels: Sequence[str], window_samples: int, rate_hz: int) -> None:
        super().__init__(settings, labels=labels, window_samples=window_samples, rate_hz=rate_hz)
        channels = settings.channels
        self.frontend = LogMel(LogMelSettings(log_floor=settings.log_floor), rate_hz=rate_hz)
        self.conv = nn.Conv2d(1, channels, kernel_size=(10, 4), stride=(4, 4), padding=(5, 0), bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.blocks = nn.Sequential(*(Separable(channels) for _ in range(settings.blocks)))
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(settings.dropout)
        self.fc = nn.Linear(channels, len(labels))

    def features(self, pcm: Tensor) -> Tensor:
        """Log-mel features, float32 (batch, frames, 40)."""
        features: Tensor = self.frontend(pcm)
        return features

    def classify(self, features: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        x = self.relu(self.bn(self.conv(features.unsqueeze(1))))
        x = self.blocks(x).mean((2, 3))
        logits: Tensor = self.fc(self.dropout(x))
        return logits


class Separable(nn.Module):
    """A depthwise and a pointwise convolution: (batch, channels, frames, bands) in and out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, kernel_size=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """What the two convolutions make of ``x``, each rectified."""
        x = self.relu(self.bn1(self.depthwise(x)))
        y: Tensor = self.relu(self.bn2(self.pointwise(x)))
        return y
