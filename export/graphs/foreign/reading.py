"""Read an ONNX file of somebody else and refuse, by name, what a bundle must not hold or a device cannot run."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, defs, numpy_helper

from edge.bundle.manifest import MEMBER_LIMITS_BYTES, MODEL
from edge.errors import UsageError
from export.graphs.foreign.layouts import Dimension
from export.graphs.from_torch import IR_VERSION, OPSET

STANDARD = frozenset({"", "ai.onnx"})
# The nodes of the front end have this form from here on.
MIN_OPSET = 13
RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})


def read_model(path: Path) -> ModelProto:
    """Parse a file; weights in other files are not looked for.

    Raises:
        UsageError: no such file, too large, or no ONNX model.
    """
    limit = MEMBER_LIMITS_BYTES[MODEL]
    try:
        # A named pipe would block the open.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise UsageError("not a file: give a model in ONNX")
            data = file.read(limit + 1)
    except OSError as error:
        raise UsageError(str(error.strerror)) from None
    if len(data) > limit:
        raise UsageError(f"larger than {limit >> 20} MiB, the limit of a bundle's model")
    if data[4:8] == b"ORTM":
        raise UsageError("in ONNX Runtime's own format: give the ONNX file it was made from")
    try:
        model = ModelProto()
        model.ParseFromString(data)
    except Exception:  # noqa: BLE001 - protobuf's DecodeError, whose module has no types
        raise UsageError("no ONNX model (truncated, or another kind of file)") from None
    if not model.graph.node or not model.graph.output:
        raise UsageError("no ONNX model (it holds no graph)")
    # Protobuf gives what is not UTF-8 as bytes, which no later step expects.
    if any(isinstance(name, bytes) for name in _names(model.graph)):
        raise UsageError("no ONNX model (damaged: it holds a name that is not UTF-8)")
    return model


def select(model: ModelProto, output: str | None) -> ModelProto:
    """Keep what the chosen output needs, with local functions written out.

    Raises:
        UsageError: there are several outputs and none is chosen, or none of that name; the message names them.
    """
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    names = [each.name for each in model.graph.output]
    if output is None and len(names) > 1:
        listed = ", ".join(f"{each.name} ({describe(each)})" for each in model.graph.output)
        raise UsageError(f"it has {len(names)} outputs, {listed}: choose the one with the scores, --output NAME")
    if output is not None and output not in names:
        raise UsageError(f"--output {output!r}: its outputs are {', '.join(names)}")
    model = _copy(model)
    graph, chosen = model.graph, output or names[0]
    kept = [each for each in graph.output if each.name == chosen]
    del graph.output[:]
    graph.output.extend(kept)
    _prune(graph)
    return model


def check(model: ModelProto) -> None:
    """Judge the nodes and weights of a selected model.

    Raises:
        UsageError: operators outside standard ONNX or drawing random numbers, weights outside the file, or weights
            that are not finite.
    """
    opset = opset_of(model)
    for node in nodes_of(model.graph):
        named = f"node {node.name!r} ({node.op_type})" if node.name else f"a node without name ({node.op_type})"
        if node.domain not in STANDARD:
            whose = "an operator of onnxruntime's own" if node.domain == "com.microsoft" else "an operator"
            raise UsageError(
                f"{named} is {whose} of the domain {node.domain!r}; a bundle holds standard ONNX only: export it "
                f"without {'runtime optimisation' if node.domain == 'com.microsoft' else 'custom operators'}"
            )
        if node.op_type in RANDOM:
            raise UsageError(f"{named} draws random numbers: the same sound must give the same scores")
        if not defs.has(node.op_type):
            raise UsageError(f"{named} is not in standard ONNX")
        try:
            defs.get_schema(node.op_type, max_inclusive_version=opset)
        except defs.SchemaError:
            raise UsageError(f"{named} does not exist in opset {opset}, which the file states") from None
    for name, tensor in tensors_of(model.graph):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise UsageError(
                f"weight {name!r} lies in another file, which is not read: store the model in one file with "
                f"onnx.save(onnx.load(FILE), NEW, save_as_external_data=False)"
            )
        if tensor.data_type in _FLOATS:
            _check_finite(name, tensor)


def upgrade(model: ModelProto) -> tuple[ModelProto, str | None]:
    """The model in opset 21, or as it is where that cannot be done but is not needed; and a note in that case.

    Raises:
        UsageError: the opset is older than 13 and cannot be converted.
    """
    opset = opset_of(model)
    model = _plain(model, opset)
    if opset >= OPSET:
        return model, None if opset == OPSET else f"Opset {opset} is kept; our own graphs have {OPSET}."
    try:
        return _plain(onnx.version_converter.convert_version(model, OPSET), OPSET), None
    except Exception as error:  # noqa: BLE001 - the converter's C++ raises whatever it meets
        if opset >= MIN_OPSET:
            return model, f"Opset {opset} is kept ({one_line(error)}): weights of 16 and 4 bits need {OPSET}."
        raise UsageError(
            f"opset {opset} cannot be converted to {OPSET} ({one_line(error)}): "
            f"export it with opset {MIN_OPSET} or later"
        ) from None


def real_inputs(model: ModelProto) -> list[ValueInfoProto]:
    """The inputs that somebody has to feed: old files list their weights as inputs, too."""
    stored = {each.name for each in model.graph.initializer}
    return [each for each in model.graph.input if each.name not in stored]


def shape_of(value: ValueInfoProto) -> list[Dimension] | None:
    """The shape of an input or output, None for a free axis; None where no shape is stated."""
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        return None
    return [each.dim_value if each.dim_value > 0 else None for each in value.type.tensor_type.shape.dim]


def describe(value: ValueInfoProto) -> str:
    """Type and shape for people, e.g. ``float ?x98x40``."""
    if not value.type.HasField("tensor_type"):
        return str(value.type.WhichOneof("value")).removesuffix("_type")
    kind = TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
    shape = shape_of(value)
    return kind if shape is None else f"{kind} {'x'.join('?' if each is None else str(each) for each in shape)}"


def opset_of(model: ModelProto) -> int:
    """The version of the standard operators."""
    return max((each.version for each in model.opset_import if each.domain in STANDARD), default=1)


def nodes_of(graph: GraphProto) -> Iterator[NodeProto]:
    """All nodes, those of loops and branches too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in _graphs(attribute):
                yield from nodes_of(inner)


