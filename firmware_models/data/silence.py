"""The ``_silence_`` clips: windows of background noise, a stretch of each recording per split.

Every noise recording is cut in time, the first 80 % for training, then 10 % for validation and 10 % for the
test, so that no sample is heard in two splits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge.errors import DataError
from firmware_models.data.audio import WINDOW_SAMPLES, decode_long
from firmware_models.data.layout import BACKGROUND, SPLITS, Skipped

STRETCHES = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}
# As in the data set's own tools: a tenth as many clips of silence as clips of commands.
SHARE = 0.1
_SEED = 2018


@dataclass(frozen=True, slots=True)
class Noise:
    """A stretch of one background recording: ``pcm`` int16 (samples,), ``start_sample`` within the recording."""

    path: str
    start_sample: int
    pcm: npt.NDArray[np.int16]


def read_noises(
    paths: Sequence[Path], split: str, window_samples: int = WINDOW_SAMPLES
) -> tuple[list[Noise], list[Skipped]]:
    """The stretch of every recording that belongs to ``split`` and is at least a window long."""
    noises: list[Noise] = []
    skipped: list[Skipped] = []
    for path in paths:
        name = f"{BACKGROUND}/{path.name}"
        try:
            pcm = decode_long(path)
        except DataError as error:
            skipped.append(Skipped(name, str(error).removeprefix(f"{path}: ")))
            continue
        first, last = STRETCHES[split]
        start, stop = round(first * pcm.size), round(last * pcm.size)
        if stop - start >= window_samples:
            noises.append(Noise(name, start, pcm[start:stop]))
    return noises, skipped


def silence_clips(
    noises: Sequence[Noise], *, split: str, commands: int, window_samples: int = WINDOW_SAMPLES
) -> tuple[npt.NDArray[np.int16], tuple[str, ...]]:
    """A tenth as many clips as there are ``commands``, spread evenly over the noises, scaled by 0..1.

    Returns:
        pcm int16 (n, window_samples), and for each clip where it comes from, ``file@start_sample*gain``.
    """
    count = math.ceil(SHARE * commands) if noises else 0
    rng = np.random.default_rng((_SEED, SPLITS.index(split)))
    pcm = np.zeros((count, window_samples), np.int16)
    names = []
    for row in range(count):
        noise = noises[row % len(noises)]
        of_this_noise = math.ceil((count - row % len(noises)) / len(noises))
        room = noise.pcm.size - window_samples
        start = round(room * (row // len(noises)) / max(of_this_noise - 1, 1))
        gain = rng.uniform()
        pcm[row] = np.rint(noise.pcm[start : start + window_samples] * gain)
        names.append(f"{noise.path}@{noise.start_sample + start}*{gain:.4f}")
    return pcm, tuple(names)
