"""What TensorRT takes: the rules of profile ``portable``, checked on the graph before anything is signed.

The operators are those of onnx-tensorrt's public support matrix for TensorRT 10.15, which parses opsets 9 to 24, less
what such a bundle must not have anyway (random numbers, control flow, sequences). The rules of quantisation are those
of its explicit quantisation with INT8: zero points are 0, scales are positive constants, one scale for an activation,
one per output channel for a weight, and no other integer is dequantised, so biases stay in floating point.

TensorRT has read 4-bit Q/DQ, which opset 21 brought, since 10.0. The checker has never met TensorRT itself: it keeps
out what the parser is documented to refuse.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from edge.errors import UsageError

MIN_OPSET, MAX_OPSET = 9, 24
MAX_AXES = 8

OPERATORS = frozenset(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast CastLike Ceil Celu
    Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout
    Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm
    GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish
    Hardmax Identity InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log
    LogSoftmax LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg Not
    OneHot Or PRelu Pad Pow QuantizeLinear RNN Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp
    ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize Round Selu Shape Shrink
    Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh
    ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Where Xor
    """.split()  # noqa: SIM905 - a hundred quoted names are no better to read
)
_ONNX = frozenset({"", "ai.onnx"})
_RANDOM = frozenset({"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"}) | {
    "RandomUniformLike"
}
_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_TYPES = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT32, TensorProto.INT64}
    | {TensorProto.BOOL, TensorProto.INT8}
)
# Inputs that have to be constants, by place.
_CONSTANT_INPUTS = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "CumSum": (1,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    **dict.fromkeys([name for name in OPERATORS if name.startswith("Reduce")], (1,)),
}
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def check_portable(graph: ModelProto) -> None:
    """Refuse a graph that breaks a rule of TensorRT.

    Raises:
        UsageError: the message names the node, its operator, the rule that it breaks, and what to do.
    """
    _Check(graph).all()


