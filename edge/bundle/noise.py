"""The noise of a stochastic ensemble: standard normal numbers from a seed, the same on every machine.

A device draws a fresh seed from the operating system for every window. An attacker who sees all scores learns nothing
about the noise of the next window: seeds are independent of each other, and SHAKE-256 (FIPS 202) makes of each a
stream that cannot be run backwards. numpy's generators promise neither that nor the same normal numbers in another
release. Whoever knows a seed has the noise of that one window, so that a trial can be replayed.

From bits to normal numbers only +, -, *, / and the square root are used, which IEEE 754 fixes to the last bit; the
logarithm of a C library is not. Golden vectors of an ensemble rest on that.
"""

from __future__ import annotations

import hashlib
import os

import numpy as np
import numpy.typing as npt

from edge.errors import UsageError

SEED_BYTES = 16
# The noise under the golden vectors of every ensemble.
GOLDEN_SEED = b"earshot golden 1"
_DOMAIN = b"earshot noise 1:"

Floats = npt.NDArray[np.float32]
_Doubles = npt.NDArray[np.float64]

# Wichura 1988, algorithm AS 241, PPND7: the normal quantile within 1e-7. Its third part, for probabilities under
# 1.4e-11, is left out: 32 bits do not reach it.
_SPLIT, _CENTRE, _TAIL = 0.425, 0.180625, 1.6
_A = (3.3871327179, 5.0434271938e1, 1.5929113202e2, 5.9109374720e1)
_B = (1.0, 1.7895169469e1, 7.8757757664e1, 6.7187563600e1)
_C = (1.4234372777, 2.7568153900, 1.3067284816, 1.7023821103e-1)
_D = (1.0, 7.3700164250e-1, 1.2021132975e-1)
_LN2 = 0.6931471805599453


def fresh_seed() -> bytes:
    """16 bytes from the operating system's generator."""
    return os.urandom(SEED_BYTES)


def standard_normal(seed: bytes, members: int, values: int) -> Floats:
    """Independent standard normal numbers, float32 (members, values), within +-6.4.

    They depend on nothing but the arguments; the first rows are the same for every number of ``members``.

    Raises:
        UsageError: the seed has another length than 16 bytes.
    """
    if len(seed) != SEED_BYTES:
        raise UsageError(f"noise seed of {len(seed)} bytes: use {SEED_BYTES} ({2 * SEED_BYTES} hexadecimal digits)")
    bits = np.frombuffer(hashlib.shake_256(_DOMAIN + seed).digest(4 * members * values), "<u4")
    # The middle of one of 2^32 equal parts of (0, 1), less 1/2: exact in float64.
    centred = (bits.astype(np.float64) + 0.5) * 2.0**-32 - 0.5
    normal = np.empty_like(centred)
    inner = np.abs(centred) <= _SPLIT
    q = centred[inner]
    r = _CENTRE - q * q
    normal[inner] = q * _polynomial(r, _A) / _polynomial(r, _B)
    q = centred[~inner]
    r = np.sqrt(-_log(0.5 - np.abs(q))) - _TAIL
    normal[~inner] = np.copysign(_polynomial(r, _C) / _polynomial(r, _D), q)
    return normal.astype(np.float32).reshape(members, values)


def golden_noise(members: int, values: int) -> Floats:
    """The noise, float32 (members, values), with which every golden vector of an ensemble is computed and checked."""
    return standard_normal(GOLDEN_SEED, members, values)


def _polynomial(x: _Doubles, coefficients: tuple[float, ...]) -> _Doubles:
    result = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + coefficient
    return result


def _log(x: _Doubles) -> _Doubles:
    """The natural logarithm of numbers in (0, 1), within 1e-12 and to the same last bit everywhere."""
    mantissa, exponent = np.frexp(x)
    # ln m = 2 artanh((m - 1) / (m + 1)), a series; from [1/2, 1) to [2/3, 4/3) it needs fewer terms.
    low = mantissa < 2.0 / 3.0
    mantissa, exponent = np.where(low, 2.0 * mantissa, mantissa), exponent - low
    z = (mantissa - 1.0) / (mantissa + 1.0)
    return exponent * _LN2 + 2.0 * z * _polynomial(z * z, tuple(1.0 / k for k in range(1, 16, 2)))
