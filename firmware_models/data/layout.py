"""The layout of Speech Commands on disk: words, speakers, lists, and who belongs to which split.

``<word>/<speaker>_nohash_<n>.wav`` or ``.flac``, ``validation_list.txt``, ``testing_list.txt`` and
``_background_noise_/``. The lists may name the other suffix than the files have.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from edge.errors import DataError
from firmware_models.data.audio import SUFFIXES

COMMANDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
UNKNOWN, SILENCE = "_unknown_", "_silence_"
LABELS = (*COMMANDS, UNKNOWN, SILENCE)
BACKGROUND = "_background_noise_"
SPLITS = ("train", "validation", "test")
LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
# From the data set's own which_set(): a speaker keeps their split however many clips are added.
HASH_BUCKETS = 2**27 - 1
VALIDATION_PERCENT = TEST_PERCENT = 10.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One clip on disk; ``path`` is relative to the root and has forward slashes."""

    path: str
    word: str
    speaker: str
    split: str
    size_bytes: int
    mtime_ns: int

    @property
    def label(self) -> str:
        """The word if it is one of the ten commands, else ``_unknown_``."""
        return self.word if self.word in COMMANDS else UNKNOWN


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that is not used, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Layout:
    """What lies in a folder. ``moved`` counts clips that follow their speaker into another split than listed."""

    root: Path
    entries: tuple[Entry, ...]
    noises: tuple[Path, ...]
    skipped: tuple[Skipped, ...]
    has_lists: bool
    moved: int
    both_lists: tuple[str, ...]


def scan(root: Path) -> Layout:
    """Read the folder's names, not its audio.

    A speaker is in one split only: if any of their clips is in a list, all are in that list's split; who is in
    both lists is in ``test``. Without lists the split follows from a hash of the speaker, 80/10/10.

    Raises:
        DataError: no such folder, or no clip in it.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; get the data with: earshot data fetch speech-commands --out {root}")
    files, unnameable = _files(root)
    if not files:
        raise DataError(
            f"{root}: no clips here; expected <word>/<speaker>_nohash_<n>.wav or .flac "
            "(get them with: earshot data fetch speech-commands --out DIR)"
        )
    skipped = [*unnameable, *_drop_duplicates(files)]
    listed = {split: _read_list(root / name) for split, name in LISTS.items()}
    has_lists = any(names is not None for names in listed.values())
    by_list = {stem: split for split, names in listed.items() for stem in names or ()}
    speakers = {path: _speaker(path) for path in files}
    named = {(speaker, by_list[_stem(path)]) for path, speaker in speakers.items() if _stem(path) in by_list}
    lists_of = Counter(speaker for speaker, _ in named)
    split_of = _splits_of_speakers(set(speakers.values()), named, has_lists=has_lists)
    entries = [
        Entry(path, path.split("/", 1)[0], speakers[path], split_of[speakers[path]], *files[path])
        for path in sorted(files)
    ]
    moved = sum(has_lists and entry.split != by_list.get(_stem(entry.path), "train") for entry in entries)
    return Layout(
        root=root,
        entries=tuple(entries),
        noises=tuple(sorted(p for p in (root / BACKGROUND).glob("*") if p.suffix.lower() in SUFFIXES)),
        skipped=tuple(skipped),
        has_lists=has_lists,
        moved=moved,
        both_lists=tuple(sorted(speaker for speaker, count in lists_of.items() if count > 1)),
    )


def split_by_hash(speaker: str) -> str:
    """The split of a speaker where no list says it, as the data set's own tools compute it."""
    number = int(hashlib.sha1(speaker.encode(), usedforsecurity=False).hexdigest(), 16)
    percent = (number % (HASH_BUCKETS + 1)) * (100.0 / HASH_BUCKETS)
    if percent < VALIDATION_PERCENT:
        return "validation"
    return "test" if percent < VALIDATION_PERCENT + TEST_PERCENT else "train"


def _splits_of_speakers(speakers: set[str], named: set[tuple[str, str]], *, has_lists: bool) -> dict[str, str]:
    if not has_lists:
        return {speaker: split_by_hash(speaker) for speaker in speakers}
    split_of = dict.fromkeys(speakers, "train")
    for wanted in ("validation", "test"):  # the later wins
        split_of.update({speaker: split for speaker, split in named if split == wanted})
    return split_of


def _drop_duplicates(files: dict[str, tuple[int, int]]) -> list[Skipped]:
    """Leave out of ``files`` what is there twice, as WAV and as FLAC."""
    skipped = []
    first: dict[str, str] = {}
    for path in sorted(files):
        kept = first.setdefault(_stem(path), path)
        if kept != path:
            skipped.append(Skipped(path, f"the same clip as {kept}"))
            del files[path]
    return skipped


def _files(root: Path) -> tuple[dict[str, tuple[int, int]], list[Skipped]]:
    found, skipped = {}, []
    for folder in sorted(root.iterdir()):
        if folder.name.startswith((".", "_")) or not folder.is_dir():
            continue
        for path in folder.iterdir():
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file():
                name = f"{folder.name}/{path.name}"
                shown = name.encode(errors="surrogateescape").decode(errors="replace")
                if shown != name:
                    skipped.append(Skipped(shown, "its name is not UTF-8: rename it"))
                    continue
                stat = path.stat()
                found[name] = (stat.st_size, stat.st_mtime_ns)
    return found, skipped


def _read_list(path: Path) -> set[str] | None:
    if not path.is_file():
        return None
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable list of clips ({error})") from None
    return {line.strip().replace("\\", "/").rsplit(".", 1)[0] for line in lines if line.strip()}


def _stem(path: str) -> str:
    return path.rsplit(".", 1)[0]


def _speaker(path: str) -> str:
    return re.sub(r"_nohash_.*$", "", _stem(path.split("/", 1)[1]))
