"""Who is in which split where no list says it: by the folds in the names, or by recording within every class."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Sound:
    """A file: its class, the recording it is a part of, and its fold if its name has one."""

    label: str
    recording: str
    fold: int | None


def split(sounds: Sequence[Sound]) -> tuple[dict[str, str], str]:
    """The split of every recording, and in words what decided it.

    Where all names have folds and every class is in all the folds needed, the last fold is the test; the last but one
    is the validation, or with two folds a tenth of the recordings of the first is. Else see :func:`by_recording`.
    """
    folds = sorted({sound.fold for sound in sounds if sound.fold is not None})
    if len(folds) < 2 or any(sound.fold is None for sound in sounds):
        return by_recording(sounds), "recording hash within every class"
    if reason := _unusable(sounds, folds):
        return by_recording(sounds), f"recording hash within every class, not by fold: {reason}"
    test = {sound.recording: "test" for sound in sounds if sound.fold == folds[-1]}
    if len(folds) == 2:
        rest = by_recording([sound for sound in sounds if sound.fold == folds[0]], splits=("validation",))
        return rest | test, f"fold {folds[1]} is the test, the validation is by recording"
    names = dict.fromkeys(folds, "train") | {folds[-1]: "test", folds[-2]: "validation"}
    said = f"fold {folds[-1]} is the test, fold {folds[-2]} the validation"
    return {sound.recording: names[sound.fold] for sound in sounds if sound.fold is not None}, said


def by_recording(sounds: Sequence[Sound], splits: Sequence[str] = ("test", "validation")) -> dict[str, str]:
    """A tenth of the files of every class for each of ``splits``, the rest for training; recordings stay whole.

    Recordings are taken in the order of a hash of their names. Where a class is made of a few long ones, the shortest
    that is long enough is taken if a third of the class is left for training, else what there is. A class of two
    recordings has no validation, one of one is for training alone. A recording of several classes is placed with the
    class that has the fewest.
    """
    files: dict[str, Counter[str]] = defaultdict(Counter)
    for sound in sounds:
        files[sound.label][sound.recording] += 1
    split_of: dict[str, str] = {}
    for label in sorted(files, key=lambda each: (len(files[each]), each)):
        counts = files[label]
        quota = max(1, round(SHARE * counts.total()))
        for later, name in zip(range(len(splits) - 1, -1, -1), splits, strict=True):
            have = sum(count for each, count in counts.items() if split_of.get(each) == name)
            free = {each: counts[each] for each in sorted(counts, key=_hash) if each not in split_of}
            in_training = sum(count for each, count in counts.items() if split_of.get(each) == "train")
            # One recording stays for training, and one for every split that comes after this if there are so many.
            keep = 0 if in_training else 1
            keep += min(later, max(0, len(free) - keep - 1))
            least = counts.total() / 3 - in_training
            chosen = _choose(free, quota - have, keep=keep, least=least)
            split_of.update(dict.fromkeys(chosen, name))
        split_of.update({each: "train" for each in counts if each not in split_of})
    return split_of


def _choose(free: dict[str, int], quota: int, *, keep: int, least: float) -> list[str]:
    """Recordings with about ``quota`` files, of those ``free`` in their order; ``keep`` of them are left.

    One much longer than that is chosen only if the short ones are too few and ``least`` files are left.
    """
    if quota < 1 or len(free) <= keep:
        return []
    short = {each: count for each, count in free.items() if count <= 1.5 * quota}
    long = sorted((each for each in free if each not in short), key=lambda each: free[each])
    if long and sum(short.values()) < quota / 2 and sum(free.values()) - free[long[0]] >= least:
        return long[:1]
    chosen: list[str] = []
    have = 0
    for each, count in short.items():
        if have < quota and len(free) - len(chosen) > keep and have + count <= 1.5 * quota:
            chosen.append(each)
            have += count
    return chosen


def _unusable(sounds: Sequence[Sound], folds: Sequence[int]) -> str:
    """Why the folds are no split, or nothing."""
    present = {(sound.label, sound.fold) for sound in sounds}
    needed = [folds[-1]] if len(folds) == 2 else [folds[-1], folds[-2]]
    labels = sorted({sound.label for sound in sounds})
    for fold in needed:
        if absent := [label for label in labels if (label, fold) not in present]:
            more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
            return f"fold {fold} holds no {absent[0]}{more}"
    if absent := [label for label in labels if not any((label, fold) in present for fold in set(folds) - set(needed))]:
        return f"only fold {folds[-1]} holds {absent[0]}"
    of_recording: dict[str, set[int | None]] = defaultdict(set)
    for sound in sounds:
        of_recording[sound.recording].add(sound.fold)
    if shared := sorted(recording for recording, found in of_recording.items() if len(found) > 1):
        return f"the recording {shared[0]} is in several"
    return ""


def _hash(recording: str) -> str:
    return hashlib.sha1(recording.encode(), usedforsecurity=False).hexdigest()
