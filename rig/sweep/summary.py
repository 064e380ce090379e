"""Rates of a sweep, counted over its files one after the other: memory depends on the cells, not on the rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge import files
from edge.errors import PlanError
from edge.validation import describe
from firmware_models.progress import Progress, silent
from firmware_models.statistics import score_interval, wilson
from rig.sweep import rows
from rig.sweep.grid import Grid
from rig.sweep.job import SUMMARY, Job

CELLS = "cells.parquet"
# More cells than this stand in cells.parquet alone.
MAX_LISTED = 20_000
_COLUMNS = ["index", "correct", "targeted", "reason", "linf", "snr_db", "margin"]
Doubles = npt.NDArray[np.float64]


class Rate(BaseModel):
    """Rates of a condition, or of many together.

    ``n`` trials, ``valid`` of them count; ``errors``, ``error_rate`` and ``targeted_success`` are over those. Of a
    condition the interval is Wilson's at 95 %, over its clips and repeats. Of several together it is as wide as if
    every clip counted once, because a clip that fails in one place is likely to fail in the next one too. ``snr_db``
    and ``margin`` are means, ``linf`` is the largest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: str
    attack: str
    crafted_on: str | None
    target: str | None
    eps: float
    delay_ms: float | None = None
    level_db: float | None = None
    talker_level_db: float | None = None
    rt60_s: float | None = None
    talker_position: str | None = None
    attacker_position: str | None = None
    device_position: str | None = None
    n: int
    valid: int
    invalid: int
    errors: int
    error_rate: float | None
    ci_low: float | None
    ci_high: float | None
    targeted_success: float | None
    linf: float | None
    snr_db: float | None
    margin: float | None


