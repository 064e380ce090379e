"""LMS: the small log-mel model, 2 convolutions, 2 batch norms, 2 poolings, 1 fully connected layer.

The paper gives the layers and 1.8 MB in FP32 but no widths; the widths here are ours and give 1.79 MB.

============  ============================================  ==================
layer         what it does                                  shape after it
============  ============================================  ==================
front end     log-mel, 25 ms frames every 10 ms             1 x 98 x 40
conv1, bn1    64 filters of 7 frames x 7 bands, every 2nd   64 x 49 x 20
pool1, ReLU   largest of 2 x 2                              64 x 24 x 10
conv2, bn2    96 filters of 7 frames x all 10 bands         96 x 24 x 1
pool2, ReLU   largest of 2 frames                           96 x 12 x 1
fc            dropout before it while training              12 labels
============  ============================================  ==================

Batch norm stands directly behind its convolution so that the exporter can fold one into the other.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from firmware_models.architectures.base import FirmwareModel
from firmware_models.frontend import LogMel, LogMelSettings


class LmsSettings(BaseModel):
    """Settings of :class:`Lms`; see :class:`firmware_models.frontend.LogMelSettings` for ``log_floor``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    log_floor: float = Field(default=1e-6, gt=0, lt=1)
    dropout: float = Field(default=0.2, ge=0, lt=1)


class Lms(FirmwareModel):
    """The small log-mel model of the paper (LMS)."""

    name = "lms"
    Settings = LmsSettings

    def __init__(self, settings: LmsSettings, *, labels: Sequence[str], window_samples: int, rate_hz: int) -> None:
        super().__init__(settings, labels=labels, window_samples=window_samples, rate_hz=rate_hz)
        self.frontend = LogMel(LogMelSettings(log_floor=settings.log_floor), rate_hz=rate_hz)
        self.conv1 = nn.Conv2d(1, 64, kernel_size=(7, 7), stride=(2, 2), padding=(3, 3), bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.pool1 = nn.MaxPool2d((2, 2))
        bands = (self.frontend.settings.bands + 1) // 2 // 2
        self.conv2 = nn.Conv2d(64, 96, kernel_size=(7, bands), padding=(3, 0), bias=False)
        self.bn2 = nn.BatchNorm2d(96)
        self.pool2 = nn.MaxPool2d((2, 1))
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(settings.dropout)
        frames = (self.frontend.frames(window_samples) + 1) // 2 // 2 // 2
        self.fc = nn.Linear(96 * frames, len(labels))

    def features(self, pcm: Tensor) -> Tensor:
        """Log-mel features, float32 (batch, frames, 40)."""
        features: Tensor = self.frontend(pcm)
        return features

    def classify(self, features: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        x = features.unsqueeze(1)
        x = self.relu(self.pool1(self.bn1(self.conv1(x))))
        x = self.relu(self.pool2(self.bn2(self.conv2(x))))
        logits: Tensor = self.fc(self.dropout(x.flatten(1)))
        return logits
