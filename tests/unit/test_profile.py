"""The command profile and what it counts: costs of graphs, kernels, times and memory of the released bundles."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edge.errors import UsageError
from export.measurement.graph_cost import graph_cost
from firmware_models import zoo


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def earshot(monkeypatch, capsys) -> Callable[..., Result]:
    """Runs the command in this process."""

    def run(*arguments: object) -> Result:
        from rig.cli.main import main

        monkeypatch.setattr(sys, "argv", ["earshot", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Result(int(ended.value.code or 0), *capsys.readouterr())

    return run


def refusal(result: Result, code: int = 2) -> str:
    assert result.returncode == code, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0].removeprefix("earshot: ")


def graph_of(nodes: list[Any], constants: dict[str, np.ndarray], shape: tuple[Any, ...] = ("batch", 12)) -> ModelProto:
    return helper.make_model(
        helper.make_graph(
            nodes,
            "counted",
            [helper.make_tensor_value_info("pcm", TensorProto.FLOAT, list(shape))],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 21)],
    )


def weight(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def test_convolution_with_groups_and_stride():
    # (1, 4, 12), 6 outputs of 2 groups, kernel 3, stride 2, no padding: 5 places x 6 channels x 2 x 3 products.
    node = helper.make_node("Conv", ["pcm", "w", "b"], ["scores"], group=2, strides=[2])
    found = graph_cost(graph_of([node], {"w": weight(6, 2, 3), "b": weight(6)}, ("batch", 4, 12)))
    assert (found.multiply_adds, found.parameters, found.layers, found.front_end) == (180, 42, 1, 0)


def test_transposed_convolution():
    # Each of 2 x 5 inputs goes into 3 channels at 4 places.
    node = helper.make_node("ConvTranspose", ["pcm", "w"], ["scores"], strides=[2])
    assert graph_cost(graph_of([node], {"w": weight(2, 3, 4)}, (1, 2, 5))).multiply_adds == 2 * 5 * 3 * 4


def test_matrix_products():
    gemm = helper.make_node("Gemm", ["pcm", "w", "b"], ["scores"], transB=1)
    found = graph_cost(graph_of([gemm], {"w": weight(7, 12), "b": weight(7)}))
    assert (found.multiply_adds, found.parameters) == (84, 91)
    transposed = helper.make_node("Gemm", ["pcm", "w"], ["scores"], transA=1)
    assert graph_cost(graph_of([transposed], {"w": weight(1, 3)}, ("batch", 12))).multiply_adds == 12 * 3
    product = helper.make_node("MatMul", ["pcm", "w"], ["scores"])
    assert graph_cost(graph_of([product], {"w": weight(12, 5)}, ("batch", 4, 12))).multiply_adds == 4 * 12 * 5


def test_what_is_no_parameter_and_no_product_of_the_sound():
    nodes = [
        helper.make_node("MatMul", ["kernel", "basis"], ["w"]),  # constant: computed once
        helper.make_node("MatMul", ["pcm", "w"], ["features"], name="frontend/MatMul_0"),
        helper.make_node("QuantizeLinear", ["features", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
        helper.make_node("DequantizeLinear", ["w8", "w_scale", "w_zero"], ["w_dq"], axis=1),
        helper.make_node("MatMul", ["dq", "w_dq"], ["y"]),
        helper.make_node("Mul", ["y", "s"], ["z"]),
        helper.make_node("Reshape", ["z", "shape"], ["scores"]),
    ]
    constants = {
        "kernel": weight(12, 2),
        "basis": weight(2, 6),
        "scale": np.float32(0.1),
        "zero": np.uint8(3),
        "w8": np.zeros((6, 3), np.int8),
        "w_scale": np.ones(3, np.float32),
        "w_zero": np.zeros(3, np.int8),
        "s": weight(3),
        "shape": np.array([-1, 3]),
    }
    found = graph_cost(graph_of(nodes, constants))
    assert (found.multiply_adds, found.front_end, found.layers) == (12 * 6 + 6 * 3, 72, 1)
    # kernel and basis, the 8-bit weight and s; neither scales nor the shape.
    assert found.parameters == 24 + 12 + 18 + 3


def test_rows_of_a_second_input():
    model = graph_of([helper.make_node("MatMul", ["noise", "w"], ["scores"])], {"w": weight(5, 3)})
    model.graph.input.append(helper.make_tensor_value_info("noise", TensorProto.FLOAT, ["members", 5]))
    assert graph_cost(model, rows={"noise": 8}).multiply_adds == 8 * 5 * 3


def test_what_cannot_be_counted_is_said():
    gru = helper.make_node("GRU", ["pcm", "w", "r"], ["scores"], hidden_size=2)
    found = graph_cost(graph_of([gru], {"w": weight(1, 6, 12), "r": weight(1, 6, 2)}, (3, 1, 12)))
    assert found.uncounted == {"GRU": 1}
    nodes = [
        helper.make_node("NonZero", ["pcm"], ["places"]),
        helper.make_node("Cast", ["places"], ["p"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["m", "p"], ["scores"]),
    ]
    with pytest.raises(UsageError, match=r"the shape of 'p' \(MatMul\) is not fixed"):
        graph_cost(graph_of(nodes, {"m": weight(3, 2)}))


def test_counts_agree_with_torch():
    from firmware_models.cost import cost
    from firmware_models.training.checkpoint import load_checkpoint

    model, _ = load_checkpoint(zoo.FOLDER / "lms.safetensors")
    expected = cost(model)
    for name in ("lms-fp32", "lms-int8"):
        import onnx

        from edge.bundle.reading import read_bundle
        from edge.bundle.signing import load_public_key

        bundle = read_bundle(zoo.bundle(name), trusted=[load_public_key(zoo.PUBLIC_KEY)])
        found = graph_cost(onnx.load_from_string(bundle.model))
        assert found.multiply_adds == expected.multiply_adds
        # Batch norm's scale is folded into the convolution: 64 + 96 numbers less.
        assert found.parameters == expected.parameters - 160


def test_released_bundles(earshot, tmp_path):
    names = ("lms-fp32", "lms-int8")
    plot = tmp_path / "profile.svg"
    result = earshot("profile", *map(zoo.bundle, names), "--rounds", 60, "--plot", plot, "--json")
    assert result.returncode == 0, result.stderr
    fp32, int8 = json.loads(result.stdout)["bundles"]
    assert [fp32["name"], int8["name"]] == list(names)
    assert [fp32["computes_in"], int8["computes_in"]] == ["32-bit float", "8-bit integers"]
    assert int8["file_bytes"] == zoo.bundle("lms-int8").stat().st_size < fp32["file_bytes"] / 3
    assert fp32["latency"]["ratio"] == 1.0
    assert 0.2 < int8["latency"]["ratio"] < 1.0
    for each in (fp32, int8):
        assert 0 < each["latency"]["median_ms"] <= each["latency"]["p99_ms"]
        assert each["real_time_factor"] == pytest.approx(each["latency"]["median_ms"] / 1e3)
        steps = each["start"]["steps_ms"]
        assert sum(value for key, value in steps.items() if key != "total") == pytest.approx(steps["total"], abs=0.01)
        # numpy, pydantic and onnxruntime are in it; torch alone would be over 200 MB.
        assert 30e6 < each["start"]["resident_bytes"] <= each["start"]["peak_bytes"] < 150e6
        accuracy = each["accuracy"]
        assert accuracy["low"] < accuracy["top1"] < accuracy["high"]
        assert accuracy["source"] == "manifest"
    drawn = plot.read_text()
    assert "<svg" in drawn
    assert drawn.count("lms-int8 (8-bit integers)") == 1


def test_accuracy_is_measured_where_data_is_given(earshot):
    result = earshot("profile", zoo.bundle("lms-int8"), "--rounds", 10, "--data", zoo.CLIPS, "--split", "all", "--json")
    accuracy = json.loads(result.stdout)["bundles"][0]["accuracy"]
    assert accuracy["n"] == 100
    assert accuracy["source"].startswith("all of ")


def test_dry_run_measures_nothing(earshot, tmp_path):
    plot = tmp_path / "no.png"
    result = earshot("profile", zoo.bundle("lms-int8"), "--rounds", 1000, "--plot", plot, "--dry-run", "--json")
    assert json.loads(result.stdout)["windows"] == {"lms-int8.earshot": 1000}
    assert not plot.exists()


def test_wrong_arguments_are_one_line(earshot, tmp_path, int8_bundle, keys):
    bundle = zoo.bundle("lms-int8")
    assert "named twice" in refusal(earshot("profile", bundle, bundle))
    assert "No such file" in refusal(earshot("profile", tmp_path / "none.earshot"))
    assert "trusted" in refusal(earshot("profile", int8_bundle))
    assert ".png, .svg, .pdf" in refusal(earshot("profile", bundle, "--plot", "profile.txt"))
    assert "1" in refusal(earshot("profile", bundle, "--rounds", 1))
    assert str(tmp_path) in refusal(earshot("profile", bundle, "--data", tmp_path))
    nothing = earshot("profile", int8_bundle, "--trust", keys.public, "--plot", tmp_path / "p.png")
    assert "no manifest tells an accuracy: measure it with --data" in refusal(nothing)
