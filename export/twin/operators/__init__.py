"""The ONNX operators that a twin computes, in torch: forward as onnxruntime does, gradients by autograd.

Each function takes the node's attributes and its inputs (None where an optional one is absent). Attributes hold two
entries of the compiler's own: ``opset``, and ``batch`` where the graph takes one batch size only. Whatever is not in
:data:`OPERATORS` is refused by name.
"""

from __future__ import annotations

from export.twin.operators.elementwise import ELEMENTWISE
from export.twin.operators.layers import LAYERS
from export.twin.operators.reductions import REDUCTIONS
from export.twin.operators.shapes import SHAPES, Operator

OPERATORS: dict[str, Operator] = {**ELEMENTWISE, **LAYERS, **REDUCTIONS, **SHAPES}

# They move values but make no new ones: what was on a quantisation grid stays on it.
MOVING = frozenset(
    {"Dropout", "Flatten", "Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
)

__all__ = ["MOVING", "OPERATORS", "Operator"]
