"""What a renderer mixes from: clips, perturbations and room responses, checked once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.errors import UsageError

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Material:
    """Sounds and the responses through which they are heard, all at one sample rate.

    Attributes:
        clips: float32 (clips, samples), full scale = 1; what talkers play.
        perturbations: float32 (perturbations, samples), what attackers play; may have no rows.
        responses: float32 (pairs, taps), from a loudspeaker to a microphone; a time of flight may stand in it as zeros.

    Raises:
        UsageError: another dtype or number of dimensions, nothing in it, or a value that is not finite.
    """

    clips: Floats
    perturbations: Floats
    responses: Floats

    def __post_init__(self) -> None:
        """Check every array."""
        check_rows("clips", self.clips)
        check_rows("perturbations", self.perturbations, may_be_empty=True)
        check_rows("responses", self.responses)

    @property
    def samples(self) -> int:
        """Length of the longest sound."""
        sounds = (self.clips, self.perturbations) if len(self.perturbations) else (self.clips,)
        return max(int(each.shape[1]) for each in sounds)


def check_rows(name: str, rows: Floats, *, may_be_empty: bool = False) -> None:
    """Refuse anything but finite float32 (rows, samples).

    Raises:
        UsageError: with the place of what is wrong.
    """
    if not isinstance(rows, np.ndarray) or rows.dtype != np.float32 or rows.ndim != 2:
        got = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise UsageError(f"{name}: {got} instead of float32 (rows, samples)")
    if not rows.size and not (may_be_empty and not len(rows)):
        raise UsageError(f"{name}: the shape {rows.shape} holds no sound")
    for number, row in enumerate(rows):
        # A sum is finite only if every term is, and costs no array of booleans.
        if not np.isfinite(row.sum(dtype=np.float64)):
            at = int(np.argmin(np.isfinite(row)))
            raise UsageError(f"{name}: row {number} holds {row[at]} at sample {at}, only finite numbers are sound")