class _Check:
    def __init__(self, model: ModelProto) -> None:
        self._model = model
        graph = model.graph
        self._arrays = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
        self._makers = {name: node for node in graph.node for name in node.output}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self._arrays[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)

    def all(self) -> None:
        self._opset()
        self._inputs()
        for node in self._model.graph.node:
            self._operator(node)
            self._attributes(node)
            for place in _CONSTANT_INPUTS.get(node.op_type, ()):
                if place < len(node.input) and node.input[place] and not self._is_constant(node.input[place]):
                    raise _broken(
                        node, f"its input {node.input[place]} is computed, TensorRT takes a constant", "store it"
                    )
            if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
                self._quantisation(node)
            if node.op_type in _LAYERS:
                self._layer(node)
        self._values()

    def _is_constant(self, name: str) -> bool:
        """Stored, or dequantised from what is stored; a value that nodes compute from constants is not."""
        maker = self._makers.get(name)
        if maker is not None and maker.op_type in {"DequantizeLinear", "QuantizeLinear"}:
            return self._is_constant(maker.input[0])
        return name in self._arrays

    def _opset(self) -> None:
        for each in self._model.opset_import:
            if each.domain in _ONNX and not MIN_OPSET <= each.version <= MAX_OPSET:
                raise UsageError(
                    f"profile portable: opset {each.version}, TensorRT takes {MIN_OPSET} to {MAX_OPSET}: use another"
                )
        if self._model.functions:
            name = self._model.functions[0].name
            raise UsageError(f"profile portable: the local function {name}: inline it before the export")

    def _inputs(self) -> None:
        for each in self._model.graph.input:
            if each.name in self._arrays:
                continue
            kind = each.type.tensor_type
            sizes = [dim.dim_value for dim in kind.shape.dim]
            if not sizes or min(sizes) < 1:
                raise UsageError(
                    f"profile portable: the input {each.name} has free sizes ({_sizes(each)}), "
                    f"TensorRT engines are built for fixed ones: export with a fixed batch"
                )
            if kind.elem_type != TensorProto.FLOAT:
                raise UsageError(f"profile portable: the input {each.name} is {_type(kind.elem_type)}: use float32")

    def _operator(self, node: NodeProto) -> None:
        if node.domain not in _ONNX:
            raise _broken(
                node, f"its domain is {node.domain}, TensorRT knows standard ONNX only", "use another operator"
            )
        if node.op_type in _RANDOM:
            raise _broken(node, "it draws random numbers, which TensorRT does not do from a seed", "take them as input")
        if node.op_type in _FLOW or any(each.HasField("g") or each.graphs for each in node.attribute):
            raise _broken(node, "it holds a graph of its own", "unroll loops and branches before the export")
        if node.op_type not in OPERATORS:
            raise _broken(node, "TensorRT has no such operator", "use profile cpu, or replace it")

    def _attributes(self, node: NodeProto) -> None:
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        if node.op_type in {"AveragePool", "LpPool", "MaxPool"} and set(attributes.get("dilations", [1])) != {1}:
            raise _broken(
                node, f"dilations {attributes['dilations']}: TensorRT pools undilated", "pool without dilation"
            )
        if node.op_type == "MaxPool" and len([name for name in node.output if name]) > 1:
            raise _broken(node, "TensorRT gives no indices of the largest", "use the first output only")
        if node.op_type == "LayerNormalization" and len([name for name in node.output if name]) > 1:
            raise _broken(node, "TensorRT gives no mean and no deviation", "use the first output only")
        if node.op_type == "Constant" and not {"value", "value_float", "value_floats", "value_int", "value_ints"} & set(
            attributes
        ):
            raise _broken(node, "TensorRT takes neither sparse constants nor text", "store a dense tensor")

    def _quantisation(self, node: NodeProto) -> None:
        scale = self._arrays.get(node.input[1])
        if scale is None:
            raise _broken(node, f"its scale {node.input[1]} is computed", "TensorRT takes constant scales: calibrate")
        if not np.isfinite(scale).all() or not (scale > 0).all() or scale.dtype not in (np.float32, np.float16):
            raise _broken(node, f"its smallest scale is {scale.min():g}", "TensorRT takes positive float32 scales")
        if len(node.input) > 2 and node.input[2]:
            zero = self._arrays.get(node.input[2])
            if zero is None or np.any(zero.astype(np.int64) != 0):
                shown = "computed" if zero is None else str(zero.astype(np.int64).reshape(-1)[0])
                raise _broken(
                    node, f"its zero point is {shown}, TensorRT takes 0 only", "quantise symmetrically to S8S8"
                )
        kind = self._integer(node)
        if kind != "int8":
            what = "biases stay in float32" if kind == "int32" else "quantise to S8S8, profile portable"
            raise _broken(node, f"its integers are {kind}, TensorRT takes int8", what)
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        if attributes.get("block_size", 0):
            raise _broken(
                node, "it is quantised in blocks, which TensorRT has for 4 bits only", "use a scale per channel"
            )
        if scale.size > 1 and not self._is_constant(node.input[0]):
            raise _broken(
                node, f"an activation has {scale.size} scales", "TensorRT takes one scale per activation: per tensor"
            )

    def _integer(self, node: NodeProto) -> str:
        if len(node.input) > 2 and node.input[2]:
            return self._arrays[node.input[2]].dtype.name
        if node.op_type == "QuantizeLinear":
            output = next((each.i for each in node.attribute if each.name == "output_dtype"), TensorProto.UINT8)
            return _type(output)
        stored = self._arrays.get(node.input[0])
        if stored is not None:
            return stored.dtype.name
        maker = self._makers.get(node.input[0])
        return self._integer(maker) if maker is not None and maker.op_type == "QuantizeLinear" else "unknown"

    def _layer(self, node: NodeProto) -> None:
        weight = self._makers.get(node.input[1])
        if weight is None or weight.op_type != "DequantizeLinear":
            return
        scale = self._arrays[weight.input[1]]
        if scale.size == 1:
            return
        stored = self._stored(weight)
        axis = next((each.i for each in weight.attribute if each.name == "axis"), 1) % max(stored.ndim, 1)
        wanted = _channel_axis(node, stored.ndim)
        if axis != wanted or scale.size != stored.shape[axis]:
            raise _broken(
                weight,
                f"the weight of {node.name or node.op_type} {stored.shape} has {scale.size} scales on axis {axis}",
                f"TensorRT takes one scale per output channel, on axis {wanted}",
            )

    def _stored(self, weight: NodeProto) -> npt.NDArray[Any]:
        name = weight.input[0]
        while name not in self._arrays:
            name = self._makers[name].input[0]
        return self._arrays[name]

    def _values(self) -> None:
        """Types and sizes of everything between the nodes."""
        for name, array in self._arrays.items():
            if array.size == 0 and not self._is_roi(name):
                raise _broken(self._reader(name), f"its input {name} is empty", "remove what computes nothing")
            if array.dtype == np.float64:
                raise _broken(self._reader(name), f"its input {name} is float64", "use float32")
        inferred = shape_inference.infer_shapes(self._model, strict_mode=False, data_prop=True).graph
        for each in (*inferred.value_info, *inferred.output):
            maker = self._makers.get(each.name)
            kind = each.type.tensor_type
            if maker is None or not each.type.HasField("tensor_type"):
                continue
            if kind.elem_type and kind.elem_type not in _TYPES:
                raise _broken(maker, f"its result {each.name} is {_type(kind.elem_type)}", "use float32, int64 or bool")
            if len(kind.shape.dim) > MAX_AXES:
                raise _broken(maker, f"its result has {len(kind.shape.dim)} axes, TensorRT takes {MAX_AXES}", "reshape")
            sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
            if 0 in sizes:
                raise _broken(maker, f"its result {each.name} is empty", "remove what computes nothing")
            if None in sizes:
                raise _broken(
                    maker, f"the size of its result {each.name} ({_sizes(each)}) is open", "export with a fixed batch"
                )

    def _is_roi(self, name: str) -> bool:
        """Resize has empty tensors in place of inputs that it does not take."""
        return all(node.op_type == "Resize" for node in self._model.graph.node if name in node.input)

    def _reader(self, name: str) -> NodeProto:
        return next((node for node in self._model.graph.node if name in node.input), NodeProto(name=name))


def _channel_axis(node: NodeProto, axes: int) -> int:
    """The axis of a layer's weight that counts its output channels."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if next((each.i for each in node.attribute if each.name == "transB"), 0) else 1
    return axes - 1


def _broken(node: NodeProto, rule: str, remedy: str) -> UsageError:
    return UsageError(f"profile portable: node {node.name or '(without name)'} ({node.op_type}): {rule}: {remedy}")


def _type(kind: int) -> str:
    return str(TensorProto.DataType.Name(kind)).lower()


def _sizes(value: onnx.ValueInfoProto) -> str:
    return " x ".join(str(dim.dim_value or dim.dim_param or "?") for dim in value.type.tensor_type.shape.dim)
