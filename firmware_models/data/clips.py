"""A split of a data set, ready to be scored or trained on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge.errors import DataError
from firmware_models.data.audio import RATE_HZ
from firmware_models.data.cache import open_cache
from firmware_models.data.kind import scan_any, usual_window
from firmware_models.data.layout import BACKGROUND, SPLITS, Skipped
from firmware_models.data.silence import Noise, read_noises
from firmware_models.progress import Progress, silent


@dataclass(frozen=True, slots=True, eq=False)
class Clips:
    """Clips of one length each.

    ``pcm`` is int16 (n, window_samples), ``label_index`` int64 (n,) into ``labels``; ``speaker`` (or recording) and
    ``path`` (relative to ``root``, with ``@start_sample`` for a part) are per clip; ``skipped`` are the files of the
    whole data set that could not be used.
    """

    root: Path
    split: str
    pcm: npt.NDArray[np.int16]
    label_index: npt.NDArray[np.int64]
    labels: tuple[str, ...]
    speaker: tuple[str, ...]
    path: tuple[str, ...]
    skipped: tuple[Skipped, ...] = ()
    rate_hz: int = RATE_HZ

    def __len__(self) -> int:
        return len(self.pcm)

    @property
    def window_samples(self) -> int:
        """The length of every clip."""
        return int(self.pcm.shape[1])

    def float_pcm(self, rows: slice | npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        """Some of the clips as float32 (rows, samples) in [-1, 1)."""
        return self.pcm[rows].astype(np.float32) / np.float32(32768)

    def speaker_count(self) -> int:
        """The number of people (or recordings) heard; the background noise is nobody."""
        return len(set(self.speaker) - {BACKGROUND})

    def counts(self) -> dict[str, int]:
        """The number of clips of every label."""
        numbers = Counter(self.label_index.tolist())
        return {label: numbers[index] for index, label in enumerate(self.labels)}


def load(root: Path, split: str, *, window_samples: int | None = None, progress: Progress = silent) -> Clips:
    """The clips of one split (``train``, ``validation``, ``test``) or of ``all``, decoded once and then mapped.

    Of Speech Commands every clip of a word that is no command is ``_unknown_``; ``_silence_`` comes from the background
    noise, a tenth as many clips as there are clips of commands. Any other folder has a label per folder in it, and
    recordings longer than the window are cut. Files that cannot be used are in ``skipped``.

    ``window_samples`` is the length of a clip, by default 16000 for Speech Commands and 48000 for other folders.

    Raises:
        DataError: not a data set, no such split, or no clip in it.
    """
    if split not in (*SPLITS, "all"):
        raise DataError(f"split {split!r}: use one of {', '.join(SPLITS)}, all")
    layout = scan_any(root)
    window_samples = window_samples or usual_window(layout)
    pcm, index = open_cache(layout, window_samples, progress=progress)
    first, last = (0, len(index["rows"])) if split == "all" else index["splits"][split]
    rows = index["rows"][first:last]
    skipped = (*layout.skipped, *(Skipped(path, reason) for path, reason in index["skipped"]))
    if not rows:
        reason = (
            f"; {len(skipped)} files were skipped, the first: {skipped[0].path}: {skipped[0].reason}" if skipped else ""
        )
        raise DataError(f"{root}: no clip in the split {split!r}{reason}")
    number = {label: position for position, label in enumerate(layout.labels)}
    return Clips(
        root=root,
        split=split,
        pcm=pcm[first:last],
        label_index=np.array([number[label] for _, _, label in rows], np.int64),
        labels=layout.labels,
        speaker=tuple(speaker for _, speaker, _ in rows),
        path=tuple(path for path, _, _ in rows),
        skipped=skipped,
    )


def load_noises(root: Path, split: str, *, window_samples: int | None = None) -> list[Noise]:
    """The background noise that belongs to a split; see :mod:`firmware_models.data.silence`.

    A folder per class has none.

    Raises:
        DataError: not a data set.
    """
    layout = scan_any(root)
    return read_noises(layout.noises, split, window_samples or usual_window(layout))[0]
