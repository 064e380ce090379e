"""The exported graph is small, standard, reproducible, and keeps nothing of the machine that made it."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from edge.bundle.onnx_wire import check_self_contained
from edge.errors import UsageError
from export import parity
from export.graphs.from_torch import front_end_nodes, to_onnx
from firmware_models.architectures import build


def initializers(model) -> dict:
    from onnx import numpy_helper

    return {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}


@pytest.mark.parametrize("bits", [32, 8])
def test_graph_is_standard_and_self_contained(lms_graphs, bits):
    model = lms_graphs[bits]
    check_self_contained(model.SerializeToString())
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 21)]
    assert {node.domain for node in model.graph.node} == {""}
    assert [each.name for each in model.graph.input] == ["pcm"]
    assert [each.name for each in model.graph.output] == ["scores"]
    for value in (model.graph.input[0], model.graph.output[0]):
        assert value.type.tensor_type.shape.dim[0].dim_param


def test_batch_norm_is_folded_and_the_dft_is_computed(lms_graphs, random_lms):
    model = lms_graphs[32]
    kinds = [node.op_type for node in model.graph.node]
    assert "BatchNormalization" not in kinds
    assert kinds.count("Conv") == 3
    assert {"Range", "Mod", "Cos", "Sin"} <= set(kinds)
    stored = sum(array.nbytes for array in initializers(model).values())
    # Kernel, window and mel filters would be 640 KB.
    assert stored < random_lms.parameter_count() * 4 + 2000


def front_end_values(model, names) -> list[np.ndarray]:
    """What the graph computes for its own constants."""
    import onnx
    import onnxruntime as ort

    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    changed.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    session = ort.InferenceSession(changed.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(names, {"pcm": np.zeros((1, 16_000), np.float32)})


def test_computed_constants_are_those_of_the_module(lms_graphs, random_lms):
    names = ["frontend.kernel", "frontend.window", "frontend.filters"]
    kernel, window, filters = front_end_values(lms_graphs[32], names)
    front_end = random_lms.frontend
    assert np.abs(kernel - front_end.kernel.numpy()).max() <= 1e-6
    assert (
        np.abs(window / front_end.window.numpy().max() - front_end.window.numpy() / front_end.window.max().item()).max()
        < 1e-6
    )
    assert np.abs(filters - front_end.filters.numpy()).max() < 1e-5
    # A mel filter that touches a bin in one of them touches it in both: bands neither gain nor lose a bin.
    assert ((filters > 1e-4) == (front_end.filters.numpy() > 1e-4)).all()


@pytest.mark.parametrize(
    ("architecture", "samples"), [("lms", 48_000), ("ete", 16_000), ("m5", 16_000), ("ds_cnn", 16_000)]
)
def test_every_architecture_and_window(architecture, samples, noise_pcm):
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = build(architecture, labels=("a", "b", "c"), window_samples=samples).eval()
    pcm = noise_pcm(5, samples=samples)
    graph = to_onnx(model)
    scores = parity.graph_scores(graph, pcm)
    assert np.abs(scores - parity.torch_scores(model, pcm)).max() <= 1e-5
    assert np.ptp(scores, axis=0).max() > 0


@pytest.mark.parametrize("compute_kernel", [True, False])
def test_fixed_batch(random_lms, noise_pcm, compute_kernel):
    graph = to_onnx(random_lms, batch=1, compute_kernel=compute_kernel)
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    assert ("Cos" in {node.op_type for node in graph.graph.node}) == compute_kernel
    pcm = noise_pcm(3)
    assert np.abs(parity.graph_scores(graph, pcm) - parity.torch_scores(random_lms, pcm)).max() <= 1e-5
    with pytest.raises(UsageError, match="batch 0: use 1 or more"):
        to_onnx(random_lms, batch=0)


def test_factored_layers_become_two_plain_ones(low_rank_lms, noise_pcm):
    graph = to_onnx(low_rank_lms)
    kinds = [node.op_type for node in graph.graph.node]
    assert kinds.count("Conv") + kinds.count("Gemm") + kinds.count("MatMul") > 5
    pcm = noise_pcm(4)
    assert np.abs(parity.graph_scores(graph, pcm) - parity.torch_scores(low_rank_lms, pcm)).max() <= 1e-5


def test_what_cannot_be_exported_is_said_in_one_line(random_lms):
    import torch

    broken = copy.deepcopy(random_lms)
    with torch.no_grad():
        broken.fc.weight[0, :3] = float("nan")
    with pytest.raises(UsageError, match=r"fc.weight of the model has 3 weights that are not finite"):
        to_onnx(broken)
    stubborn = copy.deepcopy(random_lms)
    stubborn.classify = lambda features: features if features.sum() > 0 else -features
    with pytest.raises(UsageError, match="torch could not export the architecture 'lms'") as caught:
        to_onnx(stubborn)
    assert "\n" not in str(caught.value)


def test_export_is_reproducible_and_leaves_the_model_alone(lms_graphs, random_lms):
    random_lms.train()
    method = random_lms.frontend.method
    try:
        again = to_onnx(random_lms)
        assert random_lms.training
        assert random_lms.frontend.method == method
    finally:
        random_lms.eval()
    assert again.SerializeToString(deterministic=True) == lms_graphs[32].SerializeToString(deterministic=True)


def test_nothing_tells_where_it_was_made(lms_graphs):
    for model in lms_graphs.values():
        data = model.SerializeToString()
        for trace in (b"/home", b"/work", b"/tmp", b"site-packages", b".py", b"stack_trace"):
            assert trace not in data


def test_int8_keeps_front_end_and_scores_in_fp32(lms_graphs):
    nodes = {node.name: node for node in lms_graphs[8].graph.node}
    quantised = {each for node in nodes.values() if node.op_type == "QuantizeLinear" for each in node.input[:1]}
    for name in front_end_nodes(lms_graphs[32])[:-1]:
        assert not quantised & set(nodes[name].output)
    maker = next(node for node in nodes.values() if "scores" in node.output)
    assert maker.op_type == "Gemm"


def test_int8_weights(lms_graphs):
    arrays = initializers(lms_graphs[8])
    weights = {name: array for name, array in arrays.items() if name.endswith("weight_quantized")}
    assert len(weights) == 3
    for name, array in weights.items():
        assert array.dtype == np.int8
        # Larger ones overflow the 16-bit sums of x86 processors without VNNI, which then give other scores.
        assert np.abs(array.astype(int)).max() == 64
        assert arrays[name.replace("quantized", "scale")].shape == (array.shape[0],)
    assert all(array.dtype == np.uint8 for name, array in arrays.items() if name.endswith("Linear_Input_zero_point"))


def test_int8_is_a_quarter_and_close(lms_graphs, noise_pcm):
    assert lms_graphs[8].ByteSize() < 0.3 * lms_graphs[32].ByteSize()
    # With its golden vectors and its card, the bundle stays below 500,000.
    assert lms_graphs[8].ByteSize() < 462_000
    pcm = noise_pcm(32, seed=3)
    a, b = (parity.graph_scores(lms_graphs[bits], pcm) for bits in (32, 8))
    assert 0 < np.abs(a - b).max() < 0.1 * np.ptp(a)
