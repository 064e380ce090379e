"""The gap between a sweep and a session: the same conditions, simulated and played, side by side."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge import files
from edge.errors import PlanError, UsageError
from edge.validation import describe
from firmware_models.progress import Progress, silent
from firmware_models.statistics import newcombe, wilson
from rig import plan as plans
from rig.journal import Journal
from rig.report.summary import Row, summarise
from rig.sweep.grid import Grid
from rig.sweep.job import PLAN, read_description
from rig.sweep.pictures.tally import BUDGET, CELL, Counts, tally

FILE = "gap.json"
# A session's talker stands where the sweep's does if it is not further away.
NEAR_M = 0.01


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)


class Cell(_Frozen):
    """One condition in both. ``gap`` is the session's error rate minus the sweep's, with Newcombe's 95 % interval."""

    bundle: str
    attack: str
    crafted_on: str | None
    target: str | None
    eps: float
    delay_ms: float
    attacker_position: str | None
    device_position: str | None
    sweep_n: int
    sweep_errors: int
    sweep_rate: float
    session_n: int
    session_errors: int
    session_rate: float
    gap: float
    ci_low: float
    ci_high: float


class Gap(_Frozen):
    """``gap.json``.

    ``mean_absolute_gap`` is over the matched cells, each counted once. ``by_chance`` is what it would come to if the
    true rates were the same, for rates counted over so few clips; ``mean_gap`` says which side is higher;
    ``beyond_chance`` counts the cells whose interval leaves out zero.
    """

    schema_version: Annotated[Literal[1], Field(alias="schema")] = 1
    sweep: str
    digest: str
    session: str
    air: str
    rt60_s: float | None
    talker: str
    same_clips: bool
    matched: int
    session_only: int
    mean_absolute_gap: float
    by_chance: float
    mean_gap: float
    beyond_chance: int
    cells: tuple[Cell, ...]


def compare(sweep: Path, session: Path, *, rt60_s: float | None = None, progress: Progress = silent) -> Gap:
    """Compare the rates of the conditions that a sweep and a session have in common.

    Args:
        sweep: its folder.
        session: its folder.
        rt60_s: which of the sweep's rooms; without it, the one that the session's plan says, or the only one.
        progress: conditions counted.

    Raises:
        PlanError: a folder holds something else, or nothing is in both.
        UsageError: several rooms could be meant.
    """
    description = read_description(sweep)
    grid = description.grid
    summary = summarise([session])
    plan = plans.load(session / PLAN)
    for name, levels in (("levels_db", grid.axes.levels_db), ("talker_levels_db", grid.axes.talker_levels_db)):
        if 0.0 not in levels:
            raise PlanError(f"sweep {sweep}: sweep.{name} lacks 0, at which a session plays; add it and sweep again")
    room = _room(grid, rt60_s, plan.room.rt60_s if plan.room is not None else None)
    talker = _talker(grid, plan, summary.sessions[0]["air"])
    counts = tally(sweep, grid, {"cell": CELL}, progress=progress)["cell"]
    found = [_matched(grid, counts, row, room, talker) for row in summary.rows]
    cells = tuple(cell for cell in found if cell is not None)
    if not cells:
        raise PlanError(
            f"session {session}: has no condition in common with sweep {sweep} that counts in both: bundle, attack,"
            " eps, delay and the names of the places must be the same"
        )
    gaps = np.array([cell.gap for cell in cells])
    with Journal(session, read_only=True) as journal:
        played = {clip.sha256 for clip in journal.clips()}
    return Gap(
        sweep=description.name,
        digest=description.digest,
        session=str(summary.sessions[0]["session_id"]),
        air=str(summary.sessions[0]["air"]),
        rt60_s=grid.axes.rt60_s[room],
        talker=list(grid.axes.talkers)[talker],
        same_clips=played == {clip.sha256 for clip in grid.axes.clips},
        matched=len(cells),
        session_only=len(summary.rows) - len(cells),
        mean_absolute_gap=float(np.abs(gaps).mean()),
        by_chance=float(np.mean([_by_chance(cell) for cell in cells])),
        mean_gap=float(gaps.mean()),
        beyond_chance=sum(cell.ci_low > 0 or cell.ci_high < 0 for cell in cells),
        cells=cells,
    )


def write(gap: Gap, path: Path) -> None:
    """Write ``gap.json``."""
    files.write(path, (gap.model_dump_json(indent=1, by_alias=True) + "\n").encode())


