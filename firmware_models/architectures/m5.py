"""M5: a fully convolutional network on raw PCM, to compare with. 4 convolutions, 4 batch norms, 4 poolings, a mean.

After Dai et al. 2016, "Very Deep Convolutional Neural Networks for Raw Waveforms" (arXiv:1610.00087), table 1, M5:
[80/4, 128], [3, 128], [3, 256], [3, 512], a maximum of 4 behind each, the mean over time, softmax. The widths are the
paper's; its input of 4 s at 8 kHz is ours of any length at 16 kHz. 559,116 parameters for 12 labels, 2.2 MB in FP32
(the paper says 0.5 M). The M5 of PyTorch's tutorial is another, with a quarter of the channels and every 16th sample.

============  ============================  ==============  ==============
layer         what it does                  shape after it  after it, 3 s
============  ============================  ==============  ==============
conv1, bn1    128 filters of 80, every 4th  128 x 4000      128 x 12000
pool, ReLU    largest of 4                  128 x 1000      128 x 3000
conv2, bn2    128 filters of 3              128 x 1000      128 x 3000
pool, ReLU    largest of 4                  128 x 250       128 x 750
conv3, bn3    256 filters of 3              256 x 250       256 x 750
pool, ReLU    largest of 4                  256 x 62        256 x 187
conv4, bn4    512 filters of 3              512 x 62        512 x 187
pool, ReLU    largest of 4                  512 x 15        512 x 46
mean          over time                     512             512
fc                                          labels          labels
============  ============================  ==============  ==============

The paper rectifies before it takes the largest, which gives the same at four times the work. Batch norm stands
directly behind its convolution so that the exporter can fold one into the other.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from firmware_models.architectures.base import FirmwareModel


class M5Settings(BaseModel):
    """:class:`M5` has no settings: it is the network of its paper."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class M5(FirmwareModel):
    """The M5 of Dai et al., without dropout and without hidden fully connected layers."""

    name = "m5"
    Settings = M5Settings

    def __init__(self, settings: M5Settings, *, labels: Sequence[str], window_samples: int, rate_hz: int) -> None:
        super().__init__(settings, labels=labels, window_samples=window_samples, rate_hz=rate_hz)
        self.conv1 = nn.Conv1d(1, 128, kernel_size=80, stride=4, padding=38, bias=False)
        self.bn1 = nn.BatchNorm1d(128)
        self.conv2 = nn.Conv1d(128, 128, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm1d(128)
        self.conv3 = nn.Conv1d(128, 256, kernel_size=3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm1d(256)
        self.conv4 = nn.Conv1d(256, 512, kernel_size=3, padding=1, bias=False)
        self.bn4 = nn.BatchNorm1d(512)
        self.pool = nn.MaxPool1d(4)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(512, len(labels))

    def features(self, pcm: Tensor) -> Tensor:
        """The sound itself, float32 (batch, samples): there is no front end."""
        return pcm

    def classify(self, features: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        x = self.relu(self.pool(self.bn1(self.conv1(features.unsqueeze(1)))))
        x = self.relu(self.pool(self.bn2(self.conv2(x))))
        x = self.relu(self.pool(self.bn3(self.conv3(x))))
        x = self.relu(self.pool(self.bn4(self.conv4(x))))
        logits: Tensor = self.fc(x.mean(2))
        return logits
