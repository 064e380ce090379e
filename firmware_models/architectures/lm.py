"""LM: the large log-mel model, 3 convolutions, 3 batch norms, 3 poolings, 2 fully connected layers.

The paper gives the layers and 20.2 MB for 1 s (33.3 MB for 3 s) in FP32 but no widths; the widths here are ours and
give 20.1 MB (32.7 MB): the convolutions hold what both have in common, the first fully connected layer what grows.

============  ============================================  ==================  ==================
layer         what it does                                  shape after it      after it, 3 s
============  ============================================  ==================  ==================
front end     log-mel, 25 ms frames every 10 ms             1 x 98 x 40         1 x 298 x 40
conv1, bn1    64 filters of 7 frames x 7 bands, every 2nd   64 x 49 x 20        64 x 149 x 20
pool1, ReLU   largest of 2 x 2                              64 x 24 x 10        64 x 74 x 10
conv2, bn2    176 filters of 5 frames x 5 bands             176 x 24 x 10       176 x 74 x 10
pool2, ReLU   largest of 2 x 2                              176 x 12 x 5        176 x 37 x 5
conv3, bn3    512 filters of 7 frames x all 5 bands         512 x 12 x 1        512 x 37 x 1
pool3, ReLU   largest of 2 frames                           512 x 6 x 1         512 x 18 x 1
fc1, ReLU     dropout before it while training              512                 512
fc2           dropout before it while training              labels              labels
============  ============================================  ==================  ==================

Batch norm stands directly behind its convolution so that the exporter can fold one into the other.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from firmware_models.architectures.base import FirmwareModel
from firmware_models.frontend import LogMel, LogMelSettings


class LmSettings(BaseModel):
    """Settings of :class:`Lm`; see :class:`firmware_models.frontend.LogMelSettings` for ``log_floor``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    log_floor: float = Field(default=1e-6, gt=0, lt=1)
    dropout: float = Field(default=0.3, ge=0, lt=1)


class Lm(FirmwareModel):
    """The large log-mel model of the paper (LM)."""

    name = "lm"
    Settings = LmSettings

    def __init__(self, settings: LmSettings, *, labels: Sequence[str], window_samples: int, rate_hz: int) -> None:
        super().__init__(settings, labels=labels, window_samples=window_samples, rate_hz=rate_hz)
        self.frontend = LogMel(LogMelSettings(log_floor=settings.log_floor), rate_hz=rate_hz)
        self.conv1 = nn.Conv2d(1, 64, kernel_size=(7, 7), stride=(2, 2), padding=(3, 3), bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.pool1 = nn.MaxPool2d((2, 2))
        self.conv2 = nn.Conv2d(64, 176, kernel_size=(5, 5), padding=(2, 2), bias=False)
        self.bn2 = nn.BatchNorm2d(176)
        self.pool2 = nn.MaxPool2d((2, 2))
        bands = (self.frontend.settings.bands + 1) // 2 // 2 // 2
        self.conv3 = nn.Conv2d(176, 512, kernel_size=(7, bands), padding=(3, 0), bias=False)
        self.bn3 = nn.BatchNorm2d(512)
        self.pool3 = nn.MaxPool2d((2, 1))
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(settings.dropout)
        frames = (self.frontend.frames(window_samples) + 1) // 2 // 2 // 2 // 2
        self.fc1 = nn.Linear(512 * frames, 512)
        self.fc2 = nn.Linear(512, len(labels))

    def features(self, pcm: Tensor) -> Tensor:
        """Log-mel features, float32 (batch, frames, 40)."""
        features: Tensor = self.frontend(pcm)
        return features

    def classify(self, features: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        x = features.unsqueeze(1)
        x = self.relu(self.pool1(self.bn1(self.conv1(x))))
        x = self.relu(self.pool2(self.bn2(self.conv2(x))))
        x = self.relu(self.pool3(self.bn3(self.conv3(x))))
        x = self.relu(self.fc1(self.dropout(x.flatten(1))))
        logits: Tensor = self.fc2(self.dropout(x))
        return logits
