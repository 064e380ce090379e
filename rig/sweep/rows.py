"""The rows of a sweep: one Parquet file per chunk, written whole or not at all, and told from damaged ones.

=================== ================== =================================================================================
column              type               meaning
=================== ================== =================================================================================
``index``           int64              number of the condition
``bundle``          dictionary         the model that scored
``attack``          dictionary         ``benign``, ``random-sign``, ``fgsm``, ``pgd-20`` ...
``crafted_on``      dictionary or null the bundle whose gradient was followed
``target``          dictionary or null the label that was to be heard
``eps``             float64            budget, full scale = 1; 0 without an attack
``delay_ms``        float64            of the attacker's loudspeaker after the talker's
``level_db``        float64            of the attacker's loudspeaker
``talker_level_db`` float64            of the talker's loudspeaker
``rt60_s``          float64 or null    reverberation time wanted by the sweep
``talker_position`` dictionary         place, see ``sweep.json`` for metres
``attacker_position`` dictionary or null place
``device_position`` dictionary         place
``clip``            int32              number of the clip in ``sweep.json``
``repeat``          int32              which time
``label``           dictionary         what the talker said
``heard``           dictionary         the class with the highest score
``correct``         bool               ``heard`` is ``label``
``targeted``        bool or null       ``heard`` is ``target``
``margin``          float32            score of ``label`` minus the highest other score
``linf``            float32            largest sample that the attacker adds in the window, before the device's limits
``snr_db``          float32            talker's power over the attacker's in the window; infinite without an attack
``talker_dbfs``     float32            RMS of the talker in the window
``clipped``         float32            share of samples beyond the converter's limit
``reason``          dictionary or null why the condition does not count; null for one that does
=================== ================== =================================================================================
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from edge import files
from rig.sweep.grid import Grid, Span

FOLDER = "rows"
SPEECHLESS = "no score is a number"
CLIPPED = "microphone clipped"
REASONS = (CLIPPED, SPEECHLESS)
WORDS = (
    *("bundle", "attack", "crafted_on", "target", "talker_position", "attacker_position", "device_position"),
    *("label", "heard", "reason"),
)
_KEY, _FIRST = b"earshot_sweep", b"earshot_first"
_UNREADABLE = (pa.ArrowException, OSError, ValueError)


def path(folder: Path, number: int) -> Path:
    """The file of a chunk."""
    return folder / FOLDER / f"chunk-{number:07d}.parquet"


def encode(table: pa.Table, span: Span, digest: str) -> bytes:
    """The file of a chunk as bytes; the same for the same rows."""
    file = io.BytesIO()
    marked = table.replace_schema_metadata({_KEY: digest.encode(), _FIRST: str(span.first).encode()})
    flat = [name for name in table.column_names if name != "index"]
    parquet.write_table(
        marked,
        file,
        compression="zstd",
        use_dictionary=flat,
        column_encoding={"index": "DELTA_BINARY_PACKED"},
        write_page_checksum=True,
    )
    return file.getvalue()


def store(folder: Path, number: int, content: bytes) -> None:
    """Put the file of a chunk in its place, durably and at once."""
    files.write(path(folder, number), content)


def is_whole(folder: Path, grid: Grid, number: int, digest: str) -> bool:
    """Whether a chunk is there, of this sweep, and undamaged: every page is read and its checksum compared."""
    span = grid.span(number)
    try:
        with parquet.ParquetFile(path(folder, number), page_checksum_verification=True) as file:
            facts = file.schema_arrow.metadata or {}
            if facts.get(_KEY) != digest.encode() or facts.get(_FIRST) != str(span.first).encode():
                return False
            return file.metadata.num_rows == span.stop - span.start and _read_rows(file) == span.stop - span.start
    except _UNREADABLE:
        return False


def tables(folder: Path, grid: Grid, columns: list[str] | None = None) -> Iterator[tuple[Span, pa.Table]]:
    """The finished chunks one after the other, each as a table of the columns asked for."""
    for number in range(grid.chunks):
        with suppress(FileNotFoundError):
            yield grid.span(number), parquet.read_table(path(folder, number), columns=columns, memory_map=False)


def clear_unfinished(folder: Path) -> None:
    """Take away what a killed process had not finished."""
    for each in (folder / FOLDER).glob(".chunk-*"):
        each.unlink(missing_ok=True)


def _read_rows(file: parquet.ParquetFile) -> int:
    return sum(batch.num_rows for batch in file.iter_batches())
