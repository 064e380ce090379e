"""``earshot report``: one report over several sessions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rig.cli.console import print_json, say

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Session folders.")],
    out: Annotated[Path, typer.Option("--out", help="Where the report goes.")],
    name: Annotated[str | None, typer.Option("--name", help="Title of the report.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write summary.json, results.parquet and report.html of one or more sessions."""
    from rig.report.write import write_report

    summary = write_report(folders, out, name=name)
    if as_json:
        print_json({"summary": str((out / "summary.json").resolve()), "complete": summary.complete})
        return
    say(f"report: {out / 'report.html'}")
