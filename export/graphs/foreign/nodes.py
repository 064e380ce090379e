"""A list of ONNX nodes that is being written: names are made here, so that no two are alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.graphs.from_torch import FRONT_END


@dataclass
class Nodes:
    """Nodes and constants whose names all begin with ``prefix``; standard operators of opset 13 and later only."""

    prefix: str = FRONT_END
    nodes: list[NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)

    def constant(self, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        """Store an array and return the name of its value."""
        full = f"{self.prefix}{name}_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), full))
        return full

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Append a node with one output and return the name of its value."""
        name = f"{self.prefix}{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def plus(self, value: str, number: npt.ArrayLike) -> str:
        """``value + number``."""
        return self.add("Add", value, self.constant("plus", number))

    def times(self, value: str, number: npt.ArrayLike) -> str:
        """``value * number``."""
        return self.add("Mul", value, self.constant("times", number))

    def reshaped(self, value: str, sizes: list[int]) -> str:
        """``value`` in another shape; 0 keeps a size."""
        return self.add("Reshape", value, self.constant("shape", sizes, np.int64))

    def at_least(self, value: str, limit: str) -> str:
        """The larger of both, made of Relu: quantisers and twins know it, and its gradient is the right one."""
        above = self.add("Relu", self.add("Sub", value, limit))
        return self.add("Add", above, limit)
