"""Turn a firmware model into an ONNX graph that holds everything between PCM and scores.

Opset 21 (native 16 and 4 bit Q/DQ), IR 10, dynamic batch, input ``pcm`` float32 (batch, samples), output ``scores``
float32 (batch, classes): logits. torch's exporter folds batch norm into the convolution before it; here the DFT kernel
of the front end, four times larger than the INT8 weights, is replaced by ten small nodes that compute it, and
everything that tells about the machine of the export is removed.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edge.errors import UsageError
from firmware_models.architectures import FirmwareModel
from firmware_models.frontend import LogMel

OPSET = 21
IR_VERSION = 10
INPUT, OUTPUT = "pcm", "scores"
FRONT_END = "frontend/"


def to_onnx(model: FirmwareModel) -> ModelProto:
    """Export a model; it is not changed and need not be in evaluation mode.

    Returns:
        a checked graph. Nodes of the log-mel front end have names that begin with ``frontend/``: they stay
        in FP32 when the rest is quantised.

    Raises:
        UsageError: the graph has other inputs, outputs or operator domains than a bundle may have.
    """
    model = copy.deepcopy(model).cpu().eval()
    front_ends = {name: module for name, module in model.named_modules() if isinstance(module, LogMel)}
    for module in front_ends.values():
        module.method = "convolution"
    batch = torch.export.Dim("batch", min=1, max=4096)
    with _quiet():
        program = torch.onnx.export(
            model,
            (torch.zeros(2, model.window_samples),),
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
    if program is None:
        raise UsageError(f"torch could not export the architecture {model.name!r}")
    graph = program.model_proto
    _name_nodes(graph, tuple(front_ends))
    for name, module in front_ends.items():
        _compute_kernel(graph, f"{name}.kernel", module)
    _strip(graph)
    onnx.checker.check_model(graph, full_check=True)
    _check(graph)
    return graph


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs about libraries that we do not use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _name_nodes(model: ModelProto, front_ends: tuple[str, ...]) -> None:
    """Name nodes after the module they come from, e.g. ``frontend/Conv_2`` or ``conv1/Conv_13``."""
    for index, node in enumerate(model.graph.node):
        scopes = next((each.value for each in node.metadata_props if each.key == "pkg.torch.onnx.name_scopes"), "")
        parts = [part.strip(" '\"[]") for part in scopes.split(",")]
        inside = [part for part in parts[:-1] if part]
        prefix = (
            FRONT_END if any(part in front_ends for part in inside) else "".join(f"{part}/" for part in inside[-1:])
        )
        node.name = f"{prefix}{node.op_type}_{index}"


def _compute_kernel(model: ModelProto, name: str, module: LogMel) -> None:
    """Replace the stored DFT kernel by nodes that build it as :func:`firmware_models.frontend.dft_kernel` does."""
    stored = next((each for each in model.graph.initializer if each.name == name), None)
    if stored is None:
        return
    frame, first, bins = module.settings.frame_samples, module.first_bin, module.bins
    constants = {
        "zero": np.int64(0),
        "one": np.int64(1),
        "axis": np.array([1], np.int64),
        "frame": np.int64(frame),
        "first": np.int64(first),
        "stop": np.int64(first + bins),
        "radians": np.float32(2.0 * math.pi / frame),
    }
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Range", ["zero", "frame", "one"], "sample", {}),
        ("Range", ["first", "stop", "one"], "bin", {}),
        ("Unsqueeze", ["bin", "axis"], "bin_column", {}),
        ("Mul", ["bin_column", "sample"], "turns", {}),
        ("Mod", ["turns", "frame"], "turn", {}),
        ("Cast", ["turn"], "turn_float", {"to": TensorProto.FLOAT}),
        ("Mul", ["turn_float", "radians"], "phase", {}),
        ("Cos", ["phase"], "cosine", {}),
        ("Sin", ["phase"], "sine", {}),
        ("Concat", ["cosine", "sine"], "both", {"axis": 0}),
        ("Unsqueeze", ["both", "axis"], "kernel", {}),
    ]

    def qualified(value: str) -> str:
        return name if value == "kernel" else f"{name}.{value}"

    nodes = [
        helper.make_node(
            kind, [qualified(i) for i in inputs], [qualified(o)], name=f"{FRONT_END}kernel_{o}", **attributes
        )
        for kind, inputs, o, attributes in steps
    ]
    model.graph.initializer.remove(stored)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), qualified(key)) for key, value in constants.items()
    )
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes + rest)


def _strip(model: ModelProto) -> None:
    """Remove stack traces, paths and versions of the exporting machine: the graph depends on the model alone."""
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version, model.doc_string = "earshot", "", ""
    graph = model.graph
    graph.name, graph.doc_string = "earshot", ""
    del model.metadata_props[:]
    del graph.metadata_props[:]
    del graph.value_info[:]
    for item in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""


def _check(model: ModelProto) -> None:
    names = [each.name for each in model.graph.input], [each.name for each in model.graph.output]
    if names != ([INPUT], [OUTPUT]):
        raise UsageError(f"the graph takes {names[0]} and gives {names[1]} instead of {INPUT} and {OUTPUT}")
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain})
    if foreign or model.functions:
        raise UsageError(f"the graph uses operators outside standard ONNX: {', '.join(foreign) or 'functions'}")


def front_end_nodes(model: ModelProto) -> list[str]:
    """Names of the nodes that stay in FP32."""
    return [node.name for node in model.graph.node if node.name.startswith(FRONT_END)]
