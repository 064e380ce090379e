from __future__ import annotations

import numpy as np
import pytest
import torch

from firmware_models.frontend import LogMel, LogMelSettings, dft_kernel, mel_filters

RATE_HZ = 16_000


def speech_like(seed: int = 0, batch: int = 4) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    envelope = np.interp(np.arange(16_000), [0, 5000, 8000, 12_000, 16_000], [0, 0, 1, 0.2, 0])
    return torch.tensor(rng.standard_normal((batch, 16_000)) * 0.2 * envelope, dtype=torch.float32)


def test_fft_and_convolution_agree() -> None:
    frontend = LogMel(LogMelSettings(), rate_hz=RATE_HZ)
    pcm = speech_like()
    by_fft = frontend(pcm)
    frontend.method = "convolution"
    assert (by_fft - frontend(pcm)).abs().max() < 2e-5


def test_features_are_those_of_a_float64_reference() -> None:
    settings = LogMelSettings()
    pcm = speech_like(1, 1)
    x = pcm.numpy().astype(np.float64)[0]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    weights = mel_filters(bands=40, frame_samples=400, rate_hz=RATE_HZ, low_hz=20.0, high_hz=7600.0)
    expected = np.empty((98, 40))
    for frame in range(98):
        power = np.abs(np.fft.rfft(x[frame * 160 : frame * 160 + 400] * hann)) ** 2 * 2 / (400 * np.sum(hann**2))
        expected[frame] = np.log(1 + weights @ power / settings.log_floor)
    found = LogMel(settings, rate_hz=RATE_HZ)(pcm)[0].numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=5e-5)


def test_a_band_is_the_mean_square_of_the_tone_in_it() -> None:
    frontend = LogMel(LogMelSettings(), rate_hz=RATE_HZ)
    tone = 0.1 * torch.sin(2 * torch.pi * 1000.0 * torch.arange(16_000) / RATE_HZ)
    power = frontend.power_by_fft(tone[None])
    # Parseval: all bins together hold the mean square of the tone, 0.1^2 / 2.
    assert power.sum(-1).mean().item() == pytest.approx(0.005, rel=1e-3)


def test_silence_is_zero_and_the_floor_hides_what_is_below() -> None:
    quiet = 1e-4 * torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0))
    high = LogMel(LogMelSettings(log_floor=1e-6), rate_hz=RATE_HZ)
    low = LogMel(LogMelSettings(log_floor=1e-10), rate_hz=RATE_HZ)
    assert high(torch.zeros(1, 16_000)).abs().max() == 0
    assert high(quiet).max() < 0.01
    assert low(quiet).mean() > 0.5


def test_the_kernel_is_the_dft_with_integer_phase() -> None:
    kernel = dft_kernel(first_bin=3, bins=5, frame_samples=400)
    n = np.arange(400)
    for row, k in enumerate(range(3, 8)):
        np.testing.assert_allclose(kernel[row, 0], np.cos(2 * np.pi * k * n / 400), atol=1e-6)
        np.testing.assert_allclose(kernel[5 + row, 0], np.sin(2 * np.pi * k * n / 400), atol=1e-6)


def test_gradients_reach_the_waveform() -> None:
    pcm = speech_like().requires_grad_()
    LogMel(LogMelSettings(), rate_hz=RATE_HZ)(pcm).sum().backward()
    assert pcm.grad is not None
    assert torch.isfinite(pcm.grad).all()
    assert (pcm.grad.abs().sum(1) > 0).all()


def test_impossible_bands_are_refused() -> None:
    with pytest.raises(ValueError, match="7600"):
        LogMel(LogMelSettings(), rate_hz=8000)
    with pytest.raises(ValueError, match="no DFT bin"):
        LogMel(LogMelSettings(bands=128, frame_samples=64, hop_samples=32), rate_hz=RATE_HZ)
