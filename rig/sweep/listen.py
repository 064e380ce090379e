"""Samples of a sweep to listen to: what the talker said, and what the device heard, as it was scored."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pyarrow import ArrowException, parquet

from edge import files
from edge.errors import PlanError, UsageError
from firmware_models.progress import Progress, silent
from rig.sweep import rows
from rig.sweep.engine import Engine
from rig.sweep.grid import BATCH, Grid, Span
from rig.sweep.job import Job

INDEX = "listen.json"
# Short names, and the axis on which each key of a cell is a place.
SHORT = {"talker": "talker_position", "attacker": "attacker_position", "device": "device_position", "model": "bundle"}
_OF_BLOCK = ("bundle", "attack", "crafted_on", "target")
_OF_AXIS = {
    "eps": "budget",
    "delay_ms": "delay",
    "level_db": "level",
    "talker_level_db": "talker_level",
    "rt60_s": "room",
    "talker_position": "talker",
    "attacker_position": "attacker",
    "device_position": "device",
}
KEYS = (*_OF_BLOCK, *_OF_AXIS)
MAX_COUNT = 1000
_COMPARED = ("heard", "margin", "linf", "clipped")
_Pcm = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Sample:
    """One condition to listen to; ``describe`` is its cell in words."""

    index: int
    clip: int
    repeat: int
    label: str
    cell: dict[str, Any]


def choose(grid: Grid, cell: str, count: int) -> list[Sample]:
    """The first conditions of one cell, a clip each before any repeat.

    Args:
        grid: of the sweep.
        cell: ``key=value`` separated by commas, by the columns of the rows; what has one value only may be left out.
        count: how many at most.

    Raises:
        UsageError: no cell, or several, are meant.
    """
    if not 1 <= count <= MAX_COUNT:
        raise UsageError(f"--count {count}: allowed 1 to {MAX_COUNT}")
    wanted = _parse(cell)
    blocks = [
        (number, {key: getattr(block, _BLOCK_NAMES.get(key, key)) for key in _OF_BLOCK})
        for number, block in enumerate(grid.blocks)
    ]
    for key in _OF_BLOCK:
        blocks = [(number, told) for number, told in blocks if key not in wanted or _same(told[key], wanted[key])]
        _require_some(key, wanted, blocks, [getattr(b, _BLOCK_NAMES.get(key, key)) for b in grid.blocks])
        _require_one(key, wanted, [told[key] for _, told in blocks])
    if len(blocks) > 1:
        raise UsageError(f"--cell {cell}: {len(blocks)} attacks of the plan have this name, which cannot be told apart")
    (number, _), places = blocks[0], {}
    for key, axis in _OF_AXIS.items():
        values = _values(grid, number, key)
        found = [place for place, value in enumerate(values) if key not in wanted or _same(value, wanted[key])]
        _require_some(key, wanted, found, values)
        _require_one(key, wanted, [values[place] for place in found])
        places[axis] = found[0]
    return _samples(grid, number, places, count)


_BLOCK_NAMES = {"crafted_on": "on"}


def record(
    job: Job, samples: Sequence[Sample], out: Path, *, cap_dbfs: float, progress: Progress = silent
) -> list[dict[str, Any]]:
    """Render samples again with the sweep's own engine and write each as two FLAC files, clean and heard.

    ``heard`` is bit for bit what was scored: where the row is there, it is computed again and must be the same. A pair
    louder than ``cap_dbfs`` (RMS) is made quieter, both files by the same factor, which the index tells.

    Raises:
        PlanError: a row says something else than what is computed now.
        UsageError: a cap that is none.
    """
    if not (math.isfinite(cap_dbfs) and -60 <= cap_dbfs <= 0):
        raise UsageError(f"--cap {cap_dbfs:g}: allowed -60 to 0 dBFS (RMS)")
    import soundfile  # noqa: PLC0415 - needs libsndfile, which choosing does not

    engine = Engine(job, device=job.description.device)
    files.make_folder(out)
    listed = []
    for number, sample in enumerate(samples):
        heard, told = render(job, engine, sample)
        clean = clip_of(job, sample)
        quieter_db = max(0.0, level_dbfs(heard) - cap_dbfs, level_dbfs(clean) - cap_dbfs)
        entry: dict[str, Any] = {"condition": sample.index, "label": sample.label, **told, **sample.cell}
        entry |= {"clip": job.grid.axes.clips[sample.clip].path, "repeat": sample.repeat}
        entry["attenuated_db"] = round(quieter_db, 2)
        entry["scored_sha256"] = hashlib.sha256(heard.astype("<i2").tobytes()).hexdigest()
        for kind, pcm in (("clean", clean), ("heard", heard)):
            path = out / name_of(sample, kind)
            unfinished = path.with_name(f".{path.name}")
            soundfile.write(unfinished, _quieter(pcm, quieter_db), job.description.rate_hz, format="FLAC")
            files.replace(unfinished, path)
            entry[f"{kind}_file"] = path.name
        listed.append(entry)
        progress(number + 1, len(samples), sample.label)
    files.write(
        out / INDEX, (json.dumps({"sweep": job.description.digest, "samples": listed}, indent=1) + "\n").encode()
    )
    return listed


def render(job: Job, engine: Engine, sample: Sample) -> tuple[_Pcm, dict[str, Any]]:
    """What the device hears in one condition, int16 (window,), and what the sweep says of it."""
    block, offset = job.grid.locate(sample.index)
    # The batch in which it is scored; what a graph computes of one may depend on the others in the last bit.
    start = offset // BATCH * BATCH
    number = _chunk_of(job.grid, block, start)
    stop = min(start + BATCH, job.grid.span(number).stop)
    span = Span(number, block, start, stop, first=job.grid.firsts[block] + start)
    sounds, place = job.sounds(span), offset - start
    row = engine.table(span, sounds).slice(place, 1).to_pylist()[0]
    stored = _stored(job, number, sample.index)
    if stored is not None and any(not _equal(stored[key], row[key]) for key in _COMPARED):
        raise PlanError(
            f"sweep {job.folder}: condition {sample.index} scores {row['margin']:g} here and {stored['margin']:g} in"
            " its row; it was computed on another kind of machine, or the row is damaged"
        )
    (heard,) = engine.heard(span, sounds, slice(place, place + 1))
    pcm: _Pcm = np.rint(heard * 32768).astype(np.int16)
    told = {key: row[key] for key in ("heard", "margin", "snr_db", "reason")} | {"compared": stored is not None}
    # JSON knows no infinity: without an attack there is no SNR.
    finite = {key: None if isinstance(each, float) and not math.isfinite(each) else each for key, each in told.items()}
    return pcm, finite


def clip_of(job: Job, sample: Sample) -> _Pcm:
    """What the talker says, int16 (window,)."""
    block, offset = job.grid.locate(sample.index)
    span = Span(0, block, offset, offset + 1, first=sample.index)
    pcm: _Pcm = job.sounds(span).clips[0]
    return pcm


def name_of(sample: Sample, kind: str) -> str:
    """The file of a sample."""
    return f"{sample.index:09d}-{kind}.flac"


def level_dbfs(pcm: _Pcm) -> float:
    """RMS re full scale; -200 for silence."""
    rms = math.sqrt(float(np.mean(np.square(pcm.astype(np.float64))))) / 32768
    return 20 * math.log10(max(rms, 1e-10))


def _quieter(pcm: _Pcm, quieter_db: float) -> _Pcm:
    return np.rint(pcm * 10 ** (-quieter_db / 20)).astype(np.int16) if quieter_db else pcm


def _samples(grid: Grid, block: int, places: Mapping[str, int], count: int) -> list[Sample]:
    here = grid.blocks[block]
    found: list[Sample] = []
    for repeat in range(grid.axes.repeats):
        for place, clip in enumerate(here.clips):
            if len(found) == count:
                return found
            digits = {**places, "clip": place, "repeat": repeat, "eps": 0, "scale": 0}
            digits["scale" if here.scaled else "eps"] = places["budget"]
            offset = 0
            for axis, size in grid.radices(block).items():
                offset = offset * size + digits[axis]
            cell = grid.describe(block, digits)
            label = grid.axes.clips[clip].label
            found.append(Sample(grid.firsts[block] + offset, clip, repeat, label, cell))
    return found


def _parse(cell: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in cell.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        key = SHORT.get(key, key)
        if not equals or not value:
            raise UsageError(f"--cell {part}: give key=value, e.g. --cell 'attack=pgd-20,eps=0.01'")
        if key not in KEYS:
            raise UsageError(f"--cell {part}: {key!r} is none of {', '.join(KEYS)}")
        if key in found:
            raise UsageError(f"--cell {part}: {key} stands twice")
        found[key] = value
    return found


def _same(value: Any, wanted: str) -> bool:
    if value is None:
        return wanted == "none"
    if isinstance(value, str):
        return value == wanted
    try:
        return math.isclose(float(value), float(wanted), rel_tol=1e-9)
    except ValueError:
        return False


def _values(grid: Grid, block: int, key: str) -> list[Any]:
    here, axes = grid.blocks[block], grid.axes
    attacked = here.family is not None
    of_attack = {
        "delay_ms": (axes.delays_ms, 0.0),
        "level_db": (axes.levels_db, 0.0),
        "attacker_position": (tuple(axes.attackers), None),
    }
    if key in of_attack:
        several, alone = of_attack[key]
        return list(several) if attacked else [alone]
    every: dict[str, Sequence[Any]] = {
        "eps": here.eps,
        "talker_level_db": axes.talker_levels_db,
        "rt60_s": axes.rt60_s,
        "talker_position": tuple(axes.talkers),
        "device_position": tuple(axes.devices),
    }
    return list(every[key])


def _require_some(key: str, wanted: Mapping[str, str], found: Sequence[Any], values: Sequence[Any]) -> None:
    if not found:
        raise UsageError(f"--cell {key}={wanted.get(key)}: no such value here, allowed: {_listed(values)}")


def _require_one(key: str, wanted: Mapping[str, str], values: Sequence[Any]) -> None:
    if key not in wanted and len(set(values)) > 1:
        raise UsageError(f"--cell: {key} is open, add one of {_listed(values, key)}")


def _listed(values: Sequence[Any], key: str | None = None) -> str:
    told = ["none" if v is None else f"{v:g}" if isinstance(v, float) else str(v) for v in dict.fromkeys(values)]
    shown = [f"{key}={each}" if key else each for each in told[:12]]
    return ", ".join(shown) + (f" and {len(told) - 12} more" if len(told) > 12 else "")


def _equal(one: Any, other: Any) -> bool:
    return bool(one == other) or (one != one and other != other)  # noqa: PLR0124 - NaN is the same row as NaN


def _chunk_of(grid: Grid, block: int, offset: int) -> int:
    before = sum(-(-grid.size(earlier) // grid.rows_per_chunk(earlier)) for earlier in range(block))
    return before + offset // grid.rows_per_chunk(block)


def _stored(job: Job, number: int, index: int) -> dict[str, Any] | None:
    path = rows.path(job.folder, number)
    try:
        table = parquet.read_table(path, columns=["index", *_COMPARED], memory_map=False)
        found = table.slice(index - job.grid.span(number).first, 1).to_pylist()
    except FileNotFoundError:
        return None
    except (ArrowException, OSError, ValueError):
        raise PlanError(f"{path}: is damaged, 'earshot sweep run' computes it again") from None
    if not found or found[0]["index"] != index:
        raise PlanError(f"{path}: is damaged, 'earshot sweep run' computes it again")
    return dict(found[0])
