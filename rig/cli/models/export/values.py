"""What people type for an export, checked: shares, the method of calibration, the place of the bundle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from edge.errors import UsageError

if TYPE_CHECKING:
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


def calibration_settings(method: str | None) -> CalibrationSettings:
    """How ranges are chosen.

    Raises:
        UsageError: no such method.
    """
    from export.fixed_point.quantise import METHODS, CalibrationSettings

    try:
        return CalibrationSettings.model_validate({} if method is None else {"method": method})
    except ValidationError:
        raise UsageError(f"--method {method!r}: use one of {', '.join(METHODS)}") from None


def check_out(out: Path) -> None:
    """Refuse a bundle that cannot be written, before any work is done.

    Raises:
        UsageError: another ending than .earshot, or a folder that is not there or not writable.
    """
    if out.suffix != ".earshot":
        raise UsageError(f"{out}: a bundle's name ends in .earshot")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise UsageError(f"{out.parent}: no such folder, or not writable")
