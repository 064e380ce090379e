"""The exported graph is small, standard, reproducible, and keeps nothing of the machine that made it."""

from __future__ import annotations

import numpy as np
import pytest

from edge.bundle.onnx_wire import check_self_contained
from edge.errors import DataError
from export import parity
from export.graphs.from_torch import front_end_nodes, to_onnx
from export.fixed_point.quantise import QuantisationSettings, quantise_int8


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
    kernel = random_lms.frontend.kernel.numel() * 4
    assert stored < random_lms.parameter_count() * 4 + kernel / 4


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
    pcm = noise_pcm(32, seed=3)
    a, b = (parity.graph_scores(lms_graphs[bits], pcm) for bits in (32, 8))
    assert 0 < np.abs(a - b).max() < 0.1 * np.ptp(a)


def test_methods_differ_and_too_few_clips_are_refused(lms_graphs, noise_pcm):
    pcm = noise_pcm(32)
    settings = QuantisationSettings(method="percentile", percentile=99.0)
    other = quantise_int8(lms_graphs[32], pcm, settings)
    assert other.SerializeToString() != quantise_int8(lms_graphs[32], pcm).SerializeToString()
    with pytest.raises(DataError, match="15 calibration clips: at least 16"):
        quantise_int8(lms_graphs[32], pcm[:15])


def test_quantising_reports_progress_and_says_nothing(lms_graphs, noise_pcm, capfd):
    seen = []
    quantise_int8(lms_graphs[32], noise_pcm(40), progress=lambda done, total, note="": seen.append((done, total)))
    assert seen[-1] == (40, 40)
    out = capfd.readouterr()
    assert out.out == out.err == ""
