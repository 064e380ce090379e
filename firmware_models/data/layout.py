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
from typing import Literal

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
    """One file on disk; ``path`` is relative to the root and has forward slashes.

    ``word`` is what the folder says, ``label`` what a model answers; ``speaker`` is who, or which recording, must not
    be heard in two splits.
    """

    path: str
    word: str
    label: str
    speaker: str
    split: str
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that is not used, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Layout:
    """What lies in a folder, and which split it is in.

    ``kind`` is ``words`` (Speech Commands: a file is a clip) or ``classes`` (a folder per class: a file is cut into as
    many clips as it holds). ``moved`` counts clips that follow their speaker into another split than listed;
    ``split_by`` says in words what decided.
    """

    root: Path
    entries: tuple[Entry, ...]
    noises: tuple[Path, ...]
    skipped: tuple[Skipped, ...]
    has_lists: bool
    moved: int
    both_lists: tuple[str, ...]
    labels: tuple[str, ...] = LABELS
    kind: Literal["words", "classes"] = "words"
    split_by: str = "speaker hash"


def scan(root: Path) -> Layout:
    """Read the folder's names, not its audio.

    A speaker is in one split only: if any of their clips is in a list, all are in that list's split; who is in
    both lists is in ``test``. Without lists the split follows from a hash of the speaker, 80/10/10.

    Raises:
        DataError: no such folder, or no clip in it.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; get the data with: earshot data fetch speech-commands --out {root}")
    files, unnameable = list_files(root)
    if not files:
        raise DataError(
            f"{root}: no clips here; expected <word>/<speaker>_nohash_<n>.wav or .flac "
            "(get them with: earshot data fetch speech-commands --out DIR) or <class>/<any name>.wav or .flac"
        )
    skipped = [*unnameable, *drop_duplicates(files)]
    lists = Lists.read(root)
    speakers = {path: _speaker(path) for path in files}
    split_of = lists.splits(speakers) or {speaker: split_by_hash(speaker) for speaker in speakers.values()}
    entries = [
        Entry(
            path,
            word := path.split("/", 1)[0],
            word if word in COMMANDS else UNKNOWN,
            speakers[path],
            split_of[speakers[path]],
            *files[path],
        )
        for path in sorted(files)
    ]
    return Layout(
        root=root,
        entries=tuple(entries),
        noises=tuple(sorted(p for p in (root / BACKGROUND).glob("*") if p.suffix.lower() in SUFFIXES)),
        skipped=tuple(skipped),
        has_lists=lists.exist,
        moved=lists.moved(entries),
        both_lists=lists.in_both(speakers),
        split_by="lists" if lists.exist else "speaker hash",
    )


def split_by_hash(speaker: str) -> str:
    """The split of a speaker where no list says it, as the data set's own tools compute it."""
    number = int(hashlib.sha1(speaker.encode(), usedforsecurity=False).hexdigest(), 16)
    percent = (number % (HASH_BUCKETS + 1)) * (100.0 / HASH_BUCKETS)
    if percent < VALIDATION_PERCENT:
        return "validation"
    return "test" if percent < VALIDATION_PERCENT + TEST_PERCENT else "train"


def drop_duplicates(files: dict[str, tuple[int, int]]) -> list[Skipped]:
    """Leave out of ``files`` what is there twice, as WAV and as FLAC."""
    skipped = []
    first: dict[str, str] = {}
    for path in sorted(files):
        kept = first.setdefault(_stem(path), path)
        if kept != path:
            skipped.append(Skipped(path, f"the same clip as {kept}"))
            del files[path]
    return skipped


def list_files(root: Path) -> tuple[dict[str, tuple[int, int]], list[Skipped]]:
    """Size and time of change of every sound in a folder of ``root``, and the files whose names cannot be used."""
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


@dataclass(frozen=True, slots=True)
class Lists:
    """What ``validation_list.txt`` and ``testing_list.txt`` say: the split of names without suffix."""

    exist: bool
    split_of: dict[str, str]

    @classmethod
    def read(cls, root: Path) -> Lists:
        """Read the lists of a folder; either or both may be missing.

        Raises:
            DataError: a list is not text.
        """
        listed = {split: _read_list(root / name) for split, name in LISTS.items()}
        return cls(
            any(names is not None for names in listed.values()),
            {name: split for split, names in listed.items() for name in names or ()},
        )

    def splits(self, speakers: dict[str, str]) -> dict[str, str]:
        """The split of every speaker, given the speaker of every path; nothing where there are no lists."""
        if not self.exist:
            return {}
        split_of = dict.fromkeys(speakers.values(), "train")
        for wanted in ("validation", "test"):  # the later wins
            split_of.update({speaker: split for speaker, split in self._named(speakers) if split == wanted})
        return split_of

    def in_both(self, speakers: dict[str, str]) -> tuple[str, ...]:
        """The speakers that both lists name."""
        counts = Counter(speaker for speaker, _ in self._named(speakers))
        return tuple(sorted(speaker for speaker, count in counts.items() if count > 1))

    def moved(self, entries: list[Entry]) -> int:
        """How many clips follow their speaker into another split than listed."""
        return sum(self.exist and entry.split != self.split_of.get(_stem(entry.path), "train") for entry in entries)

    def _named(self, speakers: dict[str, str]) -> set[tuple[str, str]]:
        return {
            (speaker, self.split_of[_stem(path)]) for path, speaker in speakers.items() if _stem(path) in self.split_of
        }


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
