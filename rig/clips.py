"""The recordings that the talker speaks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge.errors import PlanError
from firmware_models import data
from firmware_models.progress import Progress, silent
from firmware_models.zoo import CLIPS
from rig.airs.protocol import Pcm
from rig.journal import ClipRecord
from rig.plan import ClipChoice

NOT_SPOKEN = ("_unknown_", "_silence_")


@dataclass(frozen=True)
class Clip:
    """One recording: int16 PCM (window,) and its label."""

    path: str
    label: str
    pcm: Pcm

    @property
    def record(self) -> ClipRecord:
        """What the journal keeps of it."""
        return ClipRecord(self.path, self.label, hashlib.sha256(self.pcm.astype("<i2").tobytes()).hexdigest())


def choose(
    choice: ClipChoice,
    labels: tuple[str, ...],
    *,
    seed: int,
    window_samples: int | None = None,
    progress: Progress = silent,
) -> list[Clip]:
    """Draw the clips of a plan, the same number per label as far as there are enough.

    Args:
        choice: the plan's choice.
        labels: what the models know.
        seed: the draw.
        window_samples: what the models hear; by default what is usual for the data set.
        progress: of decoding the data set.

    Raises:
        PlanError: a wanted label is none of the models' labels, or too few clips exist.
        DataError: the folder is not a data set.
    """
    wanted = choice.labels or tuple(label for label in labels if label not in NOT_SPOKEN)
    for label in wanted:
        if label not in labels:
            raise PlanError(f"clips.labels: {label!r} is unknown to the models, allowed: {', '.join(labels)}")
    folder = CLIPS if choice.data == "zoo" else Path(choice.data)
    found = data.load(folder, choice.split, window_samples=window_samples, progress=progress)
    generator = np.random.default_rng(seed)
    names = np.array(found.labels)[found.label_index]
    decks = [generator.permutation(np.flatnonzero(names == label)) for label in wanted]
    deepest = max((len(deck) for deck in decks), default=0)
    # Deal one clip per label in turn, so that every label has its share whatever the count.
    dealt = [deck[turn] for turn in range(deepest) for deck in decks if turn < len(deck)][: choice.count]
    if len(dealt) < choice.count:
        raise PlanError(
            f"clips.count: {choice.count} wanted, {len(dealt)} found for {', '.join(wanted)}"
            f" in the {choice.split} split of {folder}"
        )
    return [Clip(str(found.path[i]), str(names[i]), np.array(found.pcm[i], dtype=np.int16)) for i in sorted(dealt)]