def read(path: Path) -> Gap | None:
    """``gap.json``; None if there is none.

    Raises:
        PlanError: it is damaged.
    """
    try:
        return Gap.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise PlanError(f"{path}: {describe(error)}") from None
    except (OSError, UnicodeDecodeError):
        raise PlanError(f"{path}: cannot be read, make it again with 'earshot sweep gap'") from None


def _room(grid: Grid, wanted: float | None, played: float | None) -> int:
    rooms = grid.axes.rt60_s
    told = ", ".join("none" if value is None else f"{value:g}" for value in rooms)
    if wanted is not None:
        for place, value in enumerate(rooms):
            if value is not None and math.isclose(value, wanted):
                return place
        raise UsageError(f"--rt60 {wanted:g}: the sweep has {told}")
    if len(rooms) == 1:
        return 0
    if played in rooms:
        return rooms.index(played)
    raise UsageError(f"--rt60: the sweep has rooms of {told} s, say which one the session is compared with")


def _talker(grid: Grid, plan: plans.Plan, air: str) -> int:
    talkers = list(grid.axes.talkers.values())
    if len(talkers) == 1:
        return 0
    if plan.room is None or air == "digital":
        raise PlanError(f"plan {plan.name}: says no place of the talker, of which the sweep has {len(talkers)}")
    (stood, *_) = (placement.position_m for placement in plan.room.placements.talkers.values())
    for place, position in enumerate(talkers):
        if position is not None and math.dist(position, stood) <= NEAR_M:
            return place
    raise PlanError(f"plan {plan.name}: room.talker_m: none of the sweep's {len(talkers)} talkers stands there")


def _matched(grid: Grid, counts: list[Counts], row: Row, room: int, talker: int) -> Cell | None:
    place = _place(grid, row, room, talker)
    if place is None or not row.valid:
        return None
    block, places = place
    valid, errors = counts[block].pick(**places)
    if not valid:
        return None
    simulated, played = wilson(errors, valid), wilson(row.errors, row.valid)
    difference = newcombe(played, simulated)
    return Cell(
        bundle=row.bundle,
        attack=row.attack,
        crafted_on=row.crafted_on,
        target=row.target,
        eps=row.eps,
        delay_ms=row.delay_ms,
        attacker_position=row.attacker_position,
        device_position=row.device_position,
        sweep_n=valid,
        sweep_errors=errors,
        sweep_rate=simulated.rate,
        session_n=row.valid,
        session_errors=row.errors,
        session_rate=played.rate,
        gap=difference.rate,
        ci_low=difference.low,
        ci_high=difference.high,
    )


def _place(grid: Grid, row: Row, room: int, talker: int) -> tuple[int, dict[str, int]] | None:
    """Block and places of the condition that a session's row is of; None if the sweep has none."""
    axes = grid.axes
    for number, block in enumerate(grid.blocks):
        if (block.bundle, block.attack, block.on, block.target) != (
            row.bundle,
            row.attack,
            row.crafted_on,
            row.target,
        ) or row.eps not in block.eps:
            continue
        places = {BUDGET: block.eps.index(row.eps), "room": room, "talker": talker}
        places |= {"talker_level": axes.talker_levels_db.index(0.0), "level": 0, "attacker": 0, "delay": 0}
        wanted: list[tuple[str, list[Any], Any]] = [("device", _names(axes.devices), row.device_position)]
        if block.family is not None:
            places["level"] = axes.levels_db.index(0.0)
            wanted.append(("attacker", _names(axes.attackers), row.attacker_position))
            wanted.append(("delay", list(axes.delays_ms), row.delay_ms))
        for axis, values, value in wanted:
            if value not in values:
                return None
            places[axis] = values.index(value)
        return number, places
    return None


def _names(positions: dict[str, Any]) -> list[str | None]:
    """The names of places as a session has them: none where there is no room."""
    return [name if position is not None else None for name, position in positions.items()]


def _by_chance(cell: Cell) -> float:
    """The mean absolute difference of two rates over so many trials if the true rate is one and the same."""
    pooled = (cell.sweep_errors + cell.session_errors) / (cell.sweep_n + cell.session_n)
    deviation = math.sqrt(pooled * (1 - pooled) * (1 / cell.sweep_n + 1 / cell.session_n))
    return deviation * math.sqrt(2 / math.pi)
