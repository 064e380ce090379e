"""The networks, one file each, and how to build one by name."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edge.errors import UsageError
from edge.validation import describe
from firmware_models.architectures.base import FirmwareModel
from firmware_models.architectures.ds_cnn import DsCnn
from firmware_models.architectures.ete import Ete
from firmware_models.architectures.lm import Lm
from firmware_models.architectures.lms import Lms
from firmware_models.architectures.m5 import M5
from firmware_models.architectures.own import construct, import_file, origin
from firmware_models.architectures.residual import Residual

# What is shipped, and what register_file adds.
ARCHITECTURES: dict[str, type[FirmwareModel]] = {kind.name: kind for kind in (DsCnn, Ete, Lm, Lms, M5, Residual)}

__all__ = ["ARCHITECTURES", "FirmwareModel", "build", "find", "register_file"]


def find(name: str) -> type[FirmwareModel]:
    """The class of an architecture.

    Raises:
        UsageError: no such architecture is shipped or registered.
    """
    if name not in ARCHITECTURES:
        raise UsageError(
            f"architecture {name!r}: use one of {', '.join(ARCHITECTURES)}, "
            "or name the file that defines it with --architecture FILE.py"
        )
    return ARCHITECTURES[name]


def register_file(path: Path) -> list[str]:
    """Run a Python file and make the architectures it defines known by their names.

    The same file may be registered again, changed or not.

    Returns:
        the names, in the order of the file.

    Raises:
        UsageError: no such file, it does not run, it defines no usable architecture, or a name is taken; one line.
    """
    kinds = import_file(path)
    for kind in kinds:
        taken = ARCHITECTURES.get(kind.name)
        if taken is not None and (file := origin(taken)) != path.resolve():
            by = f"defined by {file}" if file else "shipped"
            raise UsageError(f"{path}: the architecture {kind.name!r} is {by} already; give yours another name")
    ARCHITECTURES.update({kind.name: kind for kind in kinds})
    return [kind.name for kind in kinds]


def build(
    name: str, *, labels: Sequence[str], window_samples: int = 16_000, rate_hz: int = 16_000, **settings: Any
) -> FirmwareModel:
    """Make an untrained model; weights come from torch's global generator, so seed it first.

    Raises:
        UsageError: no such architecture, a setting it does not have or allow, or a window too short for it.
    """
    kind = find(name)
    try:
        checked = kind.Settings(**settings)
    except ValidationError as error:
        raise UsageError(f"architecture {name}: {describe(error)}") from None
    if origin(kind) is not None:
        return construct(kind, checked, labels=tuple(labels), window_samples=window_samples, rate_hz=rate_hz)
    # A frame of the front end is 400 samples, and each layer makes less of them.
    if window_samples < rate_hz // 10:
        raise UsageError(f"architecture {name}: a window of {window_samples} samples is shorter than 0.1 s")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")
        model = kind(checked, labels=labels, window_samples=window_samples, rate_hz=rate_hz)
    if any(parameter.numel() == 0 for parameter in model.parameters()):
        raise UsageError(f"architecture {name}: a window of {window_samples} samples is too short for it")
    return model
