"""``earshot sweep``: every condition of a plan, simulated and scored, on this or many machines."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rig.cli.console import print_json, progress, say
from rig.cli.rooms import sweep_pictures

if TYPE_CHECKING:
    from rig.sweep.prepare import Outline
    from rig.sweep.summary import Rate, Summary

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Simulate and score every condition of a plan.")
app.add_typer(sweep_pictures.app)

# Rows that a person reads; all are in summary.json.
MAX_SHOWN = 60


@app.callback()
def group() -> None:
    """Simulate and score every condition of a plan."""


@app.command()
def run(
    plan: Annotated[Path, typer.Argument(help="The plan, a YAML file.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the sweep; one that was stopped goes on.")],
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes on this machine, one thread each.")] = 1,
    scheduler: Annotated[
        str | None, typer.Option("--scheduler", help="Address of a Dask scheduler, tcp://HOST:PORT.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, or cuda for rendering and scoring on a GPU.")] = "cpu",
    chunk: Annotated[
        int | None, typer.Option("--chunk", help="Conditions per file; the rows do not depend on it.", min=1)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count and estimate; write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compute a sweep, or what is missing of it, and its rates."""
    from rig.plan import load
    from rig.sweep.prepare import begin, outline
    from rig.sweep.running.run import check_machinery
    from rig.sweep.running.run import run as compute

    check_machinery(workers=workers, scheduler=scheduler, device=device)
    loaded = load(plan)
    with progress("reading clips", enabled=not as_json) as reading:
        found = outline(loaded, chunk=chunk, device=device, progress=reading)
    if dry_run:
        _tell_outline(_outlined(found, workers), as_json=as_json)
        return
    with progress("preparing", enabled=not as_json) as preparing:
        job = begin(found, out, chunk=chunk, progress=preparing)
    began = time.monotonic()
    with progress("sweep", enabled=not as_json) as sweeping:
        outcome = compute(job, workers=workers, scheduler=scheduler, device=device, progress=sweeping)
    took_s = time.monotonic() - began
    if as_json:
        facts = {"out": str(out), "seconds": round(took_s, 3), "chunks_computed": outcome.computed}
        print_json(
            facts | {"chunks_found": outcome.found, "chunks_replaced": outcome.replaced} | _overall(outcome.summary)
        )
        return
    _tell_summary(outcome.summary)
    if outcome.replaced:
        say(f"{outcome.replaced} damaged chunks were computed again")
    say(f"{out}: {outcome.computed} of {job.grid.chunks} chunks computed in {took_s:.1f} s")


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="The sweep's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json.")] = False,
) -> None:
    """Show the rates of a sweep."""
    from rig.sweep.summary import read_summary

    summary = read_summary(folder)
    if as_json:
        print_json(summary.model_dump(mode="json", by_alias=True))
        return
    _tell_summary(summary)


def _overall(summary: Summary) -> dict[str, Any]:
    return summary.model_dump(mode="json", by_alias=True, exclude={"conditions"})


def _outlined(found: Outline, workers: int) -> dict[str, Any]:
    from rig.sweep.estimate import FILE_BYTES_PER_ROW, scoring_s

    grid, axes = found.grid, found.grid.axes
    per_condition_s = scoring_s(list(found.loaded.bundles.values()))
    return {
        "plan": found.plan.name,
        "digest": found.digest,
        "conditions": grid.total,
        "chunks": grid.chunks,
        "chunk": grid.chunk,
        "axes": {
            "bundles": list(found.loaded.bundles),
            "clips": len(axes.clips),
            "rt60_s": list(axes.rt60_s),
            "talkers": len(axes.talkers),
            "devices": len(axes.devices),
            "attackers": len(axes.attackers),
            "delays_ms": list(axes.delays_ms),
            "levels_db": list(axes.levels_db),
            "talker_levels_db": list(axes.talker_levels_db),
            "repeats": axes.repeats,
        },
        "perturbations": len(found.crafted) * len(axes.clips),
        "megabytes": round(grid.total * FILE_BYTES_PER_ROW / 1e6, 1),
        "scoring_ms": round(per_condition_s * 1000, 3),
        "estimated_s": round(per_condition_s * grid.total / workers, 1),
    }


def _tell_outline(outline: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(outline)
        return
    say(f"plan {outline['plan']}: {outline['conditions']} conditions in {outline['chunks']} chunks")
    for axis, values in outline["axes"].items():
        say(f"  {axis}: {', '.join(map(str, values)) if isinstance(values, list) else values}")
    say(f"  {outline['perturbations']} perturbations to craft, unless they are kept from before")
    say(
        f"about {outline['megabytes']:g} MB, and {outline['estimated_s']:.0f} s for scoring"
        f" ({outline['scoring_ms']:g} ms each, measured now); rendering adds to it"
    )


def _tell_summary(summary: Summary) -> None:
    state = "complete" if summary.complete else f"incomplete, {summary.computed} of {summary.total} conditions"
    say(f"sweep {summary.name}: {summary.total} conditions, {summary.cells} cells, {state}")
    for reason, count in summary.invalid.items():
        say(f"  {count} do not count: {reason}")
    for rate in summary.overall[:MAX_SHOWN]:
        say("  " + _told(rate))
    if len(summary.overall) > MAX_SHOWN:
        say(f"  and {len(summary.overall) - MAX_SHOWN} more in summary.json")


def _told(rate: Rate) -> str:
    name = rate.attack if rate.crafted_on in {None, rate.bundle} else f"{rate.attack} from {rate.crafted_on}"
    if rate.target:
        name += f" to {rate.target}"
    if rate.eps:
        name += f" eps {rate.eps:g}"
    if rate.error_rate is None or rate.ci_low is None or rate.ci_high is None:
        return f"{rate.bundle}, {name}: none of {rate.n} counts"
    text = (
        f"{rate.bundle}, {name}: {rate.error_rate:.1%} errors ({rate.ci_low:.1%} to {rate.ci_high:.1%}), n {rate.valid}"
    )
    if rate.targeted_success is not None:
        text += f", target heard {rate.targeted_success:.1%}"
    return text + (f", SNR {rate.snr_db:.1f} dB" if rate.snr_db is not None else "")
