"""No model that would make onnxruntime open a file gets past the walk over its bytes."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edge.bundle.onnx_wire import check_self_contained
from edge.errors import BundleError

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)


def external(name: str = "outside", location: str = "outside.bin") -> TensorProto:
    tensor = numpy_helper.from_array(WEIGHT, name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(WEIGHT.nbytes))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def model(nodes: list, initializers: list = (), sparse: list = (), **more) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("pcm", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3])],
        list(initializers),
        sparse_initializer=list(sparse),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10, **more)


MATMUL = helper.make_node("MatMul", ["pcm", "outside"], ["scores"])


def good() -> onnx.ModelProto:
    return model([MATMUL], [numpy_helper.from_array(WEIGHT, "outside")])


def subgraph(*initializers: TensorProto, nodes: list = ()) -> onnx.GraphProto:
    out = helper.make_tensor_value_info("then", TensorProto.FLOAT, None)
    return helper.make_graph(list(nodes), "inner", [], [out], list(initializers))


def sparse(values: TensorProto, indices: TensorProto) -> onnx.SparseTensorProto:
    return helper.make_sparse_tensor(values, indices, [2, 3])


def if_node(inner: onnx.GraphProto) -> onnx.NodeProto:
    return helper.make_node("If", ["flag"], ["outside"], then_branch=inner, else_branch=subgraph())


INDICES = numpy_helper.from_array(np.arange(3, dtype=np.int64), "indices")
VALUES = numpy_helper.from_array(np.ones(3, np.float32), "values")

PLACES = {
    "initializer": lambda: model([MATMUL], [external()]),
    "constant node": lambda: model([helper.make_node("Constant", [], ["outside"], value=external()), MATMUL]),
    "list of tensors": lambda: model([helper.make_node("Odd", [], ["outside"], values=[external()]), MATMUL]),
    "subgraph": lambda: model([if_node(subgraph(external("then"))), MATMUL]),
    "constant in a subgraph": lambda: model(
        [if_node(subgraph(nodes=[helper.make_node("Constant", [], ["then"], value=external())])), MATMUL]
    ),
    "list of graphs": lambda: model([helper.make_node("Odd", [], ["outside"], graphs=[subgraph(external())]), MATMUL]),
    "sparse initializer": lambda: model([MATMUL], sparse=[sparse(external(), INDICES)]),
    "sparse indices": lambda: model([MATMUL], sparse=[sparse(VALUES, external())]),
    "sparse attribute": lambda: model(
        [helper.make_node("Constant", [], ["outside"], sparse_value=sparse(external(), INDICES)), MATMUL]
    ),
}


def _with_sparse_list() -> onnx.ModelProto:
    node = helper.make_node("Odd", [], ["outside"])
    attribute = node.attribute.add(name="many", type=onnx.AttributeProto.SPARSE_TENSORS)
    attribute.sparse_tensors.add().CopyFrom(sparse(external(), INDICES))
    return model([node, MATMUL])


PLACES["sparse in a list"] = _with_sparse_list


def test_good_model():
    check_self_contained(good().SerializeToString())


def test_tensor_that_spells_out_its_default_location():
    graph = good()
    graph.graph.initializer[0].data_location = TensorProto.DEFAULT
    check_self_contained(graph.SerializeToString())


@pytest.mark.parametrize("place", PLACES)
def test_external_data_is_found_everywhere(place):
    with pytest.raises(BundleError, match="external data"):
        check_self_contained(PLACES[place]().SerializeToString())


def test_the_danger_is_real(tmp_path, monkeypatch):
    # Without the walk onnxruntime opens the file, even for a model that comes as bytes.
    import onnxruntime as ort

    (tmp_path / "outside.bin").write_bytes(WEIGHT.tobytes())
    monkeypatch.chdir(tmp_path)
    options = ort.SessionOptions()
    # Some optimisations trip over it first; that is luck, not a rule.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(PLACES["initializer"]().SerializeToString(), options)
    assert np.array_equal(session.run(None, {"pcm": np.eye(2, dtype=np.float32)})[0], WEIGHT)


def test_location_without_entries_and_entries_without_location():
    for field in ("external_data", "data_location"):
        graph = PLACES["initializer"]()
        graph.graph.initializer[0].ClearField(field)
        with pytest.raises(BundleError, match="external data"):
            check_self_contained(graph.SerializeToString())


def test_address_in_memory():
    # onnxruntime's own marker: the "offset" is a pointer into the process.
    graph = model([MATMUL], [external(location="*/_ORT_MEM_ADDR_/*")])
    with pytest.raises(BundleError, match="external data"):
        check_self_contained(graph.SerializeToString())


@pytest.mark.parametrize("domain", ["com.microsoft", "ai.onnx.ml", "evil\n"])
def test_operator_of_another_domain(domain):
    # com.microsoft.EPContext, for one, opens files.
    graph = good()
    graph.graph.node.insert(0, helper.make_node("EPContext", [], ["x"], domain=domain, embed_mode=0))
    with pytest.raises(BundleError, match="operator of the domain"):
        check_self_contained(graph.SerializeToString())
    inner = model([if_node(subgraph(nodes=[helper.make_node("EPContext", [], ["x"], domain=domain)])), MATMUL])
    with pytest.raises(BundleError, match="operator of the domain"):
        check_self_contained(inner.SerializeToString())


def test_functions_and_training_information():
    graph = good()
    graph.functions.add(name="f", domain="local").node.add(op_type="Constant")
    with pytest.raises(BundleError, match="local functions"):
        check_self_contained(graph.SerializeToString())
    graph = good()
    graph.training_info.add().algorithm.initializer.append(external())
    with pytest.raises(BundleError, match="training information"):
        check_self_contained(graph.SerializeToString())


def test_format_of_onnxruntime():
    with pytest.raises(BundleError, match="own format"):
        check_self_contained(b"\x20\x00\x00\x00ORTM" + bytes(100))


@pytest.mark.parametrize("data", [b"", b"\x08\x0a", b"not onnx at all", b"\x3a\x7f", b"\x3b\x00", b"\xff" * 30])
def test_bytes_that_are_no_model(data):
    with pytest.raises(BundleError, match=r"model\.onnx"):
        check_self_contained(data)


def test_nesting_has_a_limit():
    inner = subgraph()
    for _ in range(15):
        inner = subgraph(nodes=[if_node(inner)])
    with pytest.raises(BundleError, match="nests deeper"):
        check_self_contained(model([if_node(inner)]).SerializeToString())


def test_tag_that_protobuf_reads_as_another_field():
    # Five bytes hold 35 bits, protobuf keeps 32: this tag means field 13 to it and a huge field to a naive reader.
    tensor = numpy_helper.from_array(WEIGHT, "outside").SerializeToString()
    entry = onnx.StringStringEntryProto(key="location", value="outside.bin").SerializeToString()
    tag = (13 << 3 | 2) + (1 << 32)
    spelt = bytes(
        [tag & 0x7F | 0x80, tag >> 7 & 0x7F | 0x80, tag >> 14 & 0x7F | 0x80, tag >> 21 & 0x7F | 0x80, tag >> 28]
    )
    tensor += spelt + bytes([len(entry)]) + entry
    graph = bytes([5 << 3 | 2]) + _length(tensor) + tensor
    with pytest.raises(BundleError, match="broken protobuf"):
        check_self_contained(bytes([7 << 3 | 2]) + _length(graph) + graph)


def _length(data: bytes) -> bytes:
    count, out = len(data), bytearray()
    while count > 127:
        out.append(count & 0x7F | 0x80)
        count >>= 7
    return bytes([*out, count])


def _reads_outside(graph: onnx.GraphProto) -> bool:
    tensors = list(graph.initializer)
    for each in graph.sparse_initializer:
        tensors += [each.values, each.indices]
    for node in graph.node:
        for attribute in node.attribute:
            tensors += [attribute.t, *attribute.tensors]
            for each in (attribute.sparse_tensor, *attribute.sparse_tensors):
                tensors += [each.values, each.indices]
            if any(_reads_outside(inner) for inner in (attribute.g, *attribute.graphs)):
                return True
    return any(t.data_location == TensorProto.EXTERNAL or t.external_data for t in tensors)


SEEDS = [make().SerializeToString() for make in PLACES.values()] + [good().SerializeToString()]


@settings(max_examples=1500, deadline=None)
@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255), st.integers(0, 2)), max_size=4),
)
def test_whatever_protobuf_reads_as_external_is_refused(seed, edits):
    data = bytearray(seed)
    for where, value, kind in edits:
        place = int(where * len(data)) if data else 0
        if kind == 0 and data:
            data[place] = value
        elif kind == 1:
            data.insert(place, value)
        elif data:
            del data[place]
    try:
        check_self_contained(bytes(data))
    except BundleError:
        return
    try:
        parsed = onnx.load_from_string(bytes(data))
    except DecodeError:
        return
    assert not _reads_outside(parsed.graph)


@settings(max_examples=500, deadline=None)
@given(data=st.binary(max_size=400))
def test_any_bytes_end_in_an_answer(data):
    with contextlib.suppress(BundleError):
        check_self_contained(data)


def test_a_signed_bundle_with_external_data_is_refused(tiny_bundle, tmp_path: Path):
    import hashlib
    import json
    import zipfile

    from edge.bundle import container, signing
    from edge.bundle.reading import read_bundle

    with zipfile.ZipFile(tiny_bundle.path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["model.onnx"] = PLACES["subgraph"]().SerializeToString()
    manifest = json.loads(members["manifest.json"])
    manifest["members"]["model.onnx"] = {
        "sha256": hashlib.sha256(members["model.onnx"]).hexdigest(),
        "size_bytes": len(members["model.onnx"]),
    }
    members["manifest.json"] = json.dumps(manifest).encode()
    key = signing.load_private_key(tiny_bundle.key.with_suffix(".pem"))
    members["manifest.sig"] = signing.sign(key, members["manifest.json"])
    path = tmp_path / "external.earshot"
    path.write_bytes(b"".join(container.chunks(members)))
    with pytest.raises(BundleError, match=r"external\.earshot: model\.onnx refers to external data"):
        read_bundle(path, trusted=[signing.load_public_key(tiny_bundle.key)])