def tensors_of(graph: GraphProto) -> Iterator[tuple[str, TensorProto]]:
    """All stored tensors with a name for people."""
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for sparse in graph.sparse_initializer:
        yield sparse.values.name, sparse.values
    for node in graph.node:
        for attribute in node.attribute:
            where = node.output[0] if node.op_type == "Constant" and node.output else f"{node.name}.{attribute.name}"
            for tensor in ([attribute.t] if attribute.HasField("t") else []) + list(attribute.tensors):
                yield where, tensor
            if attribute.HasField("sparse_tensor"):
                yield where, attribute.sparse_tensor.values
            for inner in _graphs(attribute):
                yield from tensors_of(inner)


def one_line(error: Exception) -> str:
    """The beginning of an error's text, without line breaks."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _names(graph: GraphProto) -> Iterator[str | bytes]:
    for value in (*graph.input, *graph.output, *graph.initializer):
        yield value.name
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        for attribute in node.attribute:
            yield attribute.name
            for inner in _graphs(attribute):
                yield from _names(inner)


def _graphs(attribute: AttributeProto) -> list[GraphProto]:
    return ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs)


def _check_finite(name: str, tensor: TensorProto) -> None:
    try:
        array = np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, TypeError):
        raise UsageError(f"weight {name!r} cannot be read: its data does not fit its shape") from None
    if not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array))
        raise UsageError(f"weight {name!r} holds {bad.size} of {array.size} numbers that are NaN or infinite")


def _prune(graph: GraphProto) -> None:
    needed = {each.name for each in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed |= _reads(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    for each in [each for each in graph.initializer if each.name not in needed]:
        graph.initializer.remove(each)
    for each in [each for each in graph.input if each.name not in needed]:
        graph.input.remove(each)


def _reads(node: NodeProto) -> set[str]:
    """What a node and the loops or branches in it read; names from outside are among them."""
    read = set(node.input)
    for attribute in node.attribute:
        for inner in _graphs(attribute):
            read |= {each.name for each in inner.output}
            for each in inner.node:
                read |= _reads(each)
    return read - {""}


def _plain(model: ModelProto, opset: int) -> ModelProto:
    """Without everything that tells about somebody's machine, and with weights that are no inputs."""
    model = _copy(model)
    graph = model.graph
    inputs = real_inputs(model)
    del graph.input[:], graph.value_info[:], graph.quantization_annotation[:], model.metadata_props[:]
    graph.input.extend(inputs)
    for attribute in ("doc_string", "metadata_props"):
        for item in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
            item.ClearField(attribute)
    for node in nodes_of(graph):
        node.domain = ""
    model.ir_version = IR_VERSION if opset <= OPSET else max(model.ir_version, IR_VERSION)
    del model.opset_import[:]
    model.opset_import.add(domain="", version=opset)
    return model


def _copy(model: ModelProto) -> ModelProto:
    copied = ModelProto()
    copied.CopyFrom(model)
    return copied
