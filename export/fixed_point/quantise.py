"""Post-training quantisation of an exported graph: static, from calibration clips, reproducible to the byte.

What is rounded, and how:

- Weights of layers: signed, symmetric, a scale per output channel or per tensor. In 16 and 8 bits to the nearest; in
  4 bits so that the layer comes out right (:mod:`export.fixed_point.rounding`).
- Activations: one grid per tensor from what calibration saw (:mod:`export.fixed_point.histogram`), unsigned with a
  zero point, or symmetric with zero point 0 for ``portable`` and for power-of-two scales: then signed, in ``storage``
  only where numbers are negative. The quantiser of onnxruntime places the Q/DQ nodes
  (:mod:`export.fixed_point.writing`).
- The front end stays in FP32, its powers span ten decades, and so do the scores: rounded to 256 values, labels would
  tie. Biases are stored in 32 bits: whole numbers in ``cpu``, floats elsewhere.
- Sound that a layer reads directly (ETE) is rounded to 8 bits in the 8-bit formats, for speed: 3.6 times that of FP32
  instead of 2.5 times with a first layer in FP32. On the test list that costs nothing that can be told from chance,
  but 1.4 points 10 dB below it and 7 points 20 dB below; ``keep_sound`` decides otherwise. In all other widths sound
  keeps the 16 bits in which it is recorded: in 4 bits there would be nothing left of it.
"""

from __future__ import annotations

from typing import get_args

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto
from pydantic import BaseModel, ConfigDict, Field

from edge.errors import DataError, UsageError
from export.fixed_point import rounding, weights, writing
from export.fixed_point.bottleneck import balanced
from export.fixed_point.equalise import equalised
from export.fixed_point.finishing import finished
from export.fixed_point.grid import Form, Grid, Method, best_grid
from export.fixed_point.histogram import Histogram, observe
from export.fixed_point.layers import Layer, arrays_of, layers_of, prepared, reads_sound, store
from export.fixed_point.number_format import NumberFormat
from firmware_models.progress import Progress, silent

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

METHODS: tuple[str, ...] = get_args(Method)
MIN_CLIPS = 16
# More clips than this do not determine a layer's weights any better; every layer is run on them.
_FITTING_CLIPS = 1024


