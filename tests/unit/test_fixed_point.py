"""Quantised graphs: element types, scales, sizes, reproducibility, and what is refused."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge.errors import DataError, UsageError
from export import parity
from export.fixed_point.number_format import number_format
from export.fixed_point.quantise import CalibrationSettings, quantise
from export.graphs.tensorrt import check_portable

SAMPLES = 400


def small_graph(seed: int = 0, *, batch: int | None = None) -> onnx.ModelProto:
    """Sound, convolution, pooling, Relu, depthwise convolution, Relu, two fully connected layers."""
    rng = np.random.default_rng(seed)

    def weights(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    constants = {
        "axis": np.array([1]),
        "flat": np.array([0, -1] if batch is None else [batch, 16 * 48]),
        "conv1": weights(16, 1, 16) * rng.uniform(0.3, 3, (16, 1, 1)).astype(np.float32),
        "conv1_bias": weights(16),
        "depth": weights(16, 1, 3),
        "fc1": weights(32, 16 * 48),
        "fc1_bias": weights(32),
        "fc2": weights(32, 5),
    }
    nodes = [
        helper.make_node("Unsqueeze", ["pcm", "axis"], ["line"], "line"),
        helper.make_node("Conv", ["line", "conv1", "conv1_bias"], ["c1"], "c1", strides=[4], pads=[7, 5]),
        helper.make_node("MaxPool", ["c1"], ["p1"], "p1", kernel_shape=[2], strides=[2]),
        helper.make_node("Relu", ["p1"], ["r1"], "r1"),
        helper.make_node("Conv", ["r1", "depth"], ["c2"], "c2", group=16),
        helper.make_node("Relu", ["c2"], ["r2"], "r2"),
        helper.make_node("Reshape", ["r2", "flat"], ["f"], "f"),
        helper.make_node("Gemm", ["f", "fc1", "fc1_bias"], ["h"], "h", transB=1),
        helper.make_node("Relu", ["h"], ["r3"], "r3"),
        helper.make_node("MatMul", ["r3", "fc2"], ["scores"], "scores"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("pcm", TensorProto.FLOAT, [batch or "batch", SAMPLES])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch or "batch", 5])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture(scope="module")
def graph() -> onnx.ModelProto:
    return small_graph()


@pytest.fixture(scope="module")
def pcm(noise_pcm) -> np.ndarray:
    return noise_pcm(256, SAMPLES, seed=5)


def initializers(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {each.name: each for each in model.graph.initializer}


def stored(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The whole numbers that stand for weights, by the name of the weight."""
    return {
        name.removesuffix("_quantized"): each
        for name, each in initializers(model).items()
        if name.endswith("_quantized") and each.data_type != TensorProto.INT32
    }


def rounded(model: onnx.ModelProto) -> dict[str, tuple[float, np.ndarray]]:
    """Scale and zero point of every QuantizeLinear, by its input."""
    arrays = {name: numpy_helper.to_array(each) for name, each in initializers(model).items()}
    return {
        node.input[0]: (float(arrays[node.input[1]]), arrays[node.input[2]])
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }


def error(model: onnx.ModelProto, exact: onnx.ModelProto, pcm: np.ndarray) -> float:
    wanted = parity.graph_scores(exact, pcm)
    return float(np.sqrt(np.mean((parity.graph_scores(model, pcm, storage=True) - wanted) ** 2)) / wanted.std())


# --- what is in the file --------------------------------------------------------------------------------------------

TYPES = {4: (TensorProto.INT4, "uint4"), 8: (TensorProto.INT8, "uint8"), 16: (TensorProto.INT16, "uint16")}


@pytest.mark.parametrize(("bits", "activation_bits"), [(16, 16), (8, 8), (4, 4), (4, 8), (4, 16), (16, 4)])
def test_element_types(graph, pcm, bits, activation_bits):
    form = number_format(bits, activation_bits=activation_bits)
    model = quantise(graph, pcm, form)
    assert {each.data_type for each in stored(model).values()} == {TYPES[bits][0]}
    assert set(stored(model)) == {"conv1", "depth", "fc1", "fc2"}
    zeros = {name: zero.dtype.name for name, (_, zero) in rounded(model).items()}
    sound = zeros.pop("line")
    assert set(zeros.values()) == {TYPES[activation_bits][1]}
    # Sound keeps the bits in which it is recorded, but for the 8-bit formats.
    assert sound == ("uint8" if activation_bits == 8 else "uint16")
    assert {node.domain for node in model.graph.node} == {""}


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_weights_only(graph, pcm, bits):
    model = quantise(graph, pcm, number_format(bits, activation_bits=32, profile="storage"))
    assert {each.data_type for each in stored(model).values()} == {TYPES[bits][0]}
    kinds = {node.op_type for node in model.graph.node}
    assert "QuantizeLinear" not in kinds
    assert "DequantizeLinear" in kinds
    assert error(model, graph, pcm) < {16: 1e-3, 8: 0.02, 4: 0.15}[bits]


