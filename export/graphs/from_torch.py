"""Turn a firmware model into an ONNX graph that holds everything between PCM and scores.

Opset 21 (native 16 and 4 bit Q/DQ; TensorRT 10.15 takes 9 to 24), IR 10, input ``pcm`` float32 (batch, samples), output
``scores`` float32 (batch, classes): logits. torch's exporter folds batch norm into the convolution before it; here
factored layers become two plain ones, the constants of a log-mel front end become the nodes that compute them, and
everything that tells about the machine of the export is removed.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch
from onnx import ModelProto

from edge.errors import UsageError
from export.graphs import front_end
from firmware_models.architectures import FirmwareModel
from firmware_models.frontend import LogMel
from firmware_models.low_rank import folded

OPSET = 21
IR_VERSION = 10
INPUT, OUTPUT = "pcm", "scores"
FRONT_END = "frontend/"


def to_onnx(model: FirmwareModel, *, batch: int | None = None, compute_kernel: bool = True) -> ModelProto:
    """Export a model; it is not changed and need not be in evaluation mode.

    Args:
        model: any firmware model, with or without a log-mel front end, with or without factored layers.
        batch: the one batch size that the graph takes, None for any. Profile ``portable`` is made with 1.
        compute_kernel: the graph computes DFT kernel, window and mel filters, 0.64 MB, instead of storing them.
            Runtimes that take only constant weights, TensorRT among them, need them stored.

    Returns:
        a checked graph. Nodes of the log-mel front end have names that begin with ``frontend/``: they stay
        in FP32 when the rest is quantised.

    Raises:
        UsageError: weights are not finite, torch cannot export the model, or the graph has other inputs, outputs or
            operator domains than a bundle may have.
    """
    if batch is not None and batch < 1:
        raise UsageError(f"batch {batch}: use 1 or more, or none for a graph that takes any")
    _check_finite(model)
    model = folded(model).cpu().eval()
    front_ends = {name: module for name, module in model.named_modules() if isinstance(module, LogMel)}
    for module in front_ends.values():
        module.method = "convolution"
    graph = _exported(model, batch)
    _name_nodes(graph, tuple(front_ends))
    for name, module in front_ends.items():
        if compute_kernel:
            front_end.compute_constants(graph, name, module, prefix=FRONT_END)
        else:
            front_end.fold_kernel(graph, name)
    _strip(graph)
    onnx.checker.check_model(graph, full_check=True)
    _check(graph)
    return graph


def _check_finite(model: FirmwareModel) -> None:
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            count = int((~torch.isfinite(value)).sum())
            raise UsageError(f"{name} of the model has {count} weights that are not finite: train it again")


def _exported(model: FirmwareModel, batch: int | None) -> ModelProto:
    shapes = None if batch else ({0: torch.export.Dim("batch", min=1, max=4096)},)
    try:
        with _quiet():
            program = torch.onnx.export(
                model,
                (torch.zeros(batch or 2, model.window_samples),),
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=shapes,
                verbose=False,
            )
    except Exception as error:  # noqa: BLE001 - a user's own network may fail in any way inside the exporter
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())[:300] or type(cause).__name__
        raise UsageError(f"torch could not export the architecture {model.name!r}: {reason}") from None
    if program is None:
        raise UsageError(f"torch could not export the architecture {model.name!r}")
    graph: ModelProto = program.model_proto
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
