"""``earshot session``: run a plan, go on after an interruption, look at the result."""

from __future__ import annotations

import os
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.errors import ThresholdError, UsageError
from rig.cli.console import print_json, progress, say
from rig.cli.devices.options import OperatorOption, StationOption
from rig.cli.sessions.plan import outline_plan, print_outline

if TYPE_CHECKING:
    from rig.report.summary import Row, Summary
    from rig.session.prepare import Setup

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Run, resume and show sessions.")

DeviceOption = Annotated[
    str,
    typer.Option("--device", help="local: a process per bundle. mqtt://HOST[:PORT]/NAME: a device that already runs."),
]
BrokerOption = Annotated[
    str, typer.Option("--broker", help="For local devices: embedded, embedded:PORT or mqtt://HOST[:PORT].")
]
ListenOption = Annotated[
    str, typer.Option("--listen", help="HOST:PORT that serves a remote device's socket microphone (port 0: any).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def run(
    plan: Annotated[Path, typer.Argument(help="The plan, a YAML file.")],
    air: Annotated[str, typer.Option("--air", help="The medium: digital or room.")] = "digital",
    device: DeviceOption = "local",
    broker: BrokerOption = "embedded",
    listen: ListenOption = "127.0.0.1:0",
    operator: OperatorOption = None,
    station: StationOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The session's folder.", show_default="runs/PLAN-AIR-TIME")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be run.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a plan in one air and write its report."""
    setup = make_setup(device, broker, listen, operator=operator, station=station)
    if dry_run:
        outline = outline_plan(plan, air, show_progress=not as_json)
        print_json(outline) if as_json else print_outline(outline)
        return
    folder = out or Path("runs") / f"{plan.stem}-{air}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    finish(run_plan(plan, air, folder, setup, quiet=as_json), folder, as_json=as_json)


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="A session's folder.")],
    device: Annotated[str | None, typer.Option("--device", help="Another device than the session began with.")] = None,
    broker: Annotated[str | None, typer.Option("--broker", help="Another broker.")] = None,
    listen: Annotated[str | None, typer.Option("--listen", help="Another HOST:PORT for the sound.")] = None,
    operator: OperatorOption = None,
    station: StationOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the trials of a session that have no result yet; nothing that counts is repeated."""
    from rig.journal import Journal

    with Journal(folder, read_only=True) as journal:
        stored = journal.meta()["setup"]
    sound = listen or f"{stored['sound_host']}:{stored['sound_port']}"
    if operator is None and station is None and stored.get("operator"):
        operator = Path(stored["operator"])
    setup = make_setup(
        device or stored["device"], broker or stored["broker"], sound, operator=operator, station=station
    )
    finish(continue_session(folder, setup, quiet=as_json), folder, as_json=as_json)


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="A session's folder.")],
    as_json: JsonOption = False,
) -> None:
    """Print the rates of a session, finished or not."""
    from rig.report.summary import summarise

    summary = summarise([folder])
    if as_json:
        print_json(summary.model_dump())
        return
    print_summary(summary)


def make_setup(
    device: str, broker: str, listen: str, *, operator: Path | None = None, station: Path | None = None
) -> Setup:
    """The station's facts from the command line and the station file.

    Raises:
        UsageError: a value has the wrong form, or a device that runs elsewhere has no usable operator's key.
    """
    from edge.bundle.signing import load_private_key
    from rig.cli.devices.options import access
    from rig.session.prepare import Setup
    from rig.session.stage import parse_broker, parse_device

    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"--listen {listen!r}: use HOST:PORT, e.g. 0.0.0.0:7000")
    parse_broker(broker)
    key: Path | None = None
    if device != "local":
        url, _ = parse_device(device)
        reach = access(str(url), operator, station)
        key = reach.need_operator().absolute()
        load_private_key(key)
    return Setup(
        device=device,
        broker=broker,
        sound_host=host.strip("[]"),
        sound_port=int(port),
        operator=None if key is None else str(key),
    )


def run_plan(plan: Path, air: str, folder: Path, setup: Setup, *, quiet: bool) -> Summary:
    """Create a session and run it to its end."""
    from rig.plan import load
    from rig.session import material
    from rig.session.prepare import create

    loaded_plan = load(plan)
    with progress("reading clips", enabled=not quiet) as reading:
        loaded = material.load(loaded_plan, air, progress=reading)
    create(folder, loaded, setup, command=["earshot", *sys.argv[1:]])
    return continue_session(folder, setup, quiet=quiet)


def continue_session(folder: Path, setup: Setup, *, quiet: bool) -> Summary:
    """Run what is open of a session and write its report, also when it is interrupted."""
    import torch

    from rig.journal import Journal
    from rig.plan import load
    from rig.report.write import write_report
    from rig.session import material
    from rig.session.prepare import PLAN
    from rig.session.run import resume

    with Journal(folder, read_only=True) as journal:
        air = journal.meta()["air"]
    # Half of the cores: the other half belongs to the devices, and torch slows down badly when it must share.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    try:
        with (
            progress("crafting", enabled=not quiet) as crafting,
            progress(f"playing in the {air} air", enabled=not quiet) as playing,
        ):
            resume(
                folder,
                lambda: material.load(load(folder / PLAN), air),
                setup=setup,
                crafting=crafting,
                playing=playing,
            )
    finally:
        summary = write_report([folder], folder)
    return summary


def finish(summary: Summary, folder: Path, *, as_json: bool) -> None:
    """Say where the result lies.

    Raises:
        ThresholdError: trials are still open.
    """
    if as_json:
        print_json({"summary": str((folder / "summary.json").resolve()), "complete": summary.complete})
    else:
        print_summary(summary)
        say(f"report: {folder / 'report.html'}")
    if not summary.complete:
        left = summary.trials - summary.concluded
        raise ThresholdError(f"session {folder}: {left} trials are open, go on with 'earshot session resume {folder}'")


def print_summary(summary: Summary, rows: list[Row] | None = None) -> None:
    """A table for a person: of all conditions, or of ``rows``; places stand in it only where there are several."""
    from rich.console import Console
    from rich.table import Table

    rows = summary.rows if rows is None else rows
    table = Table(title=f"{summary.name}: {summary.concluded} of {summary.trials} trials", title_justify="left")
    places = [{row.attacker_position for row in rows} - {None}, {row.device_position for row in rows} - {None}]
    placed = any(len(names) > 1 for names in places)
    for heading in ("air", "bundle", "attack", *(("attacker", "device") if placed else ())):
        table.add_column(heading)
    for heading in ("eps", "delay ms", "SNR dB", "valid", "invalid", "error", "95 % interval"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*_cells(row, placed=placed))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    for entry in summary.excluded:
        say(f"excluded in the {entry.air} air: {entry.attempts} attempts, {entry.reason}")


def _cells(row: Row, *, placed: bool) -> list[str]:
    unknown = row.error_rate is None or row.ci_low is None or row.ci_high is None
    transfer = f" from {row.crafted_on}" if row.crafted_on not in {None, row.bundle} else ""
    return [
        row.air,
        row.bundle,
        row.attack + transfer + (f" → {row.target}" if row.target else ""),
        *((row.attacker_position or "", row.device_position or "") if placed else ()),
        f"{row.eps:g}" if row.eps else "",
        f"{row.delay_ms:g}",
        "" if row.snr_db is None else f"{row.snr_db:.1f}",
        str(row.valid),
        str(row.invalid),
        "–" if unknown else f"{100 * (row.error_rate or 0):.1f} %",
        "–" if unknown else f"{100 * (row.ci_low or 0):.1f} – {100 * (row.ci_high or 0):.1f} %",
    ]
