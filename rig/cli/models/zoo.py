"""``earshot zoo``: the released bundles and one's own beside them, in figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rig.cli.console import print_json, say

if TYPE_CHECKING:
    from firmware_models.zoo.table import Row

app = typer.Typer(add_completion=False, no_args_is_help=True, help="List and compare the released models.")

PathsArgument = Annotated[
    list[Path] | None, typer.Argument(metavar="[BUNDLE|DIR]...", help="More bundles, or folders that hold some.")
]
TrustOption = Annotated[
    list[Path] | None,
    typer.Option("--trust", help="A public key KEY.pub to trust beside the zoo's; give it again for more keys."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def group() -> None:
    """List and compare the released models."""


@app.command()
def table(
    paths: PathsArgument = None,
    trust: TrustOption = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Write the table here as Markdown.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write all figures here as CSV.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare size, cost and accuracy of all bundles, from their verified manifests and cards."""
    from firmware_models.zoo.rendering import (
        HEADINGS,
        cells,
        command_lines,
        commands_of_absent,
        to_csv,
        to_markdown,
    )

    rows = _rows(paths, trust)
    for out, text in ((markdown, to_markdown(rows)), (csv, to_csv(rows))):
        if out is not None:
            _write(out, text)
    if as_json:
        print_json(
            {
                "rows": [row.to_json() for row in rows],
                "not_shipped": [{"name": name, "commands": commands} for name, commands in commands_of_absent(rows)],
            }
        )
    else:
        _print(HEADINGS, [cells(row) for row in rows])
        say()
        say("top-1 on the test list with its 95 % interval; drop: points lost to the number format; rank drop: points")
        say("lost to low rank; twin: same label as onnxruntime; minutes: training with teacher and retraining")
        say()
        say("not shipped; the commands that make them:")
        for line in command_lines(rows):
            say(f"  {line}")
    _refuse_unverified(rows)


@app.command(name="list")
def list_bundles(paths: PathsArgument = None, trust: TrustOption = None, as_json: JsonOption = False) -> None:
    """Name the bundles with their versions, sizes, keys and places."""
    from firmware_models.zoo.rendering import printable

    rows = _rows(paths, trust)
    if as_json:
        fields = ("name", "version", "size_bytes", "sha256", "key", "path", "shipped", "verified", "reason")
        print_json([{field: getattr(row, field) for field in fields} for row in rows])
    else:
        lines = [
            (row.name or "", str(row.version), f"{(row.size_bytes or 0) / 1e6:.3f}", row.key or "", printable(row.path))
            if row.verified
            else ("NOT VERIFIED", "", "", "", printable(row.path))
            for row in rows
        ]
        _print(("name", "version", "MB", "key", "path"), lines)
    _refuse_unverified(rows)


def _rows(paths: list[Path] | None, trust: list[Path] | None) -> list[Row]:
    from edge.bundle.signing import load_public_key
    from firmware_models import zoo
    from firmware_models.zoo.table import find_bundles, read_rows

    trusted = [load_public_key(path) for path in (zoo.PUBLIC_KEY, *(trust or []))]
    return read_rows(find_bundles(paths or []), trusted=trusted)


def _refuse_unverified(rows: Sequence[Row]) -> None:
    """Tell which bundles nobody may rely on.

    Raises:
        ThresholdError: there is one.
    """
    from edge.errors import ThresholdError

    bad = [row for row in rows if not row.verified]
    if bad:
        reasons = "; ".join(f"{row.path}: {row.reason}" for row in bad[:3])
        more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise ThresholdError(f"{len(bad)} of {len(rows)} bundles not verified: {reasons}{more}")


def _write(out: Path, text: str) -> None:
    from edge.errors import UsageError

    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{out}: {error.strerror}: name another file") from None


def _print(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """A drawn table on a terminal, columns of plain text where somebody reads a pipe."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if console.is_terminal:
        drawn = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for heading in headings:
            drawn.add_column(Text(heading))
        for line in lines:
            drawn.add_row(*(Text(cell) for cell in line))
        console.print(drawn)
        return
    widths = [max(len(line[place]) for line in (headings, *lines)) for place in range(len(headings))]
    for line in (headings, *lines):
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
