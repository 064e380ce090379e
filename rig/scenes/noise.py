"""Noise by counting: sample n of condition i is a function of seed, stream, i and n, whatever is rendered beside it."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
_Table = npt.NDArray[np.float32]
_BITS = 16
_MASK = (1 << 64) - 1


def stream_key(seed: int, stream: str) -> int:
    """64 bits that tell the streams of a seed apart."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:8], "little")


def trial_index(seed: int, trial_id: str) -> int:
    """The number by which the noise of a trial is counted, where trials have names."""
    return stream_key(seed, trial_id) >> 1


def draw(key: int, index: int, count: int) -> tuple[int, ...]:
    """``count`` numbers of 64 bits for a condition, e.g. which file and where in it."""
    state = mix64(key ^ mix64(index))
    return tuple(mix64(state + number) for number in range(count))


def mix64(value: int) -> int:
    """Scramble 64 bits (splitmix64: Steele, Lea and Flood, Fast splittable pseudorandom number generators, 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def add_gaussian(block: Floats, indices: Integers, key: int, rms: float) -> None:
    """Add white noise with a normal distribution (cut at 4.3 sigma) to a block float32 (conditions, samples)."""
    _kernel()(block, indices, np.uint64(key), np.float32(rms), _quantiles())


def gaussian(samples: int, key: int) -> Floats:
    """White noise of variance 1, float32 (samples,)."""
    block = np.zeros((1, samples), dtype=np.float32)
    add_gaussian(block, np.zeros(1, dtype=np.int64), key, 1.0)
    return np.asarray(block[0])


@lru_cache(maxsize=1)
def _quantiles() -> _Table:
    """The normal distribution at the middles of 65,536 equally likely intervals, float32 (65536,)."""
    from scipy.special import ndtri  # noqa: PLC0415 - not for a plan that is only read

    size = 1 << _BITS
    table = ndtri((np.arange(size) + 0.5) / size)
    return np.asarray(table / np.sqrt(np.mean(table**2)), dtype=np.float32)


@lru_cache(maxsize=1)
def _kernel() -> Any:
    from rig.render.kernels import compiled  # noqa: PLC0415 - numba takes a second to import

    return compiled(_add_gaussian)


def _add_gaussian(block, indices, key, rms, quantiles):  # type: ignore[no-untyped-def]
    """Four samples of 16 bits out of each scrambled 64."""
    samples = block.shape[1]
    first, second, golden = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB), np.uint64(0x9E3779B97F4A7C15)
    shift_30, shift_27, shift_31 = np.uint64(30), np.uint64(27), np.uint64(31)
    low = np.uint64(0xFFFF)
    for row in range(block.shape[0]):
        into = block[row]
        state = np.uint64(indices[row]) + golden
        state = (state ^ (state >> shift_30)) * first
        state = (state ^ (state >> shift_27)) * second
        state = key ^ (state ^ (state >> shift_31))
        for quad in range((samples + 3) // 4):
            value = state + (np.uint64(quad) + np.uint64(1)) * golden
            value = (value ^ (value >> shift_30)) * first
            value = (value ^ (value >> shift_27)) * second
            value ^= value >> shift_31
            for part in range(min(4, samples - 4 * quad)):
                at = (value >> np.uint64(16 * part)) & low
                into[4 * quad + part] += rms * quantiles[np.int64(at)]
