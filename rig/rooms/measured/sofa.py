"""Room responses out of a SOFA file (AES69): an HDF5 file with measurements, receivers and emitters."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import DataError


def read_sofa(
    path: Path, *, measurement: int, receiver: int, emitter: int, longest_s: float
) -> tuple[npt.NDArray[np.float32], int]:
    """One response, float32 (samples,) with ``Data.Delay`` before it, and its sampling rate.

    Args:
        path: a SOFA file whose ``Data.IR`` is (M, R, N) or (M, R, E, N).
        measurement: which M, from 1.
        receiver: which R, from 1.
        emitter: which E, from 1.
        longest_s: a longer response is refused.

    Raises:
        DataError: no SOFA file with impulse responses, or it has no such measurement, receiver or emitter.
    """
    import h5py  # noqa: PLC0415 - few plans have SOFA files

    try:
        with h5py.File(path, "r") as file:
            if _text(file.attrs.get("Conventions")) != "SOFA":
                raise DataError(f"{path}: no SOFA file (its attribute Conventions is not SOFA)")
            responses = _own(h5py, file, "Data.IR", path)
            rate_hz = float(np.asarray(_own(h5py, file, "Data.SamplingRate", path)[...]).ravel()[0])
            place = _place(path, responses.shape, (measurement, receiver, emitter))
            _check_length(path, int(responses.shape[-1]), rate_hz, longest_s)
            sound = np.asarray(responses[place], dtype=np.float32)
            delay = 0
            if "Data.Delay" in file:
                delays = np.asarray(_own(h5py, file, "Data.Delay", path)[...], dtype=np.float64)
                row = delays[min(measurement, delays.shape[0]) - 1]
                delay = int(np.rint(row.ravel()[min(receiver, row.size) - 1]))
    except (OSError, KeyError, ValueError, IndexError, TypeError, RuntimeError, OverflowError, MemoryError) as error:
        raise DataError(f"{path}: cannot be read as SOFA ({' '.join(str(error).split())[:120]})") from None
    if not 0 <= delay <= longest_s * rate_hz:
        raise DataError(f"{path}: Data.Delay is {delay} samples, allowed 0 to {longest_s * rate_hz:.0f}")
    return np.concatenate([np.zeros(delay, dtype=np.float32), sound]), round(rate_hz)


def _own(h5py: Any, file: Any, name: str, path: Path) -> Any:
    """A data set that lies in this file itself: links and external storage could name any file of the user."""
    link = file.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise DataError(f"{path}: {name} is missing or lies in another file")
    data = file[name]
    if not isinstance(data, h5py.Dataset) or data.external or data.is_virtual:
        raise DataError(f"{path}: {name} lies in another file")
    if name != "Data.IR" and data.size > 10_000_000:
        raise DataError(f"{path}: {name} has {data.size} values, that is no SOFA file")
    return data


def _place(path: Path, shape: tuple[int, ...], wanted: tuple[int, int, int]) -> tuple[int, ...]:
    if len(shape) not in {3, 4}:
        raise DataError(f"{path}: Data.IR has {len(shape)} dimensions, it must have 3 (M, R, N) or 4 (M, R, E, N)")
    counts = (*shape[:-1], 1)[:3]
    for name, number, count in zip(("measurement", "receiver", "emitter"), wanted, counts, strict=True):
        if not 1 <= number <= count:
            raise DataError(f"{path}: {name} = {number}, the file has {count}")
    return tuple(number - 1 for number in wanted[: len(shape) - 1])


def _check_length(path: Path, samples: int, rate_hz: float, longest_s: float) -> None:
    if not math.isfinite(rate_hz) or not 1000 <= rate_hz <= 400_000:
        raise DataError(f"{path}: Data.SamplingRate is {rate_hz:g} Hz, allowed 1,000 to 400,000")
    if not 0 < samples <= longest_s * rate_hz:
        raise DataError(f"{path}: {samples / rate_hz:.1f} s long, at most {longest_s:g} s")


def _text(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.ravel()[0]
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
