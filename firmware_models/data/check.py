"""What is in a data set, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge.errors import DataError
from firmware_models.data.audio import RATE_HZ, WINDOW_SAMPLES, decode_raw
from firmware_models.data.layout import LABELS, SPLITS, UNKNOWN, Skipped, scan
from firmware_models.data.silence import SHARE, read_noises
from firmware_models.progress import Progress, silent

# Quieter than this at its loudest sample, a clip holds no word: -54 dBFS.
SILENT_PEAK = 64
# A recorder that overflows holds full scale for many samples; a loud but sound clip touches it once or twice.
CLIPPED_SAMPLES = 16


@dataclass(frozen=True, slots=True)
class Findings:
    """The result of :func:`check`; ``clips`` and ``speakers`` are per split, the tuples name files."""

    root: Path
    clips: dict[str, dict[str, int]]
    speakers: dict[str, int]
    words: dict[str, int]
    has_lists: bool
    moved: int
    both_lists: tuple[str, ...]
    noise_s: float
    short: tuple[str, ...]
    silent: tuple[str, ...]
    clipped: tuple[str, ...]
    unreadable: tuple[Skipped, ...]

    def to_json(self) -> dict[str, Any]:
        """The findings as plain values."""
        return {
            "root": str(self.root),
            "rate_hz": RATE_HZ,
            "clips": self.clips,
            "speakers": self.speakers,
            "words": self.words,
            "split_by": "lists" if self.has_lists else "speaker hash",
            "moved_to_their_speakers_split": self.moved,
            "speakers_in_both_lists": list(self.both_lists),
            "background_noise_s": self.noise_s,
            "short": list(self.short),
            "silent": list(self.silent),
            "clipped": list(self.clipped),
            "unreadable": [{"path": item.path, "reason": item.reason} for item in self.unreadable],
        }


def check(root: Path, *, progress: Progress = silent) -> Findings:
    """Decode every file once and count.

    Short is under a second, silent never above -54 dBFS, clipped has 16 samples or more at full scale.
    ``_silence_`` counts the clips that :func:`firmware_models.data.load` will cut from the background noise.

    Raises:
        DataError: no data set there.
    """
    layout = scan(root)
    clips = {split: Counter[str]() for split in SPLITS}
    speakers: dict[str, set[str]] = {split: set() for split in SPLITS}
    short, quiet, clipped = [], [], []
    unreadable = list(layout.skipped)
    for done, entry in enumerate(layout.entries, 1):
        progress(done, len(layout.entries), entry.word)
        path = root / entry.path
        try:
            pcm = decode_raw(path)
        except DataError as error:
            unreadable.append(Skipped(entry.path, str(error).removeprefix(f"{path}: ")))
            continue
        clips[entry.split][entry.label] += 1
        speakers[entry.split].add(entry.speaker)
        level = np.abs(pcm.astype(np.int32))
        if pcm.size < WINDOW_SAMPLES:
            short.append(entry.path)
        if level.max() < SILENT_PEAK:
            quiet.append(entry.path)
        if np.count_nonzero(level >= 32767) >= CLIPPED_SAMPLES:
            clipped.append(entry.path)
    noise_s = 0.0
    for split in SPLITS:
        noises, bad = read_noises(layout.noises, split)
        noise_s += sum(noise.pcm.size for noise in noises) / RATE_HZ
        unreadable += [item for item in bad if item not in unreadable]
        commands = sum(count for label, count in clips[split].items() if label != UNKNOWN)
        clips[split][LABELS[-1]] = int(np.ceil(SHARE * commands)) if noises else 0
    return Findings(
        root=root,
        clips={split: {label: clips[split][label] for label in LABELS} for split in SPLITS},
        speakers={split: len(names) for split, names in speakers.items()},
        words=dict(sorted(Counter(entry.word for entry in layout.entries).items())),
        has_lists=layout.has_lists,
        moved=layout.moved,
        both_lists=layout.both_lists,
        noise_s=round(noise_s, 1),
        short=tuple(short),
        silent=tuple(quiet),
        clipped=tuple(clipped),
        unreadable=tuple(unreadable),
    )
