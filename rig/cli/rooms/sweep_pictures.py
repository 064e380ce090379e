"""``earshot sweep plot``, ``listen``, ``plan`` and ``gap``: what a sweep has found, and what is to be done about it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rig.cli.console import print_json, progress, say

if TYPE_CHECKING:
    from rig.sweep.session.gap import Gap
    from rig.sweep.session.propose import Proposal

app = typer.Typer(add_completion=False)

# Lines that a person reads; all are in JSON.
MAX_SHOWN = 40

_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Sweep = Annotated[Path, typer.Argument(help="The sweep's folder.")]


@app.command()
def plot(
    folders: Annotated[list[Path], typer.Argument(help="Folders of sweeps; error over RT60 is over all of them.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Where the pictures go.", show_default="DIR/figures")
    ] = None,
    kind: Annotated[str, typer.Option("--format", help="png, svg or pdf.")] = "png",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count and list; write nothing.")] = False,
    as_json: _Json = False,
) -> None:
    """Draw error over floor plan, distance, angle, delay, RT60 and SNR, and room responses with their decay."""
    from edge.errors import UsageError
    from rig.sweep.pictures.write import write

    if out is None:
        if len(folders) > 1:
            raise UsageError("--out: say where pictures of several sweeps go")
        out = folders[0] / "figures"
    with progress("drawing", enabled=not as_json) as drawing:
        found = write(folders, out, kind=kind, dry_run=dry_run, progress=drawing)
    if as_json:
        print_json([each.model_dump(mode="json", by_alias=True) for each in found])
        return
    for each in found:
        for name in each.pictures:
            say(f"{'would write ' if dry_run else ''}{name}")
    if len(folders) > 1 and not dry_run:
        say(f"{out}: error over RT60 of all sweeps, where their rooms differ")


@app.command()
def listen(
    folder: _Sweep,
    cell: Annotated[
        str, typer.Option("--cell", help="Which, e.g. 'attack=pgd-20,eps=0.01,device=table'; one value needs no key.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Where the FLAC files go.")],
    count: Annotated[int, typer.Option("--count", help="How many conditions of the cell.")] = 3,
    cap_dbfs: Annotated[
        float, typer.Option("--cap", help="Loudest RMS in dBFS; louder pairs are made quieter.")
    ] = -12.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be written; render nothing.")] = False,
    as_json: _Json = False,
) -> None:
    """Write what talkers said and what the device heard of it, as it was scored, to listen to."""
    from rig.sweep import listen as listening
    from rig.sweep.job import read_description, read_job

    samples = listening.choose(read_description(folder).grid, cell, count)
    if dry_run:
        listed: list[dict[str, Any]] = [
            {
                "condition": sample.index,
                "label": sample.label,
                **sample.cell,
                **{f"{kind}_file": listening.name_of(sample, kind) for kind in ("clean", "heard")},
            }
            for sample in samples
        ]
    else:
        with progress("rendering", enabled=not as_json) as rendering:
            listed = listening.record(read_job(folder), samples, out, cap_dbfs=cap_dbfs, progress=rendering)
    if as_json:
        print_json({"out": str(out), "dry_run": dry_run, "samples": listed})
        return
    for entry in listed:
        heard = "" if dry_run else f", heard as {entry['heard']}"
        quieter = f", {entry['attenuated_db']:g} dB quieter" if entry.get("attenuated_db") else ""
        verb = "would write " if dry_run else ""
        say(f"{verb}{out / entry['clean_file']} and {entry['heard_file']}: {entry['label']}{heard}{quieter}")


@app.command("plan")
def propose(
    folder: _Sweep,
    out: Annotated[Path, typer.Option("--out", help="The plan to write, a YAML file.")],
    top: Annotated[int, typer.Option("--top", help="Conditions at most, benign and controls among them.")] = 20,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Choose and tell; write nothing.")] = False,
    as_json: _Json = False,
) -> None:
    """Write the plan of the conditions worth a session: the largest effects beyond noise of the same budget."""
    from edge import files
    from rig.sweep.session.propose import propose as choose
    from rig.sweep.session.propose import to_yaml

    with progress("counting", enabled=not as_json) as counting:
        proposal = choose(folder, top=top, progress=counting)
    if not dry_run:
        files.write(out, to_yaml(proposal).encode())
    if as_json:
        chosen = [asdict(each) for each in proposal.chosen]
        told = {"sweep": proposal.sweep, "digest": proposal.digest, "conditions": proposal.conditions}
        told |= {"rt60_s": proposal.rt60_s, "talker": proposal.talker, "chosen": chosen}
        print_json(told | {"plan": None if dry_run else str(out)})
        return
    _tell_proposal(proposal)
    say(f"{'would write ' if dry_run else ''}{out}: {proposal.conditions} conditions, benign and controls among them")


@app.command()
def gap(
    sweep: _Sweep,
    session: Annotated[Path, typer.Argument(help="The session's folder.")],
    rt60_s: Annotated[
        float | None,
        typer.Option("--rt60", help="Which room of the sweep, by its RT60 in seconds.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write.", show_default="SESSION/gap.json, and into its report")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compare and tell; write nothing.")] = False,
    as_json: _Json = False,
) -> None:
    """Hold the rates of the same conditions in simulation and in a session against each other."""
    from rig.report.write import PAGE, write_report
    from rig.sweep.session import gap as gaps

    with progress("counting", enabled=not as_json) as counting:
        found = gaps.compare(sweep, session, rt60_s=rt60_s, progress=counting)
    written = out or session / gaps.FILE
    if not dry_run:
        gaps.write(found, written)
        if out is None and (session / PAGE).is_file():
            write_report([session], session)
    if as_json:
        print_json(found.model_dump(mode="json", by_alias=True) | {"file": None if dry_run else str(written)})
        return
    _tell_gap(found)
    if not dry_run:
        say(f"{written}")


def _tell_proposal(proposal: Proposal) -> None:
    for each in proposal.chosen[:MAX_SHOWN]:
        say(
            f"  {_named(each)}: {each.effect:+.1%} over the control ({each.ci_low:+.1%} to {each.ci_high:+.1%}),"
            f" n {each.n} and {each.control_n}"
        )
    if len(proposal.chosen) > MAX_SHOWN:
        say(f"  and {len(proposal.chosen) - MAX_SHOWN} more, --json has them all")


def _tell_gap(found: Gap) -> None:
    for cell in found.cells[:MAX_SHOWN]:
        say(
            f"  {_named(cell)}: sweep {cell.sweep_rate:.1%} (n {cell.sweep_n}), session {cell.session_rate:.1%}"
            f" (n {cell.session_n}), gap {cell.gap:+.1%} ({cell.ci_low:+.1%} to {cell.ci_high:+.1%})"
        )
    if len(found.cells) > MAX_SHOWN:
        say(f"  and {len(found.cells) - MAX_SHOWN} more, --json has them all")
    if not found.same_clips:
        say("warning: the session played other clips than the sweep")
    say(
        f"mean absolute gap {found.mean_absolute_gap:.1%} over {found.matched} conditions, where chance alone"
        f" would bring {found.by_chance:.1%}; {found.beyond_chance} outside of their 95 % intervals"
        + (f"; {found.session_only} of the session are not in the sweep" if found.session_only else "")
    )


def _named(each: Any) -> str:
    name = each.attack if each.crafted_on in {None, each.bundle} else f"{each.attack} from {each.crafted_on}"
    name += f" to {each.target}" if each.target else ""
    name += f" eps {each.eps:g}, {each.delay_ms:g} ms" if each.eps else ""
    places = " at ".join(place for place in (each.attacker_position, each.device_position) if place)
    return f"{each.bundle}, {name}" + (f", {places}" if places else "")
