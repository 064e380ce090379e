"""What people type for an export, checked: shares, the method of calibration, the place of the bundle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from edge.errors import UsageError

if TYPE_CHECKING:
    import typer

    from export.fixed_point.quantise import CalibrationSettings


def share(option: str, text: str) -> float:
    """``2%``, ``2 %`` or ``0.02`` as 0.02.

    Raises:
        UsageError: no number, or not from 0 % up to below 100 %.
    """
    number = text.strip()
    try:
        value = float(number.removesuffix("%")) / (100.0 if number.endswith("%") else 1.0)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < 1.0:
        raise UsageError(f"{option} {text!r}: use a share such as 2% or 0.02, from 0 up to below 100%")
    return value


def calibration_settings(method: str | None, *, finish_steps: int) -> CalibrationSettings:
    """How ranges are chosen, and for how many steps weights are trained for them.

    Raises:
        UsageError: no such method.
    """
    from export.fixed_point.quantise import METHODS, CalibrationSettings

    try:
        chosen = {} if method is None else {"method": method}
        return CalibrationSettings.model_validate({**chosen, "finish_steps": finish_steps})
    except ValidationError:
        raise UsageError(f"--method {method!r}: use one of {', '.join(METHODS)}") from None


# What stands for a path in a card: paths say more of a machine than of a model.
_PLACES = {
    "calibration": "DIR",
    "key": "KEY.pem",
    "frontend": "FRONTEND.yaml",
    "architecture": "ARCHITECTURE.py",
    "teacher": "TEACHER",
}
_UNTOLD = frozenset({"model", "out", "version", "threads", "dry_run", "as_json", "training_data", "licence"})


def command_line(context: typer.Context, *, name: str) -> str:
    """What was typed, for the card: as it was but for paths, which are placeholders."""
    given = context.params
    model, recipe = Path(given["model"]), Path(given["retrain"] or "")
    parts = ["earshot export", model.name if model.suffix.lower() == ".onnx" else "RUN"]
    places = {**_PLACES, "run": f"RUN-{recipe.stem}", "retrain": recipe.name}
    if given["labels"] is not None and "," not in given["labels"]:
        places["labels"] = "LABELS.txt"
    for option in context.command.params:
        key = str(option.name)
        source = context.get_parameter_source(key)
        typed = source is not None and source.name == "COMMANDLINE"
        if key in _UNTOLD or not typed or given[key] in (None, False):
            continue
        parts.append(option.opts[0] if given[key] is True else f"{option.opts[0]} {places.get(key, given[key])}")
    line = " ".join([*parts, f"--out {name}.earshot"])
    # It stands between backticks on a line of its own.
    return "".join(each if each.isprintable() and each != "`" else "?" for each in line)


def check_out(out: Path) -> None:
    """Refuse a bundle that cannot be written, before any work is done.

    Raises:
        UsageError: another ending than .earshot, or a folder that is not there or not writable.
    """
    if out.suffix != ".earshot":
        raise UsageError(f"{out}: a bundle's name ends in .earshot")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise UsageError(f"{out.parent}: no such folder, or not writable")
