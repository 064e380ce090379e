"""What is told about a foreign model: its labels, kind of scores, size, and whether it can be attacked by gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from onnx import ModelProto, TensorProto

from edge.errors import UsageError
from export.graphs.foreign.reading import one_line, tensors_of
from export.graphs.foreign.trial import MAX_DIFFERENCE
from export.graphs.from_torch import OUTPUT
from export.twin import Twin

MAX_LABELS = 4096
# Softmax and sigmoid may be followed by these.
_PASSING = frozenset(
    {
        "Identity",
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Cast",
        "Transpose",
        "QuantizeLinear",
        "DequantizeLinear",
    }
)
_WEIGHTS = frozenset(
    {
        *(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16),
        *(TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.INT4, TensorProto.UINT4),
    }
)


def read_labels(given: str) -> tuple[str, ...]:
    """The classes, from a file with one per line or from a list with commas, in the order of the scores.

    Raises:
        UsageError: no such file, fewer than two labels, an empty or unprintable one, or one twice.
    """
    path = Path(given)
    if "," in given and not path.is_file():
        found = [each.strip() for each in given.split(",")]
    else:
        try:
            with path.open(encoding="utf-8") as file:
                found = [line.strip() for line in file.read(1 << 20).splitlines()]
        except OSError as error:
            raise UsageError(f"--labels {given}: {error.strerror}; give a file or a list such as yes,no") from None
        except UnicodeDecodeError:
            raise UsageError(f"--labels {given}: not UTF-8; give a text file with one label per line") from None
        while found and not found[-1]:
            found.pop()
    for place, label in enumerate(found, 1):
        if not label or not label.isprintable() or len(label) > 64:
            raise UsageError(f"--labels {given}: label {place} is {label[:64]!r}: use 1 to 64 printable characters")
        if label in found[: place - 1]:
            raise UsageError(f"--labels {given}: {label!r} is there twice")
    if not 2 <= len(found) <= MAX_LABELS:
        raise UsageError(f"--labels {given}: {len(found)} labels; a classifier has 2 to {MAX_LABELS}")
    return tuple(found)


def score_kind_of(
    graph: ModelProto, scores: npt.NDArray[np.float32]
) -> tuple[Literal["logits", "probabilities"], str | None]:
    """Logits or probabilities, by the last operator or by what came out; and a note for probabilities."""
    makers = {name: node for node in graph.graph.node for name in node.output}
    node = makers[OUTPUT]
    while node.op_type in _PASSING and node.input[0] in makers:
        node = makers[node.input[0]]
    sums_to_one = bool(np.all(scores >= 0) and np.all(np.abs(scores.sum(1) - 1) < 1e-3))
    if node.op_type not in {"Softmax", "Sigmoid", "HardSigmoid"} and not sums_to_one:
        return "logits", None
    ending = f"ends in {node.op_type}" if node.op_type in {"Softmax", "Sigmoid", "HardSigmoid"} else "sums to 1"
    return "probabilities", f"The model {ending}: its scores are probabilities, whose gradient fades where it is sure."


def parameter_count(model: ModelProto) -> int:
    """The numbers of all stored float and narrow integer tensors that are no scalars."""
    sizes = (int(np.prod(tensor.dims)) for _, tensor in tensors_of(model.graph) if tensor.data_type in _WEIGHTS)
    return sum(size for size in sizes if size > 1)


def missing_in_twin(
    graph: ModelProto, pcm: npt.NDArray[np.float32], expected: npt.NDArray[np.float32], *, batch: int | None
) -> str | None:
    """Why a twin cannot stand for the graph, or None where it gives the same scores."""
    try:
        twin = Twin(graph)
        with torch.inference_mode():
            clips = torch.from_numpy(pcm)
            parts = [twin(clips)] if batch is None else [twin(clip.repeat(batch, 1))[:1] for clip in clips]
        found = torch.cat(parts).numpy()
    except UsageError as error:
        return str(error).partition(":")[0]
    except (RuntimeError, IndexError, TypeError, ValueError, KeyError) as error:
        return f"it fails: {one_line(error)}"
    limit = MAX_DIFFERENCE * max(1.0, float(np.abs(expected).max()))
    if twin.quantised:
        return None if bool((found.argmax(1) == expected.argmax(1)).all()) else "it gives other labels than onnxruntime"
    worst = float(np.abs(found - expected).max())
    return None if worst <= limit else f"its scores differ from onnxruntime's by {worst:.2g}"
