"""Each operator of the twin computes what onnxruntime does, and has a gradient."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from export import parity
from export.twin import Twin
from export.twin.operators import OPERATORS

torch.set_num_threads(1)

SAMPLES = 24
RANDOM = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def model_of(nodes: list, constants: dict, *, opset: int = 21, batch: int | str = "batch") -> onnx.ModelProto:
    """The nodes between ``x``, the sound as (batch, 2, 3, 4), and ``y`` of any shape."""
    shaped = [
        helper.make_node("Reshape", ["pcm", "in_shape"], ["x"]),
        *nodes,
        helper.make_node("Flatten", ["y"], ["scores"]),
    ]
    arrays = {"in_shape": np.array([batch if isinstance(batch, int) else 0, 2, 3, 4]), **constants}
    graph = helper.make_graph(
        shaped,
        "g",
        [helper.make_tensor_value_info("pcm", TensorProto.FLOAT, [batch, SAMPLES])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def one(kind: str, *more: str, **attributes) -> list:
    return [helper.make_node(kind, ["x", *more], ["y"], **attributes)]


HALF, AXIS, AXES = np.float32(0.5), np.array([1]), np.array([2, 3])
PLAIN = {
    **{
        kind: (one(kind), {})
        for kind in (
            "Abs",
            "Cos",
            "Erf",
            "Exp",
            "Gelu",
            "GlobalAveragePool",
            "GlobalMaxPool",
            "HardSigmoid",
            "HardSwish",
            "Identity",
            "LogSoftmax",
            "Mish",
            "Neg",
            "Relu",
            "Selu",
            "Sigmoid",
            "Sin",
            "Softmax",
            "Softplus",
            "Softsign",
            "Tan",
            "Tanh",
            "Celu",
            "Elu",
            "LeakyRelu",
            "ThresholdedRelu",
            "Shrink",
            "Dropout",
        )
    },
    **{
        kind: (one(kind, "a"), {"a": weights(2, 1, 4) + 0.1})
        for kind in ("Add", "Sub", "Mul", "Div", "Min", "Max", "Mean", "Sum", "PRelu")
    },
    **{
        f"{kind} over some": (one(kind, "a"), {"a": AXES})
        for kind in (
            "ReduceMean",
            "ReduceMax",
            "ReduceMin",
            "ReduceSum",
            "ReduceL1",
            "ReduceL2",
            "ReduceSumSquare",
            "ReduceLogSumExp",
        )
    },
    "ReduceMean without": (one("ReduceMean", "a", keepdims=0), {"a": np.array([-1])}),
    "ReduceProd": (one("ReduceProd", "a"), {"a": AXIS}),
    "Sqrt and Reciprocal and Log": (
        [
            helper.make_node("Exp", ["x"], ["e"]),
            helper.make_node("Sqrt", ["e"], ["s"]),
            helper.make_node("Reciprocal", ["s"], ["r"]),
            helper.make_node("Log", ["r"], ["y"]),
        ],
        {},
    ),
    "Gelu by tanh": (one("Gelu", approximate="tanh"), {}),
    "Clip": (one("Clip", "", "h"), {"h": HALF}),
    "Clip both": (one("Clip", "l", "h"), {"h": HALF, "l": np.float32(-0.25)}),
    "Where": (
        [helper.make_node("Greater", ["x", "h"], ["c"]), helper.make_node("Where", ["c", "x", "h"], ["y"])],
        {"h": HALF},
    ),
    "BatchNormalization": (
        one("BatchNormalization", "s", "b", "m", "v"),
        {"s": weights(2), "b": weights(2), "m": weights(2), "v": np.abs(weights(2)) + 1},
    ),
    "InstanceNormalization": (one("InstanceNormalization", "s", "b"), {"s": weights(2), "b": weights(2)}),
    "LayerNormalization": (one("LayerNormalization", "s", "b", axis=2), {"s": weights(3, 4), "b": weights(3, 4)}),
    "Conv padded unevenly": (
        one("Conv", "w", "b", pads=[0, 1, 2, 0], strides=[1, 2]),
        {"w": weights(5, 2, 2, 3), "b": weights(5)},
    ),
    "Conv SAME_UPPER": (one("Conv", "w", auto_pad="SAME_UPPER", strides=[2, 2]), {"w": weights(3, 2, 2, 3)}),
    "Conv SAME_LOWER": (one("Conv", "w", auto_pad="SAME_LOWER"), {"w": weights(3, 2, 2, 2)}),
    "Conv depthwise": (one("Conv", "w", group=2, pads=[1, 1, 1, 1]), {"w": weights(4, 1, 3, 3)}),
    "MaxPool": (one("MaxPool", kernel_shape=[2, 2], strides=[1, 2], pads=[0, 1, 1, 0]), {}),
    "MaxPool SAME_UPPER": (one("MaxPool", kernel_shape=[2, 3], strides=[2, 2], auto_pad="SAME_UPPER"), {}),
    "AveragePool": (one("AveragePool", kernel_shape=[2, 2], pads=[1, 1, 1, 1]), {}),
    "AveragePool counting": (one("AveragePool", kernel_shape=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1), {}),
    "AveragePool uneven": (one("AveragePool", kernel_shape=[2, 2], pads=[0, 1, 1, 0]), {}),
    "AveragePool SAME_UPPER": (one("AveragePool", kernel_shape=[3, 2], auto_pad="SAME_UPPER"), {}),
    "MatMul": (one("MatMul", "w"), {"w": weights(4, 5)}),
    "Gemm of all kinds": (
        [
            helper.make_node("Flatten", ["x"], ["f"]),
            helper.make_node("Gemm", ["f", "w", "b"], ["y"], alpha=0.5, beta=2.0, transB=1),
        ],
        {"w": weights(5, 24), "b": weights(1, 5)},
    ),
    "Transpose": (one("Transpose", perm=[0, 3, 1, 2]), {}),
    "Squeeze and Unsqueeze": (
        [helper.make_node("Unsqueeze", ["x", "a"], ["u"]), helper.make_node("Squeeze", ["u", "a"], ["y"])],
        {"a": AXIS},
    ),
    "Split and Concat": (
        [
            helper.make_node("Split", ["x", "s"], ["a", "b"], axis=3),
            helper.make_node("Concat", ["b", "a"], ["y"], axis=3),
        ],
        {"s": np.array([1, 3])},
    ),
    "Split evenly": (
        [
            helper.make_node("Split", ["x"], ["a", "b"], axis=2, num_outputs=2),
            helper.make_node("Concat", ["b", "a"], ["y"], axis=2),
        ],
        {},
    ),
    "Gather": (one("Gather", "i", axis=3), {"i": np.array([[0, -1], [2, 2]])}),
    "Pad": (one("Pad", "p", "v"), {"p": np.array([0, 0, 1, 2, 0, 0, 0, 1]), "v": HALF}),
    "Pad reflecting": (one("Pad", "p", mode="reflect"), {"p": np.array([0, 0, 1, 2, 0, 0, 0, 1])}),
    "Pad some axes": (one("Pad", "p", "", "a"), {"p": np.array([1, 2]), "a": np.array([3])}),
    "Tile": (one("Tile", "r"), {"r": np.array([1, 2, 1, 1])}),
    "Expand": (
        [helper.make_node("ReduceMean", ["x", "a"], ["m"]), helper.make_node("Expand", ["m", "s"], ["y"])],
        {"a": AXIS, "s": np.array([1, 3, 1, 1])},
    ),
    "shape at run time": (
        [
            helper.make_node("Shape", ["x"], ["s"]),
            helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
            helper.make_node("Unsqueeze", ["n", "first"], ["m"]),
            helper.make_node("Concat", ["m", "rest"], ["t"], axis=0),
            helper.make_node("Reshape", ["x", "t"], ["y"]),
        ],
        {"zero": np.array(0), "first": np.array([0]), "rest": np.array([-1])},
    ),
    "Constant": (
        [helper.make_node("Constant", [], ["c"], value_float=2.0), helper.make_node("Pow", ["x", "c"], ["y"])],
        {},
    ),
}
OLD = {
    "Softmax 11": (one("Softmax", axis=2), {}, 11),
    "Squeeze 11": (
        [helper.make_node("Unsqueeze", ["x"], ["u"], axes=[1]), helper.make_node("Squeeze", ["u"], ["y"], axes=[1])],
        {},
        11,
    ),
    "ReduceMean 13": (one("ReduceMean", axes=[2, 3], keepdims=0), {}, 13),
    "Slice 9": (one("Slice", starts=[1], ends=[4], axes=[3]), {}, 9),
    "Clip 6": (one("Clip", min=-0.5, max=0.5), {}, 10),
    "Pad 10": (one("Pad", pads=[0, 0, 1, 2, 0, 0, 0, 1], value=0.5), {}, 10),
}
CASES = {name: (*case, 21) for name, case in PLAIN.items()} | OLD
FLAT = {"Round", "Floor", "Ceil", "Sign"}


@pytest.mark.parametrize("name", CASES)
def test_operator(name):
    nodes, constants, opset = CASES[name]
    model = model_of(nodes, constants, opset=opset)
    pcm = np.random.default_rng(1).normal(size=(4, SAMPLES)).astype(np.float32)
    twin = Twin(model)
    assert np.allclose(parity.graph_scores(model, pcm), parity.torch_scores(twin, pcm), atol=1e-5, rtol=1e-5)
    sound = torch.from_numpy(pcm).requires_grad_(True)
    twin(sound).square().sum().backward()
    assert sound.grad is not None
    assert torch.isfinite(sound.grad).all()
    assert sound.grad.abs().max() > 0


@pytest.mark.parametrize("kind", sorted(FLAT))
def test_steps_without_a_gradient(kind):
    model = model_of(one(kind), {})
    pcm = 3 * np.random.default_rng(1).normal(size=(4, SAMPLES)).astype(np.float32)
    assert np.array_equal(parity.graph_scores(model, pcm), parity.torch_scores(Twin(model), pcm))


def test_fixed_batches_take_any():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Reshape", ["c", "flat"], ["y"]),
    ]
    constants = {"w": weights(3, 2, 2, 2), "flat": np.array([1, 18])}
    pcm = np.random.default_rng(1).normal(size=(5, SAMPLES)).astype(np.float32)
    model = model_of(nodes, constants, batch=1)
    by_clip = np.concatenate([parity.graph_scores(model, clip[None]) for clip in pcm])
    assert np.allclose(parity.torch_scores(Twin(model), pcm), by_clip, atol=1e-5)
    # Here clips of one batch would be mixed, so the twin takes them one by one.
    nodes[1:] = [
        helper.make_node("Transpose", ["c"], ["t"], perm=[1, 0, 2, 3]),
        helper.make_node("Reshape", ["t", "flat"], ["y"]),
    ]
    model = model_of(nodes, constants, batch=1)
    by_clip = np.concatenate([parity.graph_scores(model, clip[None]) for clip in pcm])
    assert np.allclose(parity.torch_scores(Twin(model), pcm), by_clip, atol=1e-5)


def test_the_list_covers_what_audio_models_use():
    wanted = """Add AveragePool BatchNormalization Clip Concat Conv Div Exp Expand Flatten Gather Gelu Gemm
    GlobalAveragePool HardSigmoid HardSwish LayerNormalization LeakyRelu Log MatMul Max MaxPool Min Mul Pad Pow
    ReduceMean Relu Reshape Sigmoid Slice Softmax Split Sqrt Squeeze Sub Tanh Transpose Unsqueeze"""
    assert set(wanted.split()) <= set(OPERATORS)
