"""ETE: the end-to-end model on raw PCM, 5 convolutions, 5 batch norms, 3 poolings, 2 fully connected layers.

After SoundNet5 (Aytar et al. 2016, arXiv:1610.09001), as the paper says. It gives the layers and 11.7 MB for 1 s
(19.7 MB for 3 s) in FP32 but no widths; the widths here are ours and give 11.7 MB (19.8 MB).

============  ==================================  ==============  ==============
layer         what it does                        shape after it  after it, 3 s
============  ==================================  ==============  ==============
conv1, bn1    64 filters of 80, every 8th         64 x 2000       64 x 6000
pool1, ReLU   largest of 4                        64 x 500        64 x 1500
conv2, bn2    128 filters of 9                    128 x 500       128 x 1500
pool2, ReLU   largest of 4                        128 x 125       128 x 375
conv3, bn3    256 filters of 5                    256 x 125       256 x 375
pool3, ReLU   largest of 4                        256 x 31        256 x 93
conv4, bn4    512 filters of 5, ReLU              512 x 31        512 x 93
conv5, bn5    512 filters of 4, every 2nd, ReLU   512 x 15        512 x 46
fc1, ReLU     dropout before it while training    128             128
fc2           dropout before it while training    labels          labels
============  ==================================  ==============  ==============

Batch norm stands directly behind its convolution so that the exporter can fold one into the other.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from firmware_models.architectures.base import FirmwareModel


class EteSettings(BaseModel):
    """Settings of :class:`Ete`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dropout: float = Field(default=0.3, ge=0, lt=1)


class Ete(FirmwareModel):
    """The end-to-end model of the paper (ETE): what it hears of the sound, it learns itself."""

    name = "ete"
    Settings = EteSettings

    def __init__(self, settings: EteSettings, *, labels: Sequence[str], window_samples: int, rate_hz: int) -> None:
        super().__init__(settings, labels=labels, window_samples=window_samples, rate_hz=rate_hz)
        self.conv1 = nn.Conv1d(1, 64, kernel_size=80, stride=8, padding=36, bias=False)
        self.bn1 = nn.BatchNorm1d(64)
        self.conv2 = nn.Conv1d(64, 128, kernel_size=9, padding=4, bias=False)
        self.bn2 = nn.BatchNorm1d(128)
        self.conv3 = nn.Conv1d(128, 256, kernel_size=5, padding=2, bias=False)
        self.bn3 = nn.BatchNorm1d(256)
        self.conv4 = nn.Conv1d(256, 512, kernel_size=5, padding=2, bias=False)
        self.bn4 = nn.BatchNorm1d(512)
        self.conv5 = nn.Conv1d(512, 512, kernel_size=4, stride=2, padding=1, bias=False)
        self.bn5 = nn.BatchNorm1d(512)
        self.pool = nn.MaxPool1d(4)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(settings.dropout)
        frames = window_samples // 8 // 4 // 4 // 4 // 2
        self.fc1 = nn.Linear(512 * frames, 128)
        self.fc2 = nn.Linear(128, len(labels))

    def features(self, pcm: Tensor) -> Tensor:
        """The sound itself, float32 (batch, samples): there is no front end."""
        return pcm

    def classify(self, features: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        x = self.relu(self.pool(self.bn1(self.conv1(features.unsqueeze(1)))))
        x = self.relu(self.pool(self.bn2(self.conv2(x))))
        x = self.relu(self.pool(self.bn3(self.conv3(x))))
        x = self.relu(self.bn4(self.conv4(x)))
        x = self.relu(self.bn5(self.conv5(x)))
        x = self.relu(self.fc1(self.dropout(x.flatten(1))))
        logits: Tensor = self.fc2(self.dropout(x))
        return logits
