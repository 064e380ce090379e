"""Errors of a sweep counted along some of its axes, over its files one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from edge.errors import PlanError
from firmware_models.progress import Progress, silent
from firmware_models.statistics import Rate, score_interval
from rig.sweep import rows
from rig.sweep.grid import Grid, Integers

# Beside the axes of a grid a view may have these: the place of eps in its block, and a bin of the SNR.
BUDGET, SNR = "budget", "snr"
SNR_LOW_DB, SNR_STEP_DB, SNR_BINS = -60.0, 3.0, 48
# What a rate counts over: every other axis tells cells apart.
CELL = (BUDGET, "room", "talker", "device", "attacker", "delay", "level", "talker_level")
_COLUMNS = ["index", "correct", "reason"]
_UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError)


@dataclass(frozen=True)
class Counts:
    """Conditions that count, and errors among them, int64 with an axis per name in ``axes``.

    ``clips`` are played in each cell; ``spread`` is how many cells one entry holds.
    """

    axes: tuple[str, ...]
    valid: Integers
    errors: Integers
    clips: int
    spread: int

    def pick(self, **places: int | Sequence[int]) -> tuple[int, int]:
        """Valid conditions and errors at a place, or at several together, of some axes, over all of the others."""
        chosen: Any = tuple(self._places(axis, places) for axis in self.axes)
        grid = np.ix_(*chosen)
        return int(self.valid[grid].sum()), int(self.errors[grid].sum())

    def rate(self, **places: int | Sequence[int]) -> tuple[Rate, int]:
        """Error rate with its interval, and n, at places.

        The interval of a single cell is Wilson's. Of several together it is as wide as if every clip counted once,
        because a clip that fails in one place is likely to fail in the next one too.
        """
        valid, errors = self.pick(**places)
        cells = self.spread * prod(len(self._places(axis, places)) for axis in self.axes)
        return interval(valid, errors, self.clips if cells > 1 else valid), valid

    def _places(self, axis: str, places: Mapping[str, int | Sequence[int]]) -> Sequence[int]:
        if axis not in places:
            return range(self.valid.shape[self.axes.index(axis)])
        place = places[axis]
        return [place] if isinstance(place, int) else place


def interval(valid: int, errors: int, independent: int) -> Rate:
    """Error rate with an interval as wide as that of at most so many ``independent`` trials."""
    return score_interval(errors / valid if valid else float("nan"), min(valid, independent))


def tally(
    folder: Path, grid: Grid, views: Mapping[str, tuple[str, ...]], *, progress: Progress = silent
) -> dict[str, list[Counts]]:
    """Count a sweep along the axes of each view, per block; memory depends on the views, not on the rows.

    Raises:
        PlanError: nothing is computed yet, or a file of rows is damaged.
    """
    found = {name: [_zero(grid, block, axes) for block in range(len(grid.blocks))] for name, axes in views.items()}
    wants_snr = any(SNR in axes for axes in views.values())
    counted = 0
    for block, table in _tables(folder, grid, [*_COLUMNS, "snr_db"] if wants_snr else _COLUMNS):
        offsets = table["index"].to_numpy() - grid.firsts[block]
        valid = pc.is_null(table["reason"]).to_numpy()
        places = grid.places(block, offsets[valid])
        places[BUDGET] = places["scale" if grid.blocks[block].scaled else "eps"]
        wrong = ~table["correct"].to_numpy()[valid]
        if wants_snr:
            snr_db = np.nan_to_num(table["snr_db"].to_numpy()[valid], posinf=1e6, neginf=-1e6)
            bins = np.floor((snr_db - SNR_LOW_DB) / SNR_STEP_DB).astype(np.int64)
            places[SNR] = np.clip(bins, 0, SNR_BINS - 1)
        for name, axes in views.items():
            counts = found[name][block]
            key = np.ravel_multi_index(tuple(places[axis] for axis in axes), counts.valid.shape)
            np.add.at(counts.valid.reshape(-1), key, 1)
            np.add.at(counts.errors.reshape(-1), key, wrong.astype(np.int64))
        counted += len(offsets)
        progress(counted, grid.total, "counting")
    if not counted:
        raise PlanError(f"sweep {folder}: has no rows yet, compute them with 'earshot sweep run {folder}/plan.yaml'")
    return found


def snr_centre_db(place: int) -> float:
    """The middle of a bin of the SNR."""
    return SNR_LOW_DB + (place + 0.5) * SNR_STEP_DB


def _zero(grid: Grid, block: int, axes: tuple[str, ...]) -> Counts:
    sizes = sizes_of(grid, block)
    shape = tuple(sizes[axis] for axis in axes)
    spread = 1 if SNR not in axes else len(CELL)  # conditions of many cells may have the same SNR
    spread *= prod(sizes[axis] for axis in CELL if axis not in axes)
    zeros: npt.NDArray[np.int64] = np.zeros(shape, np.int64)
    return Counts(axes, zeros, zeros.copy(), len(grid.blocks[block].clips), spread)


def sizes_of(grid: Grid, block: int) -> dict[str, int]:
    """How many places there are on every axis that a view may have."""
    radices = grid.radices(block)
    return {**radices, BUDGET: len(grid.blocks[block].eps), SNR: SNR_BINS}


def _tables(folder: Path, grid: Grid, columns: list[str]) -> Iterator[tuple[int, pa.Table]]:
    tables = rows.tables(folder, grid, columns)
    number = 0
    while True:
        try:
            span, table = next(tables)
            number = span.number
            expected = np.arange(span.first, span.first + span.stop - span.start)
            if not np.array_equal(table["index"].to_numpy(), expected):
                raise ValueError("rows of another chunk")
        except StopIteration:
            return
        except _UNREADABLE:
            raise PlanError(
                f"sweep {folder}: rows of chunk {number} or the next one are damaged, 'earshot sweep run' computes them"
                " again"
            ) from None
        yield span.block, table
