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
from rig.render.conditions import SILENT, Conditions, Gains
from rig.render.material import Floats, Material
from rig.render.rows import FEW, Integers, RowStore, distinct
from rig.render.spectra import FRACTIONS, TAPS, Spectra

Doubles = NDArray[np.float64]

DEFAULT_BLOCK = 64
# What is needed is worked out for so many conditions at once, if the store has room for their sounds.
SPAN = 1024
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

    def __getitem__(self, rows: slice) -> Levels:
        """Those of some conditions, without copying."""
        return Levels(self.talker_rms[rows], self.attacker_rms[rows], self.linf[rows], self.snr_db[rows])


@dataclass(frozen=True)
class Block:
    """Consecutive conditions as the device hears them.

    ``pcm`` float32 (conditions, window) is overwritten by the next block; ``indices`` int64 (conditions,).
    """

    indices: Integers
    pcm: Floats
    levels: Levels


@dataclass(frozen=True)
class Part:
    """Conditions with the slots of their convolved sounds, and where the window begins in those.

    A slot below 0 is silence.
    """

    conditions: Conditions
    talker: Integers
    talker_start: Integers
    talker_gain: Gains
    attacker: Integers
    attacker_start: Integers
    attacker_gain: Gains


class Renderer(ABC):
    """Conditions in, what the device hears out; how it is computed is a subclass's.

    Memory: spectra and convolved sounds in at most ``cache_bytes`` (but 32 rows of each at least), and one block of
    ``block`` conditions, however many conditions there are.

    Args:
        material: clips, perturbations, responses.
        window: samples that the device hears of each condition.
        block: conditions rendered at once.
        cache_bytes: what spectra and convolved sounds may take.
        fractional: allow delays between samples (band-limited, on a grid of 1/1024 sample); without, they are refused.

    Raises:
        UsageError: a window, block or cache of no size.
    """

    batch = 8  # sounds convolved at once: enough for the vector unit, few enough for the cache

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
        self._latest: Part | None = None
        self._sounds = len(material.clips) + len(material.perturbations)
        pairs = self._sounds * len(material.responses) * (FRACTIONS if fractional else 1)
        rows = cache_bytes // (4 * self._fft_size)
        self._wet_store = RowStore(min(max(FEW, rows // 2), pairs))
        self._sound_spectra = Spectra(
            self._sound, count=self._sounds, fft_size=self._fft_size, capacity=max(FEW, rows // 4)
        )
        self._response_spectra = Spectra(
            material.responses.__getitem__,
            count=len(material.responses),
            fft_size=self._fft_size,
            capacity=max(FEW, rows // 4),
        )

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
        for number, part in self._numbered(conditions, first):
            levels = self._measure(part)
            for at in range(0, len(part.conditions), self.block):
                rows = slice(at, min(at + self.block, len(part.conditions)))
                pcm = out[: rows.stop - at]
                self._mix(self._held(part), rows, pcm)
                indices = np.arange(number + at, number + rows.stop, dtype=np.int64)
                for stage in stages:
                    stage.apply(pcm, indices)
                yield Block(indices, pcm, levels[rows])

    def render(self, conditions: Conditions, out: Floats | None = None) -> tuple[Floats, Levels]:
        """Render a whole table at once, before any stage, into ``out`` float32 (conditions, window) if it is given.

        Raises:
            UsageError: as :meth:`blocks`, or ``out`` of another shape or dtype.
        """
        self._check(conditions)
        shape = (len(conditions), self.window)
        if out is None:
            out = np.empty(shape, np.float32)
        elif out.shape != shape or out.dtype != np.float32 or not (out.flags.c_contiguous and out.flags.writeable):
            raise UsageError(f"out is {out.dtype} {out.shape}, must be float32 {shape}, in one piece and writable")
        levels, at = [], 0
        for part in self._parts(conditions):
            stop = at + len(part.conditions)
            self._mix(part, slice(0, stop - at), out[at:stop])
            levels.append(self._measure(part))
            at = stop
        return out, _joined(levels)

    def levels(self, conditions: Conditions) -> Levels:
        """What each condition delivers to the microphone, without writing a sample of it.

        Raises:
            UsageError: as :meth:`blocks`.
        """
        self._check(conditions)
        return _joined([self._measure(part) for part in self._parts(conditions)])

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

    def _numbered(self, conditions: Conditions | Iterable[Conditions], first: int) -> Iterator[tuple[int, Part]]:
        """All parts of all tables, with the number of the first condition of each."""
        for table in (conditions,) if isinstance(conditions, Conditions) else conditions:
            self._check(table)
            for part in self._parts(table):
                yield first, part
                first += len(part.conditions)

    def _parts(self, table: Conditions) -> Iterator[Part]:
        """The table in parts whose sounds the store can hold at once, each of them ready to be mixed."""
        at, size = 0, SPAN
        while at < len(table):
            part = self._part(table[at : at + size])
            if part is None:
                size //= 2  # a single condition needs two sounds, which always find room
                continue
            yield part
            at += len(part.conditions)

    def _part(self, conditions: Conditions) -> Part | None:
        """Convolve whatever these conditions need; None if it is more than the store can hold."""
        # Halves of a step go up, so that equal delays always fall on the same step of the grid.
        steps = np.floor(conditions.delay * FRACTIONS + 0.5).astype(np.int64)
        whole, fraction = steps // FRACTIONS, steps % FRACTIONS
        count, pairs = len(conditions), len(self.material.responses)
        keys = np.empty(2 * count, np.int64)
        talker, attacker = keys[:count], keys[count:]
        talker[:] = (conditions.clip * pairs + conditions.talker) * FRACTIONS
        sound = len(self.material.clips) + conditions.perturbation
        attacker[:] = (sound * pairs + conditions.attacker) * FRACTIONS + fraction
        silent = conditions.perturbation == SILENT
        attacker[silent] = talker[silent]
        keys, where = distinct(keys)
        if len(keys) > self._wet_store.capacity:
            return None
        slots = self._wet_slots(keys)[where]
        self._latest = Part(
            conditions=conditions,
            talker=slots[:count],
            # Copies, because a kernel is compiled anew for columns that are views backwards or cannot be written.
            talker_start=conditions.start.copy(),
            talker_gain=conditions.talker_gain.copy(),
            attacker=np.where(silent, SILENT, slots[count:]),
            attacker_start=conditions.start - whole + np.where(fraction > 0, TAPS // 2, 0),
            attacker_gain=conditions.attacker_gain.copy(),
        )
        return self._latest

    def _held(self, part: Part) -> Part:
        """The part with slots that hold its sounds, also after somebody else has asked for other conditions."""
        return part if part is self._latest else self._part(part.conditions) or part

    def _measure(self, part: Part) -> Levels:
        _, talker = self._within(part.talker, part.talker_start)
        peak, attacker = self._within(part.attacker, part.attacker_start)
        gain, gain_2 = np.abs(part.talker_gain.astype(np.float64)), np.abs(part.attacker_gain.astype(np.float64))
        talker_rms = gain * np.sqrt(talker / self.window)
        attacker_rms = gain_2 * np.sqrt(attacker / self.window)
        with np.errstate(divide="ignore", invalid="ignore"):
            snr_db = 20 * (np.log10(talker_rms) - np.log10(attacker_rms))
        snr_db[attacker_rms == 0] = np.inf
        return Levels(talker_rms, attacker_rms, linf=gain_2 * peak, snr_db=snr_db)

    def _wet_slots(self, keys: Integers) -> Integers:
        slots, missing = self._wet_store.claim(keys.tolist())
        try:
            self._reserve(self._wet_store.in_use)
            for at in range(0, len(missing), self.batch):
                fresh = missing[at : at + self.batch]
                pair, fraction = np.divmod(keys[fresh], FRACTIONS)
                sound, response = np.divmod(pair, len(self.material.responses))
                self._convolve(sound, response, fraction, slots[fresh])
        except BaseException:
            self._wet_store.forget()  # claimed and never filled
            raise
        return slots

    def _sound(self, row: int) -> Floats:
        clips = self.material.clips
        sound: Floats = clips[row] if row < len(clips) else self.material.perturbations[row - len(clips)]
        return sound

    @abstractmethod
    def _reserve(self, slots: int) -> None:
        """Have room for so many convolved sounds; those that are there stay."""

    @abstractmethod
    def _convolve(self, sounds: Integers, responses: Integers, fractions: Integers, slots: Integers) -> None:
        """Fill slots with sounds (clips first, then perturbations) through responses, at most ``batch`` of them."""

    @abstractmethod
    def _mix(self, part: Part, rows: slice, out: Floats) -> None:
        """Write the sums of these rows of the part into ``out``."""

    @abstractmethod
    def _within(self, slots: Integers, starts: Integers) -> tuple[Doubles, Doubles]:
        """Peak and energy of each slot within the window that begins at its start."""


def _joined(parts: list[Levels]) -> Levels:
    columns = ([getattr(part, name) for part in parts] for name in ("talker_rms", "attacker_rms", "linf", "snr_db"))
    return Levels(*(np.concatenate(column) if column else np.empty(0) for column in columns))
