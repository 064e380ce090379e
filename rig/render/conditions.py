"""The table of conditions that a renderer takes: one row each, as columns."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from edge.errors import UsageError

Integers = NDArray[np.int64]
Gains = NDArray[np.float32]
Samples = NDArray[np.float64]

SILENT = -1
# Far beyond any clip, and far enough below 2^63 that sums of two stay exact.
MAX_SAMPLES = 1 << 40


@dataclass(frozen=True)
class Conditions:
    """What sounds in each condition; every column has the shape (conditions,).

    ============== ======= ======================================================================================
    column         dtype   meaning
    ============== ======= ======================================================================================
    clip           int64   row of the clips, what the talker plays
    talker         int64   row of the responses, from the talker to the device
    talker_gain    float32 factor on what the talker adds
    perturbation   int64   row of the perturbations, what the attacker plays; -1 for a silent attacker
    attacker       int64   row of the responses, from the attacker to the device (of no meaning if it is silent)
    attacker_gain  float32 factor on what the attacker adds: level, and eps where budgets differ only in scale
    delay          float64 samples by which the attacker's loudspeaker plays later than the talker's; may be negative
    start          int64   sample after the talker's loudspeaker began at which the device's window begins
    ============== ======= ======================================================================================

    Conditions that share clip, perturbation and positions should stand together: what is convolved for them is kept
    only for a while.

    Raises:
        UsageError: columns of other dtypes or lengths, or a value that no condition can have.
    """

    clip: Integers
    talker: Integers
    talker_gain: Gains
    perturbation: Integers
    attacker: Integers
    attacker_gain: Gains
    delay: Samples
    start: Integers

    def __post_init__(self) -> None:
        """Check dtypes, lengths, and that every value is finite."""
        for field in fields(self):
            column, wanted = getattr(self, field.name), _DTYPES[field.name]
            if not isinstance(column, np.ndarray) or column.dtype != wanted or column.shape != self.clip.shape:
                got = f"{column.dtype} {column.shape}" if isinstance(column, np.ndarray) else type(column).__name__
                raise UsageError(f"conditions: {field.name} is {got}, must be {wanted} {self.clip.shape}")
        if self.clip.ndim != 1:
            raise UsageError(f"conditions: clip has the shape {self.clip.shape}, must be (conditions,)")
        for name in ("talker_gain", "attacker_gain"):
            self._refuse(name, ~np.isfinite(getattr(self, name)), "must be a finite number")
        # Not a comparison that NaN would pass.
        self._refuse("delay", ~(np.abs(self.delay) <= MAX_SAMPLES), f"must be a number within +-{MAX_SAMPLES} samples")
        self._refuse("start", np.abs(self.start) > MAX_SAMPLES, f"must be within +-{MAX_SAMPLES} samples")

    def __len__(self) -> int:
        return len(self.clip)

    def __getitem__(self, rows: slice) -> Conditions:
        """Consecutive conditions, without copying."""
        part = object.__new__(Conditions)  # a part of what was checked needs no check
        for field in fields(self):
            object.__setattr__(part, field.name, getattr(self, field.name)[rows])
        return part

    def check_rows(self, *, clips: int, perturbations: int, responses: int) -> None:
        """Refuse what points outside the material.

        Raises:
            UsageError: a row that is not there; the message names the condition.
        """
        heard = self.perturbation != SILENT
        self._refuse("clip", (self.clip < 0) | (self.clip >= clips), _rows(clips))
        self._refuse("talker", (self.talker < 0) | (self.talker >= responses), _rows(responses))
        outside = heard & ((self.perturbation < 0) | (self.perturbation >= perturbations))
        self._refuse("perturbation", outside, f"{_rows(perturbations)}, or {SILENT} for none")
        self._refuse("attacker", heard & ((self.attacker < 0) | (self.attacker >= responses)), _rows(responses))

    def _refuse(self, name: str, wrong: NDArray[np.bool_], allowed: str) -> None:
        if wrong.any():
            first = int(np.argmax(wrong))
            raise UsageError(f"conditions: {name} of condition {first} is {getattr(self, name)[first]}: {allowed}")


_DTYPES = {field.name: np.dtype(np.int64) for field in fields(Conditions)} | {
    "talker_gain": np.dtype(np.float32),
    "attacker_gain": np.dtype(np.float32),
    "delay": np.dtype(np.float64),
}


def _rows(count: int) -> str:
    return f"must be a row from 0 to {count - 1}" if count else "there is none to choose"
