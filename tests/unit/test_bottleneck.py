"""Balanced bottlenecks: the same network, and less lost when what flows between two factors is rounded."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export import parity
from export.fixed_point.bottleneck import balanced, turn
from export.fixed_point.layers import arrays_of, prepared
from export.fixed_point.number_format import number_format
from export.fixed_point.quantise import CalibrationSettings, quantise

SAMPLES = 256


def factored(*, pads: int = 0, group: int = 1) -> onnx.ModelProto:
    """A convolution and a fully connected layer in two factors, the more a channel carries the less it counts."""
    rng = np.random.default_rng(5)
    falling = 10.0 ** -np.linspace(0, 2, 12)

    def basis(rows: int, columns: int) -> np.ndarray:
        return np.linalg.qr(rng.normal(size=(max(rows, columns), min(rows, columns))))[0].T.reshape(rows, columns)

    arrays = {
        "axis": np.array([1]),
        "flat": np.array([0, -1]),
        "v": (basis(12, 16) / np.sqrt(falling)[:, None]).reshape(12, 1, 16),
        "u": (basis(12, 24).T * falling).reshape(24, 12 // group, 1) if group == 1 else rng.normal(size=(24, 6, 1)),
        "u_bias": rng.normal(size=24) * 0.02,
        "fv": basis(12, 24 * (61 + 2 * pads)),
        "fu": basis(12, 24)[:, :24].T[:6] * falling * 5,
        "fu_bias": rng.normal(size=6) * 0.02,
    }
    nodes = [
        helper.make_node("Unsqueeze", ["pcm", "axis"], ["x"], "x"),
        helper.make_node("Conv", ["x", "v"], ["a"], "a", strides=[4]),
        helper.make_node("Conv", ["a", "u", "u_bias"], ["b"], "b", pads=[pads, pads], group=group),
        helper.make_node("Relu", ["b"], ["r"], "r"),
        helper.make_node("Reshape", ["r", "flat"], ["f"], "f"),
        helper.make_node("Gemm", ["f", "fv"], ["g"], "g", transB=1),
        helper.make_node("Gemm", ["g", "fu", "fu_bias"], ["scores"], "scores", transB=1),
    ]
    whole = {"axis", "flat"}
    graph = helper.make_graph(
        nodes,
        "factored",
        [helper.make_tensor_value_info("pcm", TensorProto.FLOAT, ["batch", SAMPLES])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 6])],
        [
            numpy_helper.from_array(value if name in whole else value.astype(np.float32), name)
            for name, value in arrays.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture(scope="module")
def pcm(noise_pcm) -> np.ndarray:
    rows = noise_pcm(64, SAMPLES, seed=4)
    even = np.stack([np.convolve(row / np.abs(row).max(), np.hanning(9), "same") for row in rows])
    return (even / np.abs(even).max()).astype(np.float32)


@pytest.mark.parametrize("pads", [0, 1])
def test_the_network_stays_the_same_and_its_channels_become_alike(pcm, pads):
    exact = prepared(factored(pads=pads))
    even = balanced(exact, pcm)
    before, after = parity.graph_scores(exact, pcm), parity.graph_scores(even, pcm)
    assert np.abs(before - after).max() < 1e-4 * np.abs(before).max()

    def spread(model: onnx.ModelProto) -> float:
        sizes = np.linalg.norm(arrays_of(model)["u"].reshape(24, 12), axis=0)
        return float(sizes.max() / sizes.min())

    assert spread(exact) > 50
    assert spread(even) < 10
    # Padding is zeros: behind it, a mean that was taken out could not be put back.
    assert bool(np.any(arrays_of(even)["v_bias"])) == (pads == 0)


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_costs_less(pcm, bits):
    graph = factored()
    wanted = parity.graph_scores(graph, pcm)
    errors = {}
    for balance in (False, True):
        form = number_format(bits, activation_bits=bits, profile="storage")
        found = quantise(graph, pcm, form, CalibrationSettings(balance=balance, fit_weights=False))
        errors[balance] = float(np.mean((parity.graph_scores(found, pcm, storage=True) - wanted) ** 2))
    assert errors[True] < 0.5 * errors[False]


def test_layers_in_groups_and_graphs_without_factors_are_left_alone(pcm, lms_graphs):
    grouped = balanced(prepared(factored(group=2)), pcm)
    exact = prepared(factored(group=2))
    assert all(np.array_equal(arrays_of(grouped)[name], arrays_of(exact)[name]) for name in ("v", "u"))
    assert not np.array_equal(arrays_of(grouped)["fv"], arrays_of(exact)["fv"])
    plain = prepared(lms_graphs[32])
    assert balanced(plain, pcm) is plain


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_covariance_and_gains_become_the_same_matrix(size):
    rng = np.random.default_rng(size)
    some, other = rng.normal(size=(2, size, size)) * 10.0 ** -np.linspace(0, 1, size)
    covariance, gains = some @ some.T, other.T @ other
    there, back = turn(covariance, gains)
    np.testing.assert_allclose(there @ back, np.eye(size), atol=1e-6)
    one, two = there @ covariance @ there.T, back.T @ gains @ back
    np.testing.assert_allclose(one, two, atol=1e-4 * np.abs(one).max())
    noise = np.trace(one) * np.trace(two)
    assert noise <= np.trace(covariance) * np.trace(gains) * (1 + 1e-9)


def test_channels_that_carry_nothing_do_no_harm():
    covariance, gains = np.diag([1.0, 0.0, 0.25]), np.diag([4.0, 1.0, 0.0])
    there, back = turn(covariance, gains)
    assert np.isfinite(there).all()
    np.testing.assert_allclose(there @ back, np.eye(3), atol=1e-4)
    there, back = turn(np.zeros((2, 2)), np.zeros((2, 2)))
    assert np.isfinite(there).all()
    assert np.isfinite(back).all()
