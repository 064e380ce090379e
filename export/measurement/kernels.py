"""In which arithmetic onnxruntime's CPU provider really computes a bundle: asked of it, not of the manifest."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx

from edge.bundle.reading import Bundle
from edge.bundle.session import open_session
from export.graphs.from_torch import FRONT_END

_INTEGER = frozenset(
    {
        "QLinearConv",
        "QLinearMatMul",
        "QGemm",
        "ConvInteger",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "ConvIntegerToFloat",
    }
)
_FLOAT = frozenset({"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "MatMulNBits"})


@dataclass(frozen=True, slots=True)
class Kernels:
    """How many layers outside the front end are computed in 8-bit integers, and how many in 32-bit floating point."""

    integer: int
    floating: int

    @property
    def computes_in(self) -> str:
        """One phrase for a table."""
        if not self.integer:
            return "32-bit float"
        if not self.floating:
            return "8-bit integers"
        return f"8-bit integers in {self.integer} of {self.integer + self.floating} layers"


def kernels(bundle: Bundle) -> Kernels:
    """Load the bundle's graph as a device does and count the kernels that onnxruntime chose for its layers."""
    with tempfile.TemporaryDirectory(prefix="earshot-kernels-") as folder:
        chosen = Path(folder) / "chosen.onnx"
        open_session(bundle.model, profile=bundle.manifest.quantisation.profile, write_optimised=chosen)
        nodes = [each for each in onnx.load(chosen).graph.node if not each.name.startswith(FRONT_END)]
    return Kernels(
        integer=sum(each.op_type in _INTEGER for each in nodes),
        floating=sum(each.op_type in _FLOAT for each in nodes),
    )
