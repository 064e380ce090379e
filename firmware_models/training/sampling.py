"""Which clips a training step sees: labels by weight, clips of a label evenly, silence made anew each time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge.errors import DataError
from firmware_models.data import SILENCE, UNKNOWN, Clips
from firmware_models.training.augmentation import Augmenter, Floats
from firmware_models.training.recipe import Sampling


class Sampler:
    """Draws augmented batches. A batch follows from the seed and the step alone, so a resumed run sees the same."""

    def __init__(self, clips: Clips, synthetic: Clips | None, settings: Sampling, augmenter: Augmenter) -> None:
        self.augmenter = augmenter
        self.labels = clips.labels
        self._share = settings.synthetic_share if synthetic is not None else 0.0
        self._real = _rows_by_label(clips)
        self._synthetic = (
            _rows_by_label(synthetic) if synthetic is not None else [np.zeros(0, np.intp)] * len(self.labels)
        )
        self._pcm = clips.pcm
        self._synthetic_pcm = synthetic.pcm if synthetic is not None else clips.pcm
        weight = {UNKNOWN: settings.unknown_weight, SILENCE: settings.silence_weight}
        weights = np.array([weight.get(label, 1.0) for label in self.labels])
        empty = [index for index, rows in enumerate(self._real) if rows.size == 0]
        weights[empty] = 0.0
        missing = [repr(self.labels[index]) for index in empty if self.labels[index] not in weight]
        if missing or not weights.any():
            raise DataError(
                f"{clips.root}: no clip of {', '.join(missing) or 'any label'} in the split {clips.split!r}"
            )
        self._weights = weights / weights.sum()

    def batch(self, size: int, *, seed: int, step: int) -> tuple[Floats, npt.NDArray[np.int64]]:
        """PCM float32 (size, samples) in [-1, 1] and label indices int64 (size,)."""
        rng = np.random.default_rng((seed, step))
        label_index = rng.choice(len(self.labels), size, p=self._weights)
        pcm = np.stack([self._clip(int(index), rng) for index in label_index])
        return pcm, label_index.astype(np.int64)

    def _clip(self, label: int, rng: np.random.Generator) -> Floats:
        rows, source = self._real[label], self._pcm
        # A data set may bring clips of silence, but no noise to make more of.
        if self.labels[label] == SILENCE and (self.augmenter.has_noise or rows.size == 0):
            return self.augmenter.silence(self._pcm.shape[1], rng)
        if self._synthetic[label].size and rng.random() < self._share:
            rows, source = self._synthetic[label], self._synthetic_pcm
        return self.augmenter(source[rows[rng.integers(rows.size)]], rng)


def _rows_by_label(clips: Clips) -> list[npt.NDArray[np.intp]]:
    return [np.flatnonzero(clips.label_index == index) for index in range(len(clips.labels))]
