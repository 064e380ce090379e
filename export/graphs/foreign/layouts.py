"""Which axis of a foreign model's input is what."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from edge.errors import UsageError

PCM_LAYOUTS = ("batch,samples", "batch,1,samples", "batch,samples,1", "samples")
LOGMEL_LAYOUTS = (
    "batch,frames,bands",
    "batch,bands,frames",
    "batch,1,frames,bands",
    "batch,1,bands,frames",
    "batch,frames,bands,1",
    "batch,bands,frames,1",
    "batch,frames*bands",
    "batch,bands*frames",
    "frames,bands",
    "bands,frames",
)
# A fixed batch larger than this is some other axis.
MAX_FIXED_BATCH = 64

Dimension = int | None


def choose_layout(
    shape: Sequence[Dimension],
    sizes: Mapping[str, int],
    *,
    known: Sequence[str],
    wanted: str | None,
    what: str,
    hint: str = "",
) -> str:
    """Find the one layout that fits.

    Args:
        shape: of the model's input; None where an axis is free.
        sizes: of the axes that are not the batch, e.g. ``{"frames": 98, "bands": 40}``.
        known: the layouts to choose from.
        wanted: what the user said, if anything.
        what: how to speak of the input in an error.
        hint: what to say where none fits.

    Raises:
        UsageError: none fits, or several do and ``wanted`` is None.
    """
    if wanted is not None and wanted not in known:
        raise UsageError(f"--layout {wanted!r}: use one of {' '.join(known)}")
    asked = known if wanted is None else (wanted,)
    fitting = [layout for layout in asked if fits(layout, shape, sizes)]
    if not fitting:
        given = " and ".join(f"{size} {name}" for name, size in sizes.items()) or "any length"
        layouts = f"--layout {wanted}" if wanted else f"any of {' '.join(known)}"
        raise UsageError(f"{what} is {shown(shape)}, which does not fit {layouts} with {given}{hint}")
    if len(fitting) > 1 and shape[0] is None:
        fitting = [layout for layout in fitting if layout.startswith("batch")]
    exact = [_exact(layout, shape, sizes) for layout in fitting]
    fitting = [layout for layout, count in zip(fitting, exact, strict=True) if count == max(exact)]
    if len(fitting) > 1:
        raise UsageError(f"{what} is {shown(shape)}, which may mean {' or '.join(fitting)}: say which with --layout")
    return fitting[0]


def fits(layout: str, shape: Sequence[Dimension], sizes: Mapping[str, int]) -> bool:
    """Whether an input of this shape takes the layout; sizes that are missing fit every length."""
    axes = layout.split(",")
    return len(axes) == len(shape) and all(_fits(axis, size, sizes) for axis, size in zip(axes, shape, strict=True))


def length_of(name: str, layout: str, shape: Sequence[Dimension], sizes: Mapping[str, int]) -> Dimension:
    """The length that the shape gives to an axis, or to a part of one whose other parts are known; None if free."""
    for axis, size in zip(layout.split(","), shape, strict=True):
        others = [sizes[part] for part in axis.split("*") if part != name and part in sizes]
        if name in axis.split("*") and size is not None and size % math.prod(others) == 0:
            return size // math.prod(others)
    return None


def fixed_batch(layout: str, shape: Sequence[Dimension]) -> Dimension:
    """The only batch size that the input takes, or None."""
    return shape[0] if layout.startswith("batch") else 1


def target_shape(layout: str, sizes: Mapping[str, int]) -> list[int]:
    """The shape to give to (batch, ...) so that it has the layout; 0 keeps the batch."""
    return [_length(axis, sizes) for axis in layout.split(",")]


def shown(shape: Sequence[Dimension]) -> str:
    """A shape for people, ``?`` where an axis is free."""
    return f"({', '.join('?' if size is None else str(size) for size in shape)})"


def _fits(axis: str, size: Dimension, sizes: Mapping[str, int]) -> bool:
    if size is None:
        return True
    if axis == "batch":
        return size <= MAX_FIXED_BATCH
    if axis == "1":
        return size == 1
    if axis == "samples" and size == 1:
        return False
    return any(part not in sizes for part in axis.split("*")) or size == _length(axis, sizes)


def _exact(layout: str, shape: Sequence[Dimension], sizes: Mapping[str, int]) -> int:
    """How many axes have a fixed length that is known to be theirs: better evidence than a free axis."""
    axes = zip(layout.split(","), shape, strict=True)
    return sum(size is not None and all(part in sizes for part in axis.split("*")) for axis, size in axes)


def _length(axis: str, sizes: Mapping[str, int]) -> int:
    if axis in {"batch", "1"}:
        return 0 if axis == "batch" else 1
    return math.prod(sizes[part] for part in axis.split("*"))
