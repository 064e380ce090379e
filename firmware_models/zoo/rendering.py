"""The zoo's table as text, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from firmware_models.zoo.commands import Planned, grid
from firmware_models.zoo.table import Row

HEADINGS = (
    *("model", "rank", "format", "profile", "computes in", "graph MB", "bundle MB", "parameters", "M mult-adds"),
    *("top-1 %", "95 %", "n", "balanced %", "drop", "rank drop", "twin %", "log floor", "minutes", "shipped"),
)


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, one cell for each of :data:`HEADINGS`."""
    if not row.verified:
        return (printable(row.path), *[""] * (len(HEADINGS) - 2), "NOT VERIFIED")
    return (
        row.name or "",
        ", ".join(f"{kind} {rank}" for kind, rank in (row.ranks or {}).items()) or "full",
        format_name(row),
        row.profile or "",
        row.computes_in or "",
        _number(row.graph_bytes, 1e-6, 3),
        _number(row.size_bytes, 1e-6, 3),
        "" if row.parameters is None else f"{row.parameters:,}",
        _number(row.multiply_adds, 1e-6, 1),
        _number(row.top1, 100, 2),
        "" if row.top1 is None else f"{_number(row.top1_low, 100, 1)}..{_number(row.top1_high, 100, 1)}",
        "" if row.n is None else str(row.n),
        _number(row.balanced, 100, 2),
        _number(row.drop_points, 1, 2),
        _number(row.rank_drop_points, 1, 2),
        _number(row.twin_labels_equal, 100, 2),
        "" if row.log_floor is None else f"{row.log_floor:g}",
        _number(row.minutes, 1, 1),
        "yes" if row.shipped else "no",
    )


def format_name(row: Row) -> str:
    """Width of weights and, where it differs, of activations; members of an ensemble."""
    kind = "FP32" if row.bits == 32 else f"INT{row.bits}"
    if row.bits != 32 and row.activation_bits not in {None, row.bits}:
        kind += " weights only" if row.activation_bits == 32 else f", activations {row.activation_bits}"
    return kind if row.members is None else f"{kind}, ensemble of {row.members}"


def to_markdown(rows: Sequence[Row]) -> str:
    """The table and the commands of what is not shipped, as Markdown."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells(row)) + " |" for row in rows]
    lines += [
        "",
        *(f"Not verified: `{printable(row.path)}`: {printable(row.reason or '')}" for row in rows if not row.verified),
    ]
    lines += ["", "Not shipped; the commands that make them:", ""]
    lines += [f"    {line}" for line in command_lines(rows)]
    return "\n".join(lines) + "\n"


def command_lines(rows: Sequence[Row]) -> list[str]:
    """What makes the bundles that are not released, in an order in which it can be run; no command is there twice."""
    lines: list[str] = []
    for name, commands in commands_of_absent(rows):
        lines += [command for command in (f"# {name}", *commands) if command not in lines]
    return lines


def commands_of_absent(rows: Sequence[Row]) -> list[tuple[str, tuple[str, ...]]]:
    """Name and commands of what is not released: all of the zoo's grid, then other bundles that are in the table."""
    shipped = {_place(row) for row in rows if row.shipped}
    made = [row for row in rows if row.verified and not row.shipped and row.commands]
    own = {_place(row): row.commands for row in made}
    absent = [each for each in grid() if each not in shipped]
    found = [(each.name, own.get(each, each.commands)) for each in absent]
    return found + [(row.name or "", row.commands) for row in made if _place(row) not in absent]


def _place(row: Row) -> Planned | None:
    """Where a bundle belongs in the grid, if it is one of its kind."""
    usual = row.profile == ("storage" if row.bits in {4, 16} else "cpu") and row.activation_bits == row.bits
    if not usual or row.members is not None or row.architecture is None or row.bits is None:
        return None
    return Planned(row.architecture, row.bits, bool(row.ranks))


def to_csv(rows: Sequence[Row]) -> str:
    """All fields of all rows, numbers as they are, one line each."""
    fields = [field for field in Row.__dataclass_fields__ if field != "commands"]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*fields, "commands"])
    for row in rows:
        writer.writerow([*(_plain(getattr(row, field)) for field in fields), " && ".join(row.commands)])
    return buffer.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return " ".join(f"{key} {number}" for key, number in value.items())
    return printable(value) if isinstance(value, str) else "" if value is None else value


def printable(text: str) -> str:
    """Text of strangers without control characters, which could rewrite what the terminal shows."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _number(value: float | None, factor: float, digits: int) -> str:
    return "" if value is None else f"{value * factor + 0.0:.{digits}f}"
