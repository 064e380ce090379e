"""The parts of quantising: histograms, grids, scales of weights, equalisation, fitted rounding."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export import parity
from export.build import unrounded
from export.fixed_point import rounding, weights
from export.fixed_point.equalise import equalised
from export.fixed_point.grid import Form, best_grid
from export.fixed_point.histogram import Histogram
from export.fixed_point.layers import arrays_of, layers_of, left_in_float, prepared
from export.fixed_point.number_format import number_format
from export.fixed_point.quantise import CalibrationSettings, quantise

SAMPLES = 256


def histogram_of(*batches: np.ndarray) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch.astype(np.float32))
    return histogram


def squared_error(values: np.ndarray, grid) -> float:
    return float(np.mean((grid.round(values.astype(np.float64)) - values) ** 2))


def chain(seed: int = 3) -> onnx.ModelProto:
    """Two convolutions and a fully connected layer whose channels have very different ranges."""
    rng = np.random.default_rng(seed)
    spread = np.exp(rng.normal(size=24) * 1.5).astype(np.float32)
    arrays = {
        "axis": np.array([1]),
        "flat": np.array([0, -1]),
        "a": rng.normal(size=(24, 1, 8)).astype(np.float32) * spread[:, None, None],
        "a_bias": rng.normal(size=24).astype(np.float32) * spread * 0.1,
        "b": rng.normal(size=(12, 24, 3)).astype(np.float32) / spread[None, :, None],
        "b_bias": rng.normal(size=12).astype(np.float32) * 0.1,
        "c": rng.normal(size=(6, 12 * 31)).astype(np.float32) / 20,
        "c_bias": rng.normal(size=6).astype(np.float32) * 0.1,
    }
    nodes = [
        helper.make_node("Unsqueeze", ["pcm", "axis"], ["x"], "x"),
        helper.make_node("Conv", ["x", "a", "a_bias"], ["p"], "p", strides=[4], pads=[2, 2]),
        helper.make_node("MaxPool", ["p"], ["q"], "q", kernel_shape=[2], strides=[2]),
        helper.make_node("Relu", ["q"], ["r"], "r"),
        helper.make_node("Conv", ["r", "b", "b_bias"], ["s"], "s", pads=[1, 0]),
        helper.make_node("Relu", ["s"], ["t"], "t"),
        helper.make_node("Reshape", ["t", "flat"], ["f"], "f"),
        helper.make_node("Gemm", ["f", "c", "c_bias"], ["scores"], "scores", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("pcm", TensorProto.FLOAT, ["batch", SAMPLES])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 6])],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def coloured(noise: np.ndarray) -> np.ndarray:
    """Noise whose neighbouring samples are alike, as those of sound are."""
    return np.stack([np.convolve(row, np.hanning(12), "same") for row in noise]).clip(-1, 1).astype(np.float32)


@pytest.fixture(scope="module")
def pcm(noise_pcm) -> np.ndarray:
    return coloured(noise_pcm(512, SAMPLES, seed=2))


# --- histograms -----------------------------------------------------------------------------------------------------


def test_a_histogram_grows_without_losing_counts():
    rng = np.random.default_rng(0)
    batches = [rng.normal(size=(4, 500)) * scale for scale in (0.01, 0.3, 5, 0.2, 70)]
    growing, reversed_ = histogram_of(*batches), histogram_of(*reversed(batches))
    assert np.array_equal(growing.counts, reversed_.counts)
    assert growing.counts.sum() == 5 * 4 * 500
    everything = np.concatenate(batches)
    assert growing.low == pytest.approx(everything.min())
    assert growing.high == pytest.approx(everything.max())
    width = np.diff(growing.centres)[0]
    for share in (0.01, 0.5, 0.99):
        assert (everything <= growing.quantile(share) + width).mean() >= share
        assert (everything < growing.quantile(share) - width).mean() <= share


def test_quiet_clips_weigh_what_loud_ones_do():
    rng = np.random.default_rng(0)
    shape = np.sort(rng.normal(size=4000))
    loud, quiet = histogram_of(shape[None] * 8.0), histogram_of(shape[None] * 2.0)
    both = histogram_of(shape[None] * 8.0, shape[None] * 2.0)
    mean_square = {
        name: float(np.sum(each.weighted * each.centres**2)) for name, each in (("loud", loud), ("quiet", quiet))
    }
    assert mean_square["loud"] == pytest.approx(mean_square["quiet"], rel=0.2)
    assert both.weighted.sum() > 5 * loud.weighted.sum()


# --- grids ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("positive", [False, True])
def test_search_beats_minmax_on_heavy_tails(bits, symmetric, positive):
    rng = np.random.default_rng(1)
    values = rng.standard_t(3, size=(8, 20_000)) + (0.0 if symmetric else 0.4)
    values = np.maximum(values, 0.0) if positive else values
    histogram = histogram_of(values)
    form = Form(bits, symmetric=symmetric)
    searched, covering = (best_grid(histogram, form, method) for method in ("mse", "minmax"))
    assert squared_error(values, searched) < {4: 0.25, 8: 0.95}[bits] * squared_error(values, covering)
    assert searched.scale < covering.scale


def test_search_keeps_the_range_of_what_has_no_tails():
    values = np.random.default_rng(2).uniform(-1, 3, size=(4, 50_000))
    low, high = best_grid(histogram_of(values), Form(8), "mse").covers
    assert low == pytest.approx(-1, abs=0.05)
    assert high == pytest.approx(3, abs=0.05)


@pytest.mark.parametrize("method", ["minmax", "mse"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("ends", [(0.0, 3.7), (-2.1, 3.7), (-1.0, 1.0), (-5.0, 0.0), (0.0, 0.0), (0.0, 1e-9)])
def test_grids_hold_zero_and_what_they_should_cover(method, symmetric, ends):
    values = np.linspace(*ends, 4001)[None]
    for power_of_two in (False, True):
        grid = best_grid(histogram_of(values), Form(8, symmetric=symmetric, power_of_two=power_of_two), method)
        assert float(grid.round(np.zeros(1))[0]) == 0.0
        assert grid.low <= grid.zero <= grid.high
        if power_of_two:
            assert np.frexp(grid.scale)[0] == 0.5
        if method == "minmax":
            low, high = grid.covers
            assert low <= ends[0] + grid.scale / 2 + 1e-12
            assert high >= ends[1] - grid.scale / 2 - 1e-12


def test_percentile_and_entropy_cut_the_rarest():
    values = np.random.default_rng(3).normal(size=(4, 50_000))
    values[0, 0] = 60.0
    histogram = histogram_of(values)
    assert best_grid(histogram, Form(8), "minmax").covers[1] == pytest.approx(60, rel=0.01)
    assert best_grid(histogram, Form(8), "percentile", percentile=99.99).covers[1] < 6
    assert best_grid(histogram, Form(8), "entropy").covers[1] < 20


# --- weights --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_searched_weight_scales_are_never_worse(per_channel, power_of_two):
    rows = np.random.default_rng(4).standard_t(4, size=(20, 300)) * np.exp(np.arange(20) / 8)[:, None]
    rows[5] = 0.0
    errors = []
    for search in (False, True):
        scales = weights.scales(rows, 7, per_channel=per_channel, power_of_two=power_of_two, search=search)
        assert scales.shape == (20,)
        assert (len(set(scales.tolist())) == 1) is not per_channel
        numbers = weights.nearest(rows, scales, 7)
        assert np.abs(numbers).max() <= 7
        errors.append(float(np.sum((numbers * scales[:, None] - rows) ** 2)))
        if not search:
            assert np.all(scales * 7.000001 >= np.abs(rows).max(axis=1))
    assert errors[1] <= errors[0]
    if not power_of_two:
        assert errors[1] < 0.8 * errors[0]


# --- equalisation ---------------------------------------------------------------------------------------------------


def test_equalisation_keeps_the_function_and_helps_one_scale_per_tensor(pcm):
    graph = chain()
    exact = prepared(graph)
    equal = equalised(exact)
    before, after = parity.graph_scores(graph, pcm), parity.graph_scores(equal, pcm)
    assert np.abs(before - after).max() < 1e-4 * np.abs(before).max()

    def spread(model: onnx.ModelProto, name: str) -> float:
        ranges = np.abs(arrays_of(model)[name].reshape(arrays_of(model)[name].shape[0], -1)).max(axis=1)
        return float(ranges.max() / ranges.min())

    assert spread(equal, "a") < 0.3 * spread(exact, "a")
    errors = {}
    for equalise in (False, True):
        form = number_format(8, per_channel=False)
        found = quantise(graph, pcm, form, CalibrationSettings(equalise=equalise))
        errors[equalise] = float(np.mean((parity.graph_scores(found, pcm) - before) ** 2))
    assert errors[True] < 0.5 * errors[False]


# --- fitted rounding ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_channel", [False, True])
def test_fitted_rounding_beats_the_nearest(pcm, noise_pcm, per_channel):
    graph, heard = chain(), coloured(noise_pcm(256, SAMPLES, seed=77))
    wanted = parity.graph_scores(graph, heard)
    errors = {}
    for fit in (False, True):
        form = number_format(4, activation_bits=16, per_channel=per_channel)
        found = quantise(graph, pcm, form, CalibrationSettings(fit_weights=fit))
        difference = parity.graph_scores(found, heard, storage=True) - wanted
        errors[fit] = float(np.mean(difference**2))
    assert errors[True] < 0.5 * errors[False]


@pytest.mark.parametrize("bits", [4, 8])
def test_bias_correction_restores_the_means(pcm, noise_pcm, bits):
    graph, heard = chain(), coloured(noise_pcm(512, SAMPLES, seed=78))
    wanted = parity.graph_scores(graph, heard)
    shifts = {}
    for fit in (False, True):
        found = quantise(graph, pcm, number_format(bits), CalibrationSettings(fit_weights=fit))
        difference = parity.graph_scores(found, heard, storage=bits == 4) - wanted
        shifts[fit] = float(np.abs(difference.mean(axis=0)).mean())
    assert shifts[True] < 0.5 * shifts[False]


def test_rounding_in_blocks_is_rounding_at_once(monkeypatch):
    rng = np.random.default_rng(6)
    x = rng.normal(size=(3000, 20)) @ rng.normal(size=(20, 90)) + 0.3 * rng.normal(size=(3000, 90))
    trained = rng.normal(size=(8, 90))
    seen = rounding.Seen(
        x[None].astype(np.float32), (x @ trained.T)[None].astype(np.float32), np.zeros((1, 90)), np.zeros((1, 8))
    )

    def loss(rows: np.ndarray) -> float:
        return float(np.mean((x @ (rows - trained).T) ** 2))

    def scale_of(rows: np.ndarray) -> np.ndarray:
        return weights.scales(rows, 7, per_channel=True, power_of_two=False, search=True)

    scales = scale_of(trained)
    nearest = loss(weights.nearest(trained, scales, 7) * scales[:, None])
    losses = []
    for block in (2048, 32):
        monkeypatch.setattr(rounding, "_BLOCK", block)
        numbers, scales = rounding.fitted(trained, seen, scale_of, 7)
        assert np.array_equal(numbers, np.rint(numbers))
        assert np.abs(numbers).max() <= 7
        losses.append(loss(numbers * scales[:, None]))
    assert max(losses) < 0.3 * nearest
    assert losses[1] < 2 * losses[0]


def test_layers_are_found_with_their_channels():
    found = {layer.name: (layer.kind, layer.axis, layer.inputs) for layer in layers_of(prepared(chain()))}
    assert found == {"p": ("Conv", 0, 8), "s": ("Conv", 0, 72), "scores": ("Gemm", 0, 372)}


# --- a trained model ------------------------------------------------------------------------------------------------


@pytest.mark.shared_data
def test_released_lms_keeps_its_accuracy(speech_commands):
    from export.graphs.from_torch import to_onnx
    from firmware_models import data, zoo
    from firmware_models.training.checkpoint import load_checkpoint

    model, _ = load_checkpoint(zoo.FOLDER / "lms.safetensors")
    graph = to_onnx(model)
    test, train = data.load(speech_commands, "test"), data.load(speech_commands, "train")
    order = np.random.default_rng(0).permutation(len(train))[:256]
    clips = train.float_pcm(np.sort(order))
    heard = test.float_pcm(slice(None))

    def top1(found: onnx.ModelProto, *, storage: bool) -> float:
        return float(np.mean(parity.graph_scores(found, heard, storage=storage).argmax(1) == test.label_index))

    exact = top1(graph, storage=False)
    for bits, limit in ((16, 0.002), (8, 0.007), (4, 0.03)):
        found = quantise(graph, clips, number_format(bits))
        assert exact - top1(found, storage=bits != 8) <= limit, bits


# --- what is not rounded --------------------------------------------------------------------------------------------


def recurrent() -> onnx.ModelProto:
    rng = np.random.default_rng(1)
    arrays = {
        "steps": np.array([16, -1, 16]),
        "flat": np.array([-1, 8]),
        "w": rng.normal(size=(1, 32, 16)).astype(np.float32) / 4,
        "r": rng.normal(size=(1, 32, 8)).astype(np.float32) / 4,
        "c": rng.normal(size=(8, 8)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Reshape", ["pcm", "steps"], ["x"], "x"),
        helper.make_node("LSTM", ["x", "w", "r"], ["", "h"], "lstm", hidden_size=8),
        helper.make_node("Reshape", ["h", "flat"], ["f"], "f"),
        helper.make_node("MatMul", ["f", "c"], ["scores"], "scores"),
    ]
    graph = helper.make_graph(
        nodes,
        "recurrent",
        [helper.make_tensor_value_info("pcm", TensorProto.FLOAT, ["batch", SAMPLES])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_weights_that_stay_as_they_are_are_told(pcm):
    form = number_format(8)
    assert left_in_float(quantise(chain(), pcm, form)) == (0.0, ())
    share, operators = left_in_float(quantise(recurrent(), pcm, form))
    assert (share, operators) == (pytest.approx(768 / 832), ("LSTM",))
    (note,) = unrounded(quantise(recurrent(), pcm, form), form)
    assert note.startswith("92% of the weights stay in 32-bit floating point (LSTM)")
    assert unrounded(quantise(chain(), pcm, form), form) == []
