"""Render conditions by linearity: convolve each sound and position once; then shift, scale and add.

Playback is linear up to the loudspeaker and the air is linear, so that conditions which differ in delay, level or
scale of the perturbation share their convolutions. What is not linear (quantisation, clipping, gain control, noise)
comes after the sum, as a :class:`Stage`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from edge.errors import UsageError
from rig.render import kernels
from rig.render.conditions import SILENT, Conditions, Integers
from rig.render.material import Floats, Material
from rig.render.rows import RowStore

Doubles = NDArray[np.float64]

# A fractional delay is a sinc under a Hann window of this many taps, on a grid of 1 / FRACTIONS of a sample.
TAPS = 81
FRACTIONS = 1024
# Transforms run over so many rows at once. A multiple of every vector width, so that a row takes the same path
# through the transform whatever stands beside it, and few enough to stay in the cache.
BATCH = 16
DEFAULT_BLOCK = 256
DEFAULT_CACHE_BYTES = 192_000_000


class Stage(Protocol):
    """Something a device or a room does to the sum that is not linear, or is random."""

    def apply(self, block: Floats, indices: Integers) -> None:
        """Change a block of conditions in place.

        Args:
            block: float32 (conditions, window), full scale = 1.
            indices: int64 (conditions,), the number of each condition in the whole run; what is random must be seeded
                by it, so that a condition sounds the same in whichever block it is rendered.
        """


@dataclass(frozen=True)
class Levels:
    """What is delivered to the microphone within the window, before stages, float64 (conditions,) each.

    ``talker_rms`` and ``attacker_rms`` (full scale = 1), ``linf`` the largest sample the attacker adds, ``snr_db``
    the talker's power over the attacker's: infinite where the attacker is silent, -infinite where only the talker is.
    """

    talker_rms: Doubles
    attacker_rms: Doubles
    linf: Doubles
    snr_db: Doubles


@dataclass(frozen=True)
class Block:
    """Consecutive conditions as the device hears them.

    ``pcm`` float32 (conditions, window) is overwritten by the next block; ``indices`` int64 (conditions,).
    """

    indices: Integers
    pcm: Floats
    levels: Levels


@dataclass(frozen=True)
class Mixture:
    """Rows of convolved sound and where the window begins in them; a row below 0 is silence."""

    talker: Integers
    talker_start: Integers
    attacker: Integers
    attacker_start: Integers


class Renderer(ABC):
    """Conditions in, what the device hears out; how it is computed is a subclass's.

    Memory: spectra and convolved sounds in at most ``cache_bytes`` (more only where the sounds of one block need more),
    and one block of ``block`` conditions, however many conditions there are.

    Args:
        material: clips, perturbations, responses.
        window: samples that the device hears of each condition.
        block: conditions rendered at once.
        cache_bytes: what spectra and convolved sounds may take.
        fractional: allow delays between samples (band-limited, on a grid of 1/1024 sample); without, they are refused.

    Raises:
        UsageError: a window, block or cache of no size.
    """

    def __init__(
        self,
        material: Material,
        *,
        window: int,
        block: int = DEFAULT_BLOCK,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        fractional: bool = False,
    ) -> None:
        for name, value in (("window", window), ("block", block), ("cache_bytes", cache_bytes)):
            if value < 1:
                raise UsageError(f"{name} {value}: must be at least 1")
        self.material, self.window, self.block = material, window, block
        self._fractional = fractional
        self._length = material.samples + material.responses.shape[1] - 1 + (TAPS - 1 if fractional else 0)
        self._fft_size = fft.next_fast_len(self._length, real=True)
        self._sounds = len(material.clips) + len(material.perturbations)
        pairs = self._sounds * len(material.responses) * (FRACTIONS if fractional else 1)
        rows = cache_bytes // (4 * self._fft_size)
        self._wet_store = RowStore(min(max(2 * block, rows // 2), pairs))
        self._sound_store = RowStore(min(max(BATCH, rows // 4), self._sounds))
        self._response_store = RowStore(min(max(BATCH, rows // 4), len(material.responses)))

    def blocks(
        self, conditions: Conditions | Iterable[Conditions], *, first: int = 0, stages: Iterable[Stage] = ()
    ) -> Iterator[Block]:
        """Render any number of conditions, block by block.

        Args:
            conditions: one table, or tables that may be made while they are asked for.
            first: the number of the first condition in the whole run.
            stages: what happens after the sum, in this order.

        Raises:
            UsageError: a condition that the material does not have, or a delay between samples where none is allowed.
        """
        out = np.empty((self.block, self.window), np.float32)
        stages = tuple(stages)
        for table in (conditions,) if isinstance(conditions, Conditions) else conditions:
            self._check(table)
            for at in range(0, len(table), self.block):
                part = table[at : at + self.block]
                pcm = out[: len(part)]
                levels = self._render(part, pcm)
                indices = np.arange(first + at, first + at + len(part), dtype=np.int64)
                for stage in stages:
                    stage.apply(pcm, indices)
                yield Block(indices, pcm, levels)
            first += len(table)

    def render(self, conditions: Conditions, out: Floats | None = None) -> tuple[Floats, Levels]:
        """Render a whole table at once, before any stage, into ``out`` float32 (conditions, window) if it is given.

        Raises:
            UsageError: as :meth:`blocks`, or ``out`` of another shape or dtype.
        """
        self._check(conditions)
        shape = (len(conditions), self.window)
        if out is None:
            out = np.empty(shape, np.float32)
        elif out.shape != shape or out.dtype != np.float32:
            raise UsageError(f"out is {out.dtype} {out.shape}, must be float32 {shape}")
        steps = range(0, len(conditions), self.block)
        return out, _joined([self._render(conditions[at : at + self.block], out[at : at + self.block]) for at in steps])

    def levels(self, conditions: Conditions) -> Levels:
        """What each condition delivers to the microphone, without writing a sample of it.

        Raises:
            UsageError: as :meth:`blocks`.
        """
        self._check(conditions)
        parts = (conditions[at : at + self.block] for at in range(0, len(conditions), self.block))
        return _joined([self._measure(part, self._mixture(part)) for part in parts])

    def _check(self, table: Conditions) -> None:
        material = self.material
        table.check_rows(
            clips=len(material.clips), perturbations=len(material.perturbations), responses=len(material.responses)
        )
        uneven = table.delay != np.rint(table.delay)
        if not self._fractional and uneven.any():
            first = int(np.argmax(uneven))
            raise UsageError(
                f"conditions: delay of condition {first} is {table.delay[first]} samples: round it to whole samples,"
                " or allow fractional delays"
            )

    def _render(self, part: Conditions, out: Floats) -> Levels:
        mixture = self._mixture(part)
        self._mix(part, mixture, out)
        return self._measure(part, mixture)

    def _measure(self, part: Conditions, mixture: Mixture) -> Levels:
        _, talker = self._within(mixture.talker, mixture.talker_start)
        peak, attacker = self._within(mixture.attacker, mixture.attacker_start)
        gain, gain_2 = np.abs(part.talker_gain.astype(np.float64)), np.abs(part.attacker_gain.astype(np.float64))
        talker_rms = gain * np.sqrt(talker / self.window)
        attacker_rms = gain_2 * np.sqrt(attacker / self.window)
        with np.errstate(divide="ignore", invalid="ignore"):
            snr_db = 20 * (np.log10(talker_rms) - np.log10(attacker_rms))
        snr_db[attacker_rms == 0] = np.inf
        return Levels(talker_rms, attacker_rms, linf=gain_2 * peak, snr_db=snr_db)

    def _mixture(self, part: Conditions) -> Mixture:
        """Make sure that what these conditions need is convolved; at most ``block`` conditions."""
        # Halves of a step go up, so that equal delays always fall on the same step of the grid.
        steps = np.floor(part.delay * FRACTIONS + 0.5).astype(np.int64)
        whole, fraction = steps // FRACTIONS, steps % FRACTIONS
        pairs = len(self.material.responses)
        talker = (part.clip * pairs + part.talker) * FRACTIONS
        attacker = ((len(self.material.clips) + part.perturbation) * pairs + part.attacker) * FRACTIONS + fraction
        silent = part.perturbation == SILENT
        attacker[silent] = talker[silent]
        keys, where = np.unique(np.concatenate((talker, attacker)), return_inverse=True)
        slots = self._wet_slots(keys)[where]
        lead = np.where(fraction > 0, TAPS // 2, 0)
        return Mixture(
            talker=slots[: len(part)],
            talker_start=part.start,
            attacker=np.where(silent, SILENT, slots[len(part) :]),
            attacker_start=part.start - whole + lead,
        )

    def _wet_slots(self, keys: Integers) -> Integers:
        slots, missing = self._wet_store.claim(keys.tolist())
        try:
            for at in range(0, len(missing), BATCH):
                fresh = missing[at : at + BATCH]
                pair, fraction = np.divmod(keys[fresh], FRACTIONS)
                sound, response = np.divmod(pair, len(self.material.responses))
                self._convolve(sound, response, fraction, slots[fresh])
        except BaseException:
            self._wet_store.forget()  # claimed and never filled
            raise
        return slots

    def _sound(self, row: int) -> Floats:
        clips = self.material.clips
        return clips[row] if row < len(clips) else self.material.perturbations[row - len(clips)]

    @abstractmethod
    def _convolve(self, sounds: Integers, responses: Integers, fractions: Integers, slots: Integers) -> None:
        """Fill slots with sounds (clips first, then perturbations) through responses, at most BATCH of them."""

    @abstractmethod
    def _mix(self, part: Conditions, mixture: Mixture, out: Floats) -> None:
        """Write the sums into ``out``."""

    @abstractmethod
    def _within(self, slots: Integers, starts: Integers) -> tuple[Doubles, Doubles]:
        """Peak and energy of each slot within the window that begins at its start."""


class LinearRenderer(Renderer):
    """The renderer for a processor: transforms by scipy, sums by numba, one thread."""

    def __init__(
        self,
        material: Material,
        *,
        window: int,
        block: int = DEFAULT_BLOCK,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        fractional: bool = False,
    ) -> None:
        super().__init__(material, window=window, block=block, cache_bytes=cache_bytes, fractional=fractional)
        bins, cells = self._fft_size // 2 + 1, -(-self._length // kernels.CELL)
        self._wet = np.empty((self._wet_store.capacity, self._length), np.float32)
        self._peaks = np.empty((self._wet_store.capacity, cells), np.float32)
        self._energies = np.empty((self._wet_store.capacity, cells), np.float64)
        self._sound_spectra = np.empty((self._sound_store.capacity, bins), np.complex64)
        self._response_spectra = np.empty((self._response_store.capacity, bins), np.complex64)
        self._products = np.empty((BATCH, bins), np.complex64)

    def _convolve(self, sounds: Integers, responses: Integers, fractions: Integers, slots: Integers) -> None:
        x = self._spectra(self._sound_store, self._sound_spectra, sounds, clip=True)
        h = self._spectra(self._response_store, self._response_spectra, responses, clip=False)
        for product, sound, response, fraction in zip(self._products, x, h, fractions, strict=False):
            np.multiply(self._sound_spectra[sound], self._response_spectra[response], out=product)
            if fraction:
                product *= fraction_spectrum(int(fraction), self._fft_size)
        count = _padded(len(sounds))
        self._products[len(sounds) : count] = 0
        fresh = fft.irfft(self._products[:count], self._fft_size, overwrite_x=True)
        kernels.store(fresh[: len(sounds)], self._length, slots, self._wet, self._peaks, self._energies)

    def _spectra(self, held: RowStore, table: NDArray[np.complex64], rows: Integers, *, clip: bool) -> Integers:
        keys, where = np.unique(rows, return_inverse=True)
        slots, missing = held.claim(keys.tolist())
        if missing:
            padded = np.zeros((_padded(len(missing)), self._fft_size), np.float32)
            for into, key in zip(padded, keys[missing].tolist(), strict=False):
                source = self._sound(key) if clip else self.material.responses[key]
                into[: len(source)] = source
            table[slots[missing]] = fft.rfft(padded)[: len(missing)]
        result: Integers = slots[where]
        return result

    def _mix(self, part: Conditions, mixture: Mixture, out: Floats) -> None:
        kernels.mix(
            self._wet,
            self._length,
            mixture.talker,
            mixture.talker_start,
            part.talker_gain,
            mixture.attacker,
            mixture.attacker_start,
            part.attacker_gain,
            out,
        )

    def _within(self, slots: Integers, starts: Integers) -> tuple[Doubles, Doubles]:
        peak, energy = np.empty(len(slots)), np.empty(len(slots))
        kernels.measure(self._wet, self._length, self._peaks, self._energies, slots, starts, self.window, peak, energy)
        return peak, energy


def fraction_spectrum(step: int, fft_size: int) -> NDArray[np.complex64]:
    """Spectrum of the delay by ``40 + step / 1024`` samples, complex64 (fft_size // 2 + 1,)."""
    at = np.arange(TAPS) - TAPS // 2 - step / FRACTIONS
    taps = np.sinc(at) * np.where(np.abs(at) < TAPS / 2, 0.5 + 0.5 * np.cos(2 * np.pi * at / TAPS), 0)
    return fft.rfft(taps, fft_size).astype(np.complex64)


def _padded(count: int) -> int:
    """Rows for a transform of ``count``: the next power of two up to BATCH, at least 4."""
    return max(4, 1 << (count - 1).bit_length())


def _joined(parts: list[Levels]) -> Levels:
    columns = ([getattr(part, name) for part in parts] for name in ("talker_rms", "attacker_rms", "linf", "snr_db"))
    return Levels(*(np.concatenate(column) if column else np.empty(0) for column in columns))
