"""How good a model is on a data set, whatever computes its scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import DataError
from firmware_models.data import Clips
from firmware_models.progress import Progress, silent
from firmware_models.statistics import wilson

Scorer = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What :func:`evaluate` found: ``confusion`` int64 (labels, labels), rows are the truth, columns the answer."""

    labels: tuple[str, ...]
    confusion: npt.NDArray[np.int64]

    @property
    def n(self) -> int:
        """The number of clips."""
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        """The share of clips answered rightly."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def top1_interval(self) -> tuple[float, float]:
        """The Wilson 95 % interval of :attr:`top1`."""
        interval = wilson(int(np.trace(self.confusion)), self.n)
        return interval.low, interval.high

    @property
    def recalls(self) -> dict[str, float]:
        """The share answered rightly of every label that has clips."""
        counts = self.confusion.sum(1)
        return {
            label: float(self.confusion[row, row] / counts[row]) for row, label in enumerate(self.labels) if counts[row]
        }

    @property
    def balanced(self) -> float:
        """The mean of the labels' recalls: every label weighs the same."""
        return float(np.mean(list(self.recalls.values())))

    def to_json(self) -> dict[str, Any]:
        """The findings as plain values; ``per_label`` holds recall and n of every label that has clips."""
        counts = dict(zip(self.labels, self.confusion.sum(1).tolist(), strict=True))
        low, high = self.top1_interval
        return {
            "top1": self.top1,
            "top1_ci_low": low,
            "top1_ci_high": high,
            "balanced": self.balanced,
            "n": self.n,
            "labels": list(self.labels),
            "per_label": {label: {"recall": recall, "n": counts[label]} for label, recall in self.recalls.items()},
            "confusion": self.confusion.tolist(),
        }


def evaluate(scorer: Scorer, clips: Clips, *, batch: int = 64, progress: Progress = silent) -> Evaluation:
    """Score all clips: ``scorer`` takes PCM float32 (b, samples) in [-1, 1] and gives scores (b, labels).

    Raises:
        DataError: no clips, or the scorer has another number of labels.
    """
    if len(clips) == 0:
        raise DataError(f"{clips.root}: no clips to evaluate in the split {clips.split!r}")
    confusion = np.zeros((len(clips.labels), len(clips.labels)), np.int64)
    for first in range(0, len(clips), batch):
        rows = slice(first, min(first + batch, len(clips)))
        scores = scorer(clips.float_pcm(rows))
        if scores.shape[1:] != (len(clips.labels),):
            raise DataError(f"the model gives {scores.shape[1]} scores, the data has {len(clips.labels)} labels")
        np.add.at(confusion, (clips.label_index[rows], scores.argmax(1)), 1)
        progress(rows.stop, len(clips))
    return Evaluation(clips.labels, confusion)


def check_labels(model_labels: tuple[str, ...], clips: Clips) -> None:
    """Refuse to score a model on data of other labels.

    Raises:
        DataError: the labels or their order differ.
    """
    if model_labels != clips.labels:
        raise DataError(
            f"the model's labels ({' '.join(model_labels)}) are not those of {clips.root} ({' '.join(clips.labels)})"
        )
