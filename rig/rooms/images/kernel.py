"""The compiled loops: put image sources on a grid of fractions of a sample, then turn the grid into a response.

pyroomacoustics adds 81 samples of a windowed sinc per image; the sinc comes from a table of 20 steps per sample,
between which it interpolates linearly. That is linear in the table, so the images' amplitudes can be summed per step of
the table first (two additions per image) and each step be convolved with its 81 taps once, however many images there
are. The result is the same.

numba compiles a loop when it is first called and keeps the machine code beside this file or in the user's cache folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

STEPS = 20
TAPS = 81
HALF = TAPS // 2
SHORT = 18
# The window does not move with the fraction, so step 20 of a sample is not step 0 of the next.
ROW = STEPS + 1
# Reflected down to -180 dB nothing is heard, and numbers that are smaller still would slow the processor down.
SILENT = 1e-9


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    try:
        return njit(fastmath=True, nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:
        # Neither this folder nor the user's cache can be written: compile in every process anew.
        return njit(fastmath=True, nogil=True, error_model="numpy")(function)


def taps() -> npt.NDArray[np.float32]:
    """The windowed sinc, float32 (81 x 21,): for tap 80 to 0 the steps 0 to 20 of a sample."""
    tap = np.arange(TAPS)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * tap / (TAPS - 1))
    table = window * np.sinc(tap - HALF - np.arange(ROW)[:, None] / STEPS)
    return np.ascontiguousarray(table[:, ::-1].T, dtype=np.float32).reshape(-1)


def short_taps() -> npt.NDArray[np.float32]:
    """The same for sound up to a fifth of the rate, float32 (18 x 21,): what follows must remove what is above."""
    offset = np.arange(SHORT) - (SHORT // 2 - 1) - np.arange(ROW)[:, None] / STEPS
    table = np.sinc(offset) * np.i0(8.0 * np.sqrt(np.maximum(1 - (offset / (SHORT // 2)) ** 2, 0))) / np.i0(8.0)
    return np.ascontiguousarray(table[:, ::-1].T, dtype=np.float32).reshape(-1)


def _deposit(x, xr, xo, xd, y, yr, yo, yd, z, zr, zo, zd, z_end, order, near2, far2, scale, patterns, grid):  # type: ignore[no-untyped-def]  # noqa: C901, PLR0917
    """Add all images of a shoebox to ``grid`` float32 (bands, samples x 21); returns how many.

    ``x`` float64 (nx,) are squared distances along x of the images from the microphone, ascending; ``xr`` float32
    (bands, nx) their reflection factors; ``xo`` int64 (nx,) how often they are reflected; ``xd`` float64 (2, nx) their
    projections in metres on the axes of the source's and the microphone's pattern. So for y and z. ``z_end`` tells per
    number of reflections left how many of the first z may have as few; images nearer than the squared distance
    ``near2``, from ``far2`` on, or with more than ``order`` reflections do not count. ``scale`` is in samples per
    metre, ``patterns`` holds the p of p + (1 - p) cos a of source and microphone.
    """
    n = z.shape[0]
    bands = grid.shape[0]
    low, high, place = np.empty(n, np.float32), np.empty(n, np.float32), np.empty(n, np.int64)
    source_p, source_q, mic_p, mic_q = patterns[0], 1 - patterns[0], patterns[1], 1 - patterns[1]
    images = 0
    for i in range(x.shape[0]):
        begin, end = n, n
        for j in range(y.shape[0]):
            d2 = x[i] + y[j]
            if d2 >= far2:
                break
            while end > 0 and z[end - 1] >= far2 - d2:
                end -= 1
            while begin > 0 and z[begin - 1] >= near2 - d2:
                begin -= 1
            left = order - xo[i] - yo[j]
            if left < 0:
                continue
            last = min(end, z_end[min(left, z_end.shape[0] - 1)])
            count = last - begin
            if count <= 0:
                continue
            # Indices from 0 on: numba lets negative ones count from the end, and then uses no vector instructions.
            z_here, order_here, source_z, mic_z = z[begin:last], zo[begin:last], zd[0, begin:last], zd[1, begin:last]
            source_xy, mic_xy = xd[0, i] + yd[0, j], xd[1, i] + yd[1, j]
            for k in range(count):
                distance = math.sqrt(d2 + z_here[k])
                inverse = 1 / distance
                time = distance * scale
                whole = int(time)
                step = (time - whole) * STEPS
                whole_step = int(step)
                place[k] = whole * ROW + whole_step
                gain = inverse * (source_p + source_q * inverse * (source_xy + source_z[k]))
                gain *= mic_p + mic_q * inverse * (mic_xy + mic_z[k])
                if order_here[k] > left:
                    gain = 0.0
                above = gain * (step - whole_step)
                high[k] = above
                low[k] = gain - above
            for band in range(bands):
                factor, here, reflected = xr[band, i] * yr[band, j], grid[band], zr[band, begin:last]
                if factor < SILENT:
                    continue
                for k in range(count):
                    amplitude = factor * reflected[k]
                    at = place[k]
                    here[at] += amplitude * low[k]
                    here[at + 1] += amplitude * high[k]
            images += count
    return images


def _deposit_list(time, amplitude, grid):  # type: ignore[no-untyped-def]
    """Add images by time float64 (n,) in samples and amplitude (bands, n) to ``grid`` float32 (bands, samples x 21)."""
    for k in range(time.shape[0]):
        whole = int(time[k])
        step = (time[k] - whole) * STEPS
        whole_step = int(step)
        at = whole * ROW + whole_step
        if at + 1 >= grid.shape[1]:
            continue
        above = step - whole_step
        for band in range(grid.shape[0]):
            grid[band, at] += amplitude[band, k] * (1 - above)
            grid[band, at + 1] += amplitude[band, k] * above


def _sum_steps(grid, taps, out):  # type: ignore[no-untyped-def]
    """Response float32 (samples,) of a grid that begins as many silent samples early as there are taps, less one."""
    width = taps.shape[0]
    whole = out.shape[0] // 4 * 4
    # Four at a time, because a tap that is read once then serves four.
    for sample in range(0, whole, 4):
        at = sample * ROW
        one, two = grid[at : at + width], grid[at + ROW : at + ROW + width]
        three, four = grid[at + 2 * ROW : at + 2 * ROW + width], grid[at + 3 * ROW : at + 3 * ROW + width]
        sum_one, sum_two, sum_three, sum_four = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for tap in range(width):
            weight = taps[tap]
            sum_one += one[tap] * weight
            sum_two += two[tap] * weight
            sum_three += three[tap] * weight
            sum_four += four[tap] * weight
        out[sample], out[sample + 1], out[sample + 2], out[sample + 3] = sum_one, sum_two, sum_three, sum_four
    for sample in range(whole, out.shape[0]):
        last = grid[sample * ROW : sample * ROW + width]
        total = np.float32(0)
        for tap in range(width):
            total += last[tap] * taps[tap]
        out[sample] = total


deposit = _compiled(_deposit)
deposit_list = _compiled(_deposit_list)
sum_steps = _compiled(_sum_steps)
