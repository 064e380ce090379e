"""All pictures of one or more sweeps, and a file with every number in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from edge import files
from edge.errors import PlanError, UsageError
from firmware_models.progress import Progress, silent
from rig import plan as plans
from rig.scenes.scene import Scene
from rig.sweep import job as jobs
from rig.sweep.job import Description, read_description
from rig.sweep.pictures import decay, draw, floor
from rig.sweep.pictures.charts import VIEWS, Chart, charts, over_rt60
from rig.sweep.pictures.tally import Counts, tally

NUMBERS = "figures.json"


class Figures(BaseModel):
    """``figures.json`` of a sweep: the numbers of its pictures."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)

    schema_version: Annotated[Literal[1], Field(alias="schema")] = 1
    sweep: str
    digest: str
    rt60_s: tuple[float | None, ...]
    charts: tuple[Chart, ...]
    maps: tuple[floor.Map, ...]
    responses: tuple[decay.Response, ...]
    pictures: tuple[str, ...]


@dataclass(frozen=True)
class _Sweep:
    folder: Path
    description: Description
    scene: Scene | None
    counts: dict[str, list[Counts]]
    rt60_s: tuple[float | None, ...]


def write(
    folders: Sequence[Path], out: Path, *, kind: str = "png", dry_run: bool = False, progress: Progress = silent
) -> list[Figures]:
    """Write the pictures of sweeps and their numbers into ``out``.

    Args:
        folders: of sweeps; with several, each has a folder of its own within ``out``, and error over RT60 is over all.
        out: made if absent.
        kind: png, svg or pdf.
        dry_run: count, but write nothing.
        progress: conditions counted, then pictures.

    Raises:
        PlanError: a folder holds no sweep, or none of its rows is computed.
        UsageError: another format.
    """
    draw.require_format(kind)
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UsageError("a sweep is named twice, and its conditions would count twice; name it once")
    sweeps = [_read(folder, progress) for folder in folders]
    shared = over_rt60([(sweep.description.grid, sweep.counts, sweep.rt60_s) for sweep in sweeps])
    found = []
    for sweep, into in zip(sweeps, _places(folders, out), strict=True):
        figures = _write_one(sweep, into, kind, shared if len(sweeps) == 1 else None, progress, dry_run=dry_run)
        if not dry_run:
            files.write(into / NUMBERS, (figures.model_dump_json(indent=1, by_alias=True) + "\n").encode())
        found.append(figures)
    if shared is not None and len(sweeps) > 1 and not dry_run:
        draw.save(out / f"rt60.{kind}", draw.draw(shared))
        files.write(out / "rt60.json", (shared.model_dump_json(indent=1) + "\n").encode())
    return found


def _places(folders: Sequence[Path], out: Path) -> list[Path]:
    if len(folders) == 1:
        return [out]
    return [out / f"{number}-{folder.resolve().name}" for number, folder in enumerate(folders, start=1)]


def _read(folder: Path, progress: Progress) -> _Sweep:
    description = read_description(folder)
    scene = plans.load(folder / jobs.PLAN).room
    rt60_s: tuple[float | None, ...] = (None,)
    if scene is not None:
        wires = decay.Wires(folder, description)
        rt60_s = tuple(_rt60_s(facts, wires, room) for room, facts in enumerate(description.rooms))
    counts = tally(folder, description.grid, VIEWS, progress=progress)
    return _Sweep(folder, description, scene, counts, rt60_s)


def _rt60_s(facts: dict[str, object], wires: decay.Wires, room: int) -> float | None:
    known = facts.get("rt60_s")
    return float(known) if isinstance(known, int | float) else wires.rt60_s(room)


def _write_one(
    sweep: _Sweep, out: Path, kind: str, rt60: Chart | None, progress: Progress, *, dry_run: bool
) -> Figures:
    grid = sweep.description.grid
    drawn = [*charts(grid, sweep.counts), *([rt60] if rt60 is not None else [])]
    found = floor.maps(grid, sweep.counts) if sweep.scene is not None else []
    bundles = list(dict.fromkeys(each.bundle for each in found))
    names = [f"{chart.name}.{kind}" for chart in drawn] + [f"map-{bundle}.{kind}" for bundle in bundles]
    responses: list[decay.Response] = []
    if sweep.scene is not None:
        names.append(f"response.{kind}")
    if not names:
        raise PlanError(f"sweep {sweep.folder}: has no attack and no room, so there is nothing to draw")
    if not dry_run:
        for number, chart in enumerate(drawn):
            draw.save(out / f"{chart.name}.{kind}", draw.draw(chart))
            progress(number + 1, len(names), chart.name)
        if sweep.scene is not None:
            for bundle in bundles:
                figure = floor.draw(sweep.scene, [each for each in found if each.bundle == bundle])
                draw.save(out / f"map-{bundle}.{kind}", figure)
            wires = decay.Wires(sweep.folder, sweep.description)
            figure, responses = decay.draw(wires, sweep.description.rate_hz, len(grid.axes.rt60_s))
            draw.save(out / f"response.{kind}", figure)
            progress(len(names), len(names), "responses")
    return Figures(
        sweep=sweep.description.name,
        digest=sweep.description.digest,
        rt60_s=sweep.rt60_s,
        charts=tuple(drawn),
        maps=tuple(found),
        responses=tuple(responses),
        pictures=tuple(str(out / name) for name in names),
    )