def test_four_bits_take_half_a_byte(graph, pcm):
    sizes = {}
    for bits in (16, 8, 4):
        weights = stored(quantise(graph, pcm[:32], number_format(bits, activation_bits=32, profile="storage")))
        sizes[bits] = sum(each.ByteSize() for each in weights.values())
    values = 16 * 16 + 16 * 3 + 32 * 16 * 48 + 32 * 5
    for bits, size in sizes.items():
        assert size == pytest.approx(values * bits / 8, rel=0.02)


def test_scores_are_not_rounded_and_layers_are_rounded_once(graph, pcm):
    for bits in (8, 4):
        model = quantise(graph, pcm, number_format(bits))
        assert next(node for node in model.graph.node if "scores" in node.output).op_type == "MatMul"
        # Neither between a layer and its Relu, nor apart on both sides of pooling.
        assert not {"c1", "c2", "h"} & set(rounded(model))
        grids = {(scale, int(zero)) for scale, zero in rounded(model).values()}
        assert len(grids) == 4


def test_power_of_two_scales(graph, pcm):
    for bits in (16, 8, 4):
        model = quantise(graph, pcm, number_format(bits, power_of_two=True))
        names = {node.input[1] for node in model.graph.node if node.op_type.endswith("QuantizeLinear")}
        names |= {node.input[1] for node in model.graph.node if node.op_type == "DequantizeLinear"}
        arrays = initializers(model)
        # A bias is a whole number at the product of two scales.
        for name in names:
            mantissa, _ = np.frexp(numpy_helper.to_array(arrays[name]))
            assert np.all(mantissa == 0.5), name
        grids = rounded(model).values()
        assert all(int(zero) == 0 for _, zero in grids)
        # No sign where nothing is negative, but in 8 bits, which a CPU computes in one type.
        assert {zero.dtype.name[0] for _, zero in grids} == ({"i"} if bits == 8 else {"i", "u"})
        # Calibrated values are covered but for 4 bits, where the search may cut the rarest off.
        assert error(model, graph, pcm) < {16: 1e-3, 8: 0.06, 4: 0.6}[bits]


def test_per_tensor(graph, pcm):
    per_tensor = quantise(graph, pcm, number_format(8, per_channel=False))
    arrays = initializers(per_tensor)
    assert all(not arrays[f"{name}_scale"].dims for name in stored(per_tensor))
    per_channel = quantise(graph, pcm, number_format(8))
    arrays = initializers(per_channel)
    assert {name: tuple(arrays[f"{name}_scale"].dims) for name in stored(per_channel)} == {
        "conv1": (16,),
        "depth": (16,),
        "fc1": (32,),
        "fc2": (5,),
    }


def test_cpu_weights_stay_below_the_saturation_of_older_processors(graph, pcm):
    for settings, largest in ((CalibrationSettings(), 64), (CalibrationSettings(reduce_range=False), 127)):
        weights = stored(quantise(graph, pcm, number_format(8), settings))
        assert max(int(np.abs(numpy_helper.to_array(each).astype(int)).max()) for each in weights.values()) == largest


def test_portable_is_what_tensorrt_takes(pcm):
    graph = small_graph(batch=1)
    model = quantise(graph, pcm[:64], number_format(8, profile="portable"))
    check_portable(model)
    assert all(int(zero) == 0 and zero.dtype == np.int8 for _, zero in rounded(model).values())
    kinds = {each.data_type for name, each in initializers(model).items() if "bias" in name}
    assert kinds == {TensorProto.FLOAT}
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    assert error(model, graph, pcm[:32]) < 0.1


def test_sound_can_be_kept(graph, pcm):
    model = quantise(graph, pcm, number_format(8), CalibrationSettings(keep_sound=True))
    assert set(rounded(model)) == set(rounded(quantise(graph, pcm, number_format(8)))) - {"line"}


# --- accuracy and reproducibility -----------------------------------------------------------------------------------


