"""What is in a data set, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge.errors import DataError
from firmware_models.data.audio import RATE_HZ, decode_raw
from firmware_models.data.kind import scan_any, usual_window
from firmware_models.data.layout import SILENCE, SPLITS, UNKNOWN, Skipped
from firmware_models.data.recording import Recording, cut, decode_recording
from firmware_models.data.silence import SHARE, read_noises
from firmware_models.progress import Progress, silent

# Quieter than this at its loudest sample, a clip holds no word: -54 dBFS.
SILENT_PEAK = 64
# A recorder that overflows holds full scale for many samples; a loud but sound clip touches it once or twice.
CLIPPED_SAMPLES = 16


@dataclass(frozen=True, slots=True)
class Findings:
    """The result of :func:`check`; ``clips`` and ``speakers`` are per split, the tuples name files.

    In a folder per class ``speakers`` are recordings; ``other_rates`` counts the files per rate that are resampled,
    ``mixed_down`` those of several channels, ``cut`` those that give several clips; ``left_out_s`` is what is shorter
    than half a window behind the last whole one.
    """

    root: Path
    kind: str
    window_s: float
    recordings: dict[str, int]
    clips: dict[str, dict[str, int]]
    speakers: dict[str, int]
    words: dict[str, int]
    split_by: str
    moved: int
    both_lists: tuple[str, ...]
    noise_s: float
    short: tuple[str, ...]
    silent: tuple[str, ...]
    clipped: tuple[str, ...]
    unreadable: tuple[Skipped, ...]
    other_rates: dict[int, int]
    mixed_down: int
    cut: int
    left_out_s: float

    @property
    def absent(self) -> dict[str, list[str]]:
        """The labels that have no clip, for every split; ``_silence_`` may have none."""
        found = {split: [label for label, n in counts.items() if not n] for split, counts in self.clips.items()}
        return {split: [label for label in labels if label != SILENCE] for split, labels in found.items() if labels}

    def to_json(self) -> dict[str, Any]:
        """The findings as plain values."""
        return {
            "root": str(self.root),
            "kind": self.kind,
            "rate_hz": RATE_HZ,
            "window_s": self.window_s,
            "clips": self.clips,
            "speakers": self.speakers,
            "recordings": self.recordings,
            "words": self.words,
            "split_by": self.split_by,
            "moved_to_their_speakers_split": self.moved,
            "speakers_in_both_lists": list(self.both_lists),
            "background_noise_s": self.noise_s,
            "short": list(self.short),
            "silent": list(self.silent),
            "clipped": list(self.clipped),
            "unreadable": [{"path": item.path, "reason": item.reason} for item in self.unreadable],
            "resampled": {str(rate_hz): count for rate_hz, count in sorted(self.other_rates.items())},
            "mixed_down": self.mixed_down,
            "cut": self.cut,
            "left_out_s": self.left_out_s,
        }


def check(root: Path, *, window_samples: int | None = None, progress: Progress = silent) -> Findings:
    """Decode every file once and count.

    Short is under a window (a second of Speech Commands, else 3), silent never above -54 dBFS, clipped has 16 samples
    or more at full scale. ``_silence_`` counts the clips that :func:`firmware_models.data.load` will cut from the
    background noise.

    Raises:
        DataError: no data set there.
    """
    layout = scan_any(root)
    window = window_samples or usual_window(layout)
    clips = {split: Counter[str]() for split in SPLITS}
    speakers: dict[str, set[str]] = {split: set() for split in SPLITS}
    of_label: dict[str, set[str]] = {label: set() for label in layout.labels}
    short, quiet, clipped, rates = [], [], [], Counter[int]()
    mixed = pieces = left_out = 0
    unreadable = list(layout.skipped)
    for done, entry in enumerate(layout.entries, 1):
        progress(done, len(layout.entries), entry.word)
        path = root / entry.path
        try:
            found = Recording(decode_raw(path), RATE_HZ, 1) if layout.kind == "words" else decode_recording(path)
        except DataError as error:
            unreadable.append(Skipped(entry.path, str(error).removeprefix(f"{path}: ")))
            continue
        count = 1 if layout.kind == "words" else len(cut(found.pcm, window))
        clips[entry.split][entry.label] += count
        speakers[entry.split].add(entry.speaker)
        of_label[entry.label].add(entry.speaker)
        rates[found.rate_hz] += 1
        mixed += found.channels > 1
        if layout.kind == "classes":
            pieces += count > 1
            left_out += max(0, found.pcm.size - count * window)
        level = np.abs(found.pcm.astype(np.int32))
        if found.pcm.size < window:
            short.append(entry.path)
        if level.max() < SILENT_PEAK:
            quiet.append(entry.path)
        if np.count_nonzero(level >= 32767) >= CLIPPED_SAMPLES:
            clipped.append(entry.path)
    noise_s = 0.0
    for split in SPLITS:
        noises, bad = read_noises(layout.noises, split, window)
        noise_s += sum(noise.pcm.size for noise in noises) / RATE_HZ
        unreadable += [item for item in bad if item not in unreadable]
        commands = sum(count for label, count in clips[split].items() if label != UNKNOWN)
        if layout.kind == "words":
            clips[split][SILENCE] = int(np.ceil(SHARE * commands)) if noises else 0
    del rates[RATE_HZ]
    return Findings(
        root=root,
        kind=layout.kind,
        window_s=window / RATE_HZ,
        recordings={label: len(names) for label, names in of_label.items() if label != SILENCE},
        clips={split: {label: clips[split][label] for label in layout.labels} for split in SPLITS},
        speakers={split: len(names) for split, names in speakers.items()},
        words=dict(sorted(Counter(entry.word for entry in layout.entries).items())),
        split_by=layout.split_by,
        moved=layout.moved,
        both_lists=layout.both_lists,
        noise_s=round(noise_s, 1),
        short=tuple(short),
        silent=tuple(quiet),
        clipped=tuple(clipped),
        unreadable=tuple(unreadable),
        other_rates=dict(rates),
        mixed_down=mixed,
        cut=pieces,
        left_out_s=round(left_out / RATE_HZ, 1),
    )
