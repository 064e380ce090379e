"""The log-mel front end: PCM in, features out, part of the model and therefore of the attack's gradient.

One definition, two ways to compute it that agree within 2e-5: ``fft`` (fast, for training and attacks) and
``convolution`` (a DFT as conv1d over the bins that the mel filters use, what the exported graph does).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

Method = Literal["fft", "convolution"]


class LogMelSettings(BaseModel):
    """What the front end hears.

    ``log_floor`` is the mean square per mel band (full scale = 1) below which the model is nearly deaf. It moves
    the robustness of a model more than any other free choice, so it is stated with every result.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bands: int = Field(default=40, ge=8, le=128)
    frame_samples: int = Field(default=400, ge=64, le=4096)
    hop_samples: int = Field(default=160, ge=16, le=4096)
    low_hz: float = Field(default=20.0, ge=0)
    high_hz: float = Field(default=7600.0, gt=0)
    log_floor: float = Field(default=1e-6, gt=0, lt=1)


def mel_filters(
    *, bands: int, frame_samples: int, rate_hz: int, low_hz: float, high_hz: float
) -> npt.NDArray[np.float64]:
    """Triangles of height 1, evenly spaced on the mel scale 2595 log10(1 + f / 700).

    Returns:
        weights, float64 (bands, frame_samples // 2 + 1), over the bins of a real DFT.
    """
    edges_hz = mel_edges_hz(bands=bands, low_hz=low_hz, high_hz=high_hz)
    bins_hz = np.arange(frame_samples // 2 + 1) * (rate_hz / frame_samples)
    rising = (bins_hz - edges_hz[:-2, None]) / (edges_hz[1:-1] - edges_hz[:-2])[:, None]
    falling = (edges_hz[2:, None] - bins_hz) / (edges_hz[2:] - edges_hz[1:-1])[:, None]
    return np.maximum(0.0, np.minimum(rising, falling))


def mel_edges_hz(*, bands: int, low_hz: float, high_hz: float) -> npt.NDArray[np.float64]:
    """The corners of the triangles: band ``k`` rises from edge ``k``, is largest at ``k + 1`` and ends at ``k + 2``.

    Returns:
        float64 (bands + 2,).
    """
    edges_mel = np.linspace(_hz_to_mel(low_hz), _hz_to_mel(high_hz), bands + 2)
    return 700.0 * (10.0 ** (edges_mel / 2595.0) - 1.0)


def dft_kernel(*, first_bin: int, bins: int, frame_samples: int) -> Tensor:
    """The DFT as a convolution kernel: cosines of the bins, then their sines.

    The phase is reduced as an integer, (k * n) mod N, before it becomes a float: exact, and the same few
    operations can build the kernel inside a graph instead of storing it.

    Returns:
        float32 (2 * bins, 1, frame_samples).
    """
    k = torch.arange(first_bin, first_bin + bins, dtype=torch.int64)
    n = torch.arange(frame_samples, dtype=torch.int64)
    phase = ((k[:, None] * n) % frame_samples).to(torch.float32) * (2.0 * math.pi / frame_samples)
    return torch.cat([torch.cos(phase), torch.sin(phase)]).unsqueeze(1)


class LogMel(nn.Module):
    """Log-mel features: ln(1 + band / log_floor), where band is the mean square of the sound in a mel band.

    The sound below the floor comes out near 0, a full-scale tone near ln(1 / log_floor). Frames that would pass
    the end are not begun, so 16000 samples with 400/160 give 98 frames.

    Input: PCM float (batch, samples) in [-1, 1]. Output: float32 (batch, frames, bands).

    Buffers, for whoever exports it: ``window`` (frame_samples,), the Hann window scaled so that squared magnitudes
    of the windowed DFT are mean squares; ``filters`` (used_bins, bands) over DFT bins ``first_bin`` and up;
    ``kernel``, see :func:`dft_kernel`.
    """

    window: Tensor
    filters: Tensor
    kernel: Tensor

    def __init__(self, settings: LogMelSettings, *, rate_hz: int, method: Method = "fft") -> None:
        super().__init__()
        if not settings.low_hz < settings.high_hz <= rate_hz / 2:
            raise ValueError(
                f"mel bands {settings.low_hz}..{settings.high_hz} Hz: use 0 <= low < high <= {rate_hz / 2} Hz"
            )
        self.settings = settings
        self.rate_hz = rate_hz
        self.method: Method = method
        frame = settings.frame_samples
        weights = mel_filters(
            bands=settings.bands,
            frame_samples=frame,
            rate_hz=rate_hz,
            low_hz=settings.low_hz,
            high_hz=settings.high_hz,
        )
        if empty := np.flatnonzero(weights.sum(1) == 0).tolist():
            raise ValueError(f"mel bands {empty} contain no DFT bin: use fewer bands or longer frames")
        used = np.flatnonzero(weights.sum(0))
        self.first_bin, self.bins = int(used[0]), int(used[-1] - used[0] + 1)
        hann = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(frame) / frame)
        # One-sided spectrum: twice the power; Parseval: divide by N and by the energy of the window.
        hann *= math.sqrt(2.0 / (frame * np.sum(hann**2)))
        filters = weights[:, self.first_bin : self.first_bin + self.bins].T
        # They follow from the settings, so checkpoints do not carry them.
        self.register_buffer("window", torch.tensor(hann, dtype=torch.float32), persistent=False)
        self.register_buffer(
            "filters", torch.tensor(np.ascontiguousarray(filters), dtype=torch.float32), persistent=False
        )
        kernel = dft_kernel(first_bin=self.first_bin, bins=self.bins, frame_samples=frame)
        self.register_buffer("kernel", kernel, persistent=False)

    def frames(self, samples: int) -> int:
        """The number of frames that a sound of ``samples`` gives."""
        return (samples - self.settings.frame_samples) // self.settings.hop_samples + 1

    def forward(self, pcm: Tensor) -> Tensor:
        """Features, float32 (batch, frames, bands), of PCM (batch, samples)."""
        power = self.power_by_fft(pcm) if self.method == "fft" else self.power_by_convolution(pcm)
        return torch.log(1.0 + (power @ self.filters) * (1.0 / self.settings.log_floor))

    def power_by_fft(self, pcm: Tensor) -> Tensor:
        """Mean square per DFT bin, float32 (batch, frames, bins)."""
        frames = pcm.unfold(-1, self.settings.frame_samples, self.settings.hop_samples) * self.window
        spectrum = torch.fft.rfft(frames)[..., self.first_bin : self.first_bin + self.bins]
        power: Tensor = spectrum.real.square() + spectrum.imag.square()
        return power

    def power_by_convolution(self, pcm: Tensor) -> Tensor:
        """The same as :meth:`power_by_fft` without a Fourier operator."""
        kernel = self.kernel * self.window
        parts = nn.functional.conv1d(pcm.unsqueeze(1), kernel, stride=self.settings.hop_samples).square()
        return (parts[:, : self.bins] + parts[:, self.bins :]).transpose(1, 2)


def _hz_to_mel(frequency_hz: float) -> float:
    return 2595.0 * math.log10(1.0 + frequency_hz / 700.0)