def test_more_bits_are_closer(graph, pcm):
    errors = [error(quantise(graph, pcm, number_format(bits)), graph, pcm) for bits in (16, 8, 4)]
    assert errors[0] < 1e-3
    assert errors[0] < errors[1] < 0.05
    assert errors[1] < errors[2] < 0.5


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_same_input_same_bytes(graph, pcm, bits):
    first, second = (quantise(graph, pcm, number_format(bits)).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_the_given_graph_is_left_alone_and_fp32_is_given_back(graph, pcm):
    before = graph.SerializeToString(deterministic=True)
    quantise(graph, pcm, number_format(4))
    assert graph.SerializeToString(deterministic=True) == before
    assert quantise(graph, pcm[:1], number_format(32)) is graph


def test_methods_differ(graph, pcm):
    found = {
        method: quantise(graph, pcm, number_format(8), CalibrationSettings(method=method)).SerializeToString()
        for method in ("mse", "minmax", "percentile", "entropy")
    }
    assert len(set(found.values())) == 4


def test_progress_is_told_and_nothing_is_printed(graph, pcm, capfd):
    seen = []
    quantise(graph, pcm, number_format(4), progress=lambda done, total, note="": seen.append((done, total, note)))
    assert seen[0] == (0, 256, "calibrating")
    assert {note for _, _, note in seen} == {"calibrating"} | {
        f"rounding {name}" for name in ("conv1", "depth", "fc1", "fc2")
    }
    out = capfd.readouterr()
    assert out.out == out.err == ""


# --- refusals -------------------------------------------------------------------------------------------------------


def spoiled(value: float, rows: slice = slice(3, 4)) -> onnx.ModelProto:
    model = small_graph()
    for each in model.graph.initializer:
        if each.name == "fc1":
            array = numpy_helper.to_array(each).copy()
            array[rows] = value
            each.CopyFrom(numpy_helper.from_array(array, "fc1"))
    return model


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_bad_input_is_refused_in_one_line(graph, pcm, bits):
    form = number_format(bits)
    broken = pcm.copy()
    broken[7, 100] = np.nan
    cases = {
        "15 calibration clips: at least 16": (graph, pcm[:15]),
        "0 calibration clips: at least 16": (graph, pcm[:0]),
        "calibration clip 7 holds NaN or infinity": (graph, broken),
        "fc1: a weight is NaN or infinite": (spoiled(np.nan), pcm),
        "fc1: a weight is NaN or infinite ": (spoiled(-np.inf), pcm),
        "NaN or infinity on the calibration clips": (spoiled(3e38, slice(None)), pcm),
    }
    for expected, (model, clips) in cases.items():
        with pytest.raises(DataError, match=expected.strip()) as caught:
            quantise(model, clips, form)
        assert "\n" not in str(caught.value)


def test_a_graph_without_layers_or_with_other_inputs_is_refused(graph, pcm):
    other = onnx.ModelProto()
    other.CopyFrom(graph)
    other.graph.input.append(helper.make_tensor_value_info("eps", TensorProto.FLOAT, ["members", 4]))
    with pytest.raises(UsageError, match="also takes eps"):
        quantise(other, pcm, number_format(8))
    bare = onnx.ModelProto()
    bare.CopyFrom(graph)
    del bare.graph.node[1:]
    bare.graph.node[0].output[0] = "scores"
    with pytest.raises(UsageError, match="no Conv, Gemm or MatMul"):
        quantise(bare, pcm, number_format(8))


# --- finishing ------------------------------------------------------------------------------------------------------


def test_finishing_gets_a_network_used_to_its_rounding(graph, pcm, noise_pcm):
    heard = noise_pcm(128, SAMPLES, seed=79)
    wanted = parity.graph_scores(graph, heard)
    shares = np.exp(wanted) / np.exp(wanted).sum(axis=1, keepdims=True)
    distances, told = {}, []
    form = number_format(16, activation_bits=4)
    for steps in (0, 40):
        settings = CalibrationSettings(finish_steps=steps)
        found = quantise(graph, pcm, form, settings, progress=lambda done, total, note="": told.append(note))
        given = parity.graph_scores(found, heard, storage=True)
        logs = given - np.log(np.exp(given).sum(axis=1, keepdims=True))
        distances[steps] = float(np.sum(shares * (np.log(shares) - logs), axis=1).mean())
    assert sum(note.startswith("finishing") for note in told) == 40
    assert distances[40] < 0.3 * distances[0]
    once, again = (quantise(graph, pcm, number_format(8), CalibrationSettings(finish_steps=2)) for _ in range(2))
    assert once.SerializeToString() == again.SerializeToString()


def test_finishing_needs_a_twin(graph, pcm):
    unknown = copy.deepcopy(graph)
    unknown.graph.node[-1].output[0] = "raw"
    unknown.graph.node.append(helper.make_node("Hardmax", ["raw"], ["scores"], "hard"))
    with pytest.raises(UsageError, match="Hardmax") as caught:
        quantise(unknown, pcm, number_format(4), CalibrationSettings(finish_steps=1))
    assert "\n" not in str(caught.value)
