"""Build the constants of a log-mel front end inside the graph instead of storing them.

Stored, the DFT kernel, the window and the mel filters take 640 KB, more than the INT8 weights of a small model. Built,
they take 3 KB: the phase is an integer before it becomes a float, and the triangles are differences, products, minima
and maxima, which every processor rounds alike. Cosines are the one thing that a platform may compute in its own way;
those of onnxruntime agree between x86 and aarch64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from firmware_models.frontend import LogMel, mel_edges_hz

Step = tuple[str, list[str], str, dict[str, Any]]


def compute_constants(model: ModelProto, name: str, module: LogMel, *, prefix: str) -> None:
    """Replace what the front end ``name`` stores by nodes that compute it; ``model`` is changed.

    The nodes repeat :func:`firmware_models.frontend.dft_kernel` bit for bit, and the window and the mel filters up to
    the last bits of float32. Their names begin with ``prefix``.
    """
    stored = {each.name for each in model.graph.initializer}
    constants: dict[str, npt.ArrayLike] = {}
    steps: list[Step] = []
    for part, build in (("kernel", _kernel), ("window", _window), ("filters", _filters)):
        if f"{name}.{part}" in stored:
            more, its_steps = build(module)
            constants |= more
            steps += [step for step in its_steps if step not in steps]

    def qualified(value: str) -> str:
        return f"{name}.{value}"

    nodes = [
        helper.make_node(kind, [qualified(i) for i in inputs], [qualified(o)], name=f"{prefix}{o}", **attributes)
        for kind, inputs, o, attributes in steps
    ]
    replaced = {qualified(step[2]) for step in steps}
    kept = [each for each in model.graph.initializer if each.name not in replaced]
    used = {value for step in steps for value in step[1]}
    made = [
        numpy_helper.from_array(np.asarray(value), qualified(key)) for key, value in constants.items() if key in used
    ]
    _replace(model, nodes + list(model.graph.node), kept + made)


def fold_kernel(model: ModelProto, name: str) -> None:
    """Store the windowed DFT kernel as one constant, for runtimes that take convolutions with constant weights only."""
    initializers = {each.name: each for each in model.graph.initializer}
    wanted = [f"{name}.kernel", f"{name}.window"]
    for node in model.graph.node:
        if node.op_type == "Mul" and sorted(node.input) == wanted:
            kernel, window = (numpy_helper.to_array(initializers.pop(each)) for each in wanted)
            # float32 like the node that it replaces
            initializers[node.output[0]] = numpy_helper.from_array(kernel * window, node.output[0])
            rest = [each for each in model.graph.node if each is not node]
            _replace(model, rest, list(initializers.values()))
            return


def _replace(model: ModelProto, nodes: list[NodeProto], initializers: list[TensorProto]) -> None:
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(initializers)


def _samples() -> list[Step]:
    return [("Range", ["zero", "frame", "one"], "sample", {})]


def _bins() -> list[Step]:
    return [
        ("Range", ["first", "stop", "one"], "bin", {}),
        ("Unsqueeze", ["bin", "axis"], "bins", {}),
    ]


def _counts(module: LogMel) -> dict[str, npt.ArrayLike]:
    return {
        "zero": np.int64(0),
        "one": np.int64(1),
        "axis": np.array([1], np.int64),
        "frame": np.int64(module.settings.frame_samples),
        "first": np.int64(module.first_bin),
        "stop": np.int64(module.first_bin + module.bins),
        "radians": np.float32(2.0 * math.pi / module.settings.frame_samples),
    }


def _kernel(module: LogMel) -> tuple[dict[str, npt.ArrayLike], list[Step]]:
    return _counts(module), [
        *_samples(),
        *_bins(),
        ("Mul", ["bins", "sample"], "turns", {}),
        ("Mod", ["turns", "frame"], "turn", {}),
        ("Cast", ["turn"], "turn_float", {"to": TensorProto.FLOAT}),
        ("Mul", ["turn_float", "radians"], "phase", {}),
        ("Cos", ["phase"], "cosine", {}),
        ("Sin", ["phase"], "sine", {}),
        ("Concat", ["cosine", "sine"], "both", {"axis": 0}),
        ("Unsqueeze", ["both", "axis"], "kernel", {}),
    ]


def _window(module: LogMel) -> tuple[dict[str, npt.ArrayLike], list[Step]]:
    # Hann is (1 - cosine) times half its largest value, and that is reached in the middle of the frame.
    half = float(module.window.double().sum()) / module.settings.frame_samples
    constants = _counts(module) | {"half": np.float32(half), "unit": np.float32(1.0)}
    return constants, [
        *_samples(),
        ("Cast", ["sample"], "sample_float", {"to": TensorProto.FLOAT}),
        ("Mul", ["sample_float", "radians"], "angle", {}),
        ("Cos", ["angle"], "angle_cosine", {}),
        ("Sub", ["unit", "angle_cosine"], "hann", {}),
        ("Mul", ["hann", "half"], "window", {}),
    ]


def _filters(module: LogMel) -> tuple[dict[str, npt.ArrayLike], list[Step]]:
    settings = module.settings
    edges_hz = mel_edges_hz(bands=settings.bands, low_hz=settings.low_hz, high_hz=settings.high_hz)
    edges = edges_hz * (settings.frame_samples / module.rate_hz)
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    constants = _counts(module) | {
        "low": low.astype(np.float32),
        "high": high.astype(np.float32),
        "rise": (1.0 / (middle - low)).astype(np.float32),
        "fall": (1.0 / (high - middle)).astype(np.float32),
        "nothing": np.float32(0.0),
    }
    return constants, [
        *_bins(),
        ("Cast", ["bins"], "bins_float", {"to": TensorProto.FLOAT}),
        ("Sub", ["bins_float", "low"], "above", {}),
        ("Mul", ["above", "rise"], "rising", {}),
        ("Sub", ["high", "bins_float"], "below", {}),
        ("Mul", ["below", "fall"], "falling", {}),
        ("Min", ["rising", "falling"], "triangle", {}),
        ("Max", ["triangle", "nothing"], "filters", {}),
    ]
