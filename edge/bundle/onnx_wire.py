"""Read just enough of an ONNX file, as protobuf on the wire, to know that it stands alone.

onnxruntime opens any file that a tensor names as *external data* (hard links included), and some contrib operators
open files of their own. A device has no ``onnx`` package to look for them, and must look before
onnxruntime does. This walk visits every tensor of every graph, subgraph, attribute and sparse tensor, and refuses what
it does not know: it may reject a sound model, it must not pass a dangerous one.

Field numbers are those of ``onnx.proto`` (ONNX IR version 10).
"""

from __future__ import annotations

from collections.abc import Iterator

from edge.errors import BundleError

MAX_FIELDS = 2_000_000
MAX_DEPTH = 32

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_OP_TYPE, _DOMAIN, _NODE_ATTRIBUTE = 4, 7, 5

# message -> field number -> message: the ways that lead to a tensor. Other fields hold none.
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {_NODE_ATTRIBUTE: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
# Parts of a model that our exports never have, and that would be further ways to hide a tensor.
_REFUSED = {"model": {20: "training information", 25: "local functions"}}
_STANDARD_DOMAINS = (b"", b"ai.onnx")


def check_self_contained(model: bytes) -> None:
    """Refuse a model that would make onnxruntime read anything but these bytes.

    Raises:
        BundleError: external data, an operator outside the standard domain, training information, local functions,
            ONNX Runtime's own file format, or bytes that are no ONNX model.
    """
    if model[4:8] == b"ORTM":
        raise BundleError("model.onnx is in ONNX Runtime's own format: export it as ONNX")
    walk = _Walk(model)
    walk.message("model", 0, len(model), 0)
    if not walk.graphs:
        raise BundleError("model.onnx holds no graph: not an ONNX model")


class _Walk:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.fields = 0
        self.graphs = 0

    def message(self, kind: str, start: int, end: int, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise BundleError(f"model.onnx nests deeper than {MAX_DEPTH} levels")
        self.graphs += kind == "graph"
        for number, wire, value, stop in self._fields(start, end):
            if kind == "tensor":
                self._check_tensor(number, wire, value)
            if kind == "node" and number == _DOMAIN:
                self._check_domain(self.data[value:stop])
            if number in _REFUSED.get(kind, {}):
                raise BundleError(f"model.onnx has {_REFUSED[kind][number]}, which a bundle must not hold")
            child = _CHILDREN[kind].get(number)
            if child is None:
                continue
            if wire != _BYTES:
                raise _malformed()
            self.message(child, value, stop, depth + 1)

    @staticmethod
    def _check_tensor(number: int, wire: int, value: int) -> None:
        # A location that is spelt out as "inside this file" (0) is harmless; anything else is not ours.
        if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and (wire != _VARINT or value != 0)):
            raise BundleError("model.onnx refers to external data: a bundle's model must hold all its weights")

    @staticmethod
    def _check_domain(domain: bytes) -> None:
        if domain not in _STANDARD_DOMAINS:
            shown = domain[:64].decode("utf-8", "replace")
            raise BundleError(f"model.onnx uses an operator of the domain {shown!r}: only standard ONNX is allowed")

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (field number, wire type, value or first byte, end) of each field between two offsets."""
        position = start
        while position < end:
            self.fields += 1
            if self.fields > MAX_FIELDS:
                raise BundleError(f"model.onnx has more than {MAX_FIELDS} fields")
            tag, position = self._varint(position, end)
            number, wire = tag >> 3, tag & 7
            # protobuf drops the bits of a tag above 32 and would see another field than we do.
            if number == 0 or tag >= 1 << 32:
                raise _malformed()
            value = position
            if wire == _VARINT:
                value, position = self._varint(position, end)
            elif wire == _FIXED64:
                position += 8
            elif wire == _FIXED32:
                position += 4
            elif wire == _BYTES:
                length, value = self._varint(position, end)
                position = value + length
            else:
                raise _malformed()
            if position > end:
                raise _malformed()
            yield number, wire, value, position

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if position >= end:
                break
            byte = self.data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
        raise _malformed()


def _malformed() -> BundleError:
    return BundleError("model.onnx is no ONNX model (broken protobuf)")
