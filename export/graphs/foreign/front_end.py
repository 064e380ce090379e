"""Log-mel features as other projects compute them, as ONNX nodes in front of their model."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from edge.errors import UsageError
from export.graphs.foreign.nodes import Nodes
from export.graphs.foreign.settings import FrontEndSettings

Doubles = npt.NDArray[np.float64]

# Added to a power before its square root, whose slope at 0 is infinite; -300 dB.
_TINY_POWER = 1e-30


def mel_bands(settings: FrontEndSettings, rate_hz: int) -> Doubles:
    """The weights of the DFT's bins in each band, float64 (bands, dft // 2 + 1)."""
    edges_mel = np.linspace(
        _mel(settings, np.float64(settings.low_hz)),
        _mel(settings, np.float64(settings.top_hz(rate_hz))),
        settings.bands + 2,
    )
    edges_hz = _hz(settings, edges_mel)
    bins_hz = np.arange(settings.dft // 2 + 1, dtype=np.float64) * (rate_hz / settings.dft)
    over_mel = settings.triangles_over == "mel"
    bins, edges = (_mel(settings, bins_hz), edges_mel) if over_mel else (bins_hz, edges_hz)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    weights: Doubles = np.maximum(0.0, np.minimum(rising, falling))
    if settings.filter_norm == "area":
        weights *= (2.0 / (edges_hz[2:] - edges_hz[:-2]))[:, None]
    return weights


def visible_floor(settings: FrontEndSettings) -> float | None:
    """``log_floor`` as the mean square per band that it stands for; None where it stands for no single one."""
    if settings.spectrum != "power" or settings.filter_norm != "peak" or settings.log == "none":
        return None
    window = _window(settings)
    mean_square = 2.0 / (settings.dft * float(np.sum(window**2)))
    return float(settings.log_floor * mean_square / (_scale(settings, window) * settings.full_scale**2))


def write_front_end(to: Nodes, pcm: str, settings: FrontEndSettings, *, rate_hz: int, samples: int) -> str:
    """Write the nodes from ``pcm`` (batch, samples) to features (batch, frames, width); return their name.

    Raises:
        UsageError: ``samples`` are too few for a frame, or no band contains a bin of the DFT.
    """
    if settings.frames(samples) < 1 or (settings.padding == "reflect" and settings.dft // 2 >= samples):
        raise UsageError(f"{samples} samples are too short for frames of {settings.span_samples}")
    weights = mel_bands(settings, rate_hz)
    used = np.flatnonzero(weights.sum(0))
    if not used.size:
        raise UsageError("no mel band contains a bin of the DFT: use fewer bands or longer frames")
    first, stop = int(used[0]), int(used[-1]) + 1
    value, pads = _padded(to, pcm, settings, samples)
    value = to.add("Unsqueeze", value, to.constant("axis", [1], np.int64))
    kernel = _kernel(to, settings, first, stop)
    value = to.add("Conv", value, kernel, strides=[settings.hop_samples], pads=pads)
    value = to.add("Mul", value, value)
    value = to.add("Add", _channels(to, value, 0, stop - first), _channels(to, value, stop - first, 2 * (stop - first)))
    if settings.spectrum == "magnitude":
        value = to.add("Pow", to.plus(value, _TINY_POWER), to.constant("half", 0.5))
    value = to.add("Transpose", value, perm=[0, 2, 1])
    value = to.add("MatMul", value, to.constant("filters", weights[:, first:stop].T))
    value = _logarithm(to, value, settings, settings.frames(samples))
    if settings.cepstra is not None:
        value = to.add("MatMul", value, to.constant("dct", _dct(settings.bands)[:, : settings.cepstra]))
    mean, deviation = np.asarray(settings.mean), np.asarray(settings.deviation)
    if np.any(mean != 0) or np.any(deviation != 1):
        value = to.plus(to.times(value, 1.0 / deviation), -mean / deviation)
    return value


def _padded(to: Nodes, pcm: str, settings: FrontEndSettings, samples: int) -> tuple[str, list[int]]:
    """The sound that the convolution sees, and what it pads itself."""
    missing = settings.dft - settings.frame_samples
    before = missing // 2 if settings.window_at == "centre" else 0
    after = missing - before if settings.window_at == "centre" else 0
    half = settings.dft // 2
    if settings.padding == "zero":
        return pcm, [half - before, half - after]
    if settings.padding == "reflect":
        pads = to.constant("pads", [0, half - before, 0, half - after], np.int64)
        return to.add("Pad", pcm, pads, mode="reflect"), [0, 0]
    if before or after:
        bounds = [
            to.constant(key, [at], np.int64) for key, at in (("from", before), ("to", samples - after), ("axis", 1))
        ]
        return to.add("Slice", pcm, *bounds), [0, 0]
    return pcm, [0, 0]


def _kernel(to: Nodes, settings: FrontEndSettings, first: int, stop: int) -> str:
    """Windowed cosines and sines (2 * bins, 1, frame), computed in the graph: stored, they would outweigh the model."""
    numbers = {
        "zero": 0,
        "one": 1,
        "length": settings.dft,
        "frame": settings.frame_samples,
        "first": first,
        "end": stop,
    }
    name = {key: to.constant(key, value, np.int64) for key, value in numbers.items()}
    axis = to.constant("axis", [1], np.int64)
    sample = to.add("Range", name["zero"], name["frame"], name["one"])
    column = to.add("Unsqueeze", to.add("Range", name["first"], name["end"], name["one"]), axis)
    turn = to.add("Mod", to.add("Mul", column, sample), name["length"])
    phase = to.times(to.add("Cast", turn, to=TensorProto.FLOAT), 2.0 * math.pi / settings.dft)
    both = to.add("Concat", to.add("Cos", phase), to.add("Sin", phase), axis=0)
    window = _window(settings)
    scaled = window * (math.sqrt(_scale(settings, window)) * settings.full_scale)
    return to.add("Mul", to.add("Unsqueeze", both, axis), to.constant("window", scaled))


def _channels(to: Nodes, value: str, first: int, stop: int) -> str:
    bounds = [to.constant(key, [at], np.int64) for key, at in (("from", first), ("to", stop), ("axis", 1))]
    return to.add("Slice", value, *bounds)


def _logarithm(to: Nodes, value: str, settings: FrontEndSettings, frames: int) -> str:
    if settings.log == "none":
        return value
    if settings.log == "ln1p":
        return to.add("Log", to.plus(to.times(value, 1.0 / settings.log_floor), 1.0))
    if settings.floor == "add":
        value = to.plus(value, settings.log_floor)
    else:
        value = to.at_least(value, to.constant("floor", settings.log_floor))
    decibels = 10.0 if settings.spectrum == "power" else 20.0
    factor = {"ln": 1.0, "log10": 1.0 / math.log(10.0), "db": decibels / math.log(10.0)}[settings.log]
    value = to.add("Log", value)
    value = value if factor == 1.0 else to.times(value, factor)
    if settings.range_db is None and not settings.relative_to_peak:
        return value
    image = to.add("Unsqueeze", value, to.constant("axis", [1], np.int64))
    peak = to.reshaped(to.add("MaxPool", image, kernel_shape=[frames, settings.bands]), [0, 1, 1])
    if settings.range_db is not None:
        value = to.at_least(value, to.plus(peak, -settings.range_db))
    return to.add("Sub", value, peak) if settings.relative_to_peak else value


def _window(settings: FrontEndSettings) -> Doubles:
    kind, length = settings.window, settings.frame_samples
    period = length - 1 if kind.endswith("_symmetric") else length
    cosine = np.cos(2.0 * np.pi * np.arange(length) / period)
    if kind.startswith("hann"):
        return np.asarray(0.5 - 0.5 * cosine)
    return np.asarray(0.54 - 0.46 * cosine) if kind.startswith("hamming") else np.ones(length)


def _scale(settings: FrontEndSettings, window: Doubles) -> float:
    energy = float(np.sum(window**2))
    return {
        "none": 1.0,
        "dft": 1.0 / settings.dft,
        "window": 1.0 / energy,
        # One-sided spectrum: twice the power; Parseval: divide by the length and by the energy of the window.
        "mean_square": 2.0 / (settings.dft * energy),
    }[settings.scaling]


def _mel(settings: FrontEndSettings, frequency_hz: npt.NDArray[np.floating[Any]] | np.floating[Any]) -> Doubles:
    if settings.mel_scale == "htk":
        return np.asarray(2595.0 * np.log10(1.0 + frequency_hz / 700.0))
    # Slaney's Auditory Toolbox (1998): 200/3 Hz per mel up to 1 kHz, then 27 steps for a factor of 6.4.
    above = 15.0 + 27.0 * np.log(np.maximum(frequency_hz, 1000.0) / 1000.0) / math.log(6.4)
    return np.where(frequency_hz < 1000.0, frequency_hz * 3.0 / 200.0, above)


def _hz(settings: FrontEndSettings, mel: Doubles) -> Doubles:
    if settings.mel_scale == "htk":
        return np.asarray(700.0 * (10.0 ** (mel / 2595.0) - 1.0))
    return np.where(mel < 15.0, mel * 200.0 / 3.0, 1000.0 * 6.4 ** ((mel - 15.0) / 27.0))


def _dct(bands: int) -> Doubles:
    """The orthonormal DCT-II as a matrix (bands, bands) that is multiplied from the right."""
    angle = np.pi * np.outer(np.arange(bands) + 0.5, np.arange(bands)) / bands
    matrix = np.cos(angle) * math.sqrt(2.0 / bands)
    matrix[:, 0] /= math.sqrt(2.0)
    return np.asarray(matrix)
