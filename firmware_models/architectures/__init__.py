"""The networks, one file each, and how to build one by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from edge.errors import UsageError
from firmware_models.architectures.base import FirmwareModel
from firmware_models.architectures.ete import Ete
from firmware_models.architectures.lm import Lm
from firmware_models.architectures.lms import Lms
from firmware_models.architectures.residual import Residual

ARCHITECTURES: dict[str, type[FirmwareModel]] = {"ete": Ete, "lm": Lm, "lms": Lms, "residual": Residual}

__all__ = ["ARCHITECTURES", "FirmwareModel", "build"]


def build(
    name: str, *, labels: Sequence[str], window_samples: int = 16_000, rate_hz: int = 16_000, **settings: Any
) -> FirmwareModel:
    """Make an untrained model; weights come from torch's global generator, so seed it first.

    Raises:
        UsageError: no such architecture, or a setting it does not have or allow.
    """
    if name not in ARCHITECTURES:
        raise UsageError(f"architecture {name!r}: use one of {', '.join(ARCHITECTURES)}")
    kind = ARCHITECTURES[name]
    try:
        checked = kind.Settings(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"architecture {name}: {where}: {first['msg']}") from None
    return kind(checked, labels=labels, window_samples=window_samples, rate_hz=rate_hz)
