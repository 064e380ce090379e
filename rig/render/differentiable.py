"""Rooms that let a gradient through: batched convolution whose backward pass is written by hand.

The gradient of a convolution is a correlation. In the spectrum that is a product with the conjugate, so that backward
costs one transform per response, one sum over responses, and one transform back; autograd through ``torch.fft`` turns
the real transforms into complex ones and keeps every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from scipy.fft import next_fast_len
from torch import Tensor
from torch.autograd.function import once_differentiable

from edge.errors import UsageError


def convolve(sound: Tensor, responses: Tensor) -> Tensor:
    """Every sound through every response; only ``sound`` gets a gradient.

    Args:
        sound: float32 or float64 (batch, samples).
        responses: (responses, taps) of the same dtype and device.

    Returns:
        (batch, responses, samples + taps - 1).

    Raises:
        UsageError: other shapes or dtypes, or responses that are not finite.
    """
    _check_sound("sound", sound, responses)
    length = sound.shape[1] + responses.shape[1] - 1
    return cast("Tensor", RoomLayer(responses, samples=sound.shape[1], window=length)(sound))


class RoomLayer(torch.nn.Module):
    """What devices hear of an attacker and a talker, over all responses at once, with gradients for both.

    Start and delay of every response are shifts of it by whole samples, made once; they cost nothing afterwards.

    Args:
        attacker: float32 or float64 (responses, taps), from the attacker's loudspeaker; no gradient.
        talker: (responses, taps) of the same dtype, from the talker's; None if there is none.
        samples: length of perturbations and of what the talker plays.
        window: samples that are heard.
        start: sample after the talker's loudspeaker began at which the window begins, one or one per response.
        delay: samples by which the attacker's loudspeaker plays later than the talker's, one or one per response; may
            be negative.

    Raises:
        UsageError: other shapes or dtypes, responses that are not finite or want a gradient, or a length of nothing.
    """

    def __init__(
        self,
        attacker: Tensor,
        talker: Tensor | None = None,
        *,
        samples: int,
        window: int,
        start: int | Sequence[int] = 0,
        delay: int | Sequence[int] = 0,
    ) -> None:
        super().__init__()
        self.attacker_spectra: Tensor
        self.attacker_conjugates: Tensor
        self.talker_spectra: Tensor | None
        self.talker_conjugates: Tensor | None
        _check_responses("attacker", attacker)
        if samples < 1 or window < 1:
            raise UsageError(f"samples {samples}, window {window}: both must be at least 1")
        starts = _one_each("start", start, len(attacker))
        delays = _one_each("delay", delay, len(attacker))
        heard = [(attacker, [at - later for at, later in zip(starts, delays, strict=True)])]
        if talker is not None:
            _check_responses("talker", talker)
            if (len(talker), talker.dtype) != (len(attacker), attacker.dtype):
                raise UsageError(
                    f"talker: {len(talker)} responses of {talker.dtype}, the attacker has {len(attacker)} of"
                    f" {attacker.dtype}"
                )
            heard.append((talker, starts))
        self.samples, self.window = samples, window
        shortest = max(_shortest(array.shape[1], begins, samples, window) for array, begins in heard)
        self._fft_size = int(next_fast_len(shortest, real=True))
        spectra = [self._spectrum(array, begins) for array, begins in heard]
        self._register("attacker", spectra[0])
        self._register("talker", spectra[1] if talker is not None else None)

    def forward(self, perturbation: Tensor, talker: Tensor | None = None) -> Tensor:
        """What is heard.

        Args:
            perturbation: (batch, samples), what the attacker plays.
            talker: (batch, samples), what the talker plays; None for nothing.

        Returns:
            (batch, responses, window).

        Raises:
            UsageError: other shapes or dtypes, or a talker where the layer has no responses for one.
        """
        self._check("perturbation", perturbation)
        attacker = (self.attacker_spectra, self.attacker_conjugates)
        if talker is None:
            return _heard(perturbation, None, (attacker,), self._fft_size, self.window)
        self._check("talker", talker)
        if self.talker_spectra is None:
            raise UsageError("talker: the layer was made without responses for one")
        if talker.shape != perturbation.shape:
            raise UsageError(f"talker is {tuple(talker.shape)}, the perturbation {tuple(perturbation.shape)}")
        both = (attacker, (self.talker_spectra, self.talker_conjugates))
        return _heard(perturbation, talker, both, self._fft_size, self.window)

    def _register(self, name: str, spectra: Tensor | None) -> None:
        conjugates = None if spectra is None else spectra.conj().resolve_conj()
        self.register_buffer(f"{name}_spectra", spectra, persistent=False)
        self.register_buffer(f"{name}_conjugates", conjugates, persistent=False)

    def _spectrum(self, responses: Tensor, begins: list[int]) -> Tensor:
        """Spectra of the responses, each turned so that its window begins at sample 0."""
        turned = responses.new_zeros((len(responses), self._fft_size))
        for into, response, begin in zip(turned, responses, begins, strict=True):
            # Sample n is heard at n - begin, if a sample before it in the sound can bring it into the window.
            low, high = _audible(len(response), begin, self.samples, self.window)
            into[: high - low] = response[low:high]
            into.copy_(into.roll(low - begin))
        spectra: Tensor = torch.fft.rfft(turned)
        return spectra

    def _check(self, name: str, sound: Tensor) -> None:
        _check_sound(name, sound, self.attacker_spectra.real)
        if sound.shape[1] != self.samples:
            raise UsageError(f"{name}: {sound.shape[1]} samples, the layer was made for {self.samples}")


class _Heard(torch.autograd.Function):
    """Sum of convolutions cut to a window; see the module."""

    @staticmethod
    def forward(ctx: Any, perturbation: Tensor, talker: Tensor | None, spectra: Any, size: tuple[int, int]) -> Any:
        fft_size, window = size
        ctx.spectra, ctx.fft_size, ctx.samples = spectra, fft_size, perturbation.shape[1]
        heard = torch.fft.rfft(perturbation, fft_size)[:, None]
        # Memory that was not touched yet costs more than the product.
        heard = heard.mul_(spectra[0][0]) if len(spectra[0][0]) == 1 else heard * spectra[0][0]
        if talker is not None:
            heard.addcmul_(torch.fft.rfft(talker, fft_size)[:, None], spectra[1][0])
        return torch.fft.irfft(heard, fft_size)[..., :window]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        spectra = torch.fft.rfft(gradient, ctx.fft_size)
        results: list[Tensor | None] = [None, None]
        for number, (_, conjugates) in enumerate(ctx.spectra):
            if ctx.needs_input_grad[number]:
                # One response after the other: the sum stays small, and no product of all is ever written.
                is_last = spectra.shape[1] == 1 and number == len(ctx.spectra) - 1
                total = spectra[:, 0].mul_(conjugates[0]) if is_last else spectra[:, 0] * conjugates[0]
                for response in range(1, len(conjugates)):
                    total.addcmul_(spectra[:, response], conjugates[response])
                results[number] = torch.fft.irfft(total, ctx.fft_size)[:, : ctx.samples]
        return *results, None, None


def _heard(perturbation: Tensor, talker: Tensor | None, spectra: Any, fft_size: int, window: int) -> Tensor:
    return cast("Tensor", _Heard.apply(perturbation, talker, spectra, (fft_size, window)))  # type: ignore[no-untyped-call]


def _audible(taps: int, begin: int, samples: int, window: int) -> tuple[int, int]:
    """The taps that any sample of the sound can bring into the window; from = to where none can."""
    low = max(0, begin - samples + 1)
    high = min(taps, begin + window)
    return (low, high) if low < high else (0, 0)


def _shortest(taps: int, begins: list[int], samples: int, window: int) -> int:
    """The shortest transform in which nothing that wraps around falls into a window."""
    sizes = [samples, window]
    for begin in begins:
        low, high = _audible(taps, begin, samples, window)
        if low < high:
            # What lies before the window comes back behind it, what lies behind comes back before it.
            sizes += [window + begin - low, samples + high - 1 - begin, high - low]
    return max(sizes)


def _one_each(name: str, value: int | Sequence[int], count: int) -> list[int]:
    values = [value] * count if isinstance(value, int) else [int(each) for each in value]
    if len(values) != count:
        raise UsageError(f"{name}: {len(values)} values for {count} responses, give one or one each")
    return values


def _check_responses(name: str, responses: Tensor) -> None:
    if responses.ndim != 2 or not responses.numel() or responses.dtype not in {torch.float32, torch.float64}:
        raise UsageError(
            f"{name}: {responses.dtype} {tuple(responses.shape)} instead of float32 or float64 (responses, taps)"
        )
    if responses.requires_grad:
        raise UsageError(f"{name}: wants a gradient, which only sounds can have: detach it")
    finite = torch.isfinite(responses).all(dim=1)
    if not bool(finite.all()):
        raise UsageError(f"{name}: response {int(finite.int().argmin())} is not finite")


def _check_sound(name: str, sound: Tensor, like: Tensor) -> None:
    if sound.ndim != 2 or not sound.numel() or sound.dtype != like.dtype or sound.device != like.device:
        raise UsageError(
            f"{name}: {sound.dtype} {tuple(sound.shape)} on {sound.device} instead of {like.dtype} (batch, samples) on"
            f" {like.device}"
        )
