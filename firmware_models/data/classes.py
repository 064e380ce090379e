"""Folders of sounds of any kind: a folder per class, or UrbanSound8K as it is published.

``<class>/<any name>.wav`` or ``.flac``; or ``audio/fold<n>/<name>.wav`` with ``metadata/UrbanSound8K.csv``.
``validation_list.txt`` and ``testing_list.txt`` may say who is in which split, as in Speech Commands.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from pathlib import Path

from edge.errors import DataError
from firmware_models.data.layout import Entry, Layout, Lists, Skipped, drop_duplicates, list_files
from firmware_models.data.splitting import Sound, split

URBANSOUND = "metadata/UrbanSound8K.csv"
_COLUMNS = {"slice_file_name", "fold", "class"}
# UrbanSound8K: [fold]<recording>-<class>-<occurrence>-<slice>.
_SLICE = re.compile(r"(?:fold\d+[_-])?(\d+)-\d+-\d+-\d+")
_FOLD = re.compile(r"fold(\d+)[_-]")
_NUMBERED = re.compile(r"(.+?)[-_. ]+(?:chunk|part|segment|seg|slice)?\d+")


def scan_classes(root: Path) -> Layout:
    """Read the folder's names, not its audio.

    All files of a recording are in one split. Lists decide where there are any, else folds where names have them and
    every class is in all that are needed, else a hash of the recording, 80/10/10 of every class.

    Raises:
        DataError: no clip here, or fewer than two classes.
    """
    files, skipped = list_files(root) if not (root / URBANSOUND).is_file() else _published(root)
    skipped += drop_duplicates(files)
    labels = _labels(root) if (root / URBANSOUND).is_file() else {path: path.split("/", 1)[0] for path in files}
    if not files:
        raise DataError(f"{root}: no sound here; expected <class>/<any name>.wav or .flac")
    classes = tuple(sorted({labels[path] for path in files}))
    if len(classes) < 2:
        raise DataError(f"{root}: only one class, {classes[0]!r}; a model tells two or more from each other")
    recordings = _recordings(files, labels)
    lists = Lists.read(root)
    split_of, split_by = lists.splits(recordings), "lists"
    if not lists.exist:
        sounds = [Sound(labels[path], recordings[path], _fold(path)) for path in sorted(files)]
        split_of, split_by = split(sounds)
    entries = [
        Entry(path, labels[path], labels[path], recordings[path], split_of[recordings[path]], *files[path])
        for path in sorted(files)
    ]
    return Layout(
        root=root,
        entries=tuple(entries),
        noises=(),
        skipped=tuple(skipped),
        has_lists=lists.exist,
        moved=lists.moved(entries),
        both_lists=lists.in_both(recordings),
        labels=classes,
        kind="classes",
        split_by=split_by,
    )


def _recordings(files: dict[str, tuple[int, int]], labels: dict[str, str]) -> dict[str, str]:
    """The recording that every file is a part of.

    A trailing number counts parts of one recording, unless all of a class would be one: then it counts recordings.
    """
    found = {path: _recording(path, labels[path]) for path in files}
    parts = Counter(label for label, _ in {(labels[path], recording) for path, recording in found.items()})
    many = Counter(labels.get(path) for path in files)
    return {
        path: path.rsplit(".", 1)[0] if parts[labels[path]] == 1 and many[labels[path]] > 1 else recording
        for path, recording in found.items()
    }


def _recording(path: str, label: str) -> str:
    stem = Path(path).stem
    if urban := _SLICE.fullmatch(stem):
        return urban[1]
    numbered = _NUMBERED.fullmatch(stem)
    return f"{label}/{numbered[1] if numbered else stem}"


def _fold(path: str) -> int | None:
    """``fold3`` as the beginning of a file's name or as the name of its folder."""
    found = _FOLD.match(Path(path).name) or re.fullmatch(r"fold(\d+)", Path(path).parent.name)
    return int(found[1]) if found else None


def _published(root: Path) -> tuple[dict[str, tuple[int, int]], list[Skipped]]:
    """The files of UrbanSound8K that its table knows."""
    labels = _labels(root)
    audio, unnameable = list_files(root / "audio")
    files = {f"audio/{path}": about for path, about in audio.items()}
    skipped = [Skipped(f"audio/{item.path}", item.reason) for item in unnameable]
    for path in sorted(set(files) - set(labels)):
        skipped.append(Skipped(path, f"{URBANSOUND} does not name it"))
        del files[path]
    return files, skipped


def _labels(root: Path) -> dict[str, str]:
    """The class of every path in the table of UrbanSound8K."""
    table = root / URBANSOUND
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if missing := _COLUMNS - set(rows.fieldnames or ()):
                raise DataError(f"{table}: the column {min(missing)!r} is missing")
            return {f"audio/fold{row['fold']}/{row['slice_file_name']}": str(row["class"]) for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: not a readable table ({' '.join(str(error).split())})") from None
