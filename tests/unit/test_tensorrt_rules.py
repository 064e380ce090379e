"""What TensorRT takes: our portable graphs pass, and each broken rule is refused with the node that breaks it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge.errors import UsageError
from export.graphs.from_torch import to_onnx
from export.graphs.tensorrt import check_portable
from firmware_models.architectures import build


def graph_of(nodes, constants, *, shape=(1, 6), opset=21, rank=None) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("pcm", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, rank)],
        [
            each if isinstance(each, TensorProto) else numpy_helper.from_array(np.asarray(each), name)
            for name, each in constants.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def pair(source: str, target: str, **attributes) -> list:
    return [
        helper.make_node("QuantizeLinear", [source, "scale", "zero"], ["q"], name="quantise", **attributes),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], [target], name="dequantise", **attributes),
    ]


def layer(kind="Gemm", *, axis=0, scales=2, weight_shape=(2, 6), **attributes) -> onnx.ModelProto:
    """A layer with an INT8 weight behind a Q/DQ pair."""
    nodes = [
        *pair("pcm", "x"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["weight"], name="weights", axis=axis),
        helper.make_node(kind, ["x", "weight"], ["scores"], name="layer", **attributes),
    ]
    constants = {
        "scale": np.float32(0.1),
        "zero": np.int8(0),
        "w": np.ones(weight_shape, np.int8),
        "ws": np.full(scales, 0.01, np.float32) if scales else np.float32(0.01),
        "wz": np.zeros(scales, np.int8) if scales else np.int8(0),
    }
    return graph_of(nodes, constants)


@pytest.mark.parametrize("name", ["ds_cnn", "ete", "lms", "m5"])
def test_our_architectures_can_be_made_portable(name):
    check_portable(to_onnx(build(name, labels=("a", "b")), batch=1, compute_kernel=False))


def test_what_a_device_may_have_and_tensorrt_not(random_lms):
    with pytest.raises(UsageError, match=r"pcm has free sizes \(batch x 16000\).*fixed batch"):
        check_portable(to_onnx(random_lms, compute_kernel=False))
    with pytest.raises(UsageError, match=r"frontend/Conv_\d+ \(Conv\): its input mul is computed"):
        check_portable(to_onnx(random_lms, batch=1))


def test_symmetric_int8_passes():
    check_portable(layer(transB=1))
    check_portable(layer(scales=0, transB=1))
    check_portable(layer("MatMul", axis=1, weight_shape=(6, 2)))
    check_portable(layer("Gemm", axis=1, weight_shape=(6, 2)))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (layer("Gemm", axis=1, scales=6, transB=1), r"weights \(DequantizeLinear\).* on axis 1.*on axis 0"),
        (
            layer("MatMul", axis=0, scales=6, weight_shape=(6, 2)),
            r"weights \(DequantizeLinear\).* on axis 0.*on axis 1",
        ),
        (
            graph_of(pair("pcm", "scores"), {"scale": np.float32(0.1), "zero": np.int8(3)}),
            r"quantise \(QuantizeLinear\): its zero point is 3",
        ),
        (
            graph_of(pair("pcm", "scores"), {"scale": np.float32(0.1), "zero": np.uint8(0)}),
            r"quantise \(QuantizeLinear\): its integers are uint8",
        ),
        (
            graph_of(pair("pcm", "scores"), {"scale": np.float32(0.1), "zero": np.int16(0)}),
            r"quantise \(QuantizeLinear\): its integers are int16",
        ),
        (
            graph_of(
                pair("pcm", "scores"),
                {"scale": np.float32(0.1), "zero": helper.make_tensor("zero", TensorProto.INT4, [], [0])},
            ),
            r"quantise \(QuantizeLinear\): its integers are int4",
        ),
        (
            graph_of(pair("pcm", "scores"), {"scale": np.float32(-0.1), "zero": np.int8(0)}),
            r"quantise \(QuantizeLinear\): its smallest scale is -0.1",
        ),
        (
            graph_of(
                [helper.make_node("Abs", ["one"], ["scale"]), *pair("pcm", "scores")],
                {"one": np.float32(1), "zero": np.int8(0)},
            ),
            r"quantise \(QuantizeLinear\): its scale scale is computed",
        ),
        (
            graph_of(pair("pcm", "scores", axis=1), {"scale": np.ones(6, np.float32), "zero": np.zeros(6, np.int8)}),
            r"quantise \(QuantizeLinear\): an activation has 6 scales",
        ),
        (
            graph_of(
                [
                    helper.make_node("DequantizeLinear", ["b", "scale"], ["bias"], name="bias"),
                    helper.make_node("Add", ["pcm", "bias"], ["scores"]),
                ],
                {"b": np.ones(6, np.int32), "scale": np.float32(0.1)},
            ),
            r"bias \(DequantizeLinear\): its integers are int32.*biases stay in float32",
        ),
        (
            graph_of([helper.make_node("FusedConv", ["pcm"], ["scores"], name="f", domain="com.microsoft")], {}),
            r"f \(FusedConv\): its domain is com.microsoft",
        ),
        (graph_of([helper.make_node("NonZero", ["pcm"], ["scores"], name="n")], {}), r"n \(NonZero\): .* no such"),
        (
            graph_of([helper.make_node("RandomNormalLike", ["pcm"], ["scores"], name="r")], {}),
            r"r \(RandomNormalLike\): it draws random numbers",
        ),
        (
            graph_of(
                [
                    helper.make_node("Cast", ["pcm"], ["wide"], to=TensorProto.DOUBLE, name="c"),
                    helper.make_node("Cast", ["wide"], ["scores"], to=TensorProto.FLOAT),
                ],
                {},
            ),
            r"c \(Cast\): its result wide is double",
        ),
        (
            graph_of(
                [helper.make_node("Slice", ["pcm", "at", "at", "axis"], ["scores"], name="s")],
                {"at": np.array([1]), "axis": np.array([1])},
            ),
            r"s \(Slice\): its result scores is empty",
        ),
        (
            graph_of(
                [
                    helper.make_node("Reshape", ["pcm", "three"], ["x"]),
                    helper.make_node("MaxPool", ["x"], ["scores"], kernel_shape=[2], dilations=[2], name="m"),
                ],
                {"three": np.array([1, 1, 6])},
            ),
            r"m \(MaxPool\): dilations \[2\]",
        ),
        (graph_of([helper.make_node("Abs", ["pcm"], ["scores"])], {}, opset=25), "opset 25, TensorRT takes 9 to 24"),
    ],
)
def test_broken_rules_are_refused_with_the_node(model, expected):
    with pytest.raises(UsageError, match=expected) as caught:
        check_portable(model)
    assert "\n" not in str(caught.value)


def test_loops_are_refused():
    body = helper.make_graph(
        [helper.make_node("Identity", ["pcm"], ["y"])], "body", [], [helper.make_tensor_value_info("y", 1, None)]
    )
    node = helper.make_node("If", ["yes"], ["scores"], name="branch", then_branch=body, else_branch=body)
    with pytest.raises(UsageError, match=r"branch \(If\): it holds a graph of its own"):
        check_portable(graph_of([node], {"yes": np.array(True)}))
