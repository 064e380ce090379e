"""The classifier: shapes, batches, golden vectors, storage formats, and errors that are one line."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge.bundle.classifier import MAX_BATCH, Classifier
from edge.bundle.manifest import Quantisation
from edge.bundle.reading import Bundle, read_bundle
from edge.bundle.signing import load_public_key
from edge.errors import BundleError, ThresholdError, UnavailableError, UsageError


@pytest.fixture
def bundle(tiny_bundle) -> Bundle:
    return read_bundle(tiny_bundle.path, trusted=[load_public_key(tiny_bundle.key)])


def matrix_model(batch: int | str, *, name: str = "pcm", dtype: int = TensorProto.FLOAT) -> bytes:
    weight = np.random.default_rng(0).normal(size=(16_000, 2)).astype(np.float32)
    nodes = [helper.make_node("MatMul", [name, "w"], ["scores"])]
    if dtype != TensorProto.FLOAT:
        nodes = [
            helper.make_node("Cast", [name], ["float"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["float", "w"], ["scores"]),
        ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, dtype, [batch, 16_000])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 2])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


def test_scores(bundle):
    classifier = Classifier(bundle)
    assert classifier.labels == bundle.manifest.labels
    assert classifier.providers == ("CPUExecutionProvider",)
    scores = classifier.scores(bundle.golden_pcm)
    assert scores.dtype == np.float32
    assert np.allclose(scores, bundle.golden_scores, atol=1e-4)
    assert classifier.check_golden() <= 1e-4


@pytest.mark.parametrize("batch", [1, 3, "batch"])
@pytest.mark.parametrize("n", [0, 1, 2, 7, MAX_BATCH + 1])
def test_any_batch_through_any_graph(bundle, noise_pcm, batch, n):
    classifier = Classifier(dataclasses.replace(bundle, model=matrix_model(batch)))
    pcm = noise_pcm(MAX_BATCH + 1)
    whole = Classifier(dataclasses.replace(bundle, model=matrix_model("batch"))).scores(pcm)
    scores = classifier.scores(pcm[:n])
    assert scores.shape == (n, 2)
    assert np.allclose(scores, whole[:n], atol=1e-4)


@pytest.mark.parametrize(
    "pcm",
    [
        np.zeros(16_000, np.float32),
        np.zeros((1, 15_999), np.float32),
        np.zeros((1, 16_000), np.float64),
        np.zeros((1, 16_000), np.int16),
        np.zeros((1, 1, 16_000), np.float32),
    ],
)
def test_wrong_pcm(bundle, pcm):
    with pytest.raises(UsageError, match=r"takes float32 \(batch, 16000\)"):
        Classifier(bundle).scores(pcm)


@pytest.mark.parametrize("change", [0.1, np.nan])
def test_golden_vectors_that_this_machine_does_not_reproduce(bundle, change):
    scores = bundle.golden_scores.copy()
    scores[1, 0] += np.float32(change)
    with pytest.raises(ThresholdError, match="golden vectors differ"):
        Classifier(dataclasses.replace(bundle, golden_scores=scores)).check_golden()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (matrix_model(1, name="audio"), "the manifest says otherwise"),
        (matrix_model(1, dtype=TensorProto.DOUBLE), "instead of float"),
        (b"no graph", "onnxruntime cannot load the model"),
        (matrix_model(1)[:-50_000], "onnxruntime cannot load the model"),
    ],
)
def test_graphs_that_do_not_fit(bundle, model, expected):
    with pytest.raises(BundleError, match=expected) as caught:
        Classifier(dataclasses.replace(bundle, model=model))
    assert "\n" not in str(caught.value)


def test_format_of_onnxruntime_is_not_recognised(bundle, tmp_path):
    # The walk over the bytes judged them as ONNX, so onnxruntime must not read them as anything else.
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(bundle.model, options, providers=["CPUExecutionProvider"])
    data = (tmp_path / "model.ort").read_bytes()
    ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    with pytest.raises(BundleError, match="cannot load"):
        Classifier(dataclasses.replace(bundle, model=data))


def test_unknown_provider(bundle):
    with pytest.raises(UnavailableError, match=r"onnxruntime has .*CPUExecutionProvider"):
        Classifier(bundle, providers=["WarpExecutionProvider"])


def _int4_activations(*, relu: bool = False) -> bytes:
    """A graph whose activations have 4 bits."""
    nodes = [
        helper.make_node("Relu" if relu else "Identity", ["pcm"], ["sound"]),
        helper.make_node("QuantizeLinear", ["sound", "scale", "zero"], ["narrow"]),
        helper.make_node("DequantizeLinear", ["narrow", "scale", "zero"], ["wide"]),
        helper.make_node("MatMul", ["wide", "w"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("pcm", TensorProto.FLOAT, ["batch", 16_000])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 2])],
        [
            numpy_helper.from_array(_weight(), "w"),
            numpy_helper.from_array(np.float32(0.125), "scale"),
            helper.make_tensor("zero", TensorProto.INT4, [], [0]),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


def _weight() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(16_000, 2)).astype(np.float32)


def _narrow_scores(pcm: np.ndarray) -> np.ndarray:
    """What 4-bit activations give, by hand."""
    return np.clip(np.round(pcm / 0.125), -8, 7).astype(np.float32) * np.float32(0.125) @ _weight()


@pytest.fixture
def stored(bundle) -> Bundle:
    """A bundle of profile storage with 4-bit activations."""
    manifest = bundle.manifest.model_copy(update={"quantisation": Quantisation(bits=4, profile="storage")})
    return dataclasses.replace(bundle, model=_int4_activations(), manifest=manifest)


def test_storage_profile_keeps_q_and_dq(stored, noise_pcm):
    pcm = noise_pcm(3)
    assert np.allclose(Classifier(stored).scores(pcm), _narrow_scores(pcm), atol=1e-3)


def test_storage_profile_keeps_relu_before_4_bits(stored, noise_pcm):
    pcm = noise_pcm(3)
    classifier = Classifier(dataclasses.replace(stored, model=_int4_activations(relu=True)))
    assert np.allclose(classifier.scores(pcm), _narrow_scores(np.maximum(pcm, 0)), atol=1e-3)


def test_golden_vectors_of_4_bit_activations(stored):
    golden = _narrow_scores(stored.golden_pcm)
    assert Classifier(dataclasses.replace(stored, golden_scores=golden)).check_golden() <= 1e-4
    with pytest.raises(ThresholdError, match="golden vectors differ"):
        Classifier(dataclasses.replace(stored, golden_scores=golden + np.float32(0.01))).check_golden()