class CalibrationSettings(BaseModel):
    """How ranges are chosen and weights are rounded; what is None follows from the width.

    ``method`` turns what calibration saw into the range of an activation: ``minmax`` covers every value (the default
    in 16 bits), ``percentile`` all but the rarest, ``entropy`` keeps the shape of the distribution, ``mse`` makes the
    squared error least, relative to each clip's power (the default in 8 and 4 bits). ``weight_method`` does so for
    weights: ``minmax``, by default in 16 and 8 bits, or ``mse``. ``fit_weights`` rounds each layer as a whole and
    corrects its bias instead of rounding to the nearest, by default where weights or activations have 4 bits.
    ``equalise`` evens out the ranges of channels across layers before (Nagel et al. 2019), by default where all
    channels of a weight share a scale. ``balance`` turns the channels between the two factors of a low-rank layer
    (:mod:`export.fixed_point.bottleneck`), by default in 8 and 4 bits. ``finish_steps`` is how many steps the weights
    are trained for rounded activations (:mod:`export.fixed_point.finishing`) before they are fitted. ``keep_sound``
    leaves sound that a layer reads directly as it is in 8 bits too.

    ``reduce_range`` keeps 8-bit weights of profile ``cpu`` within +-64: x86 processors without VNNI add two products
    in 16 saturating bits, and with weights up to 127 they compute other scores (0.5 apart, on an LMS) than all others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Method | None = None
    percentile: float = Field(default=99.999, gt=50, le=100)
    weight_method: weights.WeightMethod | None = None
    fit_weights: bool | None = None
    equalise: bool | None = None
    balance: bool | None = None
    finish_steps: int = Field(default=0, ge=0, le=100_000)
    keep_sound: bool = False
    reduce_range: bool = True


def quantise(
    graph: ModelProto,
    pcm: Floats,
    form: NumberFormat,
    settings: CalibrationSettings | None = None,
    *,
    progress: Progress = silent,
) -> ModelProto:
    """The graph in a number format; the one given is not changed.

    Args:
        graph: FP32, with input ``pcm`` and output ``scores``, e.g. of :func:`export.graphs.from_torch.to_onnx`. A
            fixed batch stays fixed.
        pcm: calibration clips, float32 (n, samples); 1000 or more of the training split for a real model.
        form: an FP32 format gives the graph as it is.
        settings: see :class:`CalibrationSettings`.
        progress: told once per batch, for each part of the work.

    Raises:
        DataError: fewer than 16 clips, or NaN or infinity in clips, weights or activations.
        UsageError: the graph has nothing to quantise, or other inputs than ``pcm``.
    """
    settings = settings or CalibrationSettings()
    if not form.quantised:
        return graph
    _check(graph, pcm)
    exact = prepared(graph)
    layers = layers_of(exact)
    if not layers:
        raise UsageError("the graph has no Conv, Gemm or MatMul with constant weights behind its front end: keep FP32")
    # The quantiser of onnxruntime would fail on these without telling where they come from.
    clip = pcm[: _fixed(graph) or 1]
    observe(exact, [layer.output for layer in layers], clip)
    exact = _evened(exact, pcm, form, settings, progress)
    grids: dict[str, Grid] = {}
    if form.activation_bits != 32:
        seen = observe(exact, writing.rounded_tensors(exact, form, clip), pcm, progress=progress)
        grids = {name: _grid(name, histogram, exact, form, settings) for name, histogram in seen.items()}
    chooser = _Weights(form, settings)
    arrays = arrays_of(exact)
    scales = {layer: chooser.scales(layer.rows(arrays[layer.weight])) for layer in layers}
    nearest = onnx.ModelProto()
    nearest.CopyFrom(exact)
    for layer in layers:
        rounded = weights.nearest(layer.rows(arrays[layer.weight]), scales[layer], chooser.last)
        store(nearest, layer.weight, layer.from_rows(rounded * scales[layer][:, None]))
    quantised = writing.write(nearest, form, grids, scales, clip)
    if form.activation_bits == 32:
        writing.without_activations(quantised)
    elif form.activation_bits == 8 and settings.keep_sound:
        writing.without_activations(quantised, [name for name in grids if reads_sound(exact, name)])
    narrow = min(form.bits, form.activation_bits) == 4
    steps = settings.finish_steps if form.activation_bits != 32 else 0
    if steps or (settings.fit_weights if settings.fit_weights is not None else narrow):
        few = pcm[:: max(1, len(pcm) // _FITTING_CLIPS)]
        fitted = _fit(layers, exact, quantised, chooser, few, progress=progress)
        if steps:
            soft = finished(exact, fitted, quantised, layers, pcm, steps=steps, progress=progress)
            _fit(layers, soft, quantised, chooser, few, progress=progress)
    onnx.checker.check_model(quantised, full_check=True)
    return quantised


def _evened(
    exact: ModelProto, pcm: Floats, form: NumberFormat, settings: CalibrationSettings, progress: Progress
) -> ModelProto:
    """The same network with channels that are easier to round."""
    if settings.balance if settings.balance is not None else min(form.bits, form.activation_bits) <= 8:
        exact = balanced(exact, pcm, progress=progress)
    if settings.equalise if settings.equalise is not None else not form.per_channel:
        exact = equalised(exact)
    return exact


def _check(graph: ModelProto, pcm: Floats) -> None:
    others = [each.name for each in graph.graph.input][1:]
    if others:
        raise UsageError(f"the graph also takes {', '.join(others)}: only graphs of sound alone can be quantised")
    least = max(MIN_CLIPS, _fixed(graph))
    if len(pcm) < least:
        raise DataError(f"{len(pcm)} calibration clips: at least {least} are needed, 1000 for a real model")
    bad = np.flatnonzero(~np.isfinite(pcm).all(axis=1))
    if len(bad):
        raise DataError(f"calibration clip {bad[0]} holds NaN or infinity: leave it out (earshot data check finds it)")


def _fixed(graph: ModelProto) -> int:
    """The batch size that the graph insists on, or 0."""
    return int(graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value)


def _grid(
    name: str, histogram: Histogram, exact: ModelProto, form: NumberFormat, settings: CalibrationSettings
) -> Grid:
    bits = form.activation_bits
    symmetric = writing.symmetric(form)
    if bits != 8 and reads_sound(exact, name):
        # 16-bit PCM lies on this grid.
        return Grid(2.0**-15, 0, -32768, 32767) if symmetric else Grid(2.0**-15, 32768, 0, 65535)
    # A sign would waste half the numbers on what is never negative. Kernels of 8 bits want one type everywhere; in
    # `storage` there are none.
    symmetric = symmetric and not (form.profile == "storage" and histogram.low >= 0)
    method = settings.method or ("minmax" if bits == 16 else "mse")
    kind = Form(bits, symmetric=symmetric, power_of_two=form.power_of_two)
    return best_grid(histogram, kind, method, percentile=settings.percentile)


class _Weights:
    """How the weights of every layer are rounded; ``last`` is the largest whole number that stands for one."""

    def __init__(self, form: NumberFormat, settings: CalibrationSettings) -> None:
        self._form = form
        self._search = (settings.weight_method or ("mse" if form.bits == 4 else "minmax")) == "mse"
        self.last = weights.levels(form.bits, reduce_range=form.profile == "cpu" and settings.reduce_range)

    def scales(self, rows: Doubles) -> Doubles:
        """Scales (channels,) for weights (channels, inputs)."""
        return weights.scales(
            rows,
            self.last,
            per_channel=self._form.per_channel,
            power_of_two=self._form.power_of_two,
            search=self._search,
        )


def _fit(
    layers: tuple[Layer, ...],
    exact: ModelProto,
    quantised: ModelProto,
    chooser: _Weights,
    pcm: Floats,
    *,
    progress: Progress,
) -> ModelProto:
    """Round each layer as a whole, given what everything before it gives in the quantised graph, which is changed.

    Returns:
        ``exact`` with weights and biases as they were rounded.
    """
    fitted = onnx.ModelProto()
    fitted.CopyFrom(exact)
    arrays = arrays_of(exact)
    for layer in layers:
        seen = rounding.look(layer, exact, quantised, pcm, progress=progress)
        numbers, scales = rounding.fitted(layer.rows(arrays[layer.weight]), seen, chooser.scales, chooser.last)
        writing.store_weights(quantised, layer, numbers, scales)
        store(fitted, layer.weight, layer.from_rows(numbers * scales[:, None]))
        if layer.bias is not None:
            bias = rounding.corrected_bias(numbers * scales[:, None], seen)
            writing.store_bias(quantised, layer, bias)
            store(fitted, layer.bias, bias)
    return fitted
