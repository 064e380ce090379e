"""Where measured responses are, and how they are read: sound files, SOFA files, folders with an index."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import soundfile
import soxr
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge import files
from edge.errors import DataError, PlanError
from edge.validation import describe
from rig.rooms.measured.sofa import read_sofa
from rig.rooms.responses import Responses

LONGEST_S = 20.0
# ISO 3382-1: a response begins where it first comes within 20 dB of its greatest value.
ONSET_SHARE = 0.1
SOFA = ".sofa"
INDEX = "responses.json"
_FOLDER_FORMAT = 1


class Recording(BaseModel):
    """Where one measured response is.

    Attributes:
        file: WAV, FLAC or another format of libsndfile, or SOFA.
        channel: of the sound file, or the receiver of a SOFA file; from 1.
        measurement: of a SOFA file; from 1.
        emitter: of a SOFA file; from 1.
        gain_db: applied to what is read.
        onset_ms: when the direct sound arrives; without it, where the response first comes within 20 dB of its peak.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    channel: Annotated[int, Field(ge=1, le=1024)] = 1
    measurement: Annotated[int, Field(ge=1, le=10_000_000)] = 1
    emitter: Annotated[int, Field(ge=1, le=1024)] = 1
    gain_db: Annotated[float, Field(ge=-120, le=120, allow_inf_nan=False)] = 0.0
    onset_ms: Annotated[float, Field(ge=0, le=20_000, allow_inf_nan=False)] | None = None


def load(recordings: Mapping[str, Mapping[str, Recording]], rate_hz: int, folder: Path) -> Responses:
    """Read a response for every pair.

    Args:
        recordings: by device, then by source; every device has the same sources.
        rate_hz: to which they are resampled, so that convolution has the same gain as at their own rate.
        folder: what relative file names start from.

    Raises:
        PlanError: a pair is missing.
        DataError: a file cannot be read, is silent, too long, or has no such channel.
    """
    if not recordings or not all(recordings.values()):
        raise PlanError("room: measured needs at least one response per device")
    sources = tuple(next(iter(recordings.values())))
    found: list[list[tuple[npt.NDArray[np.float32], float]]] = []
    origins: dict[str, dict[str, str]] = {}
    for device, row in recordings.items():
        missing = sorted(set(sources) ^ set(row))
        if missing:
            raise PlanError(f"room: measured.{device}: every device needs the same sources, check {', '.join(missing)}")
        found.append([_read(row[source], rate_hz, folder) for source in sources])
        origins[device] = {source: row[source].file for source in sources}
    samples = max(len(sound) for row_ in found for sound, _ in row_)
    array = np.zeros((len(found), len(sources), samples), dtype=np.float32)
    for i, row_ in enumerate(found):
        for j, (sound, _) in enumerate(row_):
            array[i, j, : len(sound)] = sound
    array.flags.writeable = False
    onsets = np.array([[onset for _, onset in row_] for row_ in found])
    facts = {"simulator": "measured", "files": origins, "length_s": round(samples / rate_hz, 4)}
    return Responses(array, onsets, rate_hz, tuple(recordings), sources, facts)


def save_folder(folder: Path, responses: Responses) -> None:
    """Write responses as a folder of 32-bit float WAV files with an index, to be read by :func:`load_folder`.

    ``responses.json`` is written last: a folder without it is unfinished.
    """
    rows = []
    for i, device in enumerate(responses.devices):
        for j, source in enumerate(responses.sources):
            name = f"response-{i + 1}-{j + 1}.wav"
            files.make_folder(folder)
            soundfile.write(folder / name, responses.array[i, j], responses.rate_hz, subtype="FLOAT")
            onset_ms = float(responses.onset_sample[i, j]) / responses.rate_hz * 1000
            rows.append({"device": device, "source": source, "file": name, "onset_ms": onset_ms})
    index = {"format": _FOLDER_FORMAT, "responses": rows, "facts": responses.facts}
    files.write(folder / INDEX, json.dumps(index, indent=1).encode())


def load_folder(folder: Path, rate_hz: int) -> Responses:
    """Read a folder that :func:`save_folder` or ``earshot calibrate`` wrote.

    Raises:
        DataError: it is none, or a file in it cannot be read.
    """
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        rows = index["responses"] if index["format"] == _FOLDER_FORMAT else []
        by_device: dict[str, dict[str, Recording]] = {}
        for row in rows:
            name = str(row["file"])
            if Path(name).name != name:
                raise DataError(f"{folder / INDEX}: {name!r} lies outside of the folder")
            recording = Recording(file=name, onset_ms=row["onset_ms"])
            by_device.setdefault(str(row["device"]), {})[str(row["source"])] = recording
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", "not text")
        raise DataError(f"{folder}: no folder of room responses ({INDEX}: {reason})") from None
    except ValidationError as error:
        raise DataError(f"{folder / INDEX}: {describe(error)}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"{folder / INDEX}: not what earshot writes there") from None
    responses = load(by_device, rate_hz, folder)
    facts: dict[str, Any] = index["facts"] if isinstance(index.get("facts"), dict) else {}
    responses.facts.update({"measured": facts})
    return responses


def onset_of(response: npt.NDArray[np.float32], rate_hz: int) -> float:
    """When the direct sound arrives, in samples: the peak after the first value within 20 dB of the greatest."""
    magnitude = np.abs(response)
    first = int(np.argmax(magnitude >= ONSET_SHARE * magnitude.max()))
    return float(first + np.argmax(magnitude[first : first + max(round(0.001 * rate_hz), 1)]))


def _read(recording: Recording, rate_hz: int, folder: Path) -> tuple[npt.NDArray[np.float32], float]:
    path = folder / Path(recording.file).expanduser()
    if path.suffix.lower() == SOFA:
        sound, own_hz = read_sofa(
            path,
            measurement=recording.measurement,
            receiver=recording.channel,
            emitter=recording.emitter,
            longest_s=LONGEST_S,
        )
    else:
        sound, own_hz = _read_sound(path, recording.channel)
    if not np.all(np.isfinite(sound)) or not np.any(sound):
        raise DataError(f"{path}: channel {recording.channel} is {'silent' if not np.any(sound) else 'not finite'}")
    if own_hz != rate_hz:
        # A sum over more samples is louder by as much.
        sound = soxr.resample(sound, own_hz, rate_hz, quality="VHQ") * np.float32(own_hz / rate_hz)
    sound = sound * np.float32(10 ** (recording.gain_db / 20))
    if recording.onset_ms is None:
        return sound, onset_of(sound, rate_hz)
    onset = recording.onset_ms / 1000 * rate_hz
    if onset >= len(sound):
        raise DataError(f"{path}: onset_ms = {recording.onset_ms:g} is after its end")
    return sound, onset


def _read_sound(path: Path, channel: int) -> tuple[npt.NDArray[np.float32], int]:
    try:
        with soundfile.SoundFile(path) as file:
            if file.frames > LONGEST_S * file.samplerate:
                raise DataError(f"{path}: {file.frames / file.samplerate:.1f} s long, at most {LONGEST_S:g} s")
            if not 1 <= channel <= file.channels:
                raise DataError(f"{path}: channel = {channel}, the file has {file.channels}")
            sound = file.read(dtype="float32", always_2d=True)
            return np.ascontiguousarray(sound[:, channel - 1]), int(file.samplerate)
    except (soundfile.LibsndfileError, OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{path}: cannot be read as a sound file ({reason})") from None
