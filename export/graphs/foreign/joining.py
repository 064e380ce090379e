"""Put the way from PCM to a foreign model's input in front of it, and our names at both ends."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

import edge  # noqa: F401 - switches onnxruntime's telemetry off before its first import
from edge.errors import UsageError
from export.graphs.foreign.front_end import write_front_end
from export.graphs.foreign.layouts import target_shape
from export.graphs.foreign.nodes import Nodes
from export.graphs.foreign.reading import STANDARD, nodes_of, one_line, opset_of
from export.graphs.foreign.wiring import Wiring
from export.graphs.from_torch import INPUT, OUTPUT

BODY = "model/"
# A device hears 16 bits and divides them by this.
PCM_STEPS = 32768.0


def front_only(wiring: Wiring, like: ModelProto) -> ModelProto:
    """A graph that gives what the foreign model is to be fed with, as ``features``."""
    nodes = Nodes()
    last = _write(nodes, wiring)
    nodes.nodes.append(helper.make_node("Identity", [last], ["features"]))
    return _model(
        like, nodes.nodes, nodes.constants, batch=None, wiring=wiring, output=("features", wiring.element, None)
    )


def join(model: ModelProto, wiring: Wiring, *, batch: int | None, given_shape: Sequence[int], width: int) -> ModelProto:
    """The whole graph: ``pcm`` to ``scores`` (batch, width).

    ``model`` has one input and one output, which is ``given_shape`` for a batch of ``given_shape[0]``, or without
    batch axis where that is its only axis. ``batch`` is the size the graph insists on, None for any.

    Raises:
        UsageError: the checker of ONNX refuses the result.
    """
    front, back = Nodes(), Nodes(prefix=BODY + "end/")
    body = _renamed(model.graph)
    source, last = body.input[0].name, body.output[0].name
    written = _write(front, wiring)
    if front.nodes:
        front.nodes[-1].output[0] = source
    else:
        _replace_everywhere(body, source, written)
    if body.output[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        last = back.add("Cast", last, to=TensorProto.FLOAT)
    if len(given_shape) != 2:
        last = back.reshaped(last, [1 if len(given_shape) == 1 else 0, width])
    joined = _model(
        model,
        [*front.nodes, *body.node, *back.nodes],
        [*front.constants, *body.initializer, *back.constants],
        batch=batch,
        wiring=wiring,
        output=(OUTPUT, TensorProto.FLOAT, width),
    )
    _replace_everywhere(joined.graph, last, OUTPUT)
    joined.graph.sparse_initializer.extend(body.sparse_initializer)
    try:
        onnx.checker.check_model(joined, full_check=True)
    except Exception as error:  # noqa: BLE001 - the checker has several exception classes without a public base
        raise UsageError(f"the checker of ONNX refuses it: {one_line(error)}") from None
    return joined


def with_input_shape(model: ModelProto, shape: Sequence[int | str]) -> ModelProto:
    """A copy whose only input has this shape; a name stands for a free axis."""
    copied = ModelProto()
    copied.CopyFrom(model)
    given = copied.graph.input[0]
    given.CopyFrom(helper.make_tensor_value_info(given.name, given.type.tensor_type.elem_type, list(shape)))
    # It was inferred from the old shape.
    copied.graph.output[0].type.tensor_type.ClearField("shape")
    return copied


def simplify(model: ModelProto) -> ModelProto | None:
    """What onnxruntime makes of a graph for any machine: constants folded, batch norm in the convolution before it.

    Returns None where there is nothing to use: it would need other operators than standard ones, or the graph is
    quantised and had better stay as it is.
    """
    import onnxruntime as ort  # noqa: PLC0415 - half a second

    if any(node.op_type in {"QuantizeLinear", "DequantizeLinear"} for node in nodes_of(model.graph)):
        return None
    with tempfile.TemporaryDirectory(prefix="earshot-foreign-") as folder:
        target = Path(folder) / "simple.onnx"
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(target)
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        try:
            ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
            simple = onnx.load(target)
        except Exception:  # noqa: BLE001 - onnxruntime has a dozen exception classes without a public base
            return None
    if simple.functions or any(node.domain not in STANDARD for node in nodes_of(simple.graph)):
        return None
    del simple.opset_import[:], simple.metadata_props[:], simple.graph.value_info[:]
    simple.opset_import.add(domain="", version=opset_of(model))
    simple.ir_version = model.ir_version
    return simple


def _write(nodes: Nodes, wiring: Wiring) -> str:
    value, kind = INPUT, wiring.layout
    if wiring.input_kind == "logmel":
        value = write_front_end(nodes, value, wiring.front_end, rate_hz=wiring.rate_hz, samples=wiring.window_samples)
        if "bands" in kind and kind.index("bands") < kind.index("frames"):
            value = nodes.add("Transpose", value, perm=[0, 2, 1])
        plain = kind in {"batch,frames,bands", "batch,bands,frames"}
    else:
        scale = PCM_STEPS if wiring.element == TensorProto.INT16 else wiring.full_scale
        value = value if scale == 1.0 else nodes.times(value, scale)
        plain = kind == "batch,samples"
    if not plain:
        value = nodes.reshaped(value, target_shape(kind, wiring.sizes))
    if wiring.element == TensorProto.INT16:
        limits = (nodes.constant("low", -PCM_STEPS), nodes.constant("high", PCM_STEPS - 1))
        value = nodes.add("Clip", nodes.add("Round", value), *limits)
    return value if wiring.element == TensorProto.FLOAT else nodes.add("Cast", value, to=wiring.element)


def _model(
    like: ModelProto,
    nodes: list[NodeProto],
    constants: list[TensorProto],
    *,
    batch: int | None,
    wiring: Wiring,
    output: tuple[str, int, int | None],
) -> ModelProto:
    name, element, width = output
    size: Any = batch or "batch"
    graph = helper.make_graph(
        nodes,
        "earshot",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [size, wiring.window_samples])],
        [helper.make_tensor_value_info(name, element, None if width is None else [size, width])],
        constants,
    )
    return helper.make_model(
        graph,
        producer_name="earshot",
        opset_imports=[helper.make_opsetid("", opset_of(like))],
        ir_version=like.ir_version,
    )


def _replace_everywhere(graph: GraphProto, old: str, new: str) -> None:
    for node in nodes_of(graph):
        _replace(node.input, old, new)
        _replace(node.output, old, new)


def _replace(names: Any, old: str, new: str) -> None:
    for place, name in enumerate(names):
        if name == old:
            names[place] = new


def _renamed(graph: GraphProto) -> GraphProto:
    """A copy in which every value and node has our prefix, and every node a name of its own."""
    copied = GraphProto()
    copied.CopyFrom(graph)
    taken: set[str] = set()
    for index, node in enumerate(nodes_of(copied)):
        name = node.name or f"{node.op_type}_{index}"
        node.name = f"{BODY}{name}" if name not in taken else f"{BODY}{name}_{index}"
        taken.add(name)
    _prefix_values(copied)
    return copied


def _prefix_values(graph: GraphProto) -> None:
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = BODY + value.name
    for sparse in graph.sparse_initializer:
        sparse.values.name = BODY + sparse.values.name
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = name and BODY + name
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                del inner.value_info[:]
                _prefix_values(inner)