class Summary(BaseModel):
    """``summary.json``.

    ``overall`` has one row per bundle, attack and eps; ``conditions`` one per cell, None where there are too many to
    list: all of them are in ``cells.parquet``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)

    schema_version: Annotated[Literal[1], Field(alias="schema")] = 1
    name: str
    digest: str
    device: str
    complete: bool
    total: int
    computed: int
    invalid: dict[str, int]
    cells: int
    overall: list[Rate]
    conditions: list[Rate] | None


@dataclass
class _Counts:
    """Sums per cell of one block."""

    valid: Doubles
    invalid: Doubles
    errors: Doubles
    targeted: Doubles
    linf: Doubles
    snr: Doubles
    margin: Doubles

    @classmethod
    def zero(cls, cells: int) -> _Counts:
        return cls(*(np.zeros(cells) for _ in range(7)))

    def add(self, cell: npt.NDArray[np.int64], table: pa.Table, *, is_targeted: bool) -> None:
        valid = pc.is_null(table["reason"]).to_numpy()
        here, cells = cell[valid], len(self.valid)

        def column(name: str) -> Doubles:
            found: Doubles = table[name].to_numpy()[valid].astype(np.float64)
            return found

        self.valid += np.bincount(here, minlength=cells)
        self.invalid += np.bincount(cell[~valid], minlength=cells)
        self.errors += np.bincount(here, 1 - column("correct"), minlength=cells)
        if is_targeted:
            self.targeted += np.bincount(here, column("targeted"), minlength=cells)
        snr = column("snr_db")
        self.snr += np.bincount(here, np.where(np.isfinite(snr), snr, 0), minlength=cells)
        self.margin += np.bincount(here, column("margin"), minlength=cells)
        np.maximum.at(self.linf, here, column("linf"))


def write_summary(job: Job, *, progress: Progress = silent) -> Summary:
    """Count all finished chunks and write ``summary.json`` and ``cells.parquet``."""
    grid, listed, overall = job.grid, [], []
    reasons = dict.fromkeys(rows.REASONS, 0)
    computed = 0
    cells = sum(grid.cells(block) for block in range(len(grid.blocks)))
    tables = rows.tables(job.folder, grid, _COLUMNS)
    unfinished = job.folder / f".{CELLS}"
    writer: Any = None
    try:
        for block, counts, told, done in _blocks(grid, tables):
            computed += done
            for reason, count in told.items():
                reasons[reason] += count
            overall += list(_overall(grid, block, counts))
            for low in range(0, grid.cells(block), MAX_LISTED):
                part = _rates(grid, block, counts, range(low, min(low + MAX_LISTED, grid.cells(block))))
                if cells <= MAX_LISTED:
                    listed += part
                table = pa.Table.from_pylist([rate.model_dump() for rate in part], schema=_SCHEMA)
                writer = writer or parquet.ParquetWriter(unfinished, _SCHEMA, compression="zstd")
                writer.write_table(table)
            progress(computed, grid.total, "counting")
    finally:
        if writer is not None:
            writer.close()
    if writer is not None:
        files.replace(unfinished, job.folder / CELLS)
    summary = Summary(
        name=job.description.name,
        digest=job.description.digest,
        device=job.description.device,
        complete=computed == grid.total,
        total=grid.total,
        computed=computed,
        invalid={reason: count for reason, count in reasons.items() if count},
        cells=cells,
        overall=overall,
        conditions=listed if cells <= MAX_LISTED else None,
    )
    files.write(job.folder / SUMMARY, (summary.model_dump_json(indent=1, by_alias=True) + "\n").encode())
    return summary


def read_summary(folder: Path) -> Summary:
    """``summary.json`` of a sweep.

    Raises:
        PlanError: there is none, or it is damaged.
    """
    try:
        return Summary.model_validate_json((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        raise PlanError(f"sweep {folder}: has no {SUMMARY} yet, 'earshot sweep run' writes it at its end") from None
    except ValidationError as error:
        raise PlanError(f"sweep {folder}: {SUMMARY}: {describe(error)}") from None


def _blocks(grid: Grid, tables: Iterator[Any]) -> Iterator[tuple[int, _Counts, dict[str, int], int]]:
    """Block after block: its number, its counts, its reasons, its rows. The chunks of a block follow each other."""
    upcoming = next(tables, None)
    for block in range(len(grid.blocks)):
        counts, told, done = _Counts.zero(grid.cells(block)), dict.fromkeys(rows.REASONS, 0), 0
        while upcoming is not None and upcoming[0].block == block:
            span, table = upcoming
            offsets = table["index"].to_numpy() - grid.firsts[block]
            counts.add(grid.cell_of(block, offsets), table, is_targeted=grid.blocks[block].target is not None)
            for each in pc.value_counts(pc.drop_null(table["reason"].cast(pa.string()))).to_pylist():
                told[each["values"]] += each["counts"]
            done += span.stop - span.start
            upcoming = next(tables, None)
        yield block, counts, told, done


def _rates(grid: Grid, block: int, counts: _Counts, cells: range) -> list[Rate]:
    found = []
    for cell in cells:
        _, low, high = wilson(round(counts.errors[cell]), int(counts.valid[cell]))
        told = grid.cell(block, cell)
        found.append(_rate(told, counts, slice(cell, cell + 1), (low, high)))
    return found


def _overall(grid: Grid, block: int, counts: _Counts) -> Iterator[Rate]:
    """Per eps of a block, over all its places, delays and levels."""
    here = grid.blocks[block]
    cell = np.arange(grid.cells(block), dtype=np.int64)
    places = grid.places(block, cell * grid.axes.repeats)["scale" if here.scaled else "eps"]
    for place, eps in enumerate(here.eps):
        chosen = np.flatnonzero(places == place)
        valid, errors = int(counts.valid[chosen].sum()), round(counts.errors[chosen].sum())
        told = {
            "bundle": here.bundle,
            "attack": here.attack,
            "crafted_on": here.on,
            "target": here.target,
            "eps": eps,
        }
        shared = score_interval(errors / valid if valid else math.nan, min(valid, len(here.clips)))
        yield _rate(told, counts, chosen, (shared.low, shared.high))


def _rate(told: dict[str, Any], counts: _Counts, cells: Any, interval: tuple[float, float]) -> Rate:
    valid, invalid = int(counts.valid[cells].sum()), int(counts.invalid[cells].sum())
    errors = round(counts.errors[cells].sum())
    return Rate(
        **told,
        n=valid + invalid,
        valid=valid,
        invalid=invalid,
        errors=errors,
        error_rate=_number(errors / valid) if valid else None,
        ci_low=_number(interval[0]),
        ci_high=_number(interval[1]),
        targeted_success=_number(float(counts.targeted[cells].sum()) / valid) if valid and told["target"] else None,
        linf=float(counts.linf[cells].max()) if valid else None,
        snr_db=_number(float(counts.snr[cells].sum()) / valid) if valid and told["attack"] != "benign" else None,
        margin=_number(float(counts.margin[cells].sum()) / valid) if valid else None,
    )


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _arrow(annotation: Any) -> pa.DataType:
    kinds = {str: pa.string(), float: pa.float64(), int: pa.int64()}
    return next(
        kind for python, kind in kinds.items() if python is annotation or python in getattr(annotation, "__args__", ())
    )


_SCHEMA = pa.schema([(name, _arrow(field.annotation)) for name, field in Rate.model_fields.items()])
