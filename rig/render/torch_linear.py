"""Rendering with torch, on a GPU: the same sums, and blocks that can stay there to be scored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from edge.errors import UnavailableError, UsageError
from rig.render.conditions import Conditions
from rig.render.material import Floats, Material
from rig.render.renderer import DEFAULT_BLOCK, DEFAULT_CACHE_BYTES, Doubles, Levels, Part, Renderer
from rig.render.rows import Integers
from rig.render.spectra import fraction_spectrum


class TorchRenderer(Renderer):
    """The renderer for ``cuda`` (``cpu`` works too, but :class:`rig.render.linear.LinearRenderer` is quicker there).

    Samples agree with those of the other renderer within a relative 1e-5; they are not the same bits.

    Raises:
        UsageError: as :class:`Renderer`, or torch knows no such device.
        UnavailableError: there is no such GPU.
    """

    batch = 64

    def __init__(
        self,
        material: Material,
        *,
        window: int,
        device: str = "cuda",
        block: int = DEFAULT_BLOCK,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        fractional: bool = False,
    ) -> None:
        super().__init__(material, window=window, block=block, cache_bytes=cache_bytes, fractional=fractional)
        self.device = _opened(device)
        self._wet = torch.zeros((0, self._length), device=self.device)
        self._ramp = torch.arange(window, device=self.device)

    def tensors(
        self, conditions: Conditions | Iterable[Conditions], *, first: int = 0
    ) -> Iterator[tuple[Integers, Tensor, Levels]]:
        """As :meth:`blocks` without stages: numbers, float32 (conditions, window) on the device, levels.

        Raises:
            UsageError: as :meth:`blocks`.
        """
        for number, part in self._numbered(conditions, first):
            levels = self._measure(part)
            for at in range(0, len(part.conditions), self.block):
                rows = slice(at, min(at + self.block, len(part.conditions)))
                indices = np.arange(number + at, number + rows.stop, dtype=np.int64)
                yield indices, self._sum(self._held(part), rows), levels[rows]

    def _reserve(self, slots: int) -> None:
        if len(self._wet) < slots:
            more = torch.zeros((slots - len(self._wet), self._length), device=self.device)
            self._wet = torch.cat((self._wet, more))

    def _convolve(self, sounds: Integers, responses: Integers, fractions: Integers, slots: Integers) -> None:
        x = self._spectra([self._sound(row) for row in sounds.tolist()])
        x *= self._spectra(list(self.material.responses[responses]))
        for row, fraction in enumerate(fractions.tolist()):
            if fraction:
                x[row] *= torch.from_numpy(fraction_spectrum(fraction, self._fft_size)).to(self.device)
        wet = torch.fft.irfft(x, self._fft_size)[:, : self._length]
        self._wet[torch.from_numpy(slots).to(self.device)] = wet

    def _spectra(self, rows: list[Floats]) -> Tensor:
        padded = np.zeros((len(rows), self._fft_size), np.float32)
        for into, row in zip(padded, rows, strict=True):
            into[: len(row)] = row
        spectra: Tensor = torch.fft.rfft(torch.from_numpy(padded).to(self.device))
        return spectra

    def _mix(self, part: Part, rows: slice, out: Floats) -> None:
        for at in range(rows.start, rows.stop, self.block):
            piece = slice(at, min(at + self.block, rows.stop))
            out[at - rows.start : piece.stop - rows.start] = self._sum(part, piece).cpu().numpy()

    def _sum(self, part: Part, rows: slice) -> Tensor:
        total = self._pieces(part.talker[rows], part.talker_start[rows])
        total *= self._column(part.talker_gain[rows])
        attacker = self._pieces(part.attacker[rows], part.attacker_start[rows])
        return total.addcmul_(attacker, self._column(part.attacker_gain[rows]))

    def _within(self, slots: Integers, starts: Integers) -> tuple[Doubles, Doubles]:
        pairs, where = np.unique(np.stack((slots, starts), axis=1), axis=0, return_inverse=True)
        peak, energy = np.empty(len(pairs)), np.empty(len(pairs))
        for at in range(0, len(pairs), self.block):
            rows = slice(at, at + self.block)
            pieces = self._pieces(pairs[rows, 0], pairs[rows, 1])
            peak[rows] = pieces.abs().amax(dim=1).cpu().numpy()
            energy[rows] = pieces.square().sum(dim=1, dtype=torch.float64).cpu().numpy()
        return peak[where], energy[where]

    def _pieces(self, slots: Integers, starts: Integers) -> Tensor:
        """A window of each slot from its start on, with silence where there is no sound."""
        # Beyond one length past either end nothing changes, and int64 sums on the device stay small.
        at = self._column(np.clip(starts, -self.window, self._length)) + self._ramp
        slot = self._column(slots)
        is_sound = (at >= 0) & (at < self._length) & (slot >= 0)
        flat = slot.clamp(min=0) * self._length + at.clamp(0, self._length - 1)
        return torch.where(is_sound, self._wet.view(-1)[flat], 0.0)

    def _column(self, values: Integers | Floats) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)[:, None]


def _opened(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device {name!r}: use cpu, cuda or cuda:NUMBER") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UnavailableError(f"device {name!r}: torch sees {torch.cuda.device_count()} GPUs here, use cpu")
    return device
