"""Rooms with a gradient: what they let hear against scipy, their gradients against autograd and numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import oaconvolve
from torch import Tensor

from edge.errors import UsageError
from rig.render.differentiable import RoomLayer, convolve

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")),
]


def noise(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


def by_scipy(sound: Tensor, response: Tensor, start: int, window: int) -> np.ndarray:
    whole = oaconvolve(sound.numpy().astype(np.float64), response.numpy().astype(np.float64))
    at = np.arange(start, start + window)
    return np.where((at >= 0) & (at < len(whole)), whole[at.clip(0, len(whole) - 1)], 0)


def wanted(
    layer: tuple[Tensor, Tensor], sounds: tuple[Tensor, Tensor], start: list[int], delay: list[int], window: int
):
    (attacker, talker), (perturbation, clip) = layer, sounds
    return np.array(
        [
            [
                by_scipy(perturbation[b], attacker[r], start[r] - delay[r], window)
                + by_scipy(clip[b], talker[r], start[r], window)
                for r in range(len(attacker))
            ]
            for b in range(len(perturbation))
        ]
    )


@settings(max_examples=80, deadline=None)
@given(
    samples=st.integers(1, 60),
    taps=st.integers(1, 60),
    other=st.integers(1, 60),
    window=st.integers(1, 80),
    starts=st.lists(st.integers(-150, 150), min_size=1, max_size=4),
    seed=st.integers(0, 100),
)
def test_heard_is_what_scipy_convolves(
    samples: int, taps: int, other: int, window: int, starts: list[int], seed: int
) -> None:
    delays = np.random.default_rng(seed).integers(-150, 150, len(starts)).tolist()
    responses = noise(1, len(starts), taps), noise(2, len(starts), other)
    sounds = noise(3, 2, samples), noise(4, 2, samples)
    layer = RoomLayer(*responses, samples=samples, window=window, start=starts, delay=delays)
    heard = layer(*sounds).numpy()
    assert heard.shape == (2, len(starts), window)
    assert np.allclose(heard, wanted(responses, sounds, starts, delays, window), atol=1e-10)


def test_gradients_are_those_of_differences() -> None:
    layer = RoomLayer(noise(1, 3, 9), noise(2, 3, 5), samples=11, window=13, start=[0, 4, -2], delay=[0, 3, -6])
    perturbation, talker = noise(3, 2, 11).requires_grad_(), noise(4, 2, 11).requires_grad_()
    assert torch.autograd.gradcheck(layer, (perturbation, talker))
    assert torch.autograd.gradcheck(layer, (perturbation,))
    assert torch.autograd.gradcheck(lambda clip: layer(perturbation.detach(), clip), (talker,))
    assert torch.autograd.gradcheck(lambda sound: convolve(sound, noise(1, 3, 9)), (perturbation,))


@pytest.mark.parametrize("device", DEVICES)
def test_float32_gradients_are_those_of_autograd(device: str) -> None:
    samples, taps, window, start = 16_000, 4_800, 16_000, 120
    responses = (noise(1, 4, taps) * torch.exp(-torch.arange(taps) / 800)).to(device)
    sound, weight = noise(2, 8, samples).to(device), noise(3, 8, 4, window).to(device)
    exact = sound.clone().requires_grad_()
    size = samples + taps - 1
    heard = torch.fft.irfft(torch.fft.rfft(exact, size)[:, None] * torch.fft.rfft(responses, size), size)
    heard = heard[..., start : start + window]
    (gradient,) = torch.autograd.grad((heard * weight).sum(), exact)
    layer = RoomLayer(responses.float(), samples=samples, window=window, start=start)
    ours = sound.float().requires_grad_()
    ours_heard = layer(ours)
    (ours_gradient,) = torch.autograd.grad((ours_heard * weight.float()).sum(), ours)
    assert torch.linalg.norm(ours_heard - heard) <= 1e-5 * torch.linalg.norm(heard)
    assert torch.linalg.norm(ours_gradient - gradient) <= 1e-5 * torch.linalg.norm(gradient)


def test_convolve_is_the_whole_convolution() -> None:
    sound, responses = noise(1, 3, 20), noise(2, 2, 7)
    heard = convolve(sound, responses)
    assert heard.shape == (3, 2, 26)
    assert np.allclose(heard[2, 1].numpy(), np.convolve(sound[2].numpy(), responses[1].numpy()))


def test_a_layer_moves_as_a_module() -> None:
    layer = RoomLayer(noise(1, 2, 5), noise(2, 2, 5), samples=8, window=8)
    assert [name for name, _ in layer.named_buffers()] == [
        "attacker_spectra",
        "attacker_conjugates",
        "talker_spectra",
        "talker_conjugates",
    ]
    assert not layer.state_dict()
    assert not list(layer.parameters())


def test_wrong_arguments_are_one_line() -> None:
    good = noise(1, 2, 5, dtype=torch.float32)
    bad = good.clone()
    bad[1, 3] = float("nan")
    for arguments, settings_, message in (
        ((bad,), {}, "attacker: response 1 is not finite"),
        ((good, bad), {}, "talker: response 1 is not finite"),
        ((good[0],), {}, r"attacker: torch.float32 \(5,\) instead of float32 or float64 \(responses, taps\)"),
        ((good.int(),), {}, "attacker: torch.int32"),
        ((good.clone().requires_grad_(),), {}, "attacker: wants a gradient, which only sounds can have"),
        ((good, good[:1]), {}, "talker: 1 responses of torch.float32, the attacker has 2"),
        ((good,), {"start": [1, 2, 3]}, "start: 3 values for 2 responses"),
        ((good,), {"delay": [1]}, "delay: 1 values for 2 responses"),
        ((good,), {"window": 0}, "samples 8, window 0: both must be at least 1"),
    ):
        with pytest.raises(UsageError, match=f"^{message}[^\n]*$"):
            RoomLayer(*arguments, **({"samples": 8, "window": 8} | settings_))
    layer = RoomLayer(good, samples=8, window=8)
    sound = noise(3, 1, 8, dtype=torch.float32)
    for sounds, message in (
        ((sound[:, :7],), "perturbation: 7 samples, the layer was made for 8"),
        ((sound.double(),), "perturbation: torch.float64"),
        ((sound[0],), r"perturbation: torch.float32 \(8,\)"),
        ((sound, sound), "talker: the layer was made without responses for one"),
    ):
        with pytest.raises(UsageError, match=f"^{message}[^\n]*$"):
            layer(*sounds)
    with pytest.raises(UsageError, match=r"^talker is \(2, 8\), the perturbation \(1, 8\)$"):
        RoomLayer(good, good, samples=8, window=8)(sound, sound.repeat(2, 1))
