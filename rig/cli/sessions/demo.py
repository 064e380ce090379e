"""``earshot demo``: the whole road in one command, with what ships."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from edge.errors import UsageError
from rig.cli.console import print_json, say

app = typer.Typer(add_completion=False)

AIRS = ("digital", "room")


@app.command()
def demo(
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="Real recordings in the Speech Commands layout.", show_default="shipped synthetic clips"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where the report goes.", show_default="runs/demo-TIME")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print only JSON: the path of summary.json.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be run.")] = False,
) -> None:
    """Attack the shipped FP32 and INT8 models, on a device process, in the digital air and in a simulated room."""
    from rig.cli.sessions.plan import outline_plan, print_outline
    from rig.cli.sessions.session import print_summary, run_plan
    from rig.report.summary import headlines
    from rig.report.write import write_report
    from rig.session.prepare import Setup

    folder = out or Path("runs") / f"demo-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    if (folder / "summary.json").exists():
        raise UsageError(f"--out {folder}: already holds a report, choose another folder")
    if dry_run:
        with TemporaryDirectory(prefix="earshot-") as scratch:
            outline = outline_plan(_plan_file(data, Path(scratch)), None, show_progress=not as_json)
        print_json(outline) if as_json else print_outline(outline)
        return
    plan = _plan_file(data, folder)
    if not as_json:
        say(
            f"clips: the test recordings of {data}"
            if data
            else "clips: synthesised by espeak-ng and shipped with earshot (no recording); use --data for real speech"
        )
        say("attacks are made on the exact models that the device runs; broker, device and room are on this machine")
    sessions = []
    for air in AIRS:
        sessions.append(folder / air)
        run_plan(plan, air, sessions[-1], Setup(), quiet=as_json)
    summary = write_report(sessions, folder, name="demo on real recordings" if data else "demo on synthetic clips")
    if as_json:
        print_json({"summary": str((folder / "summary.json").resolve()), "complete": summary.complete})
        return
    print_summary(summary, headlines(summary.rows))
    say(f"each model and air: benign, control, worst attack; all {len(summary.rows)} conditions, pictures and sounds:")
    say(f"report: {(folder / 'report.html').resolve()}")


def _plan_file(data: Path | None, folder: Path) -> Path:
    """The shipped plan, or its copy in ``folder`` that speaks the clips of ``data``."""
    import yaml

    import rig

    shipped = Path(rig.__file__).parent / "plans" / "demo.yaml"
    if data is None:
        return shipped
    if not data.is_dir():
        raise UsageError(f"--data {data}: no such folder")
    document = yaml.safe_load(shipped.read_text(encoding="utf-8"))
    document["clips"].update(data=str(data.resolve()), split="test", count=100)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "demo.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path
