"""The twin computes what a device computes, and its gradient is the right one."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edge.bundle.classifier import Classifier
from edge.bundle.reading import read_bundle
from edge.bundle.signing import load_public_key
from edge.errors import UsageError
from export import parity
from export.twin import Twin

torch.set_num_threads(1)


def graph_of(nodes: list, constants: dict[str, np.ndarray], *, shape: tuple = ("batch", 6)) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("pcm", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def gradient(module: torch.nn.Module, pcm: np.ndarray, labels: np.ndarray) -> torch.Tensor:
    sound = torch.from_numpy(pcm).requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(module(sound), torch.from_numpy(labels), reduction="sum")
    (slope,) = torch.autograd.grad(loss, sound)
    return slope


# --- forward --------------------------------------------------------------------------------------------------------


def test_fp32_scores(lms_graphs, noise_pcm, random_lms):
    pcm = noise_pcm(64, seed=1)
    twin = Twin(lms_graphs[32])
    assert not twin.quantised
    by_device = parity.graph_scores(lms_graphs[32], pcm)
    assert np.abs(parity.torch_scores(twin, pcm) - by_device).max() <= 1e-4
    assert np.abs(parity.torch_scores(random_lms, pcm) - by_device).max() <= 1e-4


def test_int8_scores(lms_graphs, noise_pcm):
    pcm = noise_pcm(256, seed=1)
    twin = Twin(lms_graphs[8])
    assert twin.quantised
    by_device, by_twin = parity.graph_scores(lms_graphs[8], pcm), parity.torch_scores(twin, pcm)
    assert parity.agreement(by_device, by_twin).labels_equal >= 0.995
    # Far closer than the INT8 scores are to the FP32 ones: it is the rounding that is reproduced.
    fp32 = parity.graph_scores(lms_graphs[32], pcm)
    assert np.abs(by_device - by_twin).mean() < 0.2 * np.abs(by_device - fp32).mean()


def test_twin_of_a_bundle_gives_the_classifiers_scores(int8_bundle, keys, noise_pcm):
    bundle = read_bundle(int8_bundle, trusted=[load_public_key(keys.public)])
    twin, pcm = Twin.from_bundle(bundle), noise_pcm(16, seed=2)
    assert twin.labels == bundle.manifest.labels
    assert not list(twin.parameters())
    assert not twin.training
    scores = Classifier(bundle).scores(pcm)
    assert (scores.argmax(1) == parity.torch_scores(twin, pcm).argmax(1)).all()


def test_rounding_is_onnxruntimes():
    # Ties, both ends of the range and beyond, an odd zero point.
    scale, zero = np.float32(0.25), np.uint8(37)
    model = graph_of(
        [
            helper.make_node("QuantizeLinear", ["pcm", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["scores"]),
        ],
        {"scale": scale, "zero": zero},
        shape=("batch", 2001),
    )
    pcm = np.linspace(-100, 100, 2001, dtype=np.float32)[None]
    assert np.array_equal(parity.graph_scores(model, pcm), parity.torch_scores(Twin(model), pcm))


# --- gradient -------------------------------------------------------------------------------------------------------


def test_fp32_gradient_by_finite_differences(lms_graphs, noise_pcm):
    twin = Twin(lms_graphs[32]).double()
    pcm = torch.from_numpy(noise_pcm(2, seed=4)).double()
    labels = torch.tensor([1, 7])

    def loss(sound: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(twin(sound), labels, reduction="sum")

    sound = pcm.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(loss(sound), sound)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(8):
            direction = torch.randn(pcm.shape, generator=generator, dtype=torch.float64)
            step = 1e-7
            measured = (loss(pcm + step * direction) - loss(pcm - step * direction)) / (2 * step)
            assert float(measured) == pytest.approx(float((slope * direction).sum()), rel=1e-3, abs=1e-6)


def test_gradient_is_that_of_the_trained_module(lms_graphs, random_lms, noise_pcm):
    pcm, labels = noise_pcm(4, seed=5), np.array([0, 3, 5, 11])
    a, b = gradient(Twin(lms_graphs[32]), pcm, labels), gradient(random_lms, pcm, labels)
    assert torch.cosine_similarity(a, b, dim=1).min() > 0.9999


def test_int8_gradient_points_where_the_fp32_one_does(lms_graphs, noise_pcm):
    pcm, labels = noise_pcm(16, seed=6), np.arange(16) % 12
    a, b = gradient(Twin(lms_graphs[8]), pcm, labels), gradient(Twin(lms_graphs[32]), pcm, labels)
    # Pooling picks another winner among values that rounding made equal, so they are not the same.
    assert torch.cosine_similarity(a, b, dim=1).mean() > 0.7
    assert (a.norm(dim=1) / b.norm(dim=1)).log2().abs().max() < 1


def test_straight_through_inside_and_nothing_outside():
    model = graph_of(
        [
            helper.make_node("QuantizeLinear", ["pcm", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["wide"]),
            helper.make_node("MatMul", ["wide", "weight"], ["scores"]),
        ],
        {"scale": np.float32(0.1), "zero": np.uint8(0), "weight": np.eye(6, 2, dtype=np.float32) * 3},
    )
    sound = torch.tensor([[1.0, -1.0, 0.0, 0.0, 0.0, 0.0], [30.0, 25.4, 0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    Twin(model)(sound).sum().backward()
    assert sound.grad is not None
    assert torch.equal(sound.grad[:, :2], torch.tensor([[3.0, 0.0], [0.0, 3.0]]))


def test_int8_attack_works_on_the_device(int8_bundle, keys, noise_pcm):
    bundle = read_bundle(int8_bundle, trusted=[load_public_key(keys.public)])
    twin, device = Twin.from_bundle(bundle), Classifier(bundle)
    pcm = noise_pcm(16, seed=8)
    before = device.scores(pcm).argmax(1)
    sound, labels = torch.from_numpy(pcm), torch.from_numpy(before)
    noise = torch.zeros_like(sound)
    for _ in range(5):
        noise.requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(twin(sound + noise), labels, reduction="sum")
        (slope,) = torch.autograd.grad(loss, noise)
        noise = (noise.detach() + 0.004 * slope.sign()).clamp(-0.01, 0.01)
    control = 0.01 * torch.randn(sound.shape, generator=torch.Generator().manual_seed(0)).sign()
    changed = (device.scores((sound + noise).numpy()).argmax(1) != before).mean()
    by_chance = (device.scores((sound + control).numpy()).argmax(1) != before).mean()
    assert changed >= by_chance + 0.3


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([helper.make_node("NonZero", ["pcm"], ["scores"])], "the operator NonZero"),
        ([helper.make_node("MaxPool", ["pcm"], ["scores", "rest"], kernel_shape=[2])], "with indices"),
        ([helper.make_node("Gelu", ["pcm"], ["scores"], domain="com.microsoft")], "com.microsoft Gelu"),
        ([helper.make_node("QuantizeLinear", ["pcm", "pcm"], ["scores"])], "without a constant scale and zero point"),
        ([helper.make_node("QuantizeLinear", ["pcm", "one"], ["scores"])], "how to make the output scores"),
        ([helper.make_node("DequantizeLinear", ["pcm", "one", "byte"], ["scores"])], "QuantizeLinear did not make"),
        (
            [
                helper.make_node("QuantizeLinear", ["pcm", "one", "byte"], ["q"]),
                helper.make_node("DequantizeLinear", ["q", "two", "byte"], ["scores"]),
            ],
            "differs from its QuantizeLinear",
        ),
        (
            [
                helper.make_node("QuantizeLinear", ["pcm", "many", "bytes"], ["q"], axis=1),
                helper.make_node("DequantizeLinear", ["q", "many", "bytes"], ["scores"], axis=1),
            ],
            "per channel",
        ),
        ([helper.make_node("Slice", ["pcm", "last", "first", "axis", "back"], ["scores"])], "Slice with step -1"),
        ([helper.make_node("Cast", ["pcm"], ["scores"], to=TensorProto.BFLOAT16)], "Cast to ONNX type 16"),
    ],
)
def test_what_it_does_not_know_is_refused_by_name(nodes, expected):
    constants = {
        "square": np.eye(6, dtype=np.float32),
        "one": np.float32(1),
        "two": np.float32(2),
        "byte": np.uint8(0),
        "many": np.ones(6, np.float32),
        "bytes": np.zeros(6, np.uint8),
        "last": np.array([5]),
        "first": np.array([0]),
        "axis": np.array([1]),
        "back": np.array([-1]),
    }
    model = graph_of(nodes, constants)
    with pytest.raises(UsageError, match=expected) as caught:
        Twin(model)(torch.zeros(1, 6))
    assert "\n" not in str(caught.value)


OPERATIONS = {
    "conv with stride, dilation and groups": (
        [
            helper.make_node("Unsqueeze", ["pcm", "axes"], ["x"]),
            helper.make_node("Conv", ["x", "kernel", "bias"], ["y"], strides=[2], dilations=[2], pads=[1, 1], group=1),
            helper.make_node("Flatten", ["y"], ["scores"]),
        ],
        {
            "axes": np.array([1]),
            "kernel": np.random.default_rng(0).normal(size=(3, 1, 2)).astype(np.float32),
            "bias": np.ones(3, np.float32),
        },
    ),
    "pool with padding and ceiling": (
        [
            helper.make_node("Reshape", ["pcm", "shape"], ["x"]),
            helper.make_node(
                "MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 1], pads=[1, 1, 1, 1], ceil_mode=1
            ),
            helper.make_node("Reshape", ["y", "flat"], ["scores"]),
        ],
        {"shape": np.array([0, 1, 2, 3]), "flat": np.array([0, -1])},
    ),
    "slice, power, transpose and logarithm": (
        [
            helper.make_node("Slice", ["pcm", "starts", "ends", "axes", "steps"], ["x"]),
            helper.make_node("Pow", ["x", "two"], ["y"]),
            helper.make_node("Add", ["y", "one"], ["z"]),
            helper.make_node("Log", ["z"], ["l"]),
            helper.make_node("Pow", ["z", "three"], ["c"]),
            helper.make_node("Mul", ["l", "c"], ["m"]),
            helper.make_node("Transpose", ["m"], ["t"], perm=[1, 0]),
            helper.make_node("Transpose", ["t"], ["scores"], perm=[1, 0]),
        ],
        {
            "starts": np.array([-5]),
            "ends": np.array([100]),
            "axes": np.array([-1]),
            "steps": np.array([2]),
            "one": np.float32(1),
            "two": np.float32(2),
            "three": np.float32(3),
        },
    ),
    "gemm without transposition": (
        [helper.make_node("Gemm", ["pcm", "weight", "bias"], ["scores"])],
        {
            "weight": np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32),
            "bias": np.ones(2, np.float32),
        },
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operators_compute_what_onnxruntime_does(name):
    model = graph_of(*OPERATIONS[name])
    pcm = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
    assert np.allclose(parity.graph_scores(model, pcm), parity.torch_scores(Twin(model), pcm), atol=1e-5)
